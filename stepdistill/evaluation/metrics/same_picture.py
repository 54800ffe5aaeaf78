"""How often two seeds of one prompt or class give the same picture:

P(√mean (x − x′)² < near)   of thumbnails of at most 32 × 32 pixels, values in [−1, 1]

over pairs of one prompt or class, whose shares are averaged. The thumbnail keeps what makes a
picture, and not the noise by which two copies of it differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ...schema import Range
from ..kept import KEPT, Keep, Kept
from ..metric import Made
from ..spread import Spread, groups

SIDE = 32


@dataclass
class SamePicture(Spread):
    """There is none where no class, or prompt, has two images.

    near: the root mean square difference below which pictures are the same. keep: images of a block
    that it looks at, the first ones."""

    what = (
        "the share of pairs of images of one prompt or class, of different seeds, that are all but "
        "the same picture (more for `real`, which repeats reference images)"
    )
    lower_is_better = True
    decimals = 4
    least, most = 0.0, 1.0
    ratio: bool = False
    near: Annotated[float, Range(0, 2, above=True)] = 0.05
    keep: Keep = KEPT
    kept: Kept = field(init=False, repr=False)

    def reset(self) -> None:
        self.kept = Kept(self.keep)

    def of(self, n: int, size: tuple[int, ...]) -> int:
        return n if self.keep is None else min(n, self.keep)

    def update(self, made: Made) -> None:
        self.kept.add(thumbnails(made.images), made.classes())

    def merge(self, other: SamePicture) -> None:
        self.kept.merge(other.kept)

    def compute(self) -> list[float]:
        shares = [same(group, self.near) for group in groups(*self.kept.all())]
        return [torch.stack(shares).mean().item()] if shares else []


def thumbnails(images: Tensor) -> Tensor:
    """Images (b, c, h, w) as rows (b, d), none of their sides longer than SIDE."""
    height, width = (min(SIDE, side) for side in images.shape[-2:])
    return adaptive_avg_pool2d(images, (height, width)).flatten(1)


def same(pictures: Tensor, near: float) -> Tensor:
    """The share of pairs of pictures (n, d), n ≥ 2, whose root mean square difference is < near."""
    return (torch.pdist(pictures) < near * pictures.shape[1] ** 0.5).double().mean()
