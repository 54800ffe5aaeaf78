"""Improved recall (Kynkäänniemi et al. 2019, arXiv 1904.06991): the share of real images in the
manifold of the generated ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..kept import OfFeatures
from ..manifold import Manifold
from ..reference import Reference


@dataclass
class Recall(OfFeatures):
    """In 0..1."""

    about = "the share of reference images that lie among the images (k = 3)."
    lower_is_better = False
    decimals = 3
    least, most = 0.0, 1.0
    fewest = 4
    real: Tensor = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = reference.features(self.space)

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return [Manifold.of(features).share(self.real)]
