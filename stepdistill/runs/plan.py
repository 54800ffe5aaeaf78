"""What a run will cost, before it runs: memory by player, passes, minutes.

Wall time comes from a few measured updates on this machine.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..data.latents import latent_bytes
from ..data.loader import Loader
from ..data.texts import text_bytes
from ..training.trainer import Trainer
from .config import RunConfig
from .costs import (
    held,
    parameter_bytes,
    stage_costs,
    trajectory_bytes,
    trajectory_passes,
)
from .setup import accelerator_of
from .stages import Stages

MEASURED = 3, 3.0  # at least so many updates, for at least so many seconds, after one to warm up
Line = tuple[str, str]


@contextmanager
def rehearsal(run: RunConfig) -> Iterator[Stages]:
    """The stages of a run that leave nothing behind: for what is asked before training.

    Raises ConfigError for a run that cannot be trained."""
    with TemporaryDirectory() as folder:  # a stage may keep the last one's student
        accelerator = accelerator_of(replace(run, trackers=()), Path(folder))
        yield Stages.of(run, Path(folder), accelerator)


def plan(run: RunConfig) -> list[Line]:
    """(what, how much) lines. Trains a handful of updates in memory and leaves nothing behind."""
    with rehearsal(run) as stages:
        return measured(stages)


def measured(stages: Stages) -> list[Line]:
    """The lines of all stages."""
    lines, seconds = [], 0.0
    run, teacher = stages.setup.run, stages.setup.teacher
    if teacher.classes is not None:
        last = teacher.classes
        lines.append(("labels", f"0 to {last - 1}; {last}, the last of the table, for no class"))
    if run.cache:
        asked, size = trajectory_passes(teacher, run.cache), trajectory_bytes(teacher, run.cache)
        lines.append(("teacher's trajectories", f"{asked:,} forward, {size / 1e6:.1f} MB"))
    if run.prompts and run.prompts.cache:
        size = text_bytes(teacher, run.prompts.dtype)
        lines.append(("encoded prompts", f"{size / 1e6:.1f} MB"))
    if run.data.cache and isinstance(stages.setup.data, Loader):
        size = latent_bytes(stages.setup.data, run.data.dtype)
        lines.append(("encoded images", f"{size / 1e6:.1f} MB"))
    stages.rehearse_cache()
    for _ in walk(stages):
        lines += memory(stages) + passes(stages)
        each = update_seconds(stages.trainer)
        seconds += each * stages.settings.training.updates
        lines.append((f"{stages.settings.method}: seconds per update", f"{each:.3f}"))
    return [*lines, ("training, this machine", f"{seconds / 60:.1f} min")]


def walk(stages: Stages) -> Iterator[None]:
    """Every stage in turn, each from the last one's student as it stands."""
    yield
    while stages.stage + 1 < len(stages.setup.run.stages):
        stages.next_stage()
        yield


def memory(stages: Stages) -> list[Line]:
    """Parameters and persistent bytes by player."""
    lines, total, method = [], 0, stages.settings.method
    for each in held(stages.trainer, stages.setup.teacher):
        total += each.bytes
        text = f"{each.parameters:,} parameters, {each.bytes / 2**20:.1f} MiB"
        lines.append((f"{method}: {each.player}", text))
    base = parameter_bytes(stages.setup.teacher.denoiser.net)
    lines.append(("all players", f"{total / 2**20:.1f} MiB, {total / base:.2f}× the teacher"))
    return lines


def passes(stages: Stages) -> list[Line]:
    """Network passes of one student update."""
    cost = stage_costs(stages.setup)[stages.stage]
    text = (
        f"{cost.passes.trained:g} forward+backward, {cost.passes.frozen:g} forward, "
        f"{cost.passes.teacher * cost.nfe:g} teacher forward"
    )
    return [(f"{stages.settings.method}: passes per update", text)]


def update_seconds(trainer: Trainer) -> float:
    """Seconds of one student update, measured."""
    updates, seconds = MEASURED
    trainer.step()
    start, before, took = time.perf_counter(), trainer.update, 0.0
    while trainer.update < trainer.training.updates and (
        trainer.update < before + updates or took < seconds
    ):
        trainer.step()
        took = time.perf_counter() - start
    return took / max(trainer.update - before, 1)
