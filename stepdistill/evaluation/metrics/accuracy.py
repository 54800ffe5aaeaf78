"""How often the suite's reader sees in an image the label that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..averaged import OfImages
from ..metric import Made
from ..reference import Reference


@dataclass
class Accuracy(OfImages):
    """There is none where no labels are asked for."""

    about = "the share of images in which a classifier sees the label that was asked for."
    lower_is_better = False
    decimals = 3
    least, most = 0.0, 1.0
    needs_asked = True

    def open(self, reference: Reference) -> None:
        if reference.reader is None:
            raise ValueError("the task has no reader, which tells classes apart")

    def each(self, made: Made) -> Tensor | None:
        return made.read() == made.asked if isinstance(made.asked, Tensor) else None
