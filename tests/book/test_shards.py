"""`make test-all` resumes, forgets nothing and never calls a failure a pass."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SUITE = """
import os, pathlib, time, pytest
COUNT = pathlib.Path(__file__).parents[2] / "count"
def count(name): COUNT.open("a").write(name + " ")
def test_quick(): count("quick")
@pytest.mark.bench
def test_timing(figure): count("timing"); figure("pace", 1.5, "s")
@pytest.mark.full
@pytest.mark.parametrize("n", [1, 2])
def test_long(n): count("long")
@pytest.mark.full(shard="pair")
def test_one(): count("one")
@pytest.mark.full(shard="pair")
def test_other(): count("other"); assert "BROKEN" not in os.environ
@pytest.mark.full
def test_slow(): count("slow"); time.sleep(float(os.environ.get("SLOW", 0)))
"""
SETTINGS = """
[pytest]
markers =
    full: long
    bench: timing
addopts = -m 'not full and not bench'
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A committed repository with the runner and a toy suite of five shards."""
    tests = tmp_path / "project" / "tests"
    tests.mkdir(parents=True)
    for name in ("shards.py", "conftest.py", "limits.py", "workers.py"):
        shutil.copy(TESTS / name, tests)
    (tests / "test_toy.py").write_text(SUITE)
    (tests.parent / "pytest.ini").write_text(SETTINGS)
    (tests.parent / ".gitignore").write_text("__pycache__\n.pytest_cache\n*.tmp\n")
    git(tests.parent, "init", "-q")
    commit(tests.parent)
    return tests.parent


def git(project: Path, *arguments: str) -> None:
    me = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *me, *arguments], cwd=project, check=True)


def commit(project: Path) -> None:
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "state")


def shards(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tests/shards.py", *arguments]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(
        command, cwd=project, env=inherited | environment, capture_output=True, text=True
    )


def records(project: Path) -> dict:
    return json.loads((project / "eval/results/test-all.json").read_text())


def ran(project: Path) -> list[str]:
    """Names of the tests that ran since this was last asked."""
    count = project.parent / "count"
    names = count.read_text().split() if count.exists() else []
    count.unlink(missing_ok=True)
    return sorted(names)


def test_all_shards_run_once_and_are_recorded(project: Path):
    done = shards(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\n7 passed, 0 failed\n")
    assert ran(project) == ["long", "long", "one", "other", "quick", "slow", "timing"]
    assert {name: record["passed"] for name, record in records(project).items()} == {
        "bench": 1, "fast": 1, "pair": 2, "toy.long": 2, "toy.slow": 1
    }  # fmt: skip
    durations = json.loads((project / "eval/results/durations.json").read_text())
    assert durations.keys() == {"unit", "tiers", "dearest"}
    (pace,) = records(project)["bench"]["figures"]
    assert pace == {"test": "test_timing", "name": "pace", "value": 1.5, "unit": "s"}


def test_only_changed_code_is_run_again(project: Path):
    shards(project)
    ran(project)
    commit(project)  # the results themselves
    assert shards(project).stdout.endswith("\n7 passed, 0 failed\n")
    assert ran(project) == []
    shards(project, "pair", "--fresh")
    assert ran(project) == ["one", "other"]
    (project / "tests" / "new.txt").write_text("code")
    shards(project, "toy.long")
    assert ran(project) == ["long", "long"]
    commit(project)
    shards(project, "pair", "toy.long")
    assert ran(project) == ["long", "long", "one", "other"]


def test_a_failure_is_kept_and_run_again(project: Path):
    done = shards(project, "pair", "fast", BROKEN="yes")
    assert done.returncode == 1
    assert done.stdout.endswith("\n2 passed, 1 failed\n")
    assert not records(project)["pair"]["ok"]
    ran(project)
    assert shards(project, "pair", "fast").returncode == 0
    assert ran(project) == ["one", "other"]


def test_a_shard_that_runs_too_long_has_failed(project: Path):
    done = shards(project, "toy.slow", SLOW="60", STEPDISTILL_SHARD_SECONDS="4")
    assert done.returncode == 1
    assert records(project)["toy.slow"]["stopped"] == "after 4 seconds"
    assert done.stdout.endswith("\n0 passed, 1 failed\n")


def test_an_interrupt_keeps_what_is_finished(project: Path):
    command = [sys.executable, "tests/shards.py", "fast", "toy.slow"]
    # A background job starts with SIGINT ignored, and so would its children.
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, cwd=project, env=os.environ | {"SLOW": "60"}, preexec_fn=heeded
    )
    deadline = time.monotonic() + 60
    while "slow" not in (seen := seen_so_far(project)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "slow" in seen
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 1
    assert list(records(project)) == ["fast"]
    ran(project)
    assert shards(project, "fast", "toy.slow").returncode == 0
    assert ran(project) == ["slow"]


def seen_so_far(project: Path) -> str:
    count = project.parent / "count"
    return count.read_text() if count.exists() else ""


def test_an_unknown_shard_is_named(project: Path):
    done = shards(project, "pear")
    assert done.returncode == 2
    assert "no shard pear; there are: fast, bench, pair, toy.long, toy.slow" in done.stderr


def test_a_suite_that_cannot_be_collected_is_no_success(project: Path):
    (project / "tests" / "test_bad.py").write_text("import nothing_of_the_kind\n")
    done = shards(project)
    assert done.returncode == 1 and "nothing_of_the_kind" in done.stderr
