"""The Fréchet distance of the middles of images, cut out and not resized: patch FID in Inception's
space (SDXL-Lightning, arXiv 2402.13929; DMD2, arXiv 2405.14867).

Inception sees 299 × 299 pixels, so images of 1024 × 1024 are made small for FID, and what is wrong
with their details vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn
from torchvision.transforms import CenterCrop

from ...schema import Count
from ..features.space import FeatureSpace
from ..metric import Made, Metric
from ..moments import Moments, frechet_distance
from ..reference import Reference


@dataclass
class PatchFrechet(Metric):
    """crop: pixels of a side. space: a file of features/, or any importable module."""

    about = (
        "the Fréchet distance to the reference images of the middles of images, cut out at full "
        "size; patch FID is the one in Inception's space. It shrinks as the number of images grows."
    )
    least = 0.0
    crop: Count = 299
    space: str = "random-conv"
    middles: FeatureSpace = field(init=False, repr=False)
    real: Moments = field(init=False, repr=False)
    made: Moments = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        if min(reference.size[1:]) < self.crop:
            raise ValueError(f"a crop of {self.crop} pixels exceeds images {reference.size[1:]}")
        whole, crop = reference.space(self.space), CenterCrop(self.crop)
        name = f"{whole.name}, middle {self.crop}"
        self.middles = replace(whole, name=name, network=nn.Sequential(crop, whole.network))
        self.real = reference.summary(self.middles).moments

    def reset(self) -> None:
        self.made = Moments.empty(self.real.space, len(self.real.mean))

    def update(self, made: Made) -> None:
        self.made = self.made.update(self.middles(made.images))

    def merge(self, other: PatchFrechet) -> None:
        self.made = self.made.merge(other.made)

    def compute(self) -> list[float]:
        return [frechet_distance(self.real, self.made)]
