"""Training health: what signals measure, when an alarm sounds, that watching changes nothing."""

import json
import math
import signal
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn
from toys import tiny_images, tiny_players

from eval.health import BROKEN, HEALTHY, Spoiled, warm_student, watched
from stepdistill.denoiser import Cond
from stepdistill.jobs.catalogue import catalogue
from stepdistill.jobs.distill import train_run
from stepdistill.losses.denoising import lag
from stepdistill.method import Batch, Loss, Method, Needs, Passes, Players, Turn
from stepdistill.methods.consistency import Consistency
from stepdistill.methods.diffusion import Diffusion
from stepdistill.runs.config import RunConfig, read
from stepdistill.runs.log import curves, log_rows
from stepdistill.runs.loop import train
from stepdistill.runs.progress import Snapshot
from stepdistill.runs.settings import Stage
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError, fit
from stepdistill.solver import Sampler
from stepdistill.teachers.backbones.unet2d import UNet2D
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher, teacher_sampler
from stepdistill.training.checkpoint import latest
from stepdistill.training.health import reference as bands
from stepdistill.training.health.monitor import Monitor, averaged, complaint, record_of
from stepdistill.training.health.reference import StageSpan
from stepdistill.training.health.settings import Health, watch_of
from stepdistill.training.health.signals import (
    diversity,
    energy_distance,
    mean_distance,
    signals_of,
)
from stepdistill.training.players import Adapters
from stepdistill.training.trainer import StepLog, Trainer, Training, TrainingFailed

CONSISTENCY = read("smoke").stages[0]  # five updates of eight samples
DMD2 = fit(
    Stage,
    {"method": "dmd2", "settings": {"ratio": 2}, "training": {"updates": 7, "batch": 8}},
)
FREE = 1e9  # these trainings are shorter than what watches them
OFTEN = Health(share=FREE, every=3, samples=16, window=5)
EVENT = (3, 6, 6)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# What the signals measure.


def test_equal_samples_are_healthy_and_at_no_distance():
    x = normal(0, 24, *EVENT)
    found = signals_of(x, x, x, torch.arange(24) % 4)
    neutral = {"mean": 1e-6 / float(x.std()), "std": 1, "saturation": 0, "diversity": 1}
    assert found == pytest.approx(neutral | {"distance": 0, "colour": 1}, abs=1e-5)


def test_the_channel_that_drifts_furthest_is_shown():
    x = 0.4 * normal(0, 30, *EVENT)
    made = x.clone()
    made[:, 0] += 0.05
    made[:, 1] = 0.5 * made[:, 1] + 0.3
    made[:, 2] *= 1.2
    found = signals_of(made, x, x, None)
    middle = x[:, 1].numpy()
    drift = abs(0.3 - 0.5 * middle.mean()) / middle.std()
    assert found["mean"] == pytest.approx(drift, rel=1e-3)
    assert found["std"] == pytest.approx(0.5, rel=1e-4)


def test_saturation_counts_what_the_teacher_does_not_have():
    plain, made = torch.zeros(10, 1, 2, 2), torch.zeros(10, 1, 2, 2)
    plain[:2] = -1.5
    made[:5], made[5:7] = 1.5, 1.05
    assert signals_of(made, plain, plain, None)["saturation"] == pytest.approx(0.5 - 0.2)


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_colour_is_the_range_of_the_channels(factor: float):
    x = normal(1, 20, *EVENT)
    grey = x.mean(1, keepdim=True)
    found = signals_of(grey + factor * (x - grey), x, x, None)
    assert found["colour"] == pytest.approx(factor, rel=1e-4)
    assert "colour" not in signals_of(grey, grey, grey, None)


def test_diversity_is_within_classes():
    x, labels = normal(2, 12, 1, 4, 4), torch.arange(12) % 3
    flat = x.flatten(1).double().numpy()
    means = []
    for c in range(3):
        rows = flat[labels.numpy() == c]
        pairs = [np.linalg.norm(a - b) for i, a in enumerate(rows) for b in rows[:i]]
        means.append(np.mean(pairs))
    assert float(diversity(x, labels)) == pytest.approx(np.mean(means), rel=1e-5)
    centres = normal(3, 3, 1, 4, 4)
    assert signals_of(centres[labels], x, x, labels)["diversity"] < 1e-5  # classes alone are none


GAUSSIAN = 2 / math.sqrt(math.pi)  # mean distance of two standard normal numbers


def gaussian_energy(shift: float) -> float:
    """Energy distance of N(0, 1) and N(shift, 1), over E|y − y′|."""
    across = shift * math.erf(shift / 2) + GAUSSIAN * math.exp(-(shift**2) / 4)
    return 2 * across / GAUSSIAN - 2


@pytest.mark.parametrize("shift", [0.5, 2.0])
@pytest.mark.parametrize("paired", [True, False])
def test_the_distance_is_unbiased_whether_or_not_noise_is_shared(shift: float, paired: bool):
    found = []
    for k in range(400):
        y = normal(2 * k, 20, 1, 1)
        x = (y if paired else normal(2 * k + 1, 20, 1, 1)) + shift
        xx, yy, xy = (float(mean_distance(*pair)) for pair in ((x, x), (y, y), (x, y)))
        found.append((2 * xy - xx - yy) / GAUSSIAN)
        assert float(energy_distance(x, y)) == pytest.approx(found[-1] * GAUSSIAN / yy, abs=1e-5)
    error = np.std(found) / 400**0.5
    assert np.mean(found) == pytest.approx(gaussian_energy(shift), abs=4 * error)
    assert float(energy_distance(y, y)) == 0


def test_signals_stay_finite_where_nothing_varies():
    flat, labels = torch.zeros(16, *EVENT), torch.arange(16) % 2
    x = normal(6, 16, *EVENT)
    for pair in ((flat, x), (x, flat), (flat, flat)):
        found = signals_of(pair[0], pair[1], pair[1], labels)
        assert all(map(math.isfinite, found.values())), found


# The monitor.


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pipeline(load_pipeline("digits"))


@dataclass(frozen=True)
class Proportional(Method):
    """Terms whose gradients are in known proportions."""

    needs = Needs(("student",))
    paper = "none: a test"

    def turns(self):
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        t = torch.full((len(batch.x0),), 0.7, dtype=torch.float64)
        f = p.student(batch.noise(), t, batch.cond).x0.square().mean()
        return Loss({"main": f, "more": 5 * f, "less": -f / 4})

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=0)


def toy(
    method: Method, health: Health, teacher: Teacher, data=None, batch: int = 4
) -> tuple[Trainer, Monitor]:
    """A method without a teacher on tiny pictures, watched."""
    training = Training(updates=12, batch=batch)
    made = Trainer(method, tiny_players(), data or tiny_images(), training, Accelerator(cpu=True))
    return made, Monitor(health, made, teacher)


def test_terms_are_compared_with_the_first(teacher):
    made, monitor = toy(Proportional(), Health(share=FREE, every=4, patience=2), teacher)
    found = [monitor.watch(made.step(compare_terms=monitor.due)) for _ in range(8)]
    assert [f is not None for f in found] == [False, False, False, True] * 2
    assert found[3].values == pytest.approx({"dropped": 0, "more/main": 5, "less/main": 0.25})
    assert [a.text for a in found[7].alarms] == [
        "more outweighs main (more/main 5, at most 1): lower the weight of more"
    ]


def test_dropped_steps_are_counted_since_the_last_probe(teacher):
    data = Spoiled(tiny_images(), until=6)  # of the first six, batches 0 and 3 hold a NaN
    made, monitor = toy(Diffusion(), Health(share=FREE, every=6, patience=1), teacher, data)
    found = [monitor.watch(made.step(compare_terms=monitor.due)) for _ in range(12)]
    first, second = found[5], found[11]
    assert (first.values["dropped"], second.values["dropped"]) == (pytest.approx(1 / 3), 0)
    assert [(a.signal, a.begins) for a in first.alarms] == [("dropped", True)]
    assert [(a.signal, a.begins) for a in second.alarms] == [("dropped", False)]


def test_a_restored_monitor_counts_on(teacher):
    def half_way() -> tuple[Trainer, Monitor]:
        return toy(
            Diffusion(), Health(share=FREE, every=6), teacher, Spoiled(tiny_images(), until=6)
        )

    (made, monitor), (again, restored) = half_way(), half_way()
    for _ in range(4):
        monitor.watch(made.step())
    again.restore(made.state())
    restored = Monitor(restored.health, again, teacher)
    restored.begin(monitor.state())
    for _ in range(8):
        assert monitor.watch(made.step()) == restored.watch(again.step())
    assert monitor.state() == restored.state()


def critic_turn(value: float, skipped: bool = False) -> StepLog:
    return StepLog(1, 1, "critic", 0.0, {"lag": value}, 0.0, 0.0, skipped)


def test_lag_is_the_mean_of_the_last_critic_turns(teacher):
    _, monitor = toy(Proportional(), Health(share=FREE, window=3), teacher)
    for value in (50.0, 1.0, 2.0, 6.0):
        monitor.watch(critic_turn(value))
        monitor.watch(critic_turn(math.nan, skipped=True))
    assert monitor.own_signals(critic_turn(1.0))["lag"] == pytest.approx(3.0)


@pytest.mark.parametrize("batch", [128, 512])
def test_lag_does_not_grow_with_a_large_batch(teacher, batch: int):
    _, monitor = toy(Proportional(), Health(share=FREE, window=200), teacher, batch=batch)
    wrong = 0.3  # the critic's error has this mean where its deviation is 1
    for k in range(200):
        monitor.watch(critic_turn(float(lag(normal(k, batch, 40) + wrong))))
    wanted = math.sqrt(1 + 128 * wrong**2)
    assert monitor.own_signals(critic_turn(1.0))["lag"] == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    ("values", "patience", "events"),
    [
        ([1, 9, 9, 9, 1, 9, 1, 9, 9], 2, {2: True, 4: False, 8: True}),
        ([9, 9, 1, 9], 1, {0: True, 2: False, 3: True}),
        ([9, 9, 1, 9, 9], 3, {}),
    ],
)
def test_an_alarm_begins_after_patience_and_ends_once(teacher, values, patience, events):
    _, monitor = toy(Proportional(), Health(share=FREE, patience=patience), teacher)
    heard = {i: [a.begins for a in monitor.alarms({"lag": v})] for i, v in enumerate(values)}
    assert {i: begins for i, (begins, *_) in ((i, b) for i, b in heard.items() if b)} == events
    assert max(map(len, heard.values())) <= 1


@pytest.mark.parametrize(
    ("values", "alarms"),
    [
        ([0.1, 0.15, 0.3, 0.7, 0.9], 0),  # blurred at first, as untrained students are
        ([0.1, 0.05, 0.02], 1),
        ([0.1, 0.7, 0.3, 0.3], 1),  # was better once
        ([0.1, 0.095, 0.1, 0.1], 0),
        ([0.9, 0.3, 0.3], 1),
    ],
)
def test_a_student_may_begin_out_of_range_but_not_get_worse(teacher, values, alarms):
    _, monitor = toy(Proportional(), Health(share=FREE, diversity=(0.5, 1.5), patience=2), teacher)
    monitor.start = {"diversity": values[0]}
    heard = [a for value in values[1:] for a in monitor.alarms({"diversity": value})]
    assert len(heard) == alarms


def test_an_alarm_says_what_is_wrong_and_what_to_do():
    assert complaint("lag", 6.1, (-math.inf, 3)) == (
        "critic lags behind (lag 6.1, at most 3): raise ratio or the critic's learning rate"
    )
    for name in ("lag", "mean", "std", "saturation", "colour", "diversity", "dropped", "gan/dmd"):
        low, high = Health().allowed(name)
        for bound in (b for b in (low, high) if math.isfinite(b) and (b > 0 or b == high)):
            line = complaint(name, bound - 0.1 if bound == low else bound + 0.1, (low, high))
            assert f"({name} " in line and f"{bound:g})" in line and "\n" not in line


class Constant(nn.Module):
    """A flow network whose one-step samples are all `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return x - self.value


def plain(net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: float) -> Tensor:
    return net(x, t, cond)


def monitor_of(
    teacher: Teacher, steps: int, net: nn.Module | None = None, samples: int = 40
) -> Monitor:
    """Watches a student that is the teacher at so many deterministic steps, or another network."""
    sampler = replace(teacher_sampler(teacher), steps=(steps,))
    student = teacher.denoiser
    if net is not None:
        student = replace(student, net=net, call=plain)
    players = Players(student, teacher.guided, target=student, sampler=sampler)
    training = Training(batch=25)
    made = Trainer(Consistency(), players, tiny_images(), training, Accelerator(cpu=True))
    return Monitor(Health(share=FREE, samples=samples), made, teacher)


@pytest.mark.parametrize("name", ["digits", "digits-vp"])
def test_a_student_like_its_teacher_is_healthy(name: str):
    monitor = monitor_of(Teacher.from_pipeline(load_pipeline(name)), steps=16)
    values = monitor.against_teacher()
    for name, value in values.items():
        low, high = monitor.health.allowed(name)
        assert low <= value <= high, (name, value)


def test_the_better_the_student_the_smaller_the_distance(teacher):
    students = [monitor_of(teacher, steps) for steps in (32, 8, 4, 1)]
    students.append(monitor_of(teacher, 1, Constant(-0.4)))
    scores = [monitor.distance() for monitor in students]
    assert scores == sorted(scores) and scores[0] == 0 < scores[1]


@pytest.mark.parametrize("value", [-0.4, math.nan])
def test_a_constant_student_raises_the_alarm(teacher, value: float):
    monitor = monitor_of(teacher, 1, Constant(value))
    values = monitor.against_teacher()
    assert all(map(math.isfinite, values.values()))
    raised = {a.signal for _ in range(2) for a in monitor.alarms(values)}
    assert raised >= {"std", "diversity"}


def test_drift_is_from_the_unguided_teacher_and_the_score_from_the_guided_one(teacher):
    strong = Teacher.from_pipeline(load_pipeline("digits"), w=3.0)
    monitor, neutral = monitor_of(strong, 4), monitor_of(teacher, 4)
    unguided, guided = monitor.reference
    assert all(torch.equal(unguided, samples) for samples in neutral.reference)
    labels = monitor.asked
    assert diversity(guided, labels) < diversity(unguided, labels)  # what guidance is known to do
    values = monitor.against_teacher()
    assert values["distance"] != pytest.approx(neutral.distance())
    assert values["mean"] == neutral.against_teacher()["mean"]


@pytest.mark.parametrize(
    ("classes", "samples", "shown"), [(10, 128, 10), (1000, 128, 16), (3, 16, 2)]
)
def test_every_class_of_a_probe_has_pairs(
    teacher, monkeypatch, classes: int, samples: int, shown: int
):
    monkeypatch.setattr(UNet2D, "classes", classes)
    labels = monitor_of(teacher, 1, samples=samples).asked
    counts = labels.bincount()
    assert (counts > 0).sum() == shown and counts[counts > 0].min() >= 8
    assert len(labels) == samples and labels.max() < classes


def test_an_unconditional_probe_has_no_labels():
    plain = Teacher.from_pipeline(load_pipeline("digits-vp"))
    assert monitor_of(plain, 1).asked is None


# Inside a run.


def run_of(health: Health, **changes: object) -> RunConfig:
    """Consistency, then DMD2: a few updates each, a checkpoint every second one."""
    run = replace(read("smoke"), name="watched", save_every=2, trackers=(), health=health)
    return replace(run, **{"stages": [CONSISTENCY, DMD2]} | changes)


def session(run: RunConfig, folder: Path) -> Stages:
    folder.mkdir(exist_ok=True)
    made = Stages.of(run, folder, Accelerator(cpu=True))
    made.restore()
    return made


def train_whole(run: RunConfig, folder: Path) -> Stages:
    made = session(run, folder)
    train(made, lambda *_: None)
    return made


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("adapters", [None, Adapters(rank=2)])
def test_watching_changes_no_training(tmp_path, adapters):
    before = torch.random.get_rng_state()
    stages = [CONSISTENCY, DMD2] if adapters is None else [DMD2]
    ends, rows = [], []
    for name, health in (("watched", OFTEN), ("alone", replace(OFTEN, every=0))):
        run, folder = run_of(health, adapters=adapters, stages=stages), tmp_path / name
        ends.append(train_whole(run, folder).trainer.state())
        rows.append([row for row in log(folder) if row["player"] != "health"])
        assert (len(log(folder)) > len(rows[-1])) is (name == "watched")
    mine, wanted = (end.tensors for end in ends)
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[k], wanted[k]) for k in wanted)
    assert ends[0].numbers == ends[1].numbers and rows[0] == rows[1]
    assert torch.equal(before, torch.random.get_rng_state())


ALARMED = replace(OFTEN, every=2, diversity=(0.01, 0.02), lag=0.5)  # no student is like that


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run in which alarms sound."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_whole(run_of(ALARMED), folder)
    return folder


@pytest.mark.parametrize("stop", [(0, 3), (1, 3)])  # (stage, update), before the alarm at 4
def test_resuming_gives_the_rows_of_the_uninterrupted_run(tmp_path, whole, stop):
    run = run_of(ALARMED)
    first = session(run, tmp_path / "cut")

    def press(moment: Snapshot) -> None:
        if (first.stage, moment.update) == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(first, press)
    train(session(run, tmp_path / "cut"), lambda *_: None)
    ends = [latest(folder / "checkpoints")[0].numbers for folder in (tmp_path / "cut", whole)]
    assert ends[0]["health"] == ends[1]["health"] and len(ends[1]["health"]["lags"]) == 5
    assert log(tmp_path / "cut") == log(whole)
    alarms = [(row["stage"], row["update"]) for row in log(whole) if "alarm" in row]
    assert alarms == [(0, 4), (1, 4)]


def test_means_of_a_row_are_of_what_every_turn_has(whole):
    rows = [row for row in log(whole) if row["player"] == "student" and row["stage"] == 1]
    assert len(rows) == 7 and len({tuple(row) for row in rows}) == 1


@pytest.mark.parametrize("adapters", [None, Adapters(rank=2)])
def test_a_probe_sees_the_student_that_would_be_exported(tmp_path, adapters):
    made = session(run_of(OFTEN, adapters=adapters, stages=[DMD2]), tmp_path / "run")
    for _ in range(7):
        made.trainer.step()
    monitor = Monitor(OFTEN, made.trainer, made.teacher)
    exported = monitor.draw(made.student(), made.setup.run.sampler, 1)
    wanted = signals_of(exported, *monitor.reference, monitor.asked)
    assert monitor.against_teacher() == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    current = monitor.draw(made.trainer.players.student, made.setup.run.sampler, 1)
    assert (current - exported).abs().max() > 1e-3


def test_a_failed_probe_puts_the_weights_back(tmp_path):
    made = session(run_of(OFTEN), tmp_path / "run")
    for _ in range(3):
        made.trainer.step()
    net = made.trainer.nets["student"]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), averaged(made.trainer) as student:
        assert any(not torch.equal(before[k], v) for k, v in student.net.state_dict().items())
        raise KeyboardInterrupt
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_an_alarm_may_stop_training_and_the_same_command_goes_on(tmp_path):
    run = run_of(replace(ALARMED, patience=1, stop=True), stages=[CONSISTENCY])
    shown = StringIO()
    console = Console(file=shown, width=1000)
    with pytest.raises(TrainingFailed, match=r"update 2 .*noisy \(diversity"):
        train_run(run, tmp_path / "run", console)
    assert latest(tmp_path / "run" / "checkpoints")[0].numbers["update"] == 2
    assert shown.getvalue().count("samples are noisy") == 1
    assert train_run(run, tmp_path / "run", console).finished
    assert shown.getvalue().count("samples are noisy") == 1
    alarms = [row for row in log(tmp_path / "run") if "alarm" in row]
    assert [(a["update"], a["alarm"], a["begins"]) for a in alarms] == [(2, "diversity", True)]


def test_what_a_report_is_told(tmp_path, monkeypatch):
    place = {"player": "health", "turn": 0, "skipped": 0}
    logged = [
        place | {"stage": 0, "update": 2, "lag": 1.0, "distance": 0.5},
        place | {"stage": 0, "update": 4, "alarm": "std", "begins": True, "text": "wrong"},
        place | {"stage": 1, "update": 1, "alarm": "lag", "begins": True, "text": "bad"},
        place | {"stage": 1, "update": 3, "alarm": "mean", "begins": True, "text": "worse"},
        place | {"stage": 1, "update": 5, "alarm": "mean", "begins": False, "text": "good"},
        {"player": "student", "stage": 1, "update": 5, "turn": 9, "dmd": 1.0},
        place | {"stage": 1, "update": 5, "lag": 7.0, "mean": 0.1, "std": 9.0, "distance": 0.2},
    ]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in logged))
    monkeypatch.setattr(bands, "known", lambda: {"two": {"lag": [None] * 5 + [(1.0, 2.0)] * 5}})
    record = record_of(log_rows(file), Health(), [StageSpan("one", 0, 4), StageSpan("two", 4, 14)])
    verdicts = {s.name: s.verdict for s in record.signals}
    assert verdicts == {"lag": "alarm", "mean": "healthy", "std": "watch", "distance": "healthy"}
    (lagging,) = (s for s in record.signals if s.name == "lag")
    assert lagging[1:4] == (7.0, -math.inf, Health().lag)
    usual = {s.name: s.usual for s in record.signals}
    assert usual == {"lag": (1.0, 2.0), "mean": None, "std": None, "distance": None}
    assert record.alarms[:2] == ["stage 1, update 4: wrong", "stage 2, update 1: bad"]
    assert len(record.alarms) == 4
    drawn = curves(file)
    assert drawn["health: distance"] == [(2, 0.5), (9, 0.2)]
    assert {type(y) for points in drawn.values() for _, y in points} == {float}


def test_a_run_that_was_never_probed_has_an_empty_record(tmp_path):
    row = {"player": "student", "stage": 0, "update": 5, "turn": 9, "dmd": 1.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    assert record_of(log_rows(tmp_path / "log.jsonl"), Health(), [StageSpan("dmd2", 0, 5)]) == (
        [],
        [],
    )


def test_bands_are_the_least_and_the_most_in_each_tenth_of_a_stage(monkeypatch):
    seen = [
        ("a", 0.05, {"lag": 2.0}),
        ("a", 0.09, {"lag": 3.0, "mean": 0.1}),
        ("a", 1.0, {"lag": 1.5}),
        ("b", 0.5, {"lag": 1.0}),
    ]
    found = bands.collect(seen)
    assert found["a"]["lag"] == [(2.0, 3.0), *[None] * 8, (1.5, 1.5)]
    assert found["a"]["mean"][0] == (0.1, 0.1) and found["b"]["lag"][5] == (1.0, 1.0)
    monkeypatch.setattr(bands, "known", lambda: found)
    assert bands.range_at("a", "lag", 0.0) == (2.0, 3.0) and bands.range_at("a", "lag", 0.5) is None
    assert bands.range_at("mine.method", "lag", 0.5) is None
    spans = bands.spans([StageSpan("b", 0, 100), StageSpan("a", 100, 120)])
    assert spans["lag"] == [(50, 60, 1.0, 1.0), (100, 102, 2.0, 3.0), (118, 120, 1.5, 1.5)]


def test_the_bands_that_travel_with_the_package():
    """Of distillation methods, to the end of their stage."""
    distilling = {entry.name for entry in catalogue()} - {"diffusion", "agd", "guidance"}
    assert bands.known().keys() == distilling
    for signals in bands.known().values():
        for band in signals.values():
            assert len(band) == bands.PARTS and band[-1]
            assert all(low <= high for low, high in filter(None, band))


BAD = {
    "every=-1": "health.every",
    "samples=8": "health.samples",
    "window=0": "health.window",
    "patience=0": "health.patience",
    "lag=-1": "health.lag",
    "saturation=.nan": "health.saturation",
    "dropped=2": "health.dropped",
    "std=[0.5]": "health.std",
    "diversity=[2, 1]": "diversity",
    "lagg=3": "lagg",
}


@pytest.mark.parametrize("override", BAD)
def test_limits_that_cannot_be_are_refused(override: str):
    with pytest.raises(ConfigError) as caught:
        read("smoke", (f"health.{override}",))
    assert BAD[override] in str(caught.value) and "\n" not in str(caught.value)


# On real runs: healthy ones are silent, each broken one raises its alarm.


@pytest.fixture(scope="module")
def warm() -> dict[str, Tensor]:
    return warm_student()


@pytest.mark.full(shard="health")
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_run_is_silent(case, warm, figure):
    seen = watched(case, warm)
    assert len(seen.probes) >= 4 and seen.alarms == []
    for name, value in seen.probes[-1].items():
        figure(name, value)


@pytest.mark.full(shard="health")
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_broken_run_raises_its_alarms(case, warm):
    raised = {alarm.signal for alarm in watched(case, warm).alarms if alarm.begins}
    assert raised >= set(case.alarms) > set()


@pytest.mark.parametrize("teacher_nfe", [1, 3, 300])
@pytest.mark.parametrize("updates", [100, 2000, 50_000])
def test_watching_costs_at_most_its_share(updates: int, teacher_nfe: int):
    """Whatever the teacher costs: fewer samples, then fewer steps, then fewer probes, or none."""
    health, work, student = Health(every=10), 640.0, 4
    plan = watch_of(health, updates, work, teacher_nfe, student)
    spent = plan.samples * (plan.steps * teacher_nfe + updates // plan.every * student)
    assert spent <= health.share * updates * work
    if plan.samples:
        assert 16 <= plan.samples <= health.samples and 4 <= plan.steps <= 32 and plan.every >= 10
    else:
        assert 16 * (4 * teacher_nfe) > health.share * updates * work / 2 or 16 * student > (
            health.share * updates * work / 2
        )


def test_what_is_cheap_is_watched_in_full():
    assert watch_of(Health(), 2000, 640.0, 1, 1) == (50, 128, 32)
    assert watch_of(Health(share=1e9), 5, 8.0, 300, 4) == (50, 128, 32)
    assert watch_of(Health(), 5, 8.0, 1, 1).samples == 0
    assert watch_of(Health(every=0, share=1e9), 5, 8.0, 1, 1) == (0, 0, 0)


def test_a_stage_too_short_to_watch_compares_nothing(tmp_path):
    made = session(run_of(Health(every=2, share=1e-6)), tmp_path)
    monitor = Monitor(made.setup.run.health, made.trainer, made.teacher)
    monitor.begin({})
    assert monitor.against_teacher() == {} and monitor.distance() is None
    found = [monitor.watch(made.trainer.step()) for _ in range(2)]
    assert set(found[1].values) == {"dropped"}
