"""The student's images nearest to the teacher's of the same noise, and the farthest from them.

distance(x, y) = √mean (x − y)²   over pixel values in [−1, 1]
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..evaluate import Sampled, first_block
from ..reference import Asked
from ..suite import Suite
from .pictures import lean, shown

LOOKED_AT = 100  # images of the first block
SHOWN = 6  # of them, nearest, and as many farthest


@dataclass(frozen=True, eq=False)
class Pair:
    """Images (c, h, w) of student and teacher, and what both were asked for."""

    student: Tensor
    teacher: Tensor
    distance: float
    asked: str


@dataclass(frozen=True, eq=False)
class Pairs:
    """Of n images of one student: the nearest to its teacher's, nearest first, and the farthest,
    farthest first."""

    student: str
    teacher: str
    n: int
    best: list[Pair]
    worst: list[Pair]


def pairs(
    student: Sampled, teacher: Sampled, suite: Suite, n: int, seed: int, names: tuple[str, str]
) -> Pairs:
    """Of the first min(n, LOOKED_AT) images that `evaluate` scores with this seed and blocks of
    n ≥ 2. No image is in both lists."""
    few = min(n, LOOKED_AT)
    best: list[Pair] = []
    worst: list[Pair] = []
    both = (first_block(c, suite, n, seed, few) for c in (student, teacher))
    for (images, asked), (theirs, _) in zip(*both, strict=True):
        found = _pairs(images, theirs, asked)
        best = sorted([*best, *found], key=lambda pair: pair.distance)[:SHOWN]
        worst = sorted([*worst, *found], key=lambda pair: -pair.distance)[:SHOWN]
    count = min(SHOWN, few // 2)
    return Pairs(*names, few, best[:count], worst[:count])


def _pairs(images: Tensor, theirs: Tensor, asked: Asked) -> list[Pair]:
    distances = (images - theirs).double().square().flatten(1).mean(1).sqrt().tolist()
    words = [""] * len(images) if asked is None else [in_words(one) for one in asked]
    return [
        Pair(lean(shown(x)), lean(shown(y)), distance, said)
        for x, y, distance, said in zip(images, theirs, distances, words, strict=True)
    ]


def in_words(asked: str | int | Tensor) -> str:
    """What an image was asked for."""
    return f"label {int(asked)}" if isinstance(asked, int | Tensor) else asked
