"""The whole job under attack: killed at counted writes and at random times, on full disks, twice at
once. The same command then ends as an undisturbed run does, and nothing is left over.

The jobs run in children of faults_worker.py.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
from faults_worker import FAILED, FULL, REFUSED
from test_faults import KILLED, Worker, contents

KILLS, MOMENTS, DISKS, PAIRS = 40, 20, 20, 10  # at writes, at random times


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        made = Worker()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(worker, tmp_path_factory) -> tuple[Path, int, float]:
    """An undisturbed job's folder, what it wrote, and its seconds."""
    runs = tmp_path_factory.mktemp("whole") / "runs"
    answer = worker.ask(do="small_jobs", runs=str(runs))
    assert answer["codes"] == [0]
    return runs / "small", answer["told"][0]["writes"], answer["seconds"]


def outcome(folder: Path) -> dict[str, object]:
    """All that a finished run's folder holds, without times of clocks and peaks of memory."""
    found: dict[str, object] = {str(p.relative_to(folder)): p.is_dir() for p in folder.rglob("*")}
    found |= contents(folder)
    results = json.loads((folder / "results.json").read_text())
    for row in (*results["rows"], *results["floor"]):
        row["seconds"] = None
        row["costs"] = {key: (row["costs"] or {}).get(key) for key in ("macs", "parameters")}
    weights = sorted((folder / "student").rglob("*.safetensors"))
    return found | {"results": results, "weights": [p.read_bytes() for p in weights]}


def fault_of(worker: Worker, folder: Path, whole: Path) -> str:
    """What is wrong with a run after the same command, if anything."""
    answer = worker.ask(do="small_jobs", runs=str(folder.parent))
    if answer["codes"] != [0]:
        return f"not finished: {answer}"
    mine, wanted = outcome(folder), outcome(whole)
    differ = [key for key in mine.keys() | wanted.keys() if mine.get(key) != wanted.get(key)]
    beside = [p.name for p in folder.parent.iterdir() if p != folder]
    return ", ".join(sorted(differ) + beside)


def spread(count: int, end: int) -> list[int]:
    """`count` numbers from 1 to `end`, evenly."""
    return [1 + round(k * (end - 1) / (count - 1)) for k in range(count)]


@pytest.mark.full(shard="attack")
def test_a_job_killed_after_its_training_leaves_nothing(worker, whole, tmp_path):
    """In the middle of the report, and again in the midst of the next export."""
    folder, writes, _ = whole
    request = {"do": "small_jobs", "runs": str(tmp_path / "runs"), "happening": "die"}
    for call in (writes - 9, writes // 2):
        assert worker.ask(**request, call=call)["codes"] == [KILLED]
    assert fault_of(worker, tmp_path / "runs" / "small", folder) == ""


@pytest.mark.full(shard="attack")
def test_a_job_killed_at_any_write_ends_as_an_undisturbed_one(worker, whole, tmp_path, figure):
    folder, writes, _ = whole
    bad = {}
    for call in spread(KILLS, writes):
        runs = tmp_path / str(call)
        request = {"do": "small_jobs", "runs": str(runs), "happening": "die", "call": call}
        assert worker.ask(**request)["codes"] == [KILLED]
        bad[call] = fault_of(worker, runs / "small", folder)
        shutil.rmtree(runs)
    figure("kills at writes", KILLS)
    figure("writes of the job", writes)
    assert not any(bad.values()), bad


@pytest.mark.full(shard="attack")
def test_a_job_killed_at_random_times_ends_as_an_undisturbed_one(worker, whole, tmp_path, figure):
    folder, _, seconds = whole
    rng, bad, killed = random.Random(0), {}, 0
    for trial in range(MOMENTS):
        runs, moment = tmp_path / str(trial), rng.uniform(0.02, 1) * seconds
        answer = worker.ask(do="small_jobs", runs=str(runs), kill=moment)
        killed += answer["codes"] == [KILLED]
        bad[moment] = fault_of(worker, runs / "small", folder)
        shutil.rmtree(runs)
    figure("kills at random times", killed)
    assert killed >= MOMENTS // 2 and not any(bad.values()), bad


@pytest.mark.full(shard="attack")
def test_a_job_on_a_full_disk_says_so_and_ends_as_an_undisturbed_one(
    worker, whole, tmp_path, figure
):
    folder, writes, _ = whole
    bad = {}
    for call in spread(DISKS // 2, writes):
        for happening in ("no room", "little room"):
            runs = tmp_path / f"{call} {happening}"
            request = {"do": "small_jobs", "runs": str(runs), "happening": happening}
            (code,), (told,), _ = worker.ask(**request, call=call).values()
            refused = code in (FULL, FAILED, REFUSED) and told["message"]
            one_line = refused and "\n" not in told["message"]
            fault = fault_of(worker, runs / "small", folder)
            bad[f"{call} {happening}"] = fault or ("" if code == 0 or one_line else (code, told))
            shutil.rmtree(runs)
    figure("full disks", len(bad))
    assert not any(bad.values()), bad


@pytest.mark.full(shard="attack")
def test_two_jobs_in_one_folder_spoil_nothing(worker, whole, tmp_path, figure):
    folder, _, seconds = whole
    bad, refused = {}, 0
    for gap in [k / PAIRS * seconds for k in range(PAIRS)]:
        runs = tmp_path / f"{gap}"
        codes, told, _ = worker.ask(do="small_jobs", runs=str(runs), gaps=[gap]).values()
        lines = [one["message"] for one in told if one["message"]]
        refused += len(lines)
        good = sorted(codes) in ([0, 0], [0, REFUSED]) and len(lines) == codes.count(REFUSED)
        said = all("is at work there" in line for line in lines)
        bad[gap] = fault_of(worker, runs / "small", folder) or ("" if good and said else told)
        shutil.rmtree(runs)
    figure("pairs of jobs", PAIRS)
    figure("of these refused", refused)
    assert refused and not any(bad.values()), bad


@pytest.mark.full(shard="attack")
def test_processes_that_are_launched_together_are_one_run(worker, tmp_path):
    answer = worker.ask(do="whole_job", runs=str(tmp_path), accident=None, processes=2)
    assert answer["codes"] == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / "smoke" / "log.jsonl").open()]
    turns = [row["turn"] for row in rows if row["player"] == "student"]
    assert turns == sorted(set(turns)) and not list((tmp_path / "smoke").glob(".*"))
