"""Training health: signals watched while a student trains, and an alarm when one leaves its range.

Every `every` student updates a fixed batch of noise becomes samples of the student, compared with
the teacher's: mean, std, saturation, colour, diversity and distance, see `signals`. Training itself
gives the others:

    lag          mean over the last critic turns of the critic's lag, see `losses.denoising`; of a
                 batch above 128 as 128 would show it, for lag² − 1 grows with the batch
    gan/dmd, …   |∇ second term| / |∇ first term| of the student's loss, at the probe's update
    dropped      share of turns since the last probe that were not finite

The student is probed at its averaged weights: they are what is exported, and they do not jitter.
A signal out of its range at a stage's start, as an untrained student's are, raises no alarm unless
it gets worse; once inside, it has to stay. A probe draws from streams of its own and puts
everything back, so watching changes no training. The teacher's samples and all probes together may
cost a share of the stage's network passes, whatever the teacher costs: see `settings.watch_of`.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import sqrt
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...data.loader import stream
from ...denoiser import AnyDenoiser, Denoiser, evaluations, unguided
from ...networks.views import load_own, own_tensors
from ...solver import Sampler
from ...teachers.backbone import Asked
from ...teachers.teacher import Teacher, teacher_sampler
from ..trainer import StepLog, Trainer
from . import reference
from .reference import StageSpan
from .settings import Health, Watch, watch_of
from .signals import signals_of

LAG_BATCH = 128
FARTHEST = 100.0  # what a value that is not finite, or larger, counts as
NORM = "|∇ "  # how the compared terms of a loss begin in a turn's log
# In a row of the log, beside what was measured.
PLACE = ("player", "stage", "turn", "update", "skipped", "seconds")
SLACK = (0.9, 1.1)  # of a value at the start, within which it is no worse
PER_CLASS = 8  # samples of a class, at least, where there are many classes


@contextmanager
def averaged(trainer: Trainer) -> Iterator[Denoiser]:
    """The student at its averaged weights; afterwards its own are back, bit for bit."""
    student = trainer.players.student
    kept = {name: tensor.detach().clone() for name, tensor in own_tensors(student.net).items()}
    load_own(student.net, trainer.averaged())
    try:
        yield student
    finally:
        load_own(student.net, kept)


class Alarm(NamedTuple):
    """A signal that left its range for too long, or is back: what to tell, in one line."""

    signal: str
    begins: bool
    text: str


class Findings(NamedTuple):
    """What a probe saw: the signals, and the alarms that begin or end with it."""

    values: dict[str, float]
    alarms: list[Alarm]

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the log, without their place in the run."""
        alarms = [{"alarm": a.signal, "begins": a.begins, "text": a.text} for a in self.alarms]
        return [{"player": "health", **row} for row in (self.values, *alarms)]


class Monitor:
    """Watches one stage: ask `due` before every turn, hand its log to `watch` after it.

    stopped: why training is to end, or empty. Signals that compare with the teacher are missing
    where the method has none.
    """

    def __init__(self, health: Health, trainer: Trainer, teacher: Teacher) -> None:
        self.health, self.trainer, self.teacher = health, trainer, teacher
        self.lags: deque[Tensor | float] = deque(maxlen=health.window)  # read when they are used
        self.out: dict[str, int] = {}  # probes in a row out of range, by signal
        self.start: dict[str, float] = {}  # where signals began, until they are in range
        self.turn, self.skipped = trainer.turn, trainer.skipped  # at the last probe
        self.probed: tuple[int, float | None] = (-1, None)  # the last turn, and what it was
        self.stopped = ""

    @cached_property
    def plan(self) -> Watch:
        """What watching this stage may cost."""
        trainer, training = self.trainer, self.trainer.training
        sampler, teacher = trainer.players.sampler, self.teacher
        taught = trainer.players.teacher
        nfe = 1 if taught is None else evaluations(taught)
        passes = trainer.method.passes(sampler).work(nfe)
        return watch_of(
            self.health,
            updates=training.updates,
            work=passes * training.batch * training.accumulation,
            teacher=1 if teacher.w == 1 else 1 + teacher.nfe,
            student=min(sampler.steps, default=1),
        )

    @property
    def due(self) -> bool:
        """Whether the next turn ends with a probe; it must then compare its terms."""
        trainer, every = self.trainer, self.plan.every
        player = trainer.turns[trainer.turn % len(trainer.turns)].player
        return player == "student" and every > 0 and (trainer.update + 1) % every == 0

    def begin(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; if it is empty, see where the student starts."""
        if state:
            self.turn, self.skipped = state["turn"], state["skipped"]
            self.lags.extend(state["lags"])
            self.out, self.start = dict(state["out"]), dict(state["start"])
        elif 0 < self.plan.every <= self.trainer.training.updates:
            self.start = self.agreed(self.against_teacher())

    def watch(self, step: StepLog) -> Findings | None:
        """Take in a turn's log, and probe where it was due. Every process calls this."""
        if "lag" in step.parts and not step.skipped:
            self.lags.append(step.parts["lag"])
        every = self.plan.every
        if step.player != "student" or every == 0 or step.update % every > 0:
            return None
        values = self.agreed(self.own_signals(step) | self.against_teacher())
        self.turn, self.skipped = self.trainer.turn, self.trainer.skipped
        self.probed = self.turn, values.get("distance")
        findings = Findings(values, list(self.alarms(values)))
        begun = [alarm.text for alarm in findings.alarms if alarm.begins]
        if begun and self.health.stop:
            self.stopped = begun[0]
        return findings

    def distance(self) -> float | None:
        """The averaged student's distance to its guided teacher, now; lower is better.

        It separates sound students from broken ones; among sound ones its differences are noise.
        None if nothing is watched, or the method has no teacher."""
        if self.health.every == 0:
            return None
        turn, distance = self.probed
        if turn == self.trainer.turn:
            return distance
        return self.against_teacher().get("distance")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        numbers = {"turn": self.turn, "skipped": self.skipped}
        signals = {"out": dict(self.out), "start": dict(self.start)}
        return numbers | signals | {"lags": [float(lag) for lag in self.lags]}

    def own_signals(self, step: StepLog) -> dict[str, float]:
        """What training shows without a probe."""
        turns = max(self.trainer.turn - self.turn, 1)
        found = {"dropped": (self.trainer.skipped - self.skipped) / turns}
        if self.lags:
            found["lag"] = self.lag_of(fmean(float(lag) for lag in self.lags))
        parts = {name: float(value) for name, value in step.parts.items()}
        return found if step.skipped else found | term_ratios(parts)

    def lag_of(self, shown: float) -> float:
        """The lag that a batch of at most `LAG_BATCH` would show."""
        larger = max(self.trainer.training.batch / LAG_BATCH, 1)
        return shown if shown < 1 else sqrt(1 + (shown**2 - 1) / larger)

    def against_teacher(self) -> dict[str, float]:
        """The student's samples beside the teacher's; nothing if the method has no teacher."""
        if "teacher" not in self.trainer.method.needs.players or self.plan.samples == 0:
            return {}
        sampler = self.trainer.players.sampler
        with averaged(self.trainer) as student:
            made = self.draw(student, sampler, min(sampler.steps, default=1))
        return signals_of(made, *self.reference, self.asked)

    @cached_property
    def asked(self) -> Tensor | None:
        """The labels, or numbers of prompts, of the probe (n,), or None: few enough for pairs of
        each, spread evenly."""
        n, teacher = self.plan.samples, self.teacher
        count = len(teacher.prompts) if teacher.prompted else teacher.classes
        if not count:
            return None
        few = max(min(count, n // PER_CLASS), 1)
        return torch.arange(n) % few * (count // few)

    def told(self, rows: Tensor) -> Asked:
        """What the teacher is asked for in these rows of the probe."""
        if self.asked is None:
            return None
        numbers = self.asked[rows]
        if not self.teacher.prompted:
            return numbers
        return [self.teacher.prompts[i] for i in numbers.tolist()]

    @cached_property
    def reference(self) -> tuple[Tensor, Tensor]:
        """The samples of the unguided teacher, and of the guided one."""
        sampler = teacher_sampler(self.teacher)
        plain = self.draw(unguided(self.teacher.guided), sampler, self.plan.steps)
        if self.teacher.w == 1:
            return plain, plain
        return plain, self.draw(self.teacher.guided, sampler, self.plan.steps)

    @torch.no_grad()
    def draw(self, denoiser: AnyDenoiser, sampler: Sampler, steps: int) -> Tensor:
        """The probe's samples (n, c, …), in pieces no larger than a training batch."""
        # One noise for all stages, so that their distances compare.
        # What is added between steps comes from another stream: noise is alike for all samplers.
        seed, made = self.trainer.seed[0], []
        start, between = stream(seed, 4), stream(seed, 4, 1)
        device = self.trainer.accelerator.device
        for rows in torch.arange(self.plan.samples).split(self.trainer.training.batch):
            noise = torch.randn(len(rows), *self.teacher.event, generator=start)
            cond = self.teacher.conditions(self.told(rows))
            x = sampler.draw(denoiser, noise.to(device), steps, cond, between)
            made.append(x.float().cpu())
        bounded = torch.cat(made).clamp(-FARTHEST, FARTHEST)
        return torch.nan_to_num(bounded, nan=FARTHEST)

    def agreed(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes, which must raise an alarm together or not at all."""
        if not values:
            return {}
        accelerator = self.trainer.accelerator
        own = torch.tensor(list(values.values()), device=accelerator.device)
        return dict(zip(values, accelerator.reduce(own, "mean").tolist(), strict=True))

    def alarms(self, values: dict[str, float]) -> Iterator[Alarm]:
        """Count probes out of range; the alarms that begin or end with this one."""
        for name, value in values.items():
            low, high = self.range_now(name, value)
            before = self.out.get(name, 0)
            self.out[name] = 0 if low <= value <= high else before + 1
            if self.out[name] == self.health.patience:
                yield Alarm(name, True, complaint(name, value, (low, high)))
            elif before >= self.health.patience > self.out[name]:
                yield Alarm(name, False, f"{name} is back in its range ({value:.3g})")

    def range_now(self, name: str, value: float) -> tuple[float, float]:
        """The allowed range, wide enough for where the student started until it was inside."""
        low, high = self.health.allowed(name)
        if low <= value <= high:
            self.start.pop(name, None)
        if name not in self.start:
            return low, high
        return min(low, SLACK[0] * self.start[name]), max(high, SLACK[1] * self.start[name])


def term_ratios(parts: dict[str, float]) -> dict[str, float]:
    """|∇ term| / |∇ first term| of every later term of a loss, from its compared terms."""
    norms = {k[len(NORM) : -1]: v for k, v in parts.items() if k.startswith(NORM)}
    first, *others = norms or [""]
    return {f"{term}/{first}": norms[term] / max(norms[first], 1e-12) for term in others}


# What is wrong and what to do, if a signal is too low or too high.
TOO_LOW = {
    "std": ("samples lose contrast", "lower the student's learning rate or guidance"),
    "colour": ("samples lose their colours", "lower the student's learning rate"),
    "diversity": (
        "samples of a class become alike",
        "lower the student's learning rate or guidance, or start from a better student",
    ),
}
TOO_HIGH = {
    "lag": ("critic lags behind", "raise ratio or the critic's learning rate"),
    "mean": ("samples drift from the teacher's mean", "lower the student's learning rate"),
    "std": ("samples gain contrast", "lower guidance or the student's learning rate"),
    "saturation": ("samples saturate", "lower guidance or the student's learning rate"),
    "colour": ("samples gain colour", "lower guidance or the student's learning rate"),
    "diversity": ("samples are noisy", "lower the student's learning rate, or clip more"),
    "dropped": ("steps are dropped as not finite", "look at the data, lower the learning rate"),
}


def complaint(name: str, value: float, allowed: tuple[float, float]) -> str:
    """One line: what is wrong, by how much, and what to do about it."""
    low, high = allowed
    if value < low:
        (wrong, cure), limit = TOO_LOW[name], f"at least {low:g}"
    else:
        term, _, first = name.partition("/")
        outweighs = (f"{term} outweighs {first}", f"lower the weight of {term}")
        (wrong, cure), limit = TOO_HIGH.get(name, outweighs), f"at most {high:g}"
    return f"{wrong} ({name} {value:.3g}, {limit}): {cure}"


class Signal(NamedTuple):
    """A signal as last seen, the range it may be in, and what to make of it.

    watch: out of its range, but not for long enough to be an alarm. usual: least and most of
    healthy runs of the method at this point, where known.
    """

    name: str
    value: float
    low: float
    high: float
    verdict: Literal["healthy", "watch", "alarm"]
    usual: reference.Extent | None = None


class Record(NamedTuple):
    """What a report shows: the last probe's signals, and every alarm that began or ended."""

    signals: list[Signal]
    alarms: list[str]


def record_of(log: Iterable[dict[str, Any]], health: Health, stages: Sequence[StageSpan]) -> Record:
    """The record of the rows of a run's log, whose limits were those of `health`."""
    rows = [row for row in log if row["player"] == "health"]
    events = [row for row in rows if "alarm" in row]
    alarms = [f"stage {r['stage'] + 1}, update {r['update']}: {r['text']}" for r in events]
    seen = list(probes(rows))
    if not seen:
        return Record([], alarms)
    (stage, update, last), signals = seen[-1], []
    method, begin, end = stages[stage]
    raised = {r["alarm"]: r["begins"] for r in events if r["stage"] == stage}
    for name, value in last.items():
        low, high = health.allowed(name)
        fits = "healthy" if low <= value <= high else "watch"
        verdict = "alarm" if raised.get(name) else fits
        usual = reference.range_at(method, name, update / (end - begin))
        signals.append(Signal(name, value, low, high, verdict, usual))
    return Record(signals, alarms)


def probes(log: Iterable[dict[str, Any]]) -> Iterator[tuple[int, int, dict[str, float]]]:
    """(stage, update in it, signals) of every probe in the rows of a log."""
    for row in log:
        if row["player"] == "health" and "alarm" not in row:
            yield row["stage"], row["update"], {k: row[k] for k in row if k not in PLACE}
