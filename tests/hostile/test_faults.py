"""Runs that are killed, stopped or run out of room, and go on as if nothing had been.

The trainings run in children of faults_worker.py, whose SCENARIOS they take.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import faults_worker
import pytest
from accelerate import Accelerator
from faults_worker import FULL, SCENARIOS, STOPPED
from safetensors.torch import load_file

from stepdistill.jobs.distill import finished as finished_run
from stepdistill.runs.config import read as read_config
from stepdistill.runs.folder import RunFolder
from stepdistill.runs.loop import train
from stepdistill.runs.settings import Stage
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.training.checkpoint import finished, latest, read_state
from stepdistill.training.trainer import Training

KILLED = -9
WORKER = Path(faults_worker.__file__)
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")  # mounts of its own, if permitted


class Worker:
    """The worker process, in a process group of its own."""

    def __init__(self) -> None:
        alone = shutil.which("unshare") and not subprocess.run([*NAMESPACE, "true"]).returncode
        command = [*(NAMESPACE if alone else ()), sys.executable, str(WORKER)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, start_new_session=True, **pipes)
        self.wholes: dict[str, tuple[Path, float]] = {}

    def ask(self, **request: object) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the worker died"
        return json.loads(answer)

    def run(self, scenario: str, folder: Path, *accidents: tuple | None, **more: float) -> list:
        """Exit codes of the processes that train a scenario."""
        request = {"do": "run", "scenario": scenario, "folder": str(folder)}
        return self.ask(**request, accidents=accidents or (None,), **more)["codes"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=150)
        with pytest.raises(ProcessLookupError):  # it left no child behind
            os.killpg(self.process.pid, 0)


@pytest.fixture(scope="module")
def worker():
    made = Worker()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(worker, tmp_path_factory):
    """The folder and seconds of a scenario's uninterrupted run, made once."""
    made: dict[str, tuple[Path, float]] = {}

    def get(scenario: str) -> tuple[Path, float]:
        if scenario not in made:
            folder = tmp_path_factory.mktemp("whole") / scenario
            request = {"do": "run", "scenario": scenario, "accidents": [None]}
            answer = worker.ask(**request, folder=str(folder))
            assert answer["codes"] == [0]
            made[scenario] = folder, answer["seconds"]
        return made[scenario]

    return get


def contents(folder: Path) -> dict[str, object]:
    """Every byte of a run's checkpoints, hidden ones too, and the log's rows without seconds."""
    files = sorted(p for p in (folder / "checkpoints").rglob("*") if p.is_file())
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert files and rows
    return {str(p.relative_to(folder)): p.read_bytes() for p in files} | {
        "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    }


class Point(NamedTuple):
    """Where a run is killed: accidents (name, call) of one process after the other, then after
    shares of the uninterrupted run's time."""

    scenario: str
    accidents: list[tuple[str, int]] = []
    shares: list[float] = []


FIRST = (
    Point("cycles", [("turn", 5)]),  # between two turns of the critic, samples carried
    # While a checkpoint is written, and then right after that one, whose turn has rows in the log.
    Point("cycles", [("half a file", 2), ("renamed", 1)]),
    Point("stages", [("renamed", 3), ("turn", 1)]),  # the last checkpoint of a stage, then at once
)
POINTS = FIRST + (
    Point("cycles", [("turn", 1)]),
    Point("cycles", [("turn", 20)]),  # the last
    Point("cycles", [("half a file", 1)]),
    Point("cycles", [("half a file", 7)]),
    Point("cycles", [("flush", 3)]),
    Point("cycles", [("flush", 17)]),
    Point("cycles", [("rename", 3)]),
    Point("cycles", [("half deleted", 1)]),
    Point("cycles", [("half a row", 2), ("cutting the log", 1)]),
    Point("cycles", [("half a file", 2), ("rename", 1), ("flush", 5), ("half deleted", 1)]),
    Point("cycles", shares=[0.3, 0.5]),
    Point("cycles", shares=[0.9]),
    Point("stages", [("turn", 6)]),  # the first of the second stage
    Point("stages", [("half a row", 3)]),
    Point("stages", shares=[0.4]),
    Point("dmd2", [("half a file", 3)]),  # the last checkpoint of the first stage
    Point("dmd2", [("turn", 8)]),
    Point("dmd2", [("flush", 25)]),
    Point("dmd2", shares=[0.6, 0.4]),
    Point("dmd2", shares=[0.8]),
    Point("adapters", [("turn", 10)]),
    Point("adapters", [("renamed", 5)]),
)


def survives(worker: Worker, point: Point, whole: tuple[Path, float], folder: Path) -> bool:
    """Whether a run that is killed, and goes on, ends as the uninterrupted one, byte for byte."""
    for accident in point.accidents:
        assert worker.run(point.scenario, folder, accident) == [KILLED]
    for share in point.shares:
        seconds = share * whole[1]
        while worker.run(point.scenario, folder, seconds=seconds) != [KILLED]:
            shutil.rmtree(folder)  # it was faster than the whole one, and had ended
            seconds *= 0.8
    assert worker.run(point.scenario, folder) == [0]
    return contents(folder) == contents(whole[0])


@pytest.mark.parametrize("point", FIRST, ids=str)
def test_a_killed_run_goes_on_bit_for_bit(worker, whole, tmp_path, point):
    assert survives(worker, point, whole(point.scenario), tmp_path / "run")


@pytest.mark.full(shard="faults")
def test_runs_killed_anywhere_go_on_bit_for_bit(worker, whole, tmp_path, figure):
    failed = [
        point
        for k, point in enumerate(POINTS)
        if not survives(worker, point, whole(point.scenario), tmp_path / str(k))
    ]
    figure("points of kill -9", len(POINTS))
    figure("of these bitwise equal", len(POINTS) - len(failed))
    assert len(POINTS) >= 25 and failed == []


def test_what_is_interrupted_is_worth_it(whole):
    # Guards the tests above: samples are carried, means under way, steps skipped in both stages.
    folder, _ = whole("cycles")
    state = read_state(finished(folder / "checkpoints")[0])
    assert {"carry/0/x", "carry/1/cond/label"} <= state.tensors.keys()
    assert any(means["count"] for means in state.numbers["pending"].values())
    skipped = {row["stage"]: row["skipped"] for row in contents(folder)["rows"]}
    assert 0 < skipped[0] < skipped[1]
    for scenario in ("stages", "dmd2", "adapters"):
        assert len({row["stage"] for row in contents(whole(scenario)[0])["rows"]}) == 2


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    worker, whole, tmp_path
):
    folder = tmp_path / "run"
    assert worker.run("cycles", folder, ("turn", 9)) == [KILLED]
    *_, good, bad = finished(folder / "checkpoints")
    altered = (bad / "state.json").read_text().replace('"update": 3', '"update": 4')
    (bad / "state.json").write_text(altered)
    assert worker.run("cycles", folder) == [0]
    warning = f"checkpoint {bad}: state.json was altered or truncated"
    assert told(folder)["warnings"] == [warning]
    assert contents(folder) == contents(whole("cycles")[0])


def told(folder: Path, rank: int = 0) -> dict:
    """What a process that trained in a folder had to say at its end."""
    return json.loads(folder.with_name(f"{folder.name}.{rank}.json").read_text())


@pytest.mark.parametrize(
    ("scenario", "accident"),
    [("cycles", ("ctrl-c", 6)), ("cycles", ("sigterm", 15)), ("stages", ("ctrl-c", 1))],
)
def test_a_stopped_run_goes_on_bit_for_bit(worker, whole, tmp_path, scenario, accident):
    folder = tmp_path / "run"
    assert worker.run(scenario, folder, accident) == [STOPPED]
    state, _ = latest(folder / "checkpoints")
    assert state.numbers["turn"] == told(folder)["turn"]  # the step in hand is saved
    assert worker.run(scenario, folder) == [0]
    assert contents(folder) == contents(whole(scenario)[0])


@pytest.fixture(scope="module")
def on_two(worker, tmp_path_factory):
    """The folder of the cycle's uninterrupted run on two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    assert worker.run("cycles", folder, None, None) == [0, 0]
    return folder


def test_all_processes_stop_at_the_same_turn_whichever_was_asked(worker, on_two, tmp_path):
    cut = tmp_path / "cut"
    for rank, accident in enumerate([("ctrl-c", 5), ("sigterm", 3), ("echoed ctrl-c", 3)]):
        both = (None, accident) if rank % 2 == 0 else (accident, None)
        assert worker.run("cycles", cut, *both) == [STOPPED, STOPPED]
        assert told(cut, 0) == told(cut, 1)
        assert latest(cut / "checkpoints")[0].numbers["turn"] == told(cut)["turn"]
    assert worker.run("cycles", cut, None, None) == [0, 0]
    assert contents(cut) == contents(on_two)


def test_a_step_that_is_not_finite_on_one_process_is_skipped_by_all(worker, on_two, whole):
    # One process with as many micro-batches meets the same numbers that are none.
    one, _ = whole("cycles, accumulated")
    skipped = [[row["skipped"] for row in contents(folder)["rows"]] for folder in (on_two, one)]
    assert skipped[0] == skipped[1] and skipped[0][-1] > 0
    assert told(on_two, 0)["weights"] == told(on_two, 1)["weights"]


def test_a_run_of_two_processes_is_not_gone_on_with_by_one(on_two, tmp_path):
    """Told with the numbers, and nothing is written; a finished one can be looked at."""
    cut = tmp_path / "run"
    shutil.copytree(on_two, cut)
    run = SCENARIOS["cycles"]
    stages = Stages.of(run, cut, Accelerator(cpu=True))
    stages.restore()
    train(stages, lambda _: None)  # nothing is left to train
    assert stages.result().student.net is not None
    for path in finished(cut / "checkpoints")[-1:]:
        shutil.rmtree(path)
    before = contents(cut)
    stages = Stages.of(run, cut, Accelerator(cpu=True))
    stages.restore()
    wanted = "began on 2 processes, this is 1: a turn would have 8 samples, not 16, .* go on with 2"
    with pytest.raises(ConfigError, match=wanted):
        train(stages, lambda _: None)
    assert contents(cut) == before


def test_a_carried_sample_that_is_not_finite_costs_its_own_turn_only(tmp_path):
    stage = Stage("unsteady", {"rate": 0.4, "ratio": 2}, Training(updates=12, batch=4, skips=100))
    run = replace(read_config("smoke"), stages=[stage])
    trainer = Stages.of(run, tmp_path, Accelerator(cpu=True)).trainer
    seen = set()
    while not trainer.done:
        where, step = trainer.turn % 3, trainer.step()
        carried = bool(trainer.carries[0].x.isfinite().all())
        seen.add((where, step.skipped, carried))
        kept = {k: v for k, v in trainer.state().tensors.items() if not k.startswith("carry")}
        assert all(bool(v.isfinite().all()) for v in kept.values())
    student = {(0, False, True), (0, True, True), (0, True, False)}
    first, second = {(1, False, True), (1, True, False)}, {(2, False, True), (2, False, False)}
    assert seen == student | first | second


@pytest.mark.full(shard="faults")
@pytest.mark.parametrize("accident", ["exported", "scored", "described"])
def test_a_job_killed_after_training_is_finished_by_the_same_command(worker, tmp_path, accident):
    def job(what: tuple | None) -> list[int]:
        return worker.ask(do="whole_job", runs=str(tmp_path), accident=what)["codes"]

    assert job((accident, 1)) == [KILLED]
    assert not (tmp_path / "smoke" / "costs.json").exists()
    assert job(None) == [0]
    result = finished_run(read_config("smoke"), RunFolder(tmp_path / "smoke"))
    assert [row.model for row in result.rows][-1] == "real"
    assert not list((tmp_path / "smoke").glob(".*"))
    model = load_file(result.student / "unet" / "diffusion_pytorch_model.safetensors")
    state, _ = latest(tmp_path / "smoke" / "checkpoints")
    averages = [v for k, v in state.tensors.items() if k.startswith("ema/")]
    assert len(model) == len(averages)
    assert sum(v.numel() for v in model.values()) == sum(v.numel() for v in averages)


def test_processes_wait_for_the_main_one_longer_than_their_group_would(worker):
    assert worker.ask(do="outlast", seconds=5, patience=3)["codes"] == [0, 0]


def room(worker: Worker, folder: Path) -> str:
    """Make a disk that can be full, a real one if permitted; the accident that fills it."""
    if worker.ask(do="mount", folder=str(folder), size="40m")["mounted"]:
        return "full"
    return "limit"


@pytest.mark.parametrize("real", [True, False])
def test_a_full_disk_stops_with_one_clear_line_and_loses_nothing(worker, whole, tmp_path, real):
    folder, seen = tmp_path / "run", tmp_path / "seen"
    accident = room(worker, folder) if real else "limit"
    assert worker.run("cycles", folder, (accident, 9)) == [FULL]
    line = told(folder)["message"]
    assert "could not be written" in line and "MB are free" in line and "\n" not in line
    assert "go on" in line or "goes on" in line
    worker.ask(do="copy", folder=str(folder), to=str(seen))
    assert latest(seen / "checkpoints")[1] == []
    assert not list((seen / "checkpoints").glob(".*"))
    if accident == "full":
        worker.ask(do="remove", file=str(folder / "ballast"))
    assert worker.run("cycles", folder) == [0]
    shutil.rmtree(seen)
    worker.ask(do="copy", folder=str(folder), to=str(seen))
    assert contents(seen) == contents(whole("cycles")[0])
