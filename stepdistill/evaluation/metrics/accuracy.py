"""How often the suite's reader sees in an image the label that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metric import Made, Metric
from ..reference import Reference


@dataclass
class Accuracy(Metric):
    """There is none where no labels are asked for."""

    about = "the share of images in which a classifier sees the label that was asked for."
    lower_is_better = False
    decimals = 3
    right: list[Tensor] = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        if reference.reader is None:
            raise ValueError("the task has no reader, which tells classes apart")

    def reset(self) -> None:
        self.right = []

    def update(self, made: Made) -> None:
        if isinstance(made.asked, Tensor):
            self.right.append((made.read() == made.asked).double())

    def merge(self, other: Accuracy) -> None:
        self.right += other.right

    def compute(self) -> list[float]:
        return [torch.cat(self.right).mean().item()] if self.right else []
