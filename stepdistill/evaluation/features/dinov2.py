"""The space of FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675): the class token of DINOv2 ViT-L/14
(Oquab et al. 2023, arXiv 2304.07193), normalised, at 224 pixels: 1,024 numbers.

The whole picture is resized, bicubic and smoothed, and rounded to 8 bits, as Pillow would.
"dinov2:DIR" names a folder that holds a DINOv2.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..extractor import BATCH, loaded, resized, standardised
from ..weights import Model, find_model, require_extra, versions
from .space import FeatureSpace, Real

SIDE = 224
LARGE = Model(
    "facebook/dinov2-large",
    1217.5,
    "model.safetensors",
    "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DINOv2Space(FeatureSpace):
    """The space "dinov2", of fd-dinov2."""

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        require_extra("clip", "transformers")
        from transformers import Dinov2Model

        network = ClassToken(loaded(Dinov2Model, find_model(LARGE, place)))
        how = f"smoothed bicubic resize to {SIDE}"
        about, used = f"DINOv2 {place or 'ViT-L/14'}", versions("transformers", "torch")
        return FeatureSpace("dinov2", network, about, how, BATCH, None, used)


class ClassToken(nn.Module):
    """Images (b, 1 or 3, h, w) in [−1, 1] → (b, d)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        rgb = resized(images, SIDE).mul(255).round().clamp(0, 255).div(255)
        return self.model(pixel_values=standardised(rgb, MEAN, STD)).pooler_output
