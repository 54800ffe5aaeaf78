"""Samplers × fresh seed blocks → rows of one table.

Block b holds n images from noise seeded (seed, b); every sampler gets the same noise and is asked
for the same, so rows are paired. A row gives the scores of the blocks together. Most distances
shrink as n grows, so rows compare only at equal n a block; the row "real" says what resampled data
itself scores at this n: no sampler can be expected to do better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .costs import Maker, Parts
from .metric import Made, Metric, pairs_kept
from .reference import Asked, Kind, One, heeded
from .rows import REAL, TEACHER, Row
from .scores import Block, Scored
from .suite import Suite

FEWEST = 20  # images a block


@dataclass(frozen=True)
class Sampled:
    """A sampler to be scored.

    model: "teacher", "student" or "untrained-student". nfe: network evaluations an image, guidance
    counted twice. event: the shape of the noise of an image. sample(noise, asked, generator):
    standard normal noise (n, *event) float32 on the CPU, and labels (n,), n prompts or None →
    images (n, c, h, w) in [−1, 1]; all other randomness comes from the CPU generator. made(first,
    count): instead, images that exist already, those of an evaluation in order, and what each was
    asked for. kind: of what it can be asked; None for whatever a suite asks. call, parts: how such
    images were made, and what is measured of any, see `costs`.
    """

    model: str
    steps: int
    nfe: int
    parameters: int
    event: tuple[int, ...]
    sample: Callable[[Tensor, Asked, torch.Generator], Tensor] | None
    source: str = ""
    made: Callable[[int, int], tuple[Tensor, Asked]] | None = None
    kind: Kind | None = None
    call: Maker | None = None
    parts: Parts = field(default_factory=dict)

    def asked(self, wanted: Asked, first: int, n: int) -> Asked:
        """What its n images from `first` on are asked for, where others are asked for `wanted`."""
        if self.kind is None or (isinstance(wanted, Tensor) and self.kind.classes is not None):
            return wanted
        each = [None] * n if wanted is None else wanted
        found = [self.kind.answer(one, first + i) for i, one in enumerate(each)]
        if self.kind.prompts:
            return found
        return None if self.kind.classes is None else torch.tensor(found)

    @property
    def seeded(self) -> bool:
        """Whether its images come from the evaluation's noise, and not from anyone's folder."""
        return self.sample is not None or self.nfe > 0

    def shares_noise(self, other: Sampled) -> bool:
        """Whether image i of both comes from the same noise: ours draw from that of the block,
        other pipelines from a seed for each image."""
        alike = (self.sample is None) == (other.sample is None)
        return self.seeded and other.seeded and alike

    @property
    def work(self) -> int:
        """Network evaluations an image, and its scoring as one more."""
        return self.nfe + 1


def evaluate(
    samplers: Sequence[Sampled],
    suite: Suite,
    n: int,
    blocks: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
    file: Path | None = None,
) -> list[Row]:
    """Score samplers on `blocks` fresh blocks of n ≥ 20 images, of which one has no intervals; the
    row "real" comes last.

    on_progress(done, total) counts network evaluations, and the scoring of an image as one more.
    file: where scores are kept as they are made; with the same samplers, which their first images
    tell, what it holds is not made again. Raises ValueError for too few blocks or images, and where
    a sampler returns a wrong shape or values that are not finite.
    """
    _check(samplers, suite, n, blocks)
    with suite.threaded():
        return _evaluated([*samplers, *real(suite)], suite, n, blocks, seed, on_progress, file)


def _evaluated(
    field: Sequence[Sampled],
    suite: Suite,
    n: int,
    blocks: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
    file: Path | None,
) -> list[Row]:
    scored = Scored(file, _identity(field, suite, n, blocks, seed))
    done, total = 0, n * blocks * sum(sampler.work for sampler in field)

    def advance(work: int) -> None:
        nonlocal done
        done += work
        if on_progress and work:
            on_progress(done, total)

    for block in range(blocks):
        _score_block(field, suite, n, (seed, block), scored, advance)
    found = [[scored[i, block] for block in range(blocks)] for i in range(len(field))]
    best = most_steps(field)
    base = None if best is None else found[best]
    return [_row(s, of, suite, base, n) for s, of in zip(field, found, strict=True)]


def real(suite: Suite) -> list[Sampled]:
    """The floor: real images drawn with replacement, if the suite has any."""
    if suite.reference.images is None:
        return []
    return [Sampled(REAL, 0, 0, 0, (0,), suite.reference.draw)]


def first_block(
    sampler: Sampled, suite: Suite, n: int, seed: int, few: int | None = None
) -> Iterator[tuple[Tensor, Asked]]:
    """The images (b, c, h, w) that `evaluate` scores first of blocks of n, `few` in all or the
    whole block, and what was asked for."""
    left = n if few is None else few
    for batch in _batches(sampler.event, suite, n, (seed, 0)):
        if left <= 0:
            return
        images, asked, _ = _generate(sampler, suite, batch)
        yield images[:left], None if asked is None else asked[:left]
        left -= len(images)


class Request(NamedTuple):
    """What one image of an evaluation is asked for, and the seed it is made from."""

    asked: One
    seed: int


@dataclass(frozen=True)
class Requests:
    """What an evaluation asks of models that make their images before. each: of all images, n a
    block, in order. batch: how many are made at a time, the same ones whoever makes them."""

    each: list[Request]
    n: int
    batch: int

    def __len__(self) -> int:
        return len(self.each)

    def of(self, kind: Kind) -> Requests:
        """The same of a model of this kind, see `Kind.answer`."""
        each = [
            Request(kind.answer(asked, place), seed)
            for place, (asked, seed) in enumerate(self.each)
        ]
        return replace(self, each=each)

    def batches(self) -> Iterator[slice]:
        """Those made at a time."""
        for block in range(0, len(self), self.n):
            for start in range(block, block + self.n, self.batch):
                yield slice(start, min(start + self.batch, block + self.n))


def requests(suite: Suite, n: int, blocks: int, seed: int) -> Requests:
    """What `evaluate` asks of samplers whose images exist already."""
    found = []
    for block in range(blocks):
        asked = _asked(suite, n, (seed, block))
        each = [None] * n if asked is None else list(asked)
        each = [int(a) if isinstance(a, Tensor) else a for a in each]
        found += [Request(a, _mix(seed, block, i, 1)) for i, a in enumerate(each)]
    return Requests(found, n, suite.batch)


Key = tuple[int, int]  # seed and number of a block


def _identity(field: Sequence[Sampled], suite: Suite, n: int, blocks: int, seed: int) -> str:
    """What no other evaluation shares: its settings, and images of a block that is not scored."""
    named = suite.provenance, suite.skipped, suite.settings
    settings = repr((*named, n, blocks, seed)).encode()
    few = min(n, suite.batch)
    warm = []
    for sampler in field:
        key = (seed, blocks if sampler.made is None else 0)
        warm.append(_generate(sampler, suite, next(_batches(sampler.event, suite, few, key)))[0])
    return sha256(settings + torch.cat(warm).numpy().tobytes()).hexdigest()


def _score_block(
    field: Sequence[Sampled],
    suite: Suite,
    n: int,
    key: Key,
    scored: Scored,
    advance: Callable[[int], None],
) -> None:
    """Score those that this block has no score of; advance(work) is told what is done."""
    block, best = key[1], most_steps(field)
    new = [i for i in range(len(field)) if (i, block) not in scored]
    if new and best is not None:  # before the others, which are compared with its images
        new = [best, *(i for i in new if i != best)]
    advance(n * sum(s.work for i, s in enumerate(field) if i not in new))
    truths = _Truths(pairs_kept(suite.size))
    for i in new:
        metrics, seconds = [metric.fresh() for metric in suite.metrics], []
        seen = dict.fromkeys((metric.name for metric in metrics), 0)
        for number, batch in enumerate(_batches(field[i].event, suite, n, key)):
            images, asked, taken = _generate(field[i], suite, batch)
            if not heeded(batch.asked, asked):
                metrics, asked = [metric for metric in metrics if not metric.needs_asked], None
            if i == best and field[i].seeded:
                truths.add(images)
            # No noise belongs to real images, nor to those that were there before.
            alone = best is None or not field[i].shares_noise(field[best])
            paired = None if alone or field[i].model == REAL else truths.batch(number)
            made = Made(images, asked, paired, suite.reference)
            _show(made, metrics, seen)
            seconds.append(taken)
            advance(len(images) * field[i].work)
        values = dict.fromkeys((m.name for m in suite.metrics), [])
        enough = [m for m in metrics if not m.category or seen[m.name] >= m.fewest]
        values |= {m.name: m.compute() for m in enough}
        scored.add(i, block, Block(values, seconds))


def _show(made: Made, metrics: Sequence[Metric], seen: dict[str, int]) -> None:
    """A batch to all metrics, to each what is of its category; seen counts how many."""
    for metric in metrics:
        part = made.within(metric.category)
        if len(part.images):
            metric.update(part)
            seen[metric.name] += len(part.images)


class _Truths:
    """A block's images of the teacher at most steps, by batch, as far as they are kept."""

    def __init__(self, room: int) -> None:
        self.batches: list[Tensor] = []
        self.room = room

    def add(self, images: Tensor) -> None:
        if self.room:
            self.batches.append(images[: self.room])
            self.room -= len(self.batches[-1])

    def batch(self, number: int) -> Tensor | None:
        return self.batches[number] if number < len(self.batches) else None


def _row(
    sampler: Sampled, blocks: list[Block], suite: Suite, best: list[Block] | None, n: int
) -> Row:
    scores = {}
    for metric in suite.metrics:
        base = None if best is None else [block.values[metric.name] for block in best]
        own = [block.values[metric.name] for block in blocks]
        missing = metric.category and not all(own)
        score = None if missing else metric.score(own, base)
        if score is not None:
            scores[metric.name] = score
    generated = sampler.model != REAL and sampler.made is None  # else there is no time
    return Row(
        model=sampler.model,
        steps=sampler.steps,
        nfe=sampler.nfe,
        n=n * len(blocks),
        source=sampler.source,
        parameters=sampler.parameters,
        seconds=median(t for b in blocks for t in b.seconds) if generated else None,
        scores=scores,
    )


@dataclass(frozen=True)
class _Batch:
    noise: Tensor
    asked: Asked
    seed: int
    first: int  # of all images of the evaluation


def _asked(suite: Suite, n: int, key: Key) -> Asked:
    return suite.reference.asked(n, torch.Generator().manual_seed(_mix(*key)))


def _batches(event: tuple[int, ...], suite: Suite, n: int, key: Key) -> Iterator[_Batch]:
    """A block's noise, drawn as it is needed from one stream, and what is asked for."""
    asked = _asked(suite, n, key)
    generator = torch.Generator().manual_seed(_mix(*key))
    for start in range(0, n, suite.batch):
        rows = slice(start, min(n, start + suite.batch))
        # In pieces of whole multiples of 16 numbers, as digits have, torch draws what it draws in
        # one; of other events it draws as good ones.
        noise = torch.randn(rows.stop - start, *event, generator=generator)
        own = None if asked is None else asked[rows]
        yield _Batch(noise, own, _mix(*key, start), key[1] * n + start)


def _generate(sampler: Sampled, suite: Suite, batch: _Batch) -> tuple[Tensor, Asked, float]:
    """Images on the CPU, clipped to [−1, 1] as any saved image is, what they were asked for, and
    seconds an image."""
    generator = torch.Generator().manual_seed(batch.seed)
    asked = sampler.asked(batch.asked, batch.first, len(batch.noise))
    start = time.perf_counter()
    with torch.no_grad():
        if sampler.made is not None:
            images, asked = sampler.made(batch.first, len(batch.noise))
        else:
            images = sampler.sample(batch.noise.clone(), asked, generator).cpu()
    seconds = time.perf_counter() - start
    if sampler.model == REAL and (suite.reference.labels is None or not isinstance(asked, Tensor)):
        asked = None  # no real image was asked for by these prompts, or is known to be of a class
    if suite.resize is not None and images.isfinite().all():
        images = suite.resize(images.float().clamp(-1, 1))
    wanted = (len(batch.noise), *suite.size)
    if images.shape != wanted or not images.isfinite().all():
        name = f"{sampler.source} {sampler.model}".lstrip()
        raise ValueError(
            f"{name} at {sampler.steps} steps returned shape {tuple(images.shape)} or "
            f"values not finite: expected finite images {wanted}"
        )
    return images.float().clamp(-1, 1), asked, seconds / len(images)


def most_steps(field: Sequence[Sampled]) -> int | None:
    """Which of samplers is the teacher at most steps, if there is one."""
    teachers = [i for i, sampler in enumerate(field) if sampler.model == TEACHER]
    return max(teachers, key=lambda i: field[i].steps, default=None)


def _mix(*numbers: int) -> int:
    """One seed from several, such that neighbours share nothing."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _check(samplers: Sequence[Sampled], suite: Suite, n: int, blocks: int) -> None:
    if not samplers:
        raise ValueError("nothing to evaluate: give at least one sampler")
    if blocks < 1:
        raise ValueError(f"blocks = {blocks}: give at least one, and two for intervals")
    if n < FEWEST:
        raise ValueError(f"n = {n}: give at least {FEWEST} images a block")
    for metric in suite.metrics:
        if n < metric.fewest:
            raise ValueError(f"n = {n}: {metric.name} needs at least {metric.fewest} a block")
