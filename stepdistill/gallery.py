"""The pictures of a report: same noise through every sampler, estimates step by step, the worst.

All are made by the samplers that are evaluated and shipped.
"""

from collections.abc import Sequence

import torch

from .contenders import label
from .denoiser import AnyDenoiser
from .evaluation.outliers import Outliers, outliers
from .evaluation.report import Film, Grid
from .evaluation.suite import TEACHER, Contender, Suite
from .evaluation.table import STUDENT
from .session import Session
from .solver import Sampler, clean_end, states
from .teacher import teacher_sampler

PICTURES = 20  # of the same noise
FRAMES = 8  # of a film, at most
TAKES = 3  # of a film, each from its own noise


def same_noise(contenders: Sequence[Contender], suite: Suite, seed: int) -> Grid:
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


def films(session: Session) -> list[Film]:
    """x̂₀ after each evaluation, of teacher and student at their most steps, from the same noise."""
    run, teacher = session.run, session.teacher
    found = []
    if run.evaluation.teacher_steps and run.network is None:
        steps = max(run.evaluation.teacher_steps)
        found.append(film(session, TEACHER, teacher.guided, teacher_sampler(teacher), steps))
    steps = max(run.evaluation.steps)
    return [*found, film(session, STUDENT, session.student(), run.sampler, steps)]


@torch.no_grad()
def film(session: Session, model: str, denoiser: AnyDenoiser, sampler: Sampler, steps: int) -> Film:
    """At most FRAMES of the estimates made in `steps` steps, the first and the last among them."""
    device, source = session.accelerator.device, torch.Generator().manual_seed(session.run.seed)
    noise = torch.randn(TAKES, *session.teacher.event, generator=source).to(device)
    labels = session.teacher.labels(TAKES)
    labels = None if labels is None else labels.to(device)
    times = sampler.times(denoiser.process, steps)
    shown = torch.linspace(0, steps - 1, min(steps, FRAMES)).round().long().tolist()
    way = states(denoiser, noise, times, labels, source, sampler.gamma)
    frames = [
        clean_end(denoiser, x, times[i], labels) for i, x in enumerate(way) if i in shown
    ]
    images = torch.stack(frames, 1).clamp(-1, 1).cpu()
    return Film(label(model, steps), images, [str(i + 1) for i in shown])


def worst(contenders: Sequence[Contender], suite: Suite, n: int, seed: int) -> list[Outliers]:
    """The worst images of each source's student at its fewest steps."""
    fewest: dict[str, Contender] = {}
    for c in contenders:
        before = fewest.get(c.source)
        if c.model == STUDENT and (before is None or c.steps < before.steps):
            fewest[c.source] = c
    return [outliers(c, suite, n, seed, _name(c)) for c in fewest.values()]


def _name(c: Contender) -> str:
    """With its source where there are several; the teacher is the same for all."""
    source = f" · {c.source}" if c.source and c.model == STUDENT else ""
    return label(c.model, c.steps) + source
