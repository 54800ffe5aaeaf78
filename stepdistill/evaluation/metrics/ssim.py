"""Structural similarity (Wang et al. 2004) to the teacher's image of the same noise, as computed by
torchmetrics: Gaussian windows of 11 × 11 pixels, σ = 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from torch import Tensor

from ..averaged import OfPairs
from ..reference import Reference

WINDOW = 11


@dataclass
class SSIM(OfPairs):
    """There is none without a teacher."""

    about = (
        "the structural similarity to the image that the teacher at most steps makes of the same "
        "noise, at most 1. Methods that do not follow the teacher's trajectories are not meant to "
        "match it."
    )
    lower_is_better = False
    decimals = 3
    least, most = -1.0, 1.0

    def open(self, reference: Reference) -> None:
        if find_spec("torchmetrics") is None:
            raise ValueError("ssim is computed by torchmetrics: pip install torchmetrics")
        if min(reference.size[1:]) < WINDOW:
            raise ValueError(f"ssim needs {WINDOW} × {WINDOW} pixels, not {reference.size[1:]}")

    def compare(self, images: Tensor, theirs: Tensor) -> Tensor:
        # A second to import, and only this metric needs it.
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        return ssim(images, theirs, data_range=2.0, reduction="none").reshape(-1)
