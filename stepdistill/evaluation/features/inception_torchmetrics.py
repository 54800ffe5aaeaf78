"""FID as torchmetrics 1.9 has it unless told otherwise: torch's bilinear resize, smoothed before it
shrinks. Its older versions, and `antialias=False`, are the space "inception-tf".
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from ..inception import BATCH, SIDE, inception
from ..weights import versions
from .space import FeatureSpace, Real

NAME = "inception-torchmetrics"
HOW = f"torchmetrics' smoothed bilinear resize to {SIDE}"
PACKAGES = ("torch-fidelity", "torch")


class InceptionTorchmetrics(FeatureSpace):
    """The space "inception-torchmetrics", of fid-torchmetrics."""

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        net = inception(resize, real.size[0], place)
        about, used = f"FID's Inception, {HOW}", versions(*PACKAGES)
        return FeatureSpace(NAME, net, about, HOW, BATCH, net.head, used)


def resize(levels: Tensor) -> Tensor:
    """Levels (b, 3, h, w) → (b, 3, 299, 299)."""
    return interpolate(levels, (SIDE, SIDE), mode="bilinear", antialias=True)
