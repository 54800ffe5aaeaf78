"""What a Fréchet distance does not say: kernel distance, fidelity, coverage, diversity, error.

Kernel distance, KID (Bińkowski et al. 2018, arXiv 1801.01401), unbiased, so it may be negative:

    k(x, y) = (x·y / d + 1)³
    Σ_{i≠j} k(xᵢ, xⱼ) / n(n−1) + Σ_{i≠j} k(yᵢ, yⱼ) / m(m−1) − 2 Σ k(xᵢ, yⱼ) / nm

Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): the manifold of a set
is the union of balls around its points, each reaching its k-th nearest other point, k = 3.

    precision = share of generated points in the real manifold
    recall    = share of real points in the generated manifold

Interval of a mean over B independent blocks: mean ± t₀.₉₇₅(B−1) · sd / √B. (Resampling one block
with replacement would not do: its duplicates act like fewer images, and a Fréchet distance grows as
images get fewer, so the point would lie outside its own interval.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

CHUNK = 1000


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


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error sd/√B of B independent values. Raises ValueError for B < 2."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} value(s) have no standard error: need at least 2")
    v = torch.tensor(values, dtype=torch.float64)
    return v.mean().item(), (v.std() / len(v) ** 0.5).item()


def interval(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of the mean of B ≥ 2 independent blocks."""
    mean, error = mean_and_error(values)
    reach = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean, mean - reach, mean + reach


@dataclass(frozen=True, eq=False)
class Manifold:
    """Balls around points (n, d); radii (n,) reach each point's k-th nearest other point."""

    points: Tensor
    radii: Tensor

    @classmethod
    def of(cls, points: Tensor, k: int = 3, chunk: int = CHUNK) -> Manifold:
        """From features (n, d), distances computed `chunk` rows at a time. ValueError for n ≤ k."""
        if len(points) <= k:
            raise ValueError(f"{len(points)} points have no {k}-th neighbour: need {k + 1}")
        points = points.double()
        # The nearest point of all is the point itself, hence k + 1.
        radii = [torch.cdist(p, points).kthvalue(k + 1, 1).values for p in points.split(chunk)]
        return cls(points, torch.cat(radii))

    def covers(self, points: Tensor, chunk: int = CHUNK) -> Tensor:
        """Which of points (m, d) lie in some ball: bool (m,)."""
        parts = points.double().split(chunk)
        return torch.cat([(torch.cdist(p, self.points) <= self.radii).any(1) for p in parts])


def precision_recall(real: Manifold, generated: Manifold) -> tuple[float, float]:
    """Share of generated points among the real ones, and the reverse; both in 0..1."""
    precision = real.covers(generated.points).double().mean()
    recall = generated.covers(real.points).double().mean()
    return precision.item(), recall.item()


def diversity(features: Tensor, classes: Tensor) -> float:
    """Mean distance of two images of one class, features (n, d), classes (n,), over all classes.

    Raises ValueError where no class has two images.
    """
    groups = [features[classes == c].double() for c in classes.unique()]
    means = [torch.pdist(group).mean() for group in groups if len(group) > 1]
    if not means:
        raise ValueError("diversity: no class has two images")
    return torch.stack(means).mean().item()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_within(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))
