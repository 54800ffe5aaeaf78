"""The Fréchet distance of the middles of images, cut out and not resized: patch FID in Inception's
space (SDXL-Lightning, arXiv 2402.13929; DMD2, arXiv 2405.14867).

Inception sees 299 × 299 pixels, so images of 1024 × 1024 are made small for FID, and what is wrong
with their details vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ...schema import Count
from ..averaged import CHUNK
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
    real: Moments = field(init=False, repr=False)
    made: Moments = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        if min(reference.size[1:]) < self.crop:
            raise ValueError(f"a crop of {self.crop} pixels exceeds images {reference.size[1:]}")
        if reference.images is None:
            raise ValueError("there are no real images to compare with")
        parts = [self._features(part, reference) for part in reference.images.split(CHUNK)]
        self.real = Moments.of(torch.cat(parts), reference.space(self.space).identity)

    def reset(self) -> None:
        self.made = Moments.empty(self.real.space, len(self.real.mean))

    def update(self, made: Made) -> None:
        self.made = self.made.update(self._features(made.images, made.reference))

    def merge(self, other: PatchFrechet) -> None:
        self.made = self.made.merge(other.made)

    def compute(self) -> list[float]:
        return [frechet_distance(self.real, self.made)]

    def _features(self, images: Tensor, reference: Reference) -> Tensor:
        return reference.space(self.space)(center_crop(images, [self.crop, self.crop]))
