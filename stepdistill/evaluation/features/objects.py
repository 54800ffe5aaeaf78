"""What is seen of coloured objects: in the whole picture, and in each of its halves.

Of a view the numbers are: colour, shape, whether there is an object at all, its radius, the
template error, and its centre, vertical and horizontal. Lengths are in units of 1/32 of the side.
The last number of an image is its ground. See `evaluation/shape_reader.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...data.shapes import FEWEST, GROUNDS, UNITS
from ..shape_reader import ground_of, pixels_that_tell, see
from .space import FeatureSpace, Real

NUMBERS = 7  # of a view
COLOUR, SHAPE, THERE, RADIUS, ERROR, DOWN, ACROSS = range(NUMBERS)
WHOLE, LEFT, RIGHT, ABOVE, BELOW = range(5)


class Objects(nn.Module):
    """Square images (b, 3, side, side) in [−1, 1] → (b, 36). later: whether colours that no teacher
    of ours has seen are known, too."""

    def __init__(self, later: bool = False) -> None:
        super().__init__()
        self.later = later

    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 2 + 0.5
        side = x.shape[-1]
        half, ground = side // 2, ground_of(x)
        views = x, x[..., :half], x[..., half:], x[..., :half, :], x[..., half:, :]
        seen = [self.numbers(view, ground, side) for view in views]
        pale = torch.cdist(ground, torch.tensor(GROUNDS) / 255).argmin(1)
        return torch.cat([*seen, pale[:, None].float()], 1)

    def numbers(self, view: Tensor, ground: Tensor, side: int) -> Tensor:
        """Of one view (b, 3, height, width), (b, 7)."""
        seen = see(view, ground, pixels_that_tell(min(view.shape[2:])), self.later)
        unit = side / UNITS
        found = seen.away.argmin(1), seen.errors.argmin(1), seen.fits, seen.radius / unit
        found = *found, seen.errors.min(1).values, *(seen.centre / unit).T
        return torch.stack([number.float() for number in found], 1)


class ObjectSpace(FeatureSpace):
    """The space "objects" (d = 36)."""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        channels, height, width = real.size
        if channels != 3 or height != width or height < FEWEST or height % 2:
            raise ValueError(
                f"objects are read in square RGB images of an even side of at least {FEWEST}, not "
                f"{tuple(real.size)}"
            )
        return FeatureSpace("objects", Objects(), "an exact reader of coloured objects")
