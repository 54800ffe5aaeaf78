"""Coloured shapes read without learning: the reader inverts the drawing of `data/shapes.py`.

The ground g is the median of the border, the colour k the mean of the pixels that differ most from
it; coverage and area, centre and template error of a shape s are

    c = ½ + (clamp((x − g)·(k − g) / ‖k − g‖², ⅕, ⅘) − ½) / 0.6       A = Σ c,   m = Σ c p / A
    e_s = min_ρ Σ (c − c_s(m, ρ √(A / A_s)))² / A                     ρ = 0.95, 1, 1.05

with c_s the coverage of the shape there, and A_s its area at radius 1; what lies beyond ⅕ and ⅘ is
taken for noise on ground and shape. It sees the shape of least error in the nearest colour of the
palette, or nothing at all, where nothing fits.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.shapes import SHAPES, UNITS, coverage, palette

FIT, CONTRAST = 0.35, 40 / 255  # the largest template error, the least contrast of a shape
EDGE = 0.2  # coverage that may be noise
RATIOS = (0.95, 1.0, 1.05)
STRONGEST = 20  # pixels of 32 × 32 that tell the colour


class Seen(NamedTuple):
    """What is seen of n objects. errors: of every shape's template (n, shapes). away: distances of
    the colour from the palette's (n, colours). contrast: squared, to the ground (n,). centre:
    vertical and horizontal (n, 2), in pixels. area: in pixels (n,)."""

    errors: Tensor
    away: Tensor
    contrast: Tensor
    centre: Tensor
    area: Tensor

    @property
    def fits(self) -> Tensor:
        """Where (n,) there is an object at all."""
        return (self.errors.min(1).values < FIT) & (self.contrast > CONTRAST**2)

    @property
    def radius(self) -> Tensor:
        """Of the shape of least error (n,), in pixels."""
        return (self.area / areas()[self.errors.argmin(1)]).sqrt()


def see(x: Tensor, ground: Tensor, strongest: int, later: bool = False) -> Seen:
    """The one object of each picture x (n, 3, height, width) in [0, 1] on a ground (n, 3);
    strongest: the pixels that tell its colour. later: whether it may be one of LATER, too."""
    delta = x - ground[:, :, None, None]
    toward = strongest_of(delta, strongest)
    contrast = toward.square().sum(1)
    covered = (delta * toward[:, :, None, None]).sum(1) / contrast[:, None, None].clamp(1e-9)
    covered = 0.5 + (covered.clamp(EDGE, 1 - EDGE) - 0.5) / (1 - 2 * EDGE)
    area = covered.sum((1, 2)).clamp(min=1e-6)
    rows, columns = (torch.arange(side) + 0.5 for side in x.shape[2:])
    centre = torch.stack([covered.sum(2) @ rows, covered.sum(1) @ columns], 1) / area[:, None]
    away = torch.cdist(ground + toward, palette(later))
    return Seen(template_errors(covered, area, centre), away, contrast, centre, area)


def strongest_of(delta: Tensor, count: int) -> Tensor:
    """The mean (n, 3) of the pixels (n, 3, height, width) that differ most from the ground."""
    flat = delta.flatten(2)
    most = flat.square().sum(1).topk(count).indices
    return flat.gather(2, most[:, None].expand(-1, 3, -1)).mean(2)


def template_errors(covered: Tensor, area: Tensor, centre: Tensor) -> Tensor:
    """Errors (n, shapes) of coverages (n, height, width) of these areas (n,) and centres (n, 2)."""
    size, found = (covered.shape[1], covered.shape[2]), []
    for shape, unit in enumerate(areas()):
        radius = (area / unit).sqrt()
        which = torch.full((len(covered),), shape)
        drawn = [coverage(which, ratio * radius, centre, size) for ratio in RATIOS]
        misses = [(covered - c).square().sum((1, 2)) / area for c in drawn]
        found.append(torch.stack(misses).min(0).values)
    return torch.stack(found, 1)


def pixels_that_tell(side: int) -> int:
    """How many pixels of a picture with this shorter side tell a colour."""
    return max(1, STRONGEST * side**2 // UNITS**2)


@cache
def areas() -> Tensor:
    """Of each shape at radius 1, counted on a fine grid."""
    fine, shapes = 512, torch.arange(len(SHAPES))
    radius = torch.full((len(SHAPES),), fine / 4)
    middle = torch.full((len(SHAPES), 2), fine / 2)
    return coverage(shapes, radius, middle, (fine, fine)).sum((1, 2)) / radius.square()


def border(x: Tensor) -> Tensor:
    """The outermost pixels (n, 3, ·) of images."""
    edges = x[:, :, 0], x[:, :, -1], x[:, :, 1:-1, 0], x[:, :, 1:-1, -1]
    return torch.cat(edges, 2)


def ground_of(x: Tensor) -> Tensor:
    """The colour (n, 3) of the ground of images."""
    return border(x).median(2).values
