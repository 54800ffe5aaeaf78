"""How far apart two images of one prompt or class are in LPIPS, the learned perceptual distance
(Zhang et al. 2018, arXiv 1801.03924); so DMD2 measures diversity (arXiv 2405.14867).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Annotated

import torch
from torch import Tensor

from ...losses.distances import Net, lpips
from ...schema import Range
from ..kept import Kept
from ..metric import Made
from ..perceptual import find_lpips
from ..reference import Reference
from ..spread import Spread, groups

BYTES = 2**28  # of images that a block keeps
BATCH = 16  # pairs


@dataclass
class LPIPSDiversity(Spread):
    """each: images of a prompt or class that are compared, all pairs of the first of a block. net:
    the network whose features are compared."""

    what = "the mean learned perceptual distance (LPIPS) of two images of one prompt or class"
    each: Annotated[int, Range(2, 100)] = 4
    net: Net = "alex"
    kept: Kept = field(init=False, repr=False)
    most_kept: int = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        find_lpips(self.net)
        self.most_kept = BYTES // prod(reference.size)

    def reset(self) -> None:
        self.kept = Kept(self.most_kept)

    def of(self, n: int, size: tuple[int, ...]) -> int:
        return min(n, BYTES // prod(size))

    def update(self, made: Made) -> None:
        self.kept.add(as_saved(made.images), made.classes())

    def merge(self, other: LPIPSDiversity) -> None:
        self.kept.merge(other.kept)

    def compute(self) -> list[float]:
        found = groups(*self.kept.all())
        means = [self._mean_distance(group[: self.each]) for group in found]
        return [torch.stack(means).mean().item()] if means else []

    @torch.no_grad()
    def _mean_distance(self, images: Tensor) -> Tensor:
        """Of all pairs of images (n, c, h, w) as they are saved."""
        pairs = torch.combinations(torch.arange(len(images)))
        images = images.float() / 127.5 - 1
        parts = [lpips(*images[part.T], self.net).double() for part in pairs.split(BATCH)]
        return torch.cat(parts).mean()


def as_saved(images: Tensor) -> Tensor:
    """Images in [−1, 1] in the 256 levels of a file."""
    return ((images + 1) * 127.5).round().to(torch.uint8)
