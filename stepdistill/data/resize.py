"""What becomes of images before they are scored, where a protocol says so: their middle square is
cut out and made smaller by Pillow's Lanczos, on 8 bits, generated and real ones alike (as DMD2 does
for COCO, arXiv 2405.14867).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ..schema import Range


@dataclass(frozen=True)
class Resize:
    """side: of the square, in pixels."""

    side: Annotated[int, Range(1, 2**14)]

    def picture(self, image: Image.Image) -> Image.Image:
        """The square of one picture; a square of this side stays as it is."""
        middle = center_crop(image, [min(image.size)] * 2)
        return middle.resize((self.side, self.side), Image.Resampling.LANCZOS)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (b, 1 or 3, h, w) in [−1, 1] → (b, c, side, side), both as 8 bits hold them."""
        levels = (images + 1).mul(127.5).round().byte().permute(0, 2, 3, 1)
        pictures = [Image.fromarray(each.squeeze(-1).numpy()) for each in levels]
        found = np.stack([np.asarray(self.picture(each)) for each in pictures])
        pixels = torch.from_numpy(found).reshape(len(images), self.side, self.side, -1)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1

    def __str__(self) -> str:
        return f"middle square to {self.side}×{self.side} by Pillow's lanczos, 8 bits"
