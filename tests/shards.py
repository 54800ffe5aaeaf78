"""`make test-all`: every test, in shards that can be run alone, stopped and taken up again.

    python tests/shards.py                    run all shards that have not yet passed on this code
    python tests/shards.py --list             name them, with what is known of each
    python tests/shards.py NAME ... [--fresh] run these; --fresh runs also what has passed

A test marked `full` is a shard of its own, named after its file and function, or belongs to the
shard its mark names: `@pytest.mark.full(shard="digits")`. All tests marked `bench` are the shard
"bench", all others the shard "fast". A shard is one pytest process and is stopped after 90
minutes.

Results are kept in eval/results/test-all.json: per shard the commit, whether uncommitted changes
were present, date, seconds, counts and the figures its tests recorded; what the fast tests cost
lies in durations.json beside it. A shard is not run again while it has passed on a commit that
differs from a clean HEAD in nothing but eval/results.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "eval" / "results" / "test-all.json"
DURATIONS = RESULTS.with_name("durations.json")
# Results are no code, but for those that tests read.
READ = ("comparison", "digits-teacher", "digits-teacher-vp", "mixture")
CODE = ("--", ".", ":!eval/results"), ("--", *(f"eval/results/{name}" for name in READ))
# As it was given: collecting the tests sets what they run with.
ENVIRONMENT = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)} | os.environ
LIMIT = float(os.environ.get("STEPDISTILL_SHARD_SECONDS", 5400))


class Collection:
    """A pytest plugin that sorts the collected tests into shards: name → node ids."""

    def __init__(self) -> None:
        self.shards: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.shards.setdefault(shard_of(item), []).append(item.nodeid)


def shard_of(item: pytest.Item) -> str:
    """The name of the shard a test belongs to."""
    full = item.get_closest_marker("full")
    if full is None:
        return "bench" if item.get_closest_marker("bench") else "fast"
    own = f"{item.path.stem}.{item.name.partition('[')[0]}".replace("test_", "")
    return full.kwargs.get("shard") or own


def collect() -> dict[str, list[str]]:
    """All shards of the suite, the fast tests first. Exits with pytest's words if it cannot."""
    collection, words = Collection(), io.StringIO()
    with contextlib.redirect_stdout(words):
        code = pytest.main(["--collect-only", "-q", "-m", "", str(ROOT)], plugins=[collection])
    if code != 0:
        sys.exit(f"{words.getvalue()}\nthe tests cannot be collected")
    return dict(sorted(collection.shards.items(), key=lambda shard: (shard[0] != "fast", shard[0])))


def git(*arguments: str) -> str | None:
    """What git prints, or None where it fails (no repository, an unknown commit)."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def differs(*arguments: str) -> bool:
    """Whether a comparison by git names any code, or fails."""
    return any(git(*arguments, *paths) != "" for paths in CODE)


def provenance() -> dict:
    """The commit under test and whether the code differs from it."""
    return {"commit": git("rev-parse", "HEAD"), "dirty": differs("status", "--porcelain")}


def is_done(record: dict | None, now: dict) -> bool:
    """Whether a shard passed on a clean commit whose code is that of a clean HEAD."""
    if record is None or not record["ok"] or record["dirty"] or now["dirty"]:
        return False
    return not differs("diff", "--name-only", record["commit"], "HEAD")


def run(name: str, tests: list[str]) -> dict:
    """Run one shard in a process of its own; its record."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-v", f"--junitxml={junit}"]
        began = time.monotonic()
        environment = {"STEPDISTILL_DURATIONS": str(DURATIONS)} if name == "fast" else {}
        code = watch(command + selection(name, tests), environment)
        seconds = round(time.monotonic() - began, 1)
        whole = code is not None and junit.exists()
        record = read_junit(junit) if whole else {"passed": 0, "failed": 0, "skipped": 0}
    if code is None:
        record |= {"stopped": f"after {LIMIT:g} seconds"}
    if code != 0:
        record["failed"] = max(1, record["failed"])
    return record | {"ok": code == 0 and record["passed"] > 0, "seconds": seconds}


def selection(name: str, tests: list[str]) -> list[str]:
    """The pytest arguments for one shard; the big one by marks, for the command line's length."""
    return ["-m", "not full and not bench"] if name == "fast" else ["-m", "", *tests]


def watch(command: list[str], environment: dict[str, str]) -> int | None:
    """The exit code of a command, or None if it ran past the limit. Leaves no process behind."""
    environment = ENVIRONMENT | environment
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        return process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None
    finally:
        stop(process)


def stop(process: subprocess.Popen) -> None:
    """End whatever is left of a process group: first asked, then made."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(timeout=20)


def read_junit(path: Path) -> dict:
    """Counts and recorded figures of a pytest run."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = sum(any(e.tag in ("failure", "error") for e in case) for case in cases)
    skipped = sum(any(e.tag == "skipped" for e in case) for case in cases)
    figures = [
        {"test": case.get("name"), "name": entry.get("name").removeprefix("figure:")}
        | json.loads(entry.get("value"))
        for case in cases
        for entry in case.iter("property")
        if entry.get("name").startswith("figure:")
    ]
    passed = len(cases) - failed - skipped
    return {"passed": passed, "failed": failed, "skipped": skipped, "figures": figures}


def load() -> dict[str, dict]:
    """The records so far, by shard."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def save(name: str, record: dict) -> None:
    """Put one record beside the others; the file is always a whole one."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    partial = RESULTS.with_suffix(".tmp")
    partial.write_text(json.dumps(load() | {name: record}, indent=1, sort_keys=True) + "\n")
    os.replace(partial, RESULTS)


def line(name: str, record: dict | None) -> str:
    """One row of the table."""
    if record is None:
        return f"{name:44} not run"
    verdict = "passed" if record["ok"] else "FAILED"
    state = f"{(record['commit'] or 'no commit')[:10]}{'+changes' if record['dirty'] else ''}"
    counts = " ".join(f"{record[kind]:5}" for kind in ("passed", "failed", "skipped"))
    return f"{name:44} {verdict} {record['seconds']:8.1f} s {counts}  {state}"


def report(names: list[str]) -> int:
    """Print the table and the closing line; the exit code."""
    records = {name: load().get(name) for name in names}
    print("\n" + f"{'shard':44} {'':6} {'time':>10} {'pass':>5} {'fail':>5} {'skip':>5}")
    print(*(line(name, record) for name, record in records.items()), sep="\n")
    kinds = ("passed", "failed", "skipped")
    count = {kind: sum(record[kind] for record in records.values() if record) for kind in kinds}
    print(f"{count['passed']} passed, {count['failed']} failed", end="")
    print(f", {count['skipped']} skipped" if count["skipped"] else "")
    return int(not all(record and record["ok"] for record in records.values()))


def choose(names: list[str], shards: dict[str, list[str]]) -> list[str]:
    """The shards asked for, in the suite's order; all if none was named."""
    unknown = sorted(set(names) - set(shards))
    if unknown:
        print(f"no shard {', '.join(unknown)}; there are: {', '.join(shards)}", file=sys.stderr)
        sys.exit(2)
    return [name for name in shards if not names or name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the whole suite in resumable shards.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="shards to run; all if none")
    parser.add_argument("--list", action="store_true", help="name the shards and what is known")
    parser.add_argument("--fresh", action="store_true", help="run also what has passed")
    options = parser.parse_args()
    shards = collect()
    names = choose(options.names, shards)
    if options.list:
        print(*(line(name, load().get(name)) for name in names), sep="\n")
        return 0
    for name in names:
        now = provenance()
        if not options.fresh and is_done(load().get(name), now):
            print(f"\n=== {name}: passed already on this code", flush=True)
            continue
        print(f"\n=== {name}: {len(shards[name])} tests", flush=True)
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        save(name, run(name, shards[name]) | now | {"date": date})
    return report(names)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped; finished shards are kept, the same command goes on from here")
