"""Coverage (Naeem et al. 2020, arXiv 2002.09797): the share of real images with an image nearby,
within the reach of their k-th nearest other real image.

Real images themselves cover 1 − Πᵢ₌₁..k (m − i) / (m + n − i) of m with n: 97 % where n = m, k = 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...schema import Count
from ..kept import OfFeatures
from ..manifold import Manifold
from ..reference import Reference


@dataclass
class Coverage(OfFeatures):
    """In 0..1. k: neighbours."""

    about = "the share of reference images that have an image nearby; it grows with their number."
    lower_is_better = False
    decimals = 3
    least, most = 0.0, 1.0
    k: Count = 5
    real: Manifold = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = Manifold.of(reference.features(self.space), self.k)

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return [self.real.reached(features).double().mean().item()]
