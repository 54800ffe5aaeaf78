"""The Fréchet distance of infinitely many images (Chong and Forsyth 2020, arXiv 1911.07023).

At n images it exceeds that of infinitely many by c / n, up to higher orders. A line through

d(n / k) = d(∞) + c k / n,   k = 1..parts,

of which d(n / k) is the mean over k equal disjoint parts of the images, says d(∞) where k = 0. (The
paper takes one random part of each of 15 sizes; all parts together use every image at every size.)
Where parts have fewer images than features have numbers it is no line any more: keep enough.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from ...schema import Range
from ..kept import Keep, OfFeatures
from ..moments import Moments, frechet_distance
from ..reference import Reference

FEWEST = 2  # images a part


@dataclass
class FIDInfinity(OfFeatures):
    """parts: of the smallest size."""

    about = (
        "the Fréchet distance to the reference images, extrapolated to infinitely many images; it "
        "may be slightly negative."
    )
    parts: Annotated[int, Range(2, 20)] = 5
    keep: Keep = 10_000
    real: Moments = field(init=False, repr=False)

    @property
    def fewest(self) -> int:
        return FEWEST * self.parts

    def open(self, reference: Reference) -> None:
        if self.keep is not None and self.keep < self.fewest:
            raise ValueError(f"keep = {self.keep}: {self.parts} parts need {self.fewest} images")
        self.real = reference.moments(self.space)

    def compute(self) -> list[float]:
        (features,) = self.kept.all()
        return [frechet_infinity(features, self.real, self.parts)]


def frechet_infinity(features: Tensor, real: Moments, parts: int = 5) -> float:
    """The distance of real moments to features (n, d), extrapolated to n = ∞.

    Raises ValueError below two images in the smallest of parts."""
    if len(features) < FEWEST * parts:
        raise ValueError(f"{len(features)} images: {parts} parts need {FEWEST * parts}")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    shuffled = features[order]  # so that parts are alike, in whatever order images come
    k = torch.arange(1.0, parts + 1, dtype=torch.float64)
    distances = [_mean_distance(shuffled, real, int(count)) for count in k]
    return intercept(k, torch.tensor(distances, dtype=torch.float64))


def _mean_distance(features: Tensor, real: Moments, count: int) -> float:
    """Of `count` disjoint parts."""
    found = [Moments.of(part, real.space) for part in features.tensor_split(count)]
    return sum(frechet_distance(real, part) for part in found) / count


def intercept(x: Tensor, y: Tensor) -> float:
    """Where the least-squares line through points (x, y) meets x = 0."""
    dx = x - x.mean()
    slope = (dx @ y) / (dx @ dx)
    return (y.mean() - slope * x.mean()).item()
