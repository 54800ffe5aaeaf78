"""The space of CMMD (Jayasumana et al. 2024, arXiv 2401.09603): CLIP's image side, at 336 pixels.

The whole picture is resized, bicubic and smoothed, without a cut and without rounding; its
embedding lies on the unit sphere. Such is the authors' code in JAX; its port to torch does not
smooth, which gives other numbers for large pictures.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import normalize

from ..extractor import BATCH, MEAN, STD, clip_folder, loaded, resized, standardised
from ..weights import versions
from .space import FeatureSpace, Real

MODEL = "ViT-L/14-336"


class ClipVision(FeatureSpace):
    """The space "clip-vision", of CMMD."""

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        folder = clip_folder(place or MODEL)
        from transformers import CLIPModel

        network = Embedding(loaded(CLIPModel, folder))
        how = f"smoothed bicubic resize to {network.side}"
        about, used = f"CLIP {place or MODEL}", versions("transformers", "torch")
        return FeatureSpace("clip-vision", network, about, how, BATCH, None, used)


class Embedding(nn.Module):
    """Images (b, 1 or 3, h, w) in [−1, 1] → (b, d), of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.side = model, model.config.vision_config.image_size

    def forward(self, images: Tensor) -> Tensor:
        pixels = standardised(resized(images, self.side), MEAN, STD)
        return normalize(self.model.get_image_features(pixel_values=pixels).pooler_output)
