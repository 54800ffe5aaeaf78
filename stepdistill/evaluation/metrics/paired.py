"""How far images lie from the teacher's of the same noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..metric import Blocks, Made, Metric
from ..rows import Score


@dataclass
class Paired(Metric):
    """There is none without a teacher."""

    about = (
        "the root mean square difference, in pixel values of [−1, 1], from the image that the "
        "teacher at most steps makes of the same noise."
    )
    decimals = 3
    gaps: list[Tensor] = field(init=False, repr=False)

    def reset(self) -> None:
        self.gaps = []

    def update(self, made: Made) -> None:
        if made.paired is not None:
            self.gaps.append((made.images - made.paired).double().square().flatten(1).mean(1))

    def merge(self, other: Paired) -> None:
        self.gaps += other.gaps

    def compute(self) -> list[float]:
        return [torch.cat(self.gaps).mean().item()] if self.gaps else []

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        mean = super().score(blocks, best)
        return None if mean is None else Score(mean.value**0.5)
