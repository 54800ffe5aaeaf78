"""Kernel distance, KID (Bińkowski et al. 2018, arXiv 1801.01401), unbiased, so it may be negative:

k(x, y) = (x·y / d + 1)³
Σ_{i≠j} k(xᵢ, xⱼ) / n(n−1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m−1) − 2 Σ k(xᵢ, yⱼ) / nm
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ..intervals import around, interval, mean_and_error
from ..kept import OfFeatures
from ..metric import Blocks
from ..numerals import signed
from ..reference import Reference
from ..rows import Score


@dataclass
class KID(OfFeatures):
    """Mean of blocks of at most 1,000 images."""

    about = (
        "the unbiased kernel distance to the reference images (KID in Inception's space); it may "
        "be negative, and is for `real`, which repeats reference images."
    )
    real: Tensor = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = reference.features(self.space)

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return kid_blocks(features, self.real)

    def score(self, blocks: Blocks, best: Blocks | None) -> Score:
        values = [value for block in blocks for value in block]
        if len(values) < 2:
            return around(values[0], values)
        _, error = mean_and_error(values)
        return Score(*interval(values), error, tuple(values))

    @property
    def heading(self) -> str:
        return f"{super().heading} × 1000"

    def text(self, score: Score) -> str:
        return signed(1e3 * score.value, 1)

    def small(self, score: Score) -> str:
        if score.low is None or score.high is None:  # of a table of before
            return "" if score.error is None else f"± {1e3 * score.error:.1f}"
        return f"{signed(1e3 * score.low, 1)} to {signed(1e3 * score.high, 1)}"


def kid_blocks(x: Tensor, y: Tensor, block: int = 1000) -> list[float]:
    """Kernel distances of x (n, d), cut into equal disjoint blocks of at most `block`, to all of y.

    Each value is unbiased. Raises ValueError below two samples in a block or in y.
    """
    x, y = x.double(), y.double()
    parts = x.tensor_split(math.ceil(len(x) / block)) if len(x) else (x,)
    if min(len(part) for part in (*parts, y)) < 2:
        raise ValueError(f"kernel distance of {len(x)} and {len(y)} samples: need 2 a block")
    within = _kernel_within(y)
    return [float(_kernel_within(part) + within - 2 * _kernel(part, y).mean()) for part in parts]


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_within(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))
