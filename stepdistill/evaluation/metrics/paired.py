"""How far images lie from the teacher's of the same noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..averaged import OfPairs
from ..intervals import of_root
from ..metric import Blocks
from ..rows import Score


@dataclass
class Paired(OfPairs):
    """There is none without a teacher."""

    about = (
        "the root mean square difference, in pixel values of [−1, 1], from the image that the "
        "teacher at most steps makes of the same noise."
    )
    decimals = 3

    def compare(self, images: Tensor, theirs: Tensor) -> Tensor:
        return (images - theirs).double().square().flatten(1).mean(1)

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        return of_root([value for block in blocks for value in block])
