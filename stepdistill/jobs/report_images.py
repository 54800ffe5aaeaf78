"""The pictures of a report: same noise through every sampler, several images of one prompt, what
lies nearest to the teacher's and farthest from it, estimates step by step, the worst.

All are made by the samplers that are evaluated and shipped.
"""

from collections import Counter
from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from ..denoiser import AnyDenoiser
from ..evaluation.evaluate import Request, Sampled, first_block, most_steps, requests
from ..evaluation.reference import Asked, One, heeded, prompts_in
from ..evaluation.report.outliers import Outliers, outliers
from ..evaluation.report.pairs import Pairs, in_words, pairs
from ..evaluation.report.pictures import enumerated, is_small, lean, shown
from ..evaluation.report.report import ImageGrid, TrajectoryStrip, Within
from ..evaluation.rows import STUDENT, TEACHER, fewest
from ..evaluation.suite import Suite
from ..runs.stages import TrainedRun
from ..solver import Sampler, clean_end, states
from ..teachers.teacher import teacher_sampler
from .samplers import in_batches, label

PICTURES, LARGE_PICTURES = 20, 10  # of the same noise
ASKED, EACH = 3, 4  # prompts or labels of which several images are shown, and how many
FRAMES = 8  # of a strip, at most
SAMPLES = 3  # of a strip, each from its own noise


def same_noise(
    samplers: Sequence[Sampled], suite: Suite, seed: int, n: int | None = None
) -> ImageGrid:
    """Teachers and students from the same noise and labels, a row each.

    n: images a block, where images that exist already are among those that are shown. The slider
    starts with the teacher at most steps against the student at fewest, or, where there is no
    teacher, with the student at most steps against itself at fewest.
    """
    teachers = sorted((c for c in samplers if c.model == TEACHER), key=lambda c: c.steps)
    rows = teachers + [c for c in samplers if c.model == STUDENT]
    stored = any(c.made is not None for c in rows)
    made = [
        first_scored(c, suite, n, seed) if stored else first_images(c, suite, seed) for c in rows
    ]
    left = max(range(len(rows)), key=lambda i: (rows[i].model == TEACHER, rows[i].steps))
    right = min(range(len(rows)), key=lambda i: (rows[i].model == TEACHER, rows[i].steps or inf))
    names, note = [_name(c) for c in rows], differing(rows, suite)
    same = "Image by image" if note else f"Same {'seed' if stored else 'noise'}"
    wanted = suite.reference.asked(1)
    prompts: Sequence[str] = []
    if wanted is not None and not note:
        same += ", same label" if isinstance(wanted, Tensor) else ", same prompt"
        if stored and prompts_in(wanted):
            prompts = [request.asked for request in requests(suite, n, 1, seed).each]
        elif not stored:
            prompts = prompts_in(suite.reference.asked(PICTURES))
    return ImageGrid(same, torch.stack(made), names, (left, right), note, prompts)


def differing(rows: Sequence[Sampled], suite: Suite) -> str:
    """In what some of several samplers differ from the others: in noise, or in what is asked."""
    wanted, notes = suite.reference.asked(1), []
    if unseeded := [c.source for c in rows if not c.seeded]:
        notes.append(f"How the images of {enumerated(unseeded)} were made, nobody knows.")
    others = [c for c in rows if c.seeded and c.sample is None]
    ours = [c for c in rows if c.sample is not None]
    if ours and others:
        names = enumerated(list(dict.fromkeys(c.source or c.model for c in ours)))
        notes.append(f"From other noise than those of other pipelines: {names}.")
    alike = others or ours
    apart = [c for c in alike if not heeded(wanted, c.asked(wanted, 0, 1))]
    if apart:
        what = "labels" if isinstance(wanted, Tensor) else "prompts"
        names = enumerated([c.source or c.model for c in apart])
        notes.append(f"From the same seeds as others, but not of their {what}: {names}.")
    return " ".join(notes)


def first_scored(sampler: Sampled, suite: Suite, n: int, seed: int) -> Tensor:
    """The first images (≤ PICTURES, c, h, w) that an evaluation of blocks of n scores."""
    found: list[Tensor] = []
    for images, _ in first_block(sampler, suite, n, seed):
        count = min(PICTURES if is_small(images) else LARGE_PICTURES, n)
        found += lean(shown(images)).split(1)
        if len(found) >= count:
            break
    return torch.cat(found[:count])


def first_images(sampler: Sampled, suite: Suite, seed: int) -> Tensor:
    """PICTURES images (n, c, h, w) of a sampler, from noise of this seed."""
    return drawn(sampler, suite, seed, suite.reference.asked(PICTURES), PICTURES)


def drawn(sampler: Sampled, suite: Suite, seed: int, wanted: Asked, n: int) -> Tensor:
    """n images (n, c, h, w) of a sampler, asked for this, from noise of this seed."""
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, *sampler.event, generator=source)
    asked = sampler.asked(wanted, 0, n)
    return shown(in_batches(sampler, noise, asked, source, suite.batch))


def within(samplers: Sequence[Sampled], suite: Suite, seed: int, n: int) -> list[Within]:
    """EACH images of each of the first ASKED prompts or labels, of the teacher at most steps and
    of every student that can be asked for them; n: images a block. None where nothing is asked
    twice."""
    wanted = suite.reference.asked(1)
    teacher = teacher_of(samplers)
    rows = [teacher] if teacher else []
    rows += [c for c in samplers if c.model == STUDENT]
    rows = [c for c in rows if heeded(wanted, c.asked(wanted, 0, 1))]
    if wanted is None or not rows:
        return []
    chosen = repeated(requests(suite, n, 1, seed).each)[:ASKED]
    if not chosen:  # nothing is asked twice
        return []
    if any(c.made is not None for c in rows):
        found = [of_scored(c, suite, n, seed, chosen) for c in rows]
    else:
        found = [of_fresh(c, suite, seed, chosen) for c in rows]
    several = []
    for one in chosen:
        own = {_name(c): of[one] for c, of in zip(rows, found, strict=True) if one in of}
        if own:
            several.append(Within(in_words(one), own))
    return several


def repeated(each: Sequence[Request]) -> list[One]:
    """What is asked for more than once: prompts as they come, labels from the least on."""
    counts = Counter(request.asked for request in each)
    found = [one for one, count in counts.items() if count > 1]
    return sorted(found) if all(isinstance(one, int) for one in found) else found


def of_scored(
    c: Sampled, suite: Suite, n: int, seed: int, chosen: Sequence[One]
) -> dict[One, Tensor]:
    """The first EACH images (n, c, h, w) of each of these among those that are scored."""
    found: dict[One, list[Tensor]] = {one: [] for one in chosen}
    for images, asked in first_block(c, suite, n, seed):
        for image, one in zip(images, () if asked is None else asked):
            key = int(one) if isinstance(one, Tensor) else one
            if key in found and len(found[key]) < EACH:
                found[key].append(lean(shown(image)))
        if all(len(of) == EACH for of in found.values()):
            break
    return {one: torch.stack(of) for one, of in found.items() if len(of) > 1}


def of_fresh(c: Sampled, suite: Suite, seed: int, chosen: Sequence[One]) -> dict[One, Tensor]:
    """EACH images (n, c, h, w) of each of these, from noise of this seed."""
    asked = [one for one in chosen for _ in range(EACH)]
    wanted = asked if isinstance(asked[0], str) else torch.tensor(asked)
    images = drawn(c, suite, seed, wanted, len(asked))
    return dict(zip(chosen, images.split(EACH), strict=True))


def pairs_of(samplers: Sequence[Sampled], suite: Suite, n: int, seed: int) -> list[Pairs]:
    """The images of each source's student at its fewest steps that are nearest to the teacher's at
    most steps, and the farthest; none without a teacher, or where it shares neither noise nor
    questions."""
    teacher, wanted = teacher_of(samplers), suite.reference.asked(1)
    if teacher is None:
        return []
    students = [c for c in at_fewest(samplers) if c.shares_noise(teacher)]
    students = [c for c in students if heeded(wanted, c.asked(wanted, 0, 1))]
    return [pairs(c, teacher, suite, n, seed, (_name(c), _name(teacher))) for c in students]


def teacher_of(samplers: Sequence[Sampled]) -> Sampled | None:
    """The teacher at most steps, if there is one."""
    place = most_steps(samplers)
    return None if place is None else samplers[place]


def at_fewest(samplers: Sequence[Sampled]) -> list[Sampled]:
    """Each source's student at its fewest steps."""
    return fewest([c for c in samplers if c.model == STUDENT])


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
    return [outliers(c, suite, n, seed, _name(c)) for c in at_fewest(samplers)]


def _name(c: Sampled) -> str:
    """With its source where there are several; the teacher is the same for all."""
    if not c.seeded:
        return c.source
    source = f" · {c.source}" if c.source and c.model == STUDENT else ""
    return label(c.model, c.steps) + source
