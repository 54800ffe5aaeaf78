"""LPIPS, the learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), to the teacher's
image of the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...losses.distances import Net, lpips
from ..averaged import OfPairs
from ..perceptual import find_lpips
from ..reference import Reference


@dataclass
class LPIPSPaired(OfPairs):
    """There is none without a teacher. net: the network whose features are compared."""

    about = (
        "the learned perceptual distance (LPIPS) from the image that the teacher at most steps "
        "makes of the same noise. Methods that do not follow the teacher's trajectories are not "
        "meant to match it."
    )
    decimals = 3
    least = 0.0
    net: Net = "alex"

    def open(self, reference: Reference) -> None:
        find_lpips(self.net)

    @torch.no_grad()
    def compare(self, images: Tensor, theirs: Tensor) -> Tensor:
        return lpips(images, theirs, self.net)
