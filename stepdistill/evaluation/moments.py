"""Mean and covariance of a stream of features, and the Fréchet distance between two of them.

    n  = n_a + n_b                          δ = m_b − m_a
    m  = m_a + δ n_b / n
    S  = S_a + S_b + δ δᵀ n_a n_b / n       scatter Σ (x − m)(x − m)ᵀ, covariance C = S / (n − 1)

    d² = |m₁ − m₂|² + tr C₁ + tr C₂ − 2 tr (C₁^½ C₂ C₁^½)^½

The merge (Chan, Golub and LeVeque 1979) keeps its precision however far the mean lies from zero,
where Σ x xᵀ cancels. With any R Rᵀ = C the eigenvalues of C₁^½ C₂ C₁^½ are those of R₁ᵀ C₂ R₁,
which is symmetric, and of G Gᵀ, G = R₂ᵀ R₁; so no root of a matrix is needed. Where d is large, R
is Cholesky's; of fewer samples than features it is thin, a column for each sample and each merge:

    S = F Fᵀ,  F = (F_a, F_b, δ √(n_a n_b / n))          R = F / √(n − 1)

Heusel et al. 2017 (arXiv 1706.08500) call it FID in the space of Inception, and only there. It is
biased upwards at finite n: compare distances at equal n only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LARGE = 1000  # features; below it the roots cost nothing, and numbers of old rest on their bits


@dataclass(frozen=True, eq=False)
class Moments:
    """What n features of d numbers add up to, in float64, and the identity of their space.

    space: which network made the features; moments of two spaces never mix.
    mean: (d,). scatter: (d, d), not yet divided by n − 1. thin: F above (d, r), while r < d and d
    is large.
    """

    space: str
    n: int
    mean: Tensor
    scatter: Tensor
    thin: Tensor | None = None

    @classmethod
    def empty(cls, space: str, d: int) -> Moments:
        """No sample yet, the neutral element of `merge`."""
        return cls.of(torch.zeros(0, d), space)

    @classmethod
    def of(cls, features: Tensor, space: str) -> Moments:
        """Moments of features (n, d) of any float type. Raises ValueError on NaN and infinities."""
        x = _checked(features)
        mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        centred = x - mean
        thin = centred.T if len(x) < x.shape[1] >= LARGE else None
        return cls(space, len(x), mean, centred.T @ centred, thin)

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together, whatever the order. Raises ValueError across spaces."""
        _same_space(self, other)
        n = self.n + other.n
        if n == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        between = torch.outer(delta, delta) * (self.n * other.n / n)
        scatter = self.scatter + other.scatter + between
        return Moments(self.space, n, mean, scatter, self._thin_with(other, delta))

    def _thin_with(self, other: Moments, delta: Tensor) -> Tensor | None:
        parts = self.thin, other.thin
        if any(part is None for part in parts):
            return None
        gap = delta[:, None] * (self.n * other.n / (self.n + other.n)) ** 0.5
        joined = torch.cat([*parts, gap], 1)
        return joined if joined.shape[1] < len(delta) else None

    def update(self, features: Tensor) -> Moments:
        """Moments after another chunk of features (m, d)."""
        return self.merge(Moments.of(features, self.space))

    @property
    def covariance(self) -> Tensor:
        """(d, d), unbiased. Raises ValueError below two samples."""
        if self.n < 2:
            raise ValueError(f"covariance of {self.n} sample(s) in {self.space}: need at least 2")
        return self.scatter / (self.n - 1)

    @cached_property
    def root(self) -> Tensor:
        """R (d, r) with R Rᵀ = C, kept for all distances from here. Raises ValueError for n < 2."""
        c = self.covariance
        if self.thin is not None:
            return self.thin / (self.n - 1) ** 0.5
        if len(c) >= LARGE:
            root, failed = torch.linalg.cholesky_ex(c)
            if not failed:
                return root
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians, ≥ 0. Raises ValueError across spaces, n < 2."""
    _same_space(a, b)
    traces = a.covariance.trace() + b.covariance.trace()
    if b.thin is None:
        symmetric = a.root.T @ b.covariance @ a.root
    else:
        gram = b.root.T @ a.root
        symmetric = gram @ gram.T
    return _distance(a.mean - b.mean, traces, torch.linalg.eigvalsh(symmetric))


def frechet_from_features(x: Tensor, y: Tensor) -> float:
    """The same distance straight from features (n, d) and (m, d) of one space.

    Takes the Gram matrix where n or m is below d. Raises ValueError on NaN, n < 2 or unequal d.
    """
    x, y = _checked(x), _checked(y)
    if min(len(x), len(y)) >= x.shape[1] or min(len(x), len(y)) < 2:
        return frechet_distance(Moments.of(x, "given"), Moments.of(y, "given"))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} numbers: use one space")
    if len(x) > len(y):
        x, y = y, x
    mean_gap = x.mean(0) - y.mean(0)
    x = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    y = (y - y.mean(0)) / (len(y) - 1) ** 0.5
    gram = x @ y.T
    cross = torch.linalg.eigvalsh(gram @ gram.T)
    return _distance(mean_gap, x.square().sum() + y.square().sum(), cross)


def _distance(mean_gap: Tensor, traces: Tensor, cross: Tensor) -> float:
    root_trace = cross.clamp(min=0).sqrt().sum()
    return max(0.0, float(mean_gap.square().sum() + traces - 2 * root_trace))


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}: expected (n, d)")
    if not features.isfinite().all():
        raise ValueError("features contain NaN or infinity: check the images that made them")
    return features.double()


def _same_space(a: Moments, b: Moments) -> None:
    if a.space != b.space or a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments of {a.space} ({len(a.mean)} features) and {b.space} ({len(b.mean)}): "
            "distances exist only within one feature space"
        )
