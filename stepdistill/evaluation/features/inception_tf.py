"""FID as torch-fidelity has it, and TensorFlow had it in 2017: TF1's bilinear resize, which takes
pixel i of a larger picture at i · s, not at its middle, and does not smooth before it shrinks.
"""

from __future__ import annotations

from torch import Tensor

from ..inception import BATCH, SIDE, inception
from ..weights import versions
from .space import FeatureSpace, Real

HOW = f"TensorFlow 1's bilinear resize to {SIDE}"
PACKAGES = ("torch-fidelity", "torch")


class InceptionTF(FeatureSpace):
    """The space "inception-tf", of fid-tf."""

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        net = inception(resize, real.size[0], place)
        about, used = f"FID's Inception, {HOW}", versions(*PACKAGES)
        return FeatureSpace("inception-tf", net, about, HOW, BATCH, net.head, used)


def resize(levels: Tensor) -> Tensor:
    """Levels (b, 3, h, w) → (b, 3, 299, 299)."""
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as interpolate,
    )

    return interpolate(levels, size=(SIDE, SIDE), align_corners=False)
