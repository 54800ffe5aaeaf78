"""Contenders × fresh seed blocks → rows of one table.

Block b holds n images from noise seeded (seed, b); every contender gets the same noise and labels,
so rows are paired. A row gives the mean of the blocks' distances and that mean's 95 % interval. A
Fréchet distance shrinks as n grows, so rows compare only at equal n a block; the row "real" says
what resampled data itself scores at this n: no sampler can be expected to do better.

Spaces: Fréchet and kernel distance in domain-cnn; Fréchet distance, precision, recall and diversity
in random-conv, because the classifier hardly sees collapse within a class (features.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from torch import Tensor, nn

from ..data.sources import digits
from .features.domain_cnn import CLASSES, load_domain_cnn
from .features.random_conv import random_conv
from .features.space import FeatureSpace
from .metrics import Manifold, diversity, interval, kid_blocks, mean_and_error, precision_recall
from .moments import Moments, frechet_distance
from .scores import Score, Scored

CHUNK = 250  # images generated at a time, which bounds memory
KEPT = 2000  # features kept a block, for the metrics that compare pairs
TEACHER, REAL = "teacher", "real"


@dataclass(frozen=True)
class Sampled:
    """A sampler to be scored.

    model: "teacher", "student" or "untrained-student". nfe: network evaluations an image, guidance
    counted twice. sample(noise, labels, generator): standard normal noise (n, 1, 8, 8) float32 on
    the CPU and labels (n,) or None → images (n, 1, 8, 8) in [−1, 1]; all other randomness comes
    from the CPU generator.
    """

    model: str
    steps: int
    nfe: int
    parameters: int
    sample: Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
    source: str = ""


@dataclass(frozen=True)
class Row:
    """A contender's scores; None where a quantity does not exist.

    frechet, low, high: mean and 95 % interval in domain-cnn; frechet_random, …: in random-conv.
    n: images in total. accuracy: share of images the classifier gives their requested label.
    kid: in domain-cnn. diversity: ratio to the teacher at most steps. paired: root mean square
    difference, in pixel values of [−1, 1], from that teacher's image of the same noise.
    source: the run or folder it comes from, where a table has several.
    """

    model: str
    steps: int
    nfe: int
    frechet: float
    frechet_random: float
    low: float
    high: float
    low_random: float
    high_random: float
    n: int
    accuracy: float | None
    seconds_per_image: float | None
    kid: float
    kid_error: float
    precision: float
    recall: float
    diversity: float | None
    paired: float | None
    parameters: int
    source: str = ""


@dataclass(frozen=True, eq=False)
class Suite:
    """A reference set and all that is measured against it. classes: None when unconditional."""

    name: str
    classes: int | None
    images: Tensor
    labels: Tensor
    domain: FeatureSpace
    random: FeatureSpace
    head: nn.Module
    domain_moments: Moments
    random_moments: Moments
    domain_features: Tensor
    manifold: Manifold

    @property
    def provenance(self) -> dict[str, str]:
        """What a reader must know to repeat the numbers."""
        return {
            "reference": f"{self.name}, {len(self.images)} images",
            "frechet": f"FD[{self.domain.identity}]",
            "frechet_random": f"FD[{self.random.identity}]",
        }

    def real(self) -> Sampled:
        """The floor: reference images drawn with replacement, of the requested classes if any."""
        order = self.labels.argsort(stable=True)
        counts = self.labels.bincount()
        starts = counts.cumsum(0) - counts

        def sample(noise: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
            u = torch.rand(len(noise), generator=generator, dtype=torch.float64)
            if labels is None:
                return self.images[(u * len(self.images)).long()]
            return self.images[order[starts[labels] + (u * counts[labels]).long()]]

        return Sampled(REAL, 0, 0, 0, sample)


def digits_suite(conditional: bool = True) -> Suite:
    """The suite "digits": all 1,797 images in both spaces, with labels requested or without."""
    images, labels = digits.load()
    net = load_domain_cnn()
    domain, random = net.space, random_conv()
    seen, textures = domain(images), random(images)
    return Suite(
        name="digits",
        classes=CLASSES if conditional else None,
        images=images,
        labels=labels,
        domain=domain,
        random=random,
        head=net.head,
        domain_moments=Moments.of(seen, domain.identity),
        random_moments=Moments.of(textures, random.identity),
        domain_features=seen,
        manifold=Manifold.of(textures),
    )


def evaluate(
    contenders: Sequence[Sampled],
    suite: Suite,
    n: int,
    blocks: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    file: Path | None = None,
) -> list[Row]:
    """Score contenders on `blocks` ≥ 2 fresh blocks of n ≥ 20 images; the row "real" comes last.

    on_progress(done, total) counts network evaluations, and the scoring of an image as one more.
    file: where scores are kept as they are made; with the same contenders, which their first images
    tell, what it holds is not made again. Raises ValueError for too few blocks or images, and where
    a contender returns a wrong shape or values that are not finite.
    """
    _check(contenders, n, blocks)
    field = [*contenders, suite.real()]
    anchor = _most_steps(contenders)
    first = next(_batches(suite, min(n, CHUNK), seed, blocks))
    warm = [_generate(contender, first)[0] for contender in field]
    settings = repr((suite.provenance, n, blocks, seed)).encode()
    scored = Scored(file, sha256(settings + torch.cat(warm).numpy().tobytes()).hexdigest())
    done, total = 0, n * blocks * sum(map(_work, field))
    for block in range(blocks):
        for work in _score_block(field, suite, n, seed, block, scored):
            done += work
            if on_progress:
                on_progress(done, total)
    scores = [[scored[i, block] for block in range(blocks)] for i in range(len(field))]
    base = None if anchor is None else fmean(s.diversity for s in scores[anchor])
    return [_row(c, s, n * blocks, base) for c, s in zip(field, scores, strict=True)]


def scored_images(
    contender: Sampled, suite: Suite, n: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """The images (n, c, h, w) that `evaluate` scores in its first block, and their labels."""
    batches = list(_batches(suite, n, seed, 0))
    images = torch.cat([_generate(contender, batch)[0] for batch in batches])
    return images, None if suite.classes is None else torch.cat([b.labels for b in batches])


def _work(contender: Sampled) -> int:
    return contender.nfe + 1


def _score_block(
    field: Sequence[Sampled], suite: Suite, n: int, seed: int, block: int, scored: Scored
) -> Iterator[int]:
    """Score those that this block has no score of, yielding the work that is done."""
    anchor = _most_steps(field)
    new = [i for i in range(len(field)) if (i, block) not in scored]
    if new and anchor is not None:  # before the others, which are measured against its images
        new = [anchor, *(i for i in new if i != anchor)]
    if known := n * sum(_work(c) for i, c in enumerate(field) if i not in new):
        yield known
    truths: list[Tensor] = []
    for i in new:
        tally = _Tally(suite)
        for k, batch in enumerate(_batches(suite, n, seed, block)):
            images, seconds = _generate(field[i], batch)
            if i == anchor:
                truths.append(images)
            tally.add(images, batch.labels, truths[k] if truths else None, seconds)
            yield len(images) * _work(field[i])
        scored.add(i, block, tally.score())


@dataclass(frozen=True)
class _Batch:
    noise: Tensor
    labels: Tensor | None
    seed: int


class _Tally:
    """Streams the chunks of one block: moments of all images, features of the first `KEPT`."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.domain = Moments.empty(suite.domain.identity, len(suite.domain_moments.mean))
        self.random = Moments.empty(suite.random.identity, len(suite.random_moments.mean))
        self.kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self.right, self.squared_gaps, self.seconds = [], [], []

    def add(
        self, images: Tensor, labels: Tensor | None, truth: Tensor | None, seconds: float
    ) -> None:
        seen, textures = self.suite.domain(images), self.suite.random(images)
        found = self.suite.head(seen).argmax(1)
        classes = found if labels is None else labels
        room = KEPT - self.domain.n
        if room > 0:
            self.kept.append((seen[:room], textures[:room], classes[:room]))
        self.domain, self.random = self.domain.update(seen), self.random.update(textures)
        if labels is not None:
            self.right.append((found == labels).double())
        if truth is not None:
            self.squared_gaps.append((images - truth).double().square().flatten(1).mean(1))
        self.seconds.append(seconds)

    def score(self) -> Score:
        suite = self.suite
        seen, textures, classes = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        precision, recall = precision_recall(suite.manifold, Manifold.of(textures))
        return Score(
            frechet=frechet_distance(suite.domain_moments, self.domain),
            frechet_random=frechet_distance(suite.random_moments, self.random),
            kid=kid_blocks(seen, suite.domain_features),
            precision=precision,
            recall=recall,
            diversity=diversity(textures, classes),
            accuracy=_mean(self.right),
            squared_gap=_mean(self.squared_gaps),
            seconds=self.seconds,
        )


def _row(contender: Sampled, scores: list[Score], n: int, base: float | None) -> Row:
    frechet, low, high = interval([s.frechet for s in scores])
    frechet_random, low_random, high_random = interval([s.frechet_random for s in scores])
    kid, kid_error = mean_and_error([value for s in scores for value in s.kid])
    accuracies = [s.accuracy for s in scores if s.accuracy is not None]
    gaps = [s.squared_gap for s in scores if s.squared_gap is not None]
    generated = contender.model != REAL  # else neither a time nor a noise that images belong to
    return Row(
        model=contender.model,
        steps=contender.steps,
        nfe=contender.nfe,
        frechet=frechet,
        frechet_random=frechet_random,
        low=max(0.0, low),
        high=high,
        low_random=max(0.0, low_random),
        high_random=high_random,
        n=n,
        accuracy=fmean(accuracies) if accuracies else None,
        seconds_per_image=median(t for s in scores for t in s.seconds) if generated else None,
        kid=kid,
        kid_error=kid_error,
        precision=fmean(s.precision for s in scores),
        recall=fmean(s.recall for s in scores),
        diversity=None if base is None else fmean(s.diversity for s in scores) / base,
        paired=fmean(gaps) ** 0.5 if gaps and generated else None,
        parameters=contender.parameters,
        source=contender.source,
    )


def _batches(suite: Suite, n: int, seed: int, block: int) -> Iterator[_Batch]:
    generator = torch.Generator().manual_seed(_mix(seed, block))
    noise = torch.randn(n, *suite.images.shape[1:], generator=generator)
    order = torch.randperm(n, generator=generator)
    labels = None if suite.classes is None else order % suite.classes
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        wanted = None if labels is None else labels[rows]
        yield _Batch(noise[rows], wanted, _mix(seed, block, start))


def _generate(contender: Sampled, batch: _Batch) -> tuple[Tensor, float]:
    """Images on the CPU, clipped to [−1, 1] as any saved image is, and seconds an image."""
    generator = torch.Generator().manual_seed(batch.seed)
    start = time.perf_counter()
    with torch.no_grad():
        images = contender.sample(batch.noise.clone(), batch.labels, generator).cpu()
    seconds = time.perf_counter() - start
    if images.shape != batch.noise.shape or not images.isfinite().all():
        name = f"{contender.source} {contender.model}".lstrip()
        raise ValueError(
            f"{name} at {contender.steps} steps returned shape {tuple(images.shape)} or "
            f"values not finite: expected finite images {tuple(batch.noise.shape)}"
        )
    return images.float().clamp(-1, 1), seconds / len(images)


def _most_steps(contenders: Sequence[Sampled]) -> int | None:
    teachers = [i for i, c in enumerate(contenders) if c.model == TEACHER]
    return max(teachers, key=lambda i: contenders[i].steps, default=None)


def _mean(parts: list[Tensor]) -> float | None:
    return torch.cat(parts).mean().item() if parts else None


def _mix(*numbers: int) -> int:
    """One seed from several, such that neighbours share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _check(contenders: Sequence[Sampled], n: int, blocks: int) -> None:
    if not contenders:
        raise ValueError("nothing to evaluate: give at least one contender")
    if blocks < 2:
        raise ValueError(f"blocks = {blocks}: an interval needs at least 2 fresh seed blocks")
    if n < 2 * CLASSES:
        raise ValueError(f"n = {n}: give at least {2 * CLASSES} images a block")
