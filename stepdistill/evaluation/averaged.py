"""Metrics that are the mean of a number that every image has."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gallery import at_once
from .metric import Made, Metric, pairs_kept
from .reference import Reference


@dataclass
class OfImages(Metric):
    """Base of those of an image and what was asked for."""

    seen: list[Tensor] = field(init=False, repr=False)

    @abstractmethod
    def each(self, made: Made) -> Tensor | None:
        """The number (b,) of every image; None where it does not exist."""

    def reset(self) -> None:
        self.seen = []

    def update(self, made: Made) -> None:
        numbers = self.each(made)
        if numbers is not None:
            self.seen.append(numbers.double())

    def merge(self, other: OfImages) -> None:
        self.seen += other.seen

    def compute(self) -> list[float]:
        return [torch.cat(self.seen).mean().item()] if self.seen else []


@dataclass
class OfPairs(OfImages):
    """Base of those of an image and the teacher's of the same noise; without a teacher there are
    none."""

    needs_asked = True

    @abstractmethod
    def compare(self, images: Tensor, theirs: Tensor) -> Tensor:
        """The number (b,) of every pair of images (b, c, h, w) in [−1, 1]."""

    def of(self, n: int, size: tuple[int, ...]) -> int:
        return min(n, pairs_kept(size))

    def each(self, made: Made) -> Tensor | None:
        theirs = made.paired
        return None if theirs is None else self.compare(made.images[: len(theirs)], theirs)


@dataclass
class OfPixels(OfImages):
    """Base of those that say something only beside real images or, where there are none, beside
    the teacher's at most steps. real: the mean over real images."""

    real: float | None = field(init=False, repr=False)

    @abstractmethod
    def measure(self, images: Tensor) -> Tensor:
        """The number (b,) of images (b, c, h, w) in [−1, 1]."""

    def open(self, reference: Reference) -> None:
        self.real = None
        if reference.images is not None:
            parts = reference.images.split(at_once(reference.size))
            self.real = torch.cat([self.measure(part).double() for part in parts]).mean().item()

    def each(self, made: Made) -> Tensor:
        return self.measure(made.images)
