"""CMMD (Jayasumana et al. 2024, arXiv 2401.09603): the kernel distance in CLIP's space, × 1000.

k(x, y) = exp(−|x − y|² / 2σ²)          σ = 10
1000 (mean k(xᵢ, xⱼ) + mean k(yᵢ, yⱼ) − 2 mean k(xᵢ, yⱼ))

Means run over all pairs, i = j included, as its authors have it: with n images that adds about
1000 (1 − mean k) / n, far less than FID's bias. Unlike FID it takes nothing for Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...schema import Positive
from ..kept import CHUNK, OnDisk
from ..metric import Made, Metric
from ..reference import Reference

SCALE = 1000.0


@dataclass
class CMMD(Metric):
    """space: a file of features/, or any importable module. sigma: the kernel's width."""

    about = (
        "the kernel distance to the reference images in CLIP's space, × 1000. The range is the "
        "95 % interval over fresh seed blocks."
    )
    space: str = "clip-vision"
    sigma: Positive = 10.0
    real: Tensor = field(init=False, repr=False)
    within: float = field(init=False, repr=False)
    made: OnDisk = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = reference.features(self.space)
        self.within = mean_kernel(self.real, self.real, self.sigma)

    def reset(self) -> None:
        self.made = OnDisk()

    def update(self, made: Made) -> None:
        self.made.add(made.features(self.space))

    def merge(self, other: CMMD) -> None:
        self.made.merge(other.made)

    def compute(self) -> list[float]:
        among = mean_kernel(self.made, self.made, self.sigma)
        apart = mean_kernel(self.made, self.real, self.sigma)
        return [SCALE * (among + self.within - 2 * apart)]


def mean_kernel(
    x: Tensor | OnDisk, y: Tensor | OnDisk, sigma: float = 10.0, chunk: int = CHUNK
) -> float:
    """The mean of k over all pairs of x (n, d) and y (m, d), `chunk` rows at a time."""
    total = sum(_total(p, q, sigma) for p in x.split(chunk) for q in y.split(chunk))
    return total / (len(x) * len(y))


def _total(x: Tensor, y: Tensor, sigma: float) -> float:
    squares = torch.cdist(x.double(), y.double()).square()
    return float(squares.div(-2 * sigma**2).exp().sum())
