"""What a run costs: network passes, evaluations (NFE), bytes and seconds.

A pass is that of one batch, or of one sample where it says so; a forward counts 1, its backward 2
more. Guidance doubles a call of the teacher. Persistent bytes of a player that trains, with Adam in
float32: weight 4, gradient 4, two moments 8, EMA 4 a parameter; a frozen one holds its weights.
"""

from dataclasses import dataclass, replace
from math import prod

from torch import nn

from ..data.trajectories import CacheSettings
from ..method import Method, Passes
from ..networks.views import parameter_count
from ..solver import EVALUATIONS
from ..teachers.teacher import Teacher
from ..training.trainer import Trainer, Training
from .config import RunConfig
from .setup import Setup

FLOAT = 4  # bytes
TRAINED = 4  # weight, gradient, and two moments of every optimiser offered


@dataclass(frozen=True)
class StageCost:
    """What the updates of one stage are made of.

    passes: of one student update. nfe: network evaluations of a call of the stage's teacher. cycle:
    turns of a cycle.
    """

    training: Training
    passes: Passes
    nfe: int
    cycle: int

    @property
    def work(self) -> float:
        """Passes of one student update, a forward as 1."""
        return self.passes.work(self.nfe)

    @property
    def turns(self) -> int:
        """As many as the stage has, or more: then places grow over stages whatever the order."""
        return self.cycle * self.training.updates

    @property
    def samples(self) -> int:
        """Samples of one process in all turns of a student update."""
        return self.cycle * self.training.batch * self.training.accumulation

    def __str__(self) -> str:
        passes = ", ".join(f"{n:g} {kind}" for kind, n in self.passes._asdict().items())
        updates, batch = self.training.updates, self.training.batch
        return f"{updates:,} updates of {batch} samples; network passes an update: {passes}"


def stage_costs(setup: Setup) -> list[StageCost]:
    """The costs of every stage."""
    return [
        StageCost(
            stage.training,
            method.passes(setup.run.sampler),
            stage_nfe(setup.run, i, method, setup.teacher),
            len(method.turns()),
        )
        for i, (stage, method) in enumerate(zip(setup.run.stages, setup.methods, strict=True))
    ]


def stage_nfe(run: RunConfig, stage: int, method: Method, teacher: Teacher) -> int:
    """Network evaluations of a call of the stage's teacher; a student has its guidance inside."""
    if run.stages[stage].teacher == "last":
        return 1
    drawn = method.needs.guidance and not teacher.backbone.embedded
    return 2 if drawn else teacher.nfe


def sample_passes(setup: Setup) -> float:
    """Network passes of one sample that a run takes, its cached trajectories included."""
    total = sum(
        c.training.updates * c.training.batch * c.training.accumulation * c.work
        for c in stage_costs(setup)
    )
    cached = setup.run.cache is not None and any(m.needs.trajectories for m in setup.methods)
    return total + (trajectory_passes(setup.teacher, setup.run.cache) if cached else 0)


@dataclass(frozen=True)
class RunCost:
    """What a run's training took; passes are those of a batch, a backward not counted."""

    updates: int
    own: float
    teacher: float
    seconds: float

    @classmethod
    def of(cls, setup: Setup, seconds: float) -> "RunCost":
        """Of a run that was trained in so many seconds."""
        run, updates, own, taught = setup.run, 0, 0.0, 0.0
        for cost in stage_costs(setup):
            batches = cost.training.updates * cost.training.accumulation
            updates += cost.training.updates
            own += batches * (cost.passes.trained + cost.passes.frozen)
            taught += batches * cost.passes.teacher * cost.nfe
        stages = zip(run.stages, setup.methods)
        cached = [s.training.batch for s, m in stages if m.needs.trajectories]
        if cached:
            taught += trajectory_passes(setup.teacher, run.cache) / cached[0]
        return cls(updates, own, taught, seconds)

    def __str__(self) -> str:
        return (
            f"{self.updates:,} student updates, {self.own:,.0f} passes of student and critic, "
            f"{self.teacher:,.0f} of the teacher, {self.seconds:,.0f} s"
        )


def trajectory_passes(teacher: Teacher, settings: CacheSettings) -> int:
    """Passes of one sample that cached trajectories take: every state's x̂₀, and its step."""
    drawn = settings.guidance and not teacher.backbone.embedded
    nfe = 2 if drawn and teacher.null else teacher.nfe
    return settings.samples * settings.steps * (1 + EVALUATIONS[settings.solver]) * nfe


def trajectory_bytes(teacher: Teacher, settings: CacheSettings) -> int:
    """What cached trajectories take on disk, without a few hundred bytes a shard."""
    cond = sum(row.numel() * row.element_size() for row in teacher.null.values())
    row = prod(teacher.event) * (2 * settings.steps + 1) * FLOAT + FLOAT + cond
    return settings.samples * row


@dataclass(frozen=True)
class Held:
    """What a player holds from update to update: its own parameters, and its persistent bytes."""

    player: str
    parameters: int
    bytes: int


def held(trainer: Trainer, teacher: Teacher) -> list[Held]:
    """What each player holds, the teacher first: without one, what copies are made from."""
    net = teacher.denoiser.net
    return [Held("teacher", parameter_count(net), parameter_bytes(net)), *held_in_training(trainer)]


def held_in_training(trainer: Trainer) -> list[Held]:
    """The players that move, and the target that follows one."""
    found = []
    for name, moved in sorted(trainer.moved.items()):
        count = sum(p.numel() for p in moved)
        averaged = name == "student"
        found.append(Held(name, count, FLOAT * count * (TRAINED + averaged)))
    if trainer.target is not None:
        count = sum(p.numel() for p in trainer.target.averaged)
        found.append(Held("target", count, FLOAT * count))
    return found


def parameter_bytes(net: nn.Module) -> int:
    """Bytes of a network's weights, or of the base's alone under a view."""
    return FLOAT * parameter_count(net)


def scaled(run: RunConfig, factor: float) -> RunConfig:
    """The run with `factor` times its updates and cached samples, at least one of each.

    Its warm-up stays as it is."""

    def times(number: int) -> int:
        return min(max(1, round(number * factor)), 10**9)

    trainings = [replace(s.training, updates=times(s.training.updates)) for s in run.stages]
    stages = [replace(s, training=t) for s, t in zip(run.stages, trainings)]
    if run.cache is None:
        return replace(run, stages=stages)
    samples, path = times(run.cache.samples), run.cache.path
    own = path and f"{path}-{samples}"  # trajectories of another number are others
    return replace(run, stages=stages, cache=replace(run.cache, samples=samples, path=own))
