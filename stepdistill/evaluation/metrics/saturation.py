"""How many more pixel values than in real images lie at the ends of their range, black or white in
their channel:

P(|x| ≥ 1 − 1/255) − P(|x°| ≥ 1 − 1/255)

x° are real images or, where there are none, those of the teacher at most steps. 1/255 is half a
level of a file of 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from ..averaged import OfPixels
from ..intervals import around
from ..metric import Blocks
from ..numerals import signed
from ..rows import Score

END = 1 - 1 / 255


@dataclass
class Saturation(OfPixels):
    """In −1..1; above 0 where contrast is burnt out."""

    about = (
        "the share of pixel values at the ends of their range, less that of the reference images, "
        "or of the teacher at most steps where there are none."
    )
    ideal = 0.0
    least, most = -1.0, 1.0

    def measure(self, images: Tensor) -> Tensor:
        return (images.abs() >= END).double().flatten(1).mean(1)

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        values = [value for block in blocks for value in block]
        theirs = [value for block in best or () for value in block]
        base = theirs if self.real is None else [self.real] * len(values)
        excess = [value - usual for value, usual in zip(values, base)]
        return around(fmean(excess), excess, self.least, self.most) if excess else None

    def text(self, score: Score) -> str:
        return signed(score.value, 4)
