"""Images as CLIP sees them beside a text: its own preparation (the shorter side resized, the middle
cut out), on the unit sphere. "clip-image:ViT-B/32" names the model, or a folder that holds one.
"""

from __future__ import annotations

from ..extractor import BATCH, CLIP, clip_folder
from ..weights import versions
from .space import FeatureSpace, Real

MODEL = "ViT-L/14"


class ClipImage(FeatureSpace):
    """The space "clip-image", of the CLIP score."""

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        network = CLIP(clip_folder(place or MODEL))
        how = "its own preparation"
        about, used = f"CLIP {place or MODEL}", versions("transformers", "torch")
        return FeatureSpace("clip-image", network, about, how, BATCH, None, used)
