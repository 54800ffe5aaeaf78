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

WHOLE, CHUNK = 5000, 1000  # rows whose kernel is held at once, and of more of them


@dataclass
class KID(OfFeatures):
    """Mean of blocks of at most 1,000 images."""

    about = (
        "the unbiased kernel distance to the reference images (KID in Inception's space); it may "
        "be negative, and is for `real`, which repeats reference images. Its range is over parts "
        "of at most 1,000 images, of one block as well."
    )
    real: Tensor = field(init=False, repr=False)
    within: float = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = reference.features(self.space).double()
        self.within = kernel_within(self.real)

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return kid_blocks(features, self.real, within=self.within)

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


def kid_blocks(x: Tensor, y: Tensor, block: int = 1000, within: float | None = None) -> list[float]:
    """Kernel distances of x (n, d), cut into equal disjoint blocks of at most `block`, to all of y.

    within: `kernel_within(y)`, where that is known. Each value is unbiased. Raises ValueError below
    two samples in a block or in y."""
    x, y = x.double(), y.double()
    parts = x.tensor_split(math.ceil(len(x) / block)) if len(x) else (x,)
    if min(len(part) for part in (*parts, y)) < 2:
        raise ValueError(f"kernel distance of {len(x)} and {len(y)} samples: need 2 a block")
    within = kernel_within(y) if within is None else within
    return [kernel_within(part) + within - 2 * float(_kernel(part, y).mean()) for part in parts]


def kernel_within(x: Tensor) -> float:
    """The mean of k over all pairs of two different rows of x (n, d), in float64. NaN below two."""
    pairs = len(x) * (len(x) - 1)
    if len(x) <= WHOLE:
        kernel = _kernel(x, x)
        total = kernel.sum() - kernel.diagonal().sum()
    else:
        own = (x.square().sum(1) / x.shape[1] + 1) ** 3
        total = sum(_kernel(part, x).sum() for part in x.split(CHUNK)) - own.sum()
    return float(total) / pairs if pairs else math.nan


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)
