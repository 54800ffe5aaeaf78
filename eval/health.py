"""What training's health looks like on healthy runs, and on runs broken on purpose.

    python eval/health.py eval/results/health.md

Cases start from the embedded digits teacher, or from a consistency student of it WARM updates old,
and train UPDATES updates under the limits a run has by default. The second table sets the distance
that scores checkpoints beside an evaluation.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from stepdistill.data.loader import Data, Drawn, InMemory, Loader
from stepdistill.data.sources import digits
from stepdistill.evaluation.evaluate import evaluate
from stepdistill.evaluation.suite import Suite
from stepdistill.evaluation.suites.digits import KIND
from stepdistill.jobs.samplers import of_student
from stepdistill.jobs.suites import load
from stepdistill.method import Batch, Loss, Method, Passes, Players, Turn
from stepdistill.methods.consistency import Consistency
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.solver import Sampler, rollout
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.health.monitor import Alarm, Monitor, averaged
from stepdistill.training.health.settings import Health
from stepdistill.training.players import PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training

WARM, UPDATES, EVERY = 200, 60, 10
LINE = "\n"
SIGNALS = ("lag", "gan/dmd", "dropped", "mean", "std", "saturation", "diversity", "distance")


@dataclass(frozen=True)
class Fade(Method):
    """Drives every sample to nought."""

    paper = "none: a fault"

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        times = p.sampler.times(p.student.process, 1)
        x = rollout(p.student, batch.noise(), times, batch.cond)
        return Loss({"fade": x.square().mean()})

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=0)


@dataclass(frozen=True)
class Spoiled:
    """Data of which every third batch holds a value that is no number, up to batch `until`."""

    data: Data
    until: float = float("inf")

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        x0, cond, _ = self.data.batch(number, size, local)
        if number % 3 == 0 and number < self.until:
            x0 = x0.clone()
            x0[0, 0, 0, 0] = torch.nan
        return Drawn(x0, cond)


def intact(data: Data) -> Data:
    return data


@dataclass(frozen=True)
class Case:
    """A short run. alarms: those it must raise, none for a healthy one. cold: from the teacher."""

    name: str
    method: Method
    alarms: tuple[str, ...] = ()
    guidance: float = 1.0
    lr: float = 1e-4
    cold: bool = False
    data: Callable[[Data], Data] = intact


HEALTHY = (
    Case("consistency", Consistency(16), lr=1e-3, cold=True),
    Case("consistency, guidance 3", Consistency(16), guidance=3, lr=1e-3, cold=True),
    Case("dmd2", Dmd2()),
    Case("dmd2, guidance 2", Dmd2(), guidance=2),
    Case("dmd2, guidance 3", Dmd2(), guidance=3),
)
BROKEN = (
    Case("dmd2, ratio 1, student's rate 1e-3", Dmd2(ratio=1), ("lag", "diversity"), lr=1e-3),
    Case("dmd2, guidance 15", Dmd2(), ("saturation",), guidance=15),
    Case(
        "consistency, NaN in every third batch",
        Consistency(16),
        ("dropped",),
        lr=1e-3,
        cold=True,
        data=Spoiled,
    ),
    Case("dmd2, gan 30", Dmd2(gan=30.0), ("gan/dmd",)),
    Case("driven to a constant", Fade(), ("diversity", "std"), lr=1e-3),
)


def trainer_of(
    method: Method,
    start: dict[str, Tensor] | None,
    training: Training,
    guidance: float = 1.0,
    data: Callable[[Data], Data] = intact,
) -> tuple[Trainer, Teacher]:
    """A trainer of the digits teacher's student, and the teacher."""
    teacher = Teacher.from_pipeline(load_pipeline("digits"), guidance)
    images, labels = digits.load()
    players = make_players(method, teacher, PlayerSettings(Sampler((1,)), start=start))
    batches = data(Loader(InMemory(images, labels), teacher))
    return Trainer(method, players, batches, training, Accelerator(cpu=True)), teacher


def warm_student(observe: Callable[[Monitor], None] = lambda monitor: None) -> dict[str, Tensor]:
    """The averaged weights of a young consistency student; observe: called at start and probes."""
    optimiser = Optimiser(lr=1e-3, warmup=20, schedule="cosine")
    training = Training(WARM, optimiser=optimiser, ema=0.99)
    trainer, teacher = trainer_of(Consistency(16), None, training)
    monitor = Monitor(Health(), trainer, teacher)
    observe(monitor)
    while not trainer.done:
        if monitor.watch(trainer.step()):
            observe(monitor)
    return trainer.averaged()


class Watched(NamedTuple):
    """Signals of every probe, the alarms, and the monitor with its trainer at the end."""

    probes: list[dict[str, float]]
    alarms: list[Alarm]
    monitor: Monitor


def watched(case: Case, start: dict[str, Tensor]) -> Watched:
    """A case from the warm student's weights, or from the teacher."""
    student, critic = Optimiser(lr=case.lr, warmup=10), Optimiser(lr=3e-4, warmup=10)
    training = Training(UPDATES, 64, optimiser=student, critic_optimiser=critic, ema=0.99)
    begin = None if case.cold else start
    trainer, teacher = trainer_of(case.method, begin, training, case.guidance, case.data)
    monitor, found = Monitor(Health(every=EVERY), trainer, teacher), []
    monitor.begin({})
    while not trainer.done:
        found.append(monitor.watch(trainer.step(compare_terms=monitor.due)))
    seen = [findings for findings in found if findings is not None]
    alarms = [alarm for findings in seen for alarm in findings.alarms]
    return Watched([findings.values for findings in seen], alarms, monitor)


def signals_row(case: Case, seen: Watched) -> str:
    """One line of the table of signals."""
    cells = [case.name]
    for name in SIGNALS:
        values = [probe[name] for probe in seen.probes if name in probe]
        cells.append(f"{min(values):.3g} … {max(values):.3g}" if values else "")
    cells.append(", ".join(dict.fromkeys(a.signal for a in seen.alarms if a.begins)) or "none")
    return "| " + " | ".join(cells) + " |"


def score_row(name: str, monitor: Monitor, suite: Suite) -> str:
    """One line of the table of scores: the probe's distance beside what an evaluation says."""
    with averaged(monitor.trainer) as student:
        contender = of_student(
            "student", student, monitor.trainer.players.sampler, 1, monitor.teacher
        )
        row, _ = evaluate([contender], suite, 1000, 2, seed=7)
    distance = monitor.distance()
    scores = " | ".join(f"{row.value(metric):.3f}" for metric in suite.headline)
    return f"| {name} | {distance:.4f} | {scores} |"


def allowed(low: float, high: float) -> str:
    return f"{low:g} to {high:g}" if low > 0 else f"at most {high:g}"


def main(out: Path) -> None:
    suite, health, scores, told = load("digits", KIND), Health(), [], []

    def observe(monitor: Monitor) -> None:
        name = f"consistency, {monitor.trainer.update} updates"
        scores.append(score_row(name, monitor, suite))

    start, rows = warm_student(observe), []
    for case in (*HEALTHY, *BROKEN):
        seen = watched(case, start)
        rows.append(signals_row(case, seen))
        told += [f"* {case.name}: {alarm.text}" for alarm in seen.alarms]
        print(rows[-1], flush=True)
        if case in (HEALTHY[2], *BROKEN):
            scores.append(score_row(case.name, seen.monitor, suite))
    limits = [f"`{n}` {allowed(*health.allowed(n))}" for n in SIGNALS if n != "distance"]
    text = f"""# Training health on healthy and on broken runs

`python eval/health.py {out}`, one thread.

Each run has {UPDATES} updates of batch 64 and a probe every {EVERY}. Consistency starts from the
teacher, all else from a consistency student of {WARM} updates. Smallest … largest value over the
probes; an alarm needs {health.patience} probes in a row out of range. Allowed by default:
{", ".join(limits)}.

| run | {" | ".join(SIGNALS)} | alarms |
|---|{"---:|" * len(SIGNALS)}---|
{LINE.join(rows)}

What was told:

{LINE.join(told)}

## The score of a checkpoint

`distance` of {health.samples} samples beside the Fréchet distances of an evaluation
(n = 2 × 1,000), all in one step. A student of another guidance has another teacher to be near to.

| student | distance | Fréchet, domain-cnn | Fréchet, random-conv |
|---|---:|---:|---:|
{LINE.join(scores)}
"""
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
