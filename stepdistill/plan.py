"""What a run will cost, before it runs.

Persistent bytes of a role that trains, with Adam in float32: weights 4, gradient 4, two moments 8,
average 4 per parameter; a frozen role holds its weights only.
Wall time comes from a few measured updates on this machine.
"""

import time
from dataclasses import replace
from pathlib import Path

from .config import Run
from .session import Session, accelerator_of

MEASURED = 3  # updates, after one to warm up
FLOAT = 4
MOMENTS = 2  # of every optimiser offered

Line = tuple[str, str]


def plan(run: Run) -> list[Line]:
    """(what, how much) lines. Trains a handful of updates in memory and writes nothing."""
    unwritten = Path(".")
    session = Session(run, unwritten, accelerator_of(replace(run, trackers=()), unwritten))
    lines, seconds = memory(session), 0.0
    while True:
        stage = session.stage_settings
        lines += passes(session)
        each = update_seconds(session)
        seconds += each * stage.training.updates
        lines.append((f"{stage.method}: seconds per update", f"{each:.3f}"))
        if session.stage + 1 == len(run.stages):
            break
        session.next_stage()
    return [*lines, ("training, this machine", f"{seconds / 60:.1f} min")]


def memory(session: Session) -> list[Line]:
    """Parameters and persistent bytes by role."""
    lines, total = [], 0
    for role, count, floats in roles(session):
        size = count * floats * FLOAT
        total += size
        lines.append((role, f"{count:,} parameters, {size / 2**20:.1f} MiB"))
    return [*lines, ("all roles", f"{total / 2**20:.1f} MiB")]


def roles(session: Session) -> list[tuple[str, int, int]]:
    """(role, parameters, persistent floats per parameter) of the present stage."""
    trainer, players = session.trainer, session.trainer.players
    size = sum(p.numel() for p in players.student.net.parameters())
    found = [("student", size, 1 + 1 + MOMENTS + 1)]
    if session.run.network is None:
        found.append(("teacher", size, 1))
    if trainer.target is not None:
        found.append(("target", size, 1))
    return found


def passes(session: Session) -> list[Line]:
    """Network passes of one student update."""
    stage, trainer = session.stage_settings, session.trainer
    counted, nfe = trainer.method.passes(), session.teacher.nfe
    text = (
        f"{counted.trained} forward+backward, {counted.frozen} target forward, "
        f"{counted.teacher * nfe} teacher forward"
    )
    return [(f"{stage.method}: passes per update", text)]


def update_seconds(session: Session) -> float:
    """Seconds of one student update, measured."""
    trainer = session.trainer
    trainer.step()
    start, before = time.perf_counter(), trainer.update
    while trainer.update < min(before + MEASURED, trainer.training.updates):
        trainer.step()
    return (time.perf_counter() - start) / max(trainer.update - before, 1)
