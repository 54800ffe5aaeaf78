"""Improved precision (Kynkäänniemi et al. 2019, arXiv 1904.06991): the share of generated images
in the manifold of the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..kept import OfFeatures
from ..manifold import Manifold
from ..reference import Reference


@dataclass
class Precision(OfFeatures):
    """In 0..1."""

    about = "the share of images that lie among the reference images (k = 3)."
    lower_is_better = False
    decimals = 3
    least, most = 0.0, 1.0
    real: Manifold = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = Manifold.of(reference.features(self.space))

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return [self.real.share(features)]
