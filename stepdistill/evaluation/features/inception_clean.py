"""FID as clean-fid has it (Parmar et al. 2021, arXiv 2104.11222): Pillow's bicubic resize of every
channel in float32, which smooths before it shrinks, clipped to 0..255.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..inception import BATCH, SIDE, inception
from ..weights import versions
from .space import FeatureSpace, Real

HOW = f"clean-fid's bicubic resize to {SIDE}"
PACKAGES = ("clean-fid", "pillow", "torch-fidelity", "torch")


class InceptionClean(FeatureSpace):
    """The space "inception-clean", of fid-clean."""

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        net = inception(resize, real.size[0], place)
        about, used = f"FID's Inception, {HOW}", versions(*PACKAGES)
        return FeatureSpace("inception-clean", net, about, HOW, BATCH, net.head, used)


def resize(levels: Tensor) -> Tensor:
    """Levels (b, 3, h, w) → (b, 3, 299, 299)."""
    from cleanfid.resize import build_resizer

    one = build_resizer("clean")
    pictures = levels.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
    resized = torch.from_numpy(np.stack([one(picture) for picture in pictures]))
    return resized.permute(0, 3, 1, 2).to(levels.device)
