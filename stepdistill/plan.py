"""What a run will cost, before it runs.

Persistent bytes of a role that trains, with Adam in float32: weights 4, gradient 4, two moments 8,
average 4 per parameter; a frozen role holds its weights only.
Wall time comes from a few measured updates on this machine.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from .adapters import parameter_count
from .cache import bytes_of, passes_of
from .config import Run
from .session import Session, accelerator_of, nfe_of
from .trainer import Trainer

MEASURED = 3, 3.0  # at least so many updates, for at least so many seconds, after one to warm up
FLOAT = 4  # bytes
TRAINED = 4  # weight, gradient, and two moments of every optimiser offered

Line = tuple[str, str]


@contextmanager
def rehearsal(run: Run) -> Iterator[Session]:
    """A session of the run that leaves nothing behind: for what is asked before training.

    Raises ConfigError for a run that cannot be trained."""
    with TemporaryDirectory() as folder:  # a stage may keep the last one's student
        yield Session(run, Path(folder), accelerator_of(replace(run, trackers=()), Path(folder)))


def plan(run: Run) -> list[Line]:
    """(what, how much) lines. Trains a handful of updates in memory and leaves nothing behind."""
    with rehearsal(run) as session:
        return measured(run, session)


def measured(run: Run, session: Session) -> list[Line]:
    """The lines of all stages."""
    lines, seconds = [], 0.0
    if run.cache:
        size, asked = (count(session.teacher, run.cache) for count in (bytes_of, passes_of))
        lines.append(("teacher's trajectories", f"{asked:,} forward, {size / 1e6:.1f} MB"))
    session.rehearse_cache()
    for _ in walk(session):
        stage = session.stage_settings
        lines += memory(session) + passes(session)
        each = update_seconds(session)
        seconds += each * stage.training.updates
        lines.append((f"{stage.method}: seconds per update", f"{each:.3f}"))
    return [*lines, ("training, this machine", f"{seconds / 60:.1f} min")]


def walk(session: Session) -> Iterator[None]:
    """Every stage in turn, each from the last one's student as it stands."""
    yield
    while session.stage + 1 < len(session.run.stages):
        session.next_stage()
        yield


def memory(session: Session) -> list[Line]:
    """Parameters and persistent bytes by role."""
    lines, total = [], 0
    for role in roles(session):
        total += role.bytes
        text = f"{role.parameters:,} parameters, {role.bytes / 2**20:.1f} MiB"
        lines.append((f"{session.stage_settings.method}: {role.name}", text))
    base = parameter_bytes(session.teacher.denoiser.net)
    lines.append(("all roles", f"{total / 2**20:.1f} MiB, {total / base:.2f}× the teacher"))
    return lines


@dataclass(frozen=True)
class Role:
    """What a role holds from update to update: its own parameters, `floats` float32 of each."""

    name: str
    parameters: int
    bytes: int


def roles(session: Session) -> list[Role]:
    """The roles of the present stage that hold something of their own."""
    net = session.teacher.denoiser.net  # without a teacher, the network that copies are made from
    teacher = Role("teacher", parameter_count(net), parameter_bytes(net))
    return [teacher, *trained_roles(session.trainer)]


def trained_roles(trainer: Trainer) -> list[Role]:
    """The roles that move, and the target that follows one."""
    found = []
    for name, moved in sorted(trainer.moved.items()):
        count = sum(p.numel() for p in moved)
        averages = name == "student"
        found.append(Role(name, count, FLOAT * count * (TRAINED + averages)))
    if trainer.target is not None:
        count = sum(p.numel() for p in trainer.target.averaged)
        found.append(Role("target", count, FLOAT * count))
    return found


def parameter_bytes(net: nn.Module) -> int:
    """Bytes of a network's weights, or of the base's alone under a view."""
    return FLOAT * parameter_count(net)


def passes(session: Session) -> list[Line]:
    """Network passes of one student update."""
    stage, trainer = session.stage_settings, session.trainer
    counted = trainer.method.passes(session.run.sampler)
    nfe = nfe_of(session.run, session.stage, trainer.method, session.teacher)
    text = (
        f"{counted.trained:g} forward+backward, {counted.frozen:g} forward, "
        f"{counted.teacher * nfe:g} teacher forward"
    )
    return [(f"{stage.method}: passes per update", text)]


def update_seconds(session: Session) -> float:
    """Seconds of one student update, measured."""
    trainer, (updates, seconds) = session.trainer, MEASURED
    trainer.step()
    start, before, took = time.perf_counter(), trainer.update, 0.0
    while trainer.update < trainer.training.updates and (
        trainer.update < before + updates or took < seconds
    ):
        trainer.step()
        took = time.perf_counter() - start
    return took / max(trainer.update - before, 1)
