"""Peak signal to noise ratio, in decibels, to the teacher's image of the same noise:

10 log₁₀ (2² / mean (x − y)²)   for pixel values in [−1, 1], of each image
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..averaged import OfPairs

MOST = 100.0  # of equal images, instead of infinity


@dataclass
class PSNR(OfPairs):
    """There is none without a teacher."""

    about = (
        "the peak signal to noise ratio, in dB, to the image that the teacher at most steps makes "
        f"of the same noise, a mean over images; {MOST:.0f} where they are equal. Methods that do "
        "not follow the teacher's trajectories are not meant to match it."
    )
    lower_is_better = False
    decimals = 1
    most = MOST

    def compare(self, images: Tensor, theirs: Tensor) -> Tensor:
        error = (images - theirs).double().square().flatten(1).mean(1)
        return (10 * (math.log10(4) - error.log10())).clamp(max=MOST)
