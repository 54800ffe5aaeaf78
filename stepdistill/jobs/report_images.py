"""The pictures of a report: same noise through every sampler, estimates step by step, the worst.

All are made by the samplers that are evaluated and shipped.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoiser import AnyDenoiser
from ..evaluation.evaluate import Sampled, first_block
from ..evaluation.report.outliers import Outliers, outliers
from ..evaluation.report.report import ImageGrid, TrajectoryStrip
from ..evaluation.rows import STUDENT, TEACHER
from ..evaluation.suite import Suite
from ..runs.stages import TrainedRun
from ..solver import Sampler, clean_end, states
from ..teachers.teacher import teacher_sampler
from .samplers import label

PICTURES = 20  # of the same noise
FRAMES = 8  # of a strip, at most
SAMPLES = 3  # of a strip, each from its own noise


def same_noise(
    samplers: Sequence[Sampled], suite: Suite, seed: int, n: int | None = None
) -> ImageGrid:
    """Teachers and students from the same noise and labels, a row each.

    n: images a block, where images that exist already are among those that are shown.

    The slider starts with the teacher at most steps against the student at fewest, or, where
    there is no teacher, with the student at most steps against itself at fewest.
    """
    teachers = sorted((c for c in samplers if c.model == TEACHER), key=lambda c: c.steps)
    rows = teachers + [c for c in samplers if c.model == STUDENT]
    stored = any(c.made is not None for c in rows)
    made = [
        first_scored(c, suite, n, seed) if stored else first_images(c, suite, seed) for c in rows
    ]
    left = max(range(len(rows)), key=lambda i: (rows[i].model == TEACHER, rows[i].steps))
    right = min(range(len(rows)), key=lambda i: (rows[i].model == TEACHER, rows[i].steps))
    names = [_name(c) for c in rows]
    same = "Same noise" if suite.reference.ask is None else "Same noise, same label"
    same = "Same seed, same prompt" if stored else same
    return ImageGrid(same, torch.stack(made), names, (left, right))


def first_scored(sampler: Sampled, suite: Suite, n: int, seed: int) -> Tensor:
    """The first images (≤ PICTURES, c, h, w) that an evaluation of blocks of n scores."""
    found, count = [], min(PICTURES, n)
    for images, _ in first_block(sampler, suite, n, seed):
        found.append(images)
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]


def first_images(sampler: Sampled, suite: Suite, seed: int) -> Tensor:
    """PICTURES images (n, c, h, w) of a sampler, from noise of this seed."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(PICTURES, *sampler.event, generator=source)
    # Re-noising continues the stream the noise came from; the same seed again would repeat it.
    asked = suite.reference.asked(PICTURES)
    made = []
    for start in range(0, PICTURES, suite.batch):
        rows = slice(start, start + suite.batch)
        made.append(sampler.sample(noise[rows], None if asked is None else asked[rows], source))
    return shown(torch.cat(made))


def shown(images: Tensor) -> Tensor:
    """Images (…, c, h, w) that can be seen: grey or in colours, else their first channel."""
    return images if images.shape[-3] in (1, 3) else images[..., :1, :, :]


def strips(trained: TrainedRun) -> list[TrajectoryStrip]:
    """x̂₀ after each evaluation, of teacher and student at their most steps, from the same noise."""
    run, teacher = trained.run, trained.teacher
    found = []
    if run.evaluation.teacher_steps and run.network is None:
        steps = max(run.evaluation.teacher_steps)
        sampler = teacher_sampler(teacher)
        found.append(strip(trained, TEACHER, teacher.guided, sampler, steps))
    steps = max(run.evaluation.steps)
    return [*found, strip(trained, STUDENT, trained.student, run.sampler, steps)]


@torch.no_grad()
def strip(
    trained: TrainedRun, model: str, denoiser: AnyDenoiser, sampler: Sampler, steps: int
) -> TrajectoryStrip:
    """At most FRAMES of the estimates made in `steps` steps, the first and the last among them."""
    device = trained.setup.accelerator.device
    source = torch.Generator().manual_seed(trained.run.seed)
    noise = torch.randn(SAMPLES, *trained.teacher.event, generator=source).to(device)
    cond = trained.teacher.some(SAMPLES)
    times = sampler.times(denoiser.process, steps)
    places = torch.linspace(0, steps - 1, min(steps, FRAMES)).round().long().tolist()
    way = states(denoiser, noise, times, cond, source, sampler.gamma)
    ends = [clean_end(denoiser, x, times[i], cond) for i, x in enumerate(way) if i in places]
    frames = [trained.teacher.codec.decode(end) for end in ends]
    images = shown(torch.stack(frames, 1).clamp(-1, 1).cpu())
    return TrajectoryStrip(label(model, steps), images, [str(i + 1) for i in places])


def outliers_of(samplers: Sequence[Sampled], suite: Suite, n: int, seed: int) -> list[Outliers]:
    """The worst images of each source's student at its fewest steps; none without a space, or
    without real images."""
    if suite.space is None or suite.reference.images is None:
        return []
    fewest: dict[str, Sampled] = {}
    for c in samplers:
        before = fewest.get(c.source)
        if c.model == STUDENT and (before is None or c.steps < before.steps):
            fewest[c.source] = c
    return [outliers(c, suite, n, seed, _name(c)) for c in fewest.values()]


def _name(c: Sampled) -> str:
    """With its source where there are several; the teacher is the same for all."""
    source = f" · {c.source}" if c.source and c.model == STUDENT else ""
    return label(c.model, c.steps) + source
