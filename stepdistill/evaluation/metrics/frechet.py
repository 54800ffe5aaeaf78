"""The Fréchet distance of two sets of features, see `moments`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..intervals import around, interval
from ..metric import Blocks, Made, Metric
from ..moments import Moments, frechet_distance
from ..reference import Reference
from ..rows import Score


@dataclass
class Frechet(Metric):
    """space: a file of features/, or any importable module."""

    about = (
        "the Fréchet distance to the reference images in a space of features; FID is the one in "
        "Inception's. It shrinks as the number of images grows."
    )
    least = 0.0
    space: str = "random-conv"
    real: Moments = field(init=False, repr=False)
    made: Moments = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = reference.moments(self.space)

    def reset(self) -> None:
        self.made = Moments.empty(self.real.space, len(self.real.mean))

    def update(self, made: Made) -> None:
        self.made = self.made.update(made.features(self.space))

    def merge(self, other: Frechet) -> None:
        self.made = self.made.merge(other.made)

    def compute(self) -> list[float]:
        return [frechet_distance(self.real, self.made)]

    def score(self, blocks: Blocks, best: Blocks | None) -> Score:
        values = [value for block in blocks for value in block]
        if len(values) < 2:
            return around(values[0], values)
        mean, low, high = interval(values)
        return Score(mean, max(self.least, low), high, blocks=tuple(values))
