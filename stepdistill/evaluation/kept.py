"""The samples of a block that metrics keep because they compare pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .metric import Made, Metric

KEPT = 2000  # a block


class Kept:
    """The first rows of what is added, tensors that belong together row by row: `most` of them, or
    KEPT."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.parts: list[tuple[Tensor, ...]] = []
        self.n = 0

    def add(self, *tensors: Tensor) -> None:
        """Keep the rows of tensors (b, …) as far as there is room."""
        room = (KEPT if self.most is None else self.most) - self.n
        if room > 0:
            self.parts.append(tuple(tensor[:room] for tensor in tensors))
            self.n += len(self.parts[-1][0])

    def merge(self, other: Kept) -> None:
        """Add what another one keeps."""
        for part in other.parts:
            self.add(*part)

    def all(self) -> tuple[Tensor, ...]:
        """All rows of each."""
        return tuple(torch.cat(parts) for parts in zip(*self.parts, strict=True))


@dataclass
class OfFeatures(Metric):
    """Base of metrics of the features that a block keeps.

    space: a file of features/, or any importable module.
    """

    space: str = "random-conv"
    kept: Kept = field(init=False, repr=False)

    def reset(self) -> None:
        self.kept = Kept()

    def update(self, made: Made) -> None:
        self.kept.add(made.features(self.space))

    def merge(self, other: OfFeatures) -> None:
        self.kept.merge(other.kept)
