"""Runs cut short: of everything they are made of, but for seconds."""

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from stepdistill.runs.config import RunConfig
from stepdistill.runs.plan import walk
from stepdistill.runs.stages import Stages, TrainedRun


def short(run: RunConfig, updates: int = 2, batch: int = 8) -> RunConfig:
    """The same run with few updates a stage, images, trajectories and steps of the teacher.

    batch: of methods that do not ask for more."""
    needed = [max(batch, stage.build().needs.batch) for stage in run.stages]
    stages = [
        replace(s, training=replace(s.training, updates=updates, batch=n))
        for s, n in zip(run.stages, needed)
    ]
    cache = run.cache and replace(run.cache, samples=12, steps=3, shard=8)
    few = tuple(n for n in run.evaluation.teacher_steps if n <= 4)
    evaluation = replace(run.evaluation, n=20, blocks=2, teacher_steps=few)
    return replace(run, stages=stages, cache=cache, evaluation=evaluation)


def rehearse(run: RunConfig, folder: Path) -> TrainedRun:
    """What the run has come to after one cycle of each stage's turns, on two samples each."""
    stages = Stages.of(short(run, batch=2), folder, Accelerator(cpu=True))
    stages.rehearse_cache()
    for _ in walk(stages):
        for _ in stages.trainer.turns:
            stages.trainer.step()
    return stages.result()
