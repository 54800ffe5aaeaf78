"""A run's folder through interruptions: what is logged, saved, shown and continued."""

import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from accelerate import Accelerator
from faults_worker import SCENARIOS
from rich.console import Console
from safetensors import SafetensorError

from stepdistill.export.export import ExportError
from stepdistill.files import DiskError
from stepdistill.jobs.distill import Clock, complete, distill, train_run
from stepdistill.method import Loss
from stepdistill.methods.consistency import Consistency
from stepdistill.runs import loop, stages
from stepdistill.runs.config import RunConfig, read
from stepdistill.runs.folder import RunFolder
from stepdistill.runs.log import Log, curves
from stepdistill.runs.loop import deferred_stop, train
from stepdistill.runs.progress import Snapshot
from stepdistill.runs.stages import Stages, reopen
from stepdistill.schema import ConfigError
from stepdistill.training import checkpoint
from stepdistill.training.checkpoint import CheckpointError, finished, save
from stepdistill.training.health.monitor import Monitor
from stepdistill.training.trainer import TrainingFailed

STAGE = read("smoke").stages[0]


def two_stages() -> RunConfig:
    """Two consistency stages of five updates each, a checkpoint every second update."""
    return replace(read("smoke"), name="two", stages=[STAGE, STAGE], save_every=2)


def session(folder: Path, run: RunConfig | None = None) -> Stages:
    made = Stages.of(run or two_stages(), folder, Accelerator(cpu=True))
    made.restore()
    return made


def train_whole(folder: Path) -> Stages:
    folder.mkdir()
    made = session(folder)
    train(made, lambda _: None)
    return made


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("stop", [(0, 3), (0, 5), (1, 1), (1, 4)])  # (stage, update)
def test_ctrl_c_and_the_same_command_give_the_uninterrupted_run(tmp_path, stop):
    whole = train_whole(tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    first = session(folder)

    def press(moment: Snapshot) -> None:
        if (first.stage, moment.update) == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(first, press)
    assert (first.stage, first.trainer.update) == stop
    second = session(folder)
    train(second, lambda _: None)
    mine, wanted = second.trainer.state(), whole.trainer.state()
    assert mine.numbers == wanted.numbers and mine.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(mine.tensors[k], wanted.tensors[k]) for k in wanted.tensors)
    assert log(folder) == log(tmp_path / "whole")


def test_a_stage_starts_from_the_average_of_the_one_before(tmp_path):
    made = session(tmp_path)
    while not made.trainer.done:
        made.trainer.step()
    averaged = [m.clone() for m in made.trainer.ema.averaged]
    made.next_stage()
    for parameter, mean in zip(made.trainer.players.student.net.parameters(), averaged):
        assert torch.equal(parameter, mean)
    assert made.trainer.update == 0 and not made.finished


LATER = {"stage": 1, "turn": 99, "update": 99, "player": "student"}


@pytest.mark.parametrize("later", ["", f"{json.dumps(LATER)}\n", json.dumps(LATER)])
def test_rows_logged_after_the_last_checkpoint_are_dropped(tmp_path, later):
    train_whole(tmp_path / "whole")
    rows = log(tmp_path / "whole")
    with (tmp_path / "whole" / "log.jsonl").open("a") as file:
        file.write(later + '{"stage": 1, "tu')
    train(session(tmp_path / "whole"), lambda _: None)
    assert log(tmp_path / "whole") == rows


def test_a_row_that_cannot_be_read_costs_no_other(tmp_path):
    train_whole(tmp_path / "whole")
    file = tmp_path / "whole" / "log.jsonl"
    first, *others = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"\xff{\n" + b"".join(others))
    train(session(tmp_path / "whole"), lambda _: None)
    assert file.read_bytes() == b"\xff{\n" + b"".join(others)
    assert len(curves(file)["student: consistency"]) == len(others)


def test_curves_count_updates_over_stages(tmp_path):
    train_whole(tmp_path / "whole")
    points = curves(tmp_path / "whole" / "log.jsonl")["student: consistency"]
    assert [update for update, _ in points] == list(range(1, 11))


def interrupted(folder: Path, press: Callable[[Stages], None]) -> Stages:
    """A session whose `press` was called at every moment, until Ctrl-C ended it."""
    folder.mkdir(exist_ok=True)
    made = session(folder)
    with pytest.raises(KeyboardInterrupt):
        train(made, lambda _: press(made))
    return made


def goes_on_as(folder: Path, whole: Path) -> bool:
    """Whether the same command ends as an uninterrupted run."""
    ended = train_whole(whole).trainer.state().tensors
    again = session(folder)
    train(again, lambda _: None)
    mine = again.trainer.state().tensors
    return all(torch.equal(mine[k], ended[k]) for k in ended) and log(folder) == log(whole)


def test_a_second_ctrl_c_quits_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "ECHO", 0)

    def press(made: Stages) -> None:
        if made.trainer.turn == 3:  # the last checkpoint is that of turn 2
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    interrupted(tmp_path / "cut", press)
    assert [p.name for p in finished(tmp_path / "cut" / "checkpoints")] == ["000002"]
    assert goes_on_as(tmp_path / "cut", tmp_path / "whole")


def test_a_second_ctrl_c_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "ECHO", 0)
    whole = checkpoint.save_file

    def press(made: Stages) -> None:
        if made.trainer.turn == 3:
            signal.raise_signal(signal.SIGINT)
            monkeypatch.setattr(checkpoint, "save_file", impatient)

    def impatient(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half a file")
        signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "cut"
    interrupted(folder, press)
    assert [p.name for p in finished(folder / "checkpoints")] == ["000002"]
    assert [p.name for p in (folder / "checkpoints").glob(".*")] == [".000003.partial"]
    monkeypatch.setattr(checkpoint, "save_file", whole)
    assert goes_on_as(folder, tmp_path / "whole")
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_ctrl_c_during_the_last_checkpoint_of_a_stage_is_heard(tmp_path, monkeypatch):
    whole = checkpoint.save_file

    def press(tensors: dict, path: Path) -> None:
        whole(tensors, path)
        if path.parent.name.startswith(".000005"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save_file", press)
    made = interrupted(tmp_path / "cut", lambda _: None)
    assert (made.stage, made.trainer.done) == (0, True)


def test_signals_are_as_before_once_training_ends(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train_whole(tmp_path / "whole")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert before[1] == signal.SIG_DFL  # which would have ended this process


def test_a_stop_that_nothing_came_of_is_passed_on():
    with pytest.raises(KeyboardInterrupt), deferred_stop():
        signal.raise_signal(signal.SIGTERM)


def test_an_echo_is_one_stop_and_patience_ends(monkeypatch):
    monkeypatch.setattr(loop, "ECHO", 60)
    with pytest.raises(KeyboardInterrupt), deferred_stop() as asked:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
    monkeypatch.setattr(loop, "ECHO", 0)
    with pytest.raises(KeyboardInterrupt), deferred_stop():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_training_works_outside_the_main_thread(tmp_path):
    thread = Thread(target=train, args=(made := session(tmp_path), lambda _: None))
    thread.start()
    thread.join()
    assert made.finished


def unsteady(monkeypatch: pytest.MonkeyPatch, spoil: Callable) -> None:
    """Spoil some of the losses, by the turn's own stream."""
    whole = Consistency.loss

    def loss(self, p, batch) -> Loss:
        found = whole(self, p, batch)
        bad = float(torch.rand((), generator=batch.shared)) < 0.4
        return Loss({"consistency": spoil(found.total)}) if bad else found

    monkeypatch.setattr(Consistency, "loss", loss)


SPOILS = {
    "a loss that is not a number": lambda x: x * torch.nan,
    "an infinite loss": lambda x: x / 0,
    "a gradient that is not a number": lambda x: x + torch.sqrt(x - x),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_steps_that_are_not_finite_are_counted_over_the_run(tmp_path, monkeypatch, spoil):
    unsteady(monkeypatch, spoil)
    moments: list[Snapshot] = []
    made = session(tmp_path)
    train(made, moments.append)
    rows, trainer = log(tmp_path), made.trainer
    by_stage = [max(r["skipped"] for r in rows if r["stage"] == stage) for stage in (0, 1)]
    assert 0 < by_stage[0] < by_stage[1] == trainer.skipped == moments[-1].skipped < 10
    counted = [trainer.ema.updates, by_stage[1] - by_stage[0]]
    assert sum(counted) == 5 and trainer.target.updates == counted[0]
    # A row for every turn; a skipped one has no numbers.
    assert len(rows) == 10
    bad = [row for row in rows if "consistency" not in row]
    assert len(bad) == trainer.skipped and f"{trainer.skipped} steps skipped" in str(moments[-1])
    net = trainer.players.student.net
    assert all(bool(v.isfinite().all()) for v in net.state_dict().values())


BROKEN = {
    "weights of the student": lambda t: t.moved["student"][0],
    "moments in the optimiser of the student": (
        lambda t: t.optimisers["student"].state[t.moved["student"][3]]["exp_avg_sq"]
    ),
    "averages of the student": lambda t: t.ema.averaged[-1],
    "weights of the target": lambda t: t.target.averaged[1],
}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", BROKEN)
def test_what_is_no_number_is_found_before_it_is_saved(tmp_path, part, bad):
    """And the clean checkpoint before is gone on from."""
    folder = tmp_path / "cut"
    folder.mkdir()
    made = session(folder)

    def spoil(_: Snapshot) -> None:
        if made.trainer.turn == 3:
            BROKEN[part](made.trainer).data.view(-1)[-1] = bad

    # A moment that is no number makes a weight of its kind in the next step.
    where = f"update 4: ({part}|weights of the student) hold a NaN or an infinity"
    with pytest.raises(TrainingFailed, match=where):
        train(made, spoil)
    assert [p.name for p in finished(folder / "checkpoints")] == ["000002"]
    again = session(folder)
    assert again.trainer.turn == 2
    while not again.trainer.done:
        assert not again.trainer.step().skipped


def test_skipped_steps_are_shown_and_reported(tmp_path, monkeypatch):
    unsteady(monkeypatch, SPOILS["an infinite loss"])
    monkeypatch.setattr(
        "stepdistill.jobs.distill.export", lambda *_: 0.0
    )  # seconds, and not asked about
    monkeypatch.setattr("stepdistill.jobs.distill.describe", lambda *_: None)
    console = Console(file=io.StringIO(), width=200)
    distill(replace(two_stages(), save_every=100), tmp_path, console)
    skipped = log(tmp_path / "two")[-1]["skipped"]
    assert skipped > 1 and f"{skipped} steps skipped" in console.file.getvalue()
    report = (tmp_path / "two" / "report.md").read_text()
    assert f"| steps skipped as not finite | {skipped} |" in report


def test_too_many_of_them_in_a_row_end_training(tmp_path, monkeypatch):
    unsteady(monkeypatch, SPOILS["an infinite loss"])
    training = replace(STAGE.training, skips=2, updates=50)
    made = session(tmp_path, replace(two_stages(), stages=[replace(STAGE, training=training)]))
    with pytest.raises(TrainingFailed, match="2 steps of the student in a row"):
        train(made, lambda _: None)
    again = session(tmp_path, made.setup.run)
    assert again.trainer.turn >= made.trainer.turn - 2 - made.setup.run.save_every


def test_a_log_without_room_says_so(tmp_path, monkeypatch):
    made, real = session(tmp_path), Path.open

    def full(path: Path, *how: str, **settings: str) -> io.IOBase:
        return real(Path("/dev/full") if path.name == "log.jsonl" else path, *how, **settings)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskError) as raised:
        train(made, lambda _: None)
    assert f"{tmp_path / 'log.jsonl'} could not be written: No space" in str(raised.value)


@pytest.mark.parametrize("full", [True, False])
def test_what_comes_after_training_says_when_there_is_no_room(tmp_path, monkeypatch, full):
    problem = SafetensorError("I/O error: No space left on device (os error 28)")
    problem = problem if full else ExportError("differs")

    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr("stepdistill.jobs.distill.export", fail)
    made = train_whole(tmp_path / "run")
    with pytest.raises(DiskError if full else ExportError) as raised:
        complete(made, Clock(), Console(quiet=True))
    if full:
        assert "No space left on device" in str(raised.value)
        assert "make room, and the same command goes on" in str(raised.value)


def test_a_state_of_another_version_is_refused_with_advice(tmp_path):
    made = session(tmp_path)
    state = made.trainer.state()
    save(tmp_path / "checkpoints", 1, state._replace(numbers=state.numbers | {"stage": 0}))
    with pytest.raises(CheckpointError, match="another version of stepdistill .no 'pending'."):
        session(tmp_path)


def unlike_stages(guidance: float) -> RunConfig:
    """A cheap stage before a dear one."""
    dear = replace(STAGE, settings={"steps": 4, "solver": "heun"})
    return replace(read("smoke"), guidance=guidance, stages=[STAGE, dear])


def test_work_is_counted_in_network_passes(tmp_path):
    # A student's backward is two forward passes; Heun asks the teacher twice, guidance doubles.
    moments: list[Snapshot] = []
    train(session(tmp_path, unlike_stages(guidance=2.0)), moments.append)
    cheap, dear = 3 + 1 + 1 * 2, 3 + 1 + 2 * 2
    done = [0, *(cheap * k for k in range(1, 6)), *(5 * cheap + dear * k for k in range(6))]
    assert [m.done for m in moments] == done
    assert {m.total for m in moments} == {5 * cheap + 5 * dear}
    assert [(m.update, m.updates) for m in moments] == [(k, 5) for k in (*range(6), *range(6))]
    assert [m.losses.keys() for m in moments] == [set(), *[{"student"}] * 5] * 2
    assert all("consistency" in m.losses["student"] for m in moments if m.losses)
    assert "gradient_norm" not in moments[-1].losses["student"]


def test_progress_goes_on_where_it_stopped(tmp_path):
    seen: list[Snapshot] = []

    def press(moment: Snapshot) -> None:
        seen.append(moment)
        if len(seen) == 9:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(session(tmp_path), press)
    stopped = len(seen)
    train(session(tmp_path), seen.append)
    assert seen[stopped].done == seen[stopped - 1].done
    assert (seen[stopped].stage, seen[stopped].update) == ("consistency (2 of 2)", 2)
    done = [m.done for m in seen]
    assert done == sorted(done) and done[-1] == seen[-1].total


def test_players_are_made_once_on_resume(tmp_path, monkeypatch):
    """Networks are big: those of a stage that training is beyond are not made again."""
    made = session(tmp_path)
    train(made, lambda _: None)
    asked = []
    real = stages.make_players
    monkeypatch.setattr(stages, "make_players", lambda *a: asked.append(a[0]) or real(*a))
    again = Stages.of(made.setup.run, tmp_path, Accelerator(cpu=True))
    assert asked == []
    again.restore()
    assert [type(method) for method in asked] == [type(made.method)] and again.finished


def test_checkpoints_are_numbered_upwards_over_cycles_and_stages(tmp_path):
    made = Stages.of(SCENARIOS["cycles"], tmp_path, Accelerator(cpu=True))
    log, positions = Log(made), []
    while True:
        while not made.trainer.done:
            made.trainer.step()
            positions.append(log.position())
        if made.finished:
            break
        made.next_stage()
    assert len(positions) == 20 and positions == sorted(set(positions))


def test_a_stopped_run_says_where_and_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("stepdistill.runs.log.Log.write", lambda *_: signal.raise_signal(2))
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt):
        train_run(two_stages(), tmp_path / "run", console)
    text = console.file.getvalue()
    folder = tmp_path / "run" / "checkpoints"
    where = "stopped at update 1 of consistency"
    assert f"{where}: the same command goes on from {folder}\n" in text


def test_a_damaged_checkpoint_is_named_to_the_user(tmp_path):
    run, folder = two_stages(), tmp_path / "[run]"
    train_run(run, folder, Console(quiet=True))
    *_, newest = finished(folder / "checkpoints")
    (newest / "state.safetensors").unlink()
    console = Console(file=io.StringIO(), width=60)
    train_run(run, folder, console)
    line, *_ = console.file.getvalue().splitlines()
    what = f"checkpoint {newest}: state.safetensors is missing"
    assert line == f"{what}; going on from the one before"


def test_a_run_reopens_at_its_best_checkpoint(tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(Monitor, "distance", lambda _: next(scores))
    RunFolder(tmp_path / "run").open(two_stages())
    made = session(tmp_path / "run")
    train(made, lambda _: None)
    kept = [p.name for p in finished(tmp_path / "run" / "checkpoints")]
    best = reopen(tmp_path / "run", Accelerator(cpu=True), at_best=True)
    assert (best.stage, best.update) == (0, 4) and kept[0] == "000004"
    last = reopen(tmp_path / "run", Accelerator(cpu=True))
    assert (last.stage, last.update) == (1, 5)
    wanted, other = (s.student.net.state_dict()["conv_in.weight"] for s in (best, last))
    assert not torch.equal(wanted, other)


def test_a_run_without_scores_has_no_best_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "distance", lambda _: None)
    RunFolder(tmp_path / "run").open(two_stages())
    train(session(tmp_path / "run"), lambda _: None)
    with pytest.raises(ConfigError, match="no checkpoint has a score"):
        reopen(tmp_path / "run", Accelerator(cpu=True), at_best=True)
