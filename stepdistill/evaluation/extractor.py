"""Feature extractors that transformers loads from a folder: CLIP and DINOv2.

Their weights come from this machine, see `weights`; the hub is not asked while they are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from .weights import (
    Model,
    WeightsUnavailable,
    fast_device,
    find_model,
    is_whole,
    require,
    require_extra,
    unfit,
)

BATCH = 32
# Radford et al. 2021 (arXiv 2103.00020); the last one OpenCLIP's (arXiv 2212.07143).
CLIPS = {
    "ViT-B/32": Model(
        "openai/clip-vit-base-patch32",
        605.2,
        "pytorch_model.bin",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    ),
    "ViT-L/14": Model(
        "openai/clip-vit-large-patch14",
        1710.5,
        "model.safetensors",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
    "ViT-L/14-336": Model(
        "openai/clip-vit-large-patch14-336",
        1712.0,
        "pytorch_model.bin",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    ),
    "ViT-g/14": Model("laion/CLIP-ViT-g-14-laion2B-s12B-b42K", 5467.0, "pytorch_model.bin"),
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_folder(model: str) -> Path:
    """The folder of a CLIP: a name of CLIPS, or a folder of yours.

    Raises Unavailable where one of CLIPS is not here, ValueError for what is none."""
    require_extra("clip", "transformers")
    if model in CLIPS:
        return find_model(CLIPS[model])
    otherwise = f"neither one of {', '.join(CLIPS)} nor a folder of a CLIP"
    return require(Path(model).expanduser(), is_whole, otherwise)


def loaded(kind: type, folder: Path) -> nn.Module:
    """A model of transformers, frozen, in float32. Raises WeightsUnavailable for another one."""
    try:
        wanted = kind.config_class.model_type
        said, _ = kind.config_class.get_config_dict(folder, local_files_only=True)
        if said.get("model_type") != wanted:
            raise ValueError(f"its config is of a {said.get('model_type')}")
        model, found = kind.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # a torn file, another architecture: each fails otherwise
        raise unfit(folder, kind.__name__, error) from error
    if found["missing_keys"]:
        some = sorted(found["missing_keys"])[0]
        raise WeightsUnavailable(f"{folder} holds no {kind.__name__}: it lacks {some}")
    return model.to(fast_device()).eval().requires_grad_(False)


def resized(images: Tensor, side: int) -> Tensor:
    """Images (b, 1 or 3, h, w) in [−1, 1] → RGB in 0..1, side × side, bicubic, smoothed."""
    rgb = (images + 1).div(2).expand(-1, 3, -1, -1)
    return interpolate(rgb, (side, side), mode="bicubic", antialias=True)


def standardised(rgb: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB (b, 3, h, w) in 0..1 with a mean and a deviation taken from each channel."""
    middle, width = (rgb.new_tensor(v)[:, None, None] for v in (mean, std))
    return (rgb - middle) / width


class CLIP(nn.Module):
    """CLIP with the preparation that lies beside its weights; both sides on the unit sphere.

    Images (b, 1 or 3, h, w) in [−1, 1], as 8 bits hold them → (b, d); `texts` → (n, d)."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        super().__init__()
        self.model = loaded(CLIPModel, folder)
        try:
            self.prepare = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # no tokenizer, or another one's
            raise unfit(folder, "CLIPProcessor", error) from error
        self.longest = self.model.config.text_config.max_position_embeddings

    def forward(self, images: Tensor) -> Tensor:
        pictures = (images + 1).mul(127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        seen = self.prepare.image_processor(list(pictures.cpu()), return_tensors="pt")
        pixels = seen["pixel_values"].to(images.device)
        return normalize(self.model.get_image_features(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Of n texts, each cut to the tokens that CLIP reads: (n, d)."""
        read = self.prepare.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
        )
        read = read.to(self.model.device)
        return normalize(self.model.get_text_features(**read).pooler_output).cpu()
