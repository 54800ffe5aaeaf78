"""Density (Naeem et al. 2020, arXiv 2002.09797): in how many balls of the real images' manifold an
image lies, of the k that it would among as many real ones:

1 / km · Σⱼ Σᵢ [yⱼ lies in the ball of xᵢ, which reaches xᵢ's k-th nearest other real image]

Unlike precision, a real outlier's wide ball adds little to it; it may exceed 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...schema import Count
from ..kept import OfFeatures
from ..manifold import Manifold
from ..reference import Reference


@dataclass
class Density(OfFeatures):
    """About 1 for real images. k: neighbours."""

    about = (
        "how densely reference images surround the images, about 1 for real ones, more for those "
        "that keep to what is common."
    )
    lower_is_better = False
    decimals = 3
    least = 0.0
    k: Count = 5
    real: Manifold = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = Manifold.of(reference.features(self.space), self.k)

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return [self.real.depth(features) / self.k]
