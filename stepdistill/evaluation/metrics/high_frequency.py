"""How much fine detail images have, as a ratio to real ones: below 1 are smooth, above 1 noisy.

H = mean (x − x̄)²,   x̄ the mean of each square of 2 × 2 pixels

is the energy of the details of Haar's wavelet, which lie above half the highest frequency. Real
images are the reference's or, where there are none, those of the teacher at most steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from torch import Tensor
from torch.nn.functional import avg_pool2d

from ..averaged import OfPixels
from ..intervals import around, of_ratio
from ..metric import Blocks
from ..reference import Reference
from ..rows import Score


@dataclass
class HighFrequency(OfPixels):
    """Nearest 1 is best. There is none where the real images have no details."""

    about = (
        "the energy of details of the size of a pixel, as a ratio to that of the reference images, "
        "or of the teacher at most steps where there are none: below 1 smooth, above 1 noisy."
    )
    decimals = 3
    ideal = 1.0
    least = 0.0

    def open(self, reference: Reference) -> None:
        if min(reference.size[1:]) < 2:
            raise ValueError(f"high_frequency needs 2 × 2 pixels, not {reference.size[1:]}")
        super().open(reference)
        if self.real == 0:
            raise ValueError("high_frequency: the real images have no details to compare with")

    def measure(self, images: Tensor) -> Tensor:
        return details(images)

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        values = [value for block in blocks for value in block]
        if self.real is None:
            return of_ratio(values, [value for block in best or () for value in block])
        ratios = [value / self.real for value in values]
        return around(fmean(ratios), ratios, self.least) if ratios else None


def details(images: Tensor) -> Tensor:
    """H (b,) of images (b, c, h, w); an odd last row or column is left out."""
    x = images.double()
    x = x[..., : x.shape[-2] // 2 * 2, : x.shape[-1] // 2 * 2]
    # The rest is orthogonal to the means.
    return x.square().flatten(1).mean(1) - avg_pool2d(x, 2).square().flatten(1).mean(1)
