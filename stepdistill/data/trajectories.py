"""What a frozen teacher says, computed once: trajectories of its ODE from noise to clean data.

    manifest.json        the teacher's hash, solver, times, guidance, seed and sizes
    00000.safetensors    m trajectories: their states (m, n + 1, *event), the answers there, guided
                         x̂₀ (m, n, *event), w (m,), and cond.NAME (m, …) of conditions

The noise, labels and w of shard k come from a stream keyed (seed, k), see `shards`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Guided, Rescaled
from ..schema import Count, Positive, Seed, Steps
from ..solver import OneStep, Trajectory, ode_step, start
from ..teachers.teacher import Teacher, teacher_sampler
from . import shards
from .loader import Drawn, shuffled, stream

CACHED = 5  # kind of the streams that shards are drawn from
COND = "cond."  # before the names of conditions
FORMAT = 2  # of the shards


@dataclass(frozen=True)
class CacheSettings:
    """samples: trajectories. steps: of each. guidance: range of w, None for the run's.

    shard: trajectories in a file. path: a folder that runs share, None for the run's own.
    """

    samples: Count = 2048
    steps: Steps = 32
    solver: OneStep = "ddim"
    guidance: tuple[Positive, Positive] | None = None
    seed: Seed = 0
    shard: Count = 256
    path: str | None = None

    @property
    def shards(self) -> int:
        return ceil(self.samples / self.shard)

    def rows(self, k: int) -> int:
        """Trajectories in shard k."""
        return min(self.shard, self.samples - k * self.shard)


@dataclass(frozen=True)
class Cache:
    """Trajectories as training data: their clean ends, and the whole of each."""

    times: Tensor
    shards: list[dict[str, Tensor]]
    size: int
    seed: int = 0

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        places = shuffled(self.size, number * size, size, self.seed)
        length = len(self.shards[0]["w"])
        pick = [(self.shards[i // length], i % length) for i in places.tolist()]
        row = {name: torch.stack([s[name][i] for s, i in pick]) for name in self.shards[0]}
        path = Trajectory(self.times, row["states"], row["answers"], row["w"])
        return Drawn(path.x[:, -1], within(row, COND), path)


@torch.no_grad()
def trajectories(teacher: Teacher, settings: CacheSettings, k: int) -> dict[str, Tensor]:
    """The tensors of shard k, on the CPU."""
    m, generator = settings.rows(k), stream(settings.seed, CACHED, k)
    device = teacher.device
    noise = torch.randn(m, *teacher.event, generator=generator)
    low, high = settings.guidance or (teacher.w, teacher.w)
    w = low + (high - low) * torch.rand(m, generator=generator)
    cond = teacher.conditions(teacher.drawn(m, generator))

    guided = at_guidance(teacher, w) if settings.guidance else teacher.guided
    times = times_of(teacher, settings)
    x = start(guided.process, noise, times[0]).to(device)
    states, answers = [x], []
    for t, s in pairwise(times):
        t, s = t.expand(m), s.expand(m)
        answers.append(guided(x, t, cond).x0)
        x = ode_step(guided, x, t, s, cond, settings.solver)
        states.append(x)
    whole = {"states": states, "answers": answers}
    found = {name: torch.stack(listed, 1).cpu() for name, listed in whole.items()} | {"w": w}
    return found | {COND + name: value.cpu() for name, value in cond.items()}


def within(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def at_guidance(teacher: Teacher, w: Tensor):
    """The teacher with guidance w (b,)."""
    return replace(teacher.guided, w=w)


def times_of(teacher: Teacher, settings: CacheSettings) -> Tensor:
    """The falling times of every trajectory, (steps + 1,)."""
    return teacher_sampler(teacher).grid.times(teacher.denoiser.process, settings.steps)


def manifest(teacher: Teacher, settings: CacheSettings) -> dict[str, Any]:
    """What a cache is made of: equal for equal contents."""
    asked = {k: v for k, v in asdict(settings).items() if k != "path"}
    asked["guidance"] = list(settings.guidance or (teacher.w, teacher.w))
    if teacher.prompted:
        asked["prompts"] = teacher.prompts_hash
    rule = teacher.guided.guide if isinstance(teacher.guided, Guided) else None
    if isinstance(rule, Rescaled):
        asked["rescale"] = rule.share
    if teacher.away is not None:
        asked["negative prompt"] = teacher.away
    return asked | {
        "format": FORMAT,
        "teacher": teacher.hash,
        "process": type(teacher.denoiser.process).__name__,
        "prediction": teacher.denoiser.prediction,
        "times": times_of(teacher, settings).tolist(),
        "event": list(teacher.event),
    }


def build(
    folder: Path,
    teacher: Teacher,
    settings: CacheSettings,
    part: tuple[int, int] = (0, 1),
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compute the shards that are missing, see `shards.build`."""
    made = partial(trajectories, teacher, settings)
    shards.build(folder, manifest(teacher, settings), settings.shards, made, part, observe)


def load_cache(folder: Path, teacher: Teacher, settings: CacheSettings, seed: int) -> Cache:
    """The whole cache; `seed` orders it for training. Raises ConfigError as `shards.load`."""
    found = shards.load(folder, manifest(teacher, settings), settings.shards)
    return Cache(times_of(teacher, settings), found, settings.samples, seed)
