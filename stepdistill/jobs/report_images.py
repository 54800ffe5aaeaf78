"""The pictures of a report: same noise through every sampler, estimates step by step, the worst.

All are made by the samplers that are evaluated and shipped.
"""

from collections.abc import Sequence

import torch

from ..denoiser import AnyDenoiser
from ..evaluation.report.outliers import Outliers, outliers
from ..evaluation.report.report import Grid, TrajectoryStrip
from ..evaluation.report.table import STUDENT
from ..evaluation.suite import TEACHER, Sampled, Suite
from ..runs.stages import TrainedRun
from ..solver import Sampler, clean_end, states
from ..teachers.teacher import teacher_sampler
from .samplers import label

PICTURES = 20  # of the same noise
FRAMES = 8  # of a strip, at most
SAMPLES = 3  # of a strip, each from its own noise


def same_noise(contenders: Sequence[Sampled], suite: Suite, seed: int) -> Grid:
    """Teachers and students from the same noise and labels, a row each.

    The slider starts with the teacher at most steps against the student at fewest, or, where
    there is no teacher, with the student at most steps against itself at fewest.
    """
    teachers = sorted((c for c in contenders if c.model == TEACHER), key=lambda c: c.steps)
    shown = teachers + [c for c in contenders if c.model == STUDENT]
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(PICTURES, *suite.images.shape[1:], generator=source)
    labels = None if suite.classes is None else torch.arange(PICTURES) % suite.classes
    # Re-noising continues the stream the noise came from; the same seed again would repeat it.
    made = [c.sample(noise, labels, source.clone_state()) for c in shown]
    left = max(range(len(shown)), key=lambda i: (shown[i].model == TEACHER, shown[i].steps))
    right = min(range(len(shown)), key=lambda i: (shown[i].model == TEACHER, shown[i].steps))
    names = [_name(c) for c in shown]
    return Grid("Same noise, same label", torch.stack(made), names, (left, right))


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
    shown = torch.linspace(0, steps - 1, min(steps, FRAMES)).round().long().tolist()
    way = states(denoiser, noise, times, cond, source, sampler.gamma)
    frames = [clean_end(denoiser, x, times[i], cond) for i, x in enumerate(way) if i in shown]
    images = torch.stack(frames, 1).clamp(-1, 1).cpu()
    return TrajectoryStrip(label(model, steps), images, [str(i + 1) for i in shown])


def outliers_of(contenders: Sequence[Sampled], suite: Suite, n: int, seed: int) -> list[Outliers]:
    """The worst images of each source's student at its fewest steps."""
    fewest: dict[str, Sampled] = {}
    for c in contenders:
        before = fewest.get(c.source)
        if c.model == STUDENT and (before is None or c.steps < before.steps):
            fewest[c.source] = c
    return [outliers(c, suite, n, seed, _name(c)) for c in fewest.values()]


def _name(c: Sampled) -> str:
    """With its source where there are several; the teacher is the same for all."""
    source = f" · {c.source}" if c.source and c.model == STUDENT else ""
    return label(c.model, c.steps) + source
