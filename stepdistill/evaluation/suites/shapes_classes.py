"""Coloured shapes, see `data/shapes.py`: fresh scenes of every class, read without learning.

The reader inverts the drawing. The ground g is the median of the border, the colour k the mean of
the pixels that differ most from it; coverage and area, centre and template error of a shape s are

    c = ½ + (clamp((x − g)·(k − g) / ‖k − g‖², ⅕, ⅘) − ½) / 0.6       A = Σ c,   m = Σ c p / A
    e_s = min_ρ Σ (c − c_s(m, ρ √(A / A_s)))² / A                     ρ = 0.95, 1, 1.05

with c_s the coverage of the shape there, and A_s its area at radius 1; what lies beyond ⅕ and ⅘ is
taken for noise on ground and shape. It sees the shape of least
error in the nearest colour of the palette, or nothing at all, where nothing fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ...data.loader import stream
from ...data.shapes import CLASSES, SHAPES, Scenes, coverage, palette, require_size
from ...schema import Range, Seed
from ..reference import Brought, Kind, Reader, Reference, Task, evenly

FIT, CONTRAST = 0.35, 40 / 255  # the largest template error, the least contrast of a shape
EDGE = 0.2  # coverage that may be noise
RATIOS = (0.95, 1.0, 1.05)
WIDTHS = 0.05, 0.05  # of colours and of errors, in the confidence
STRONGEST = 20  # pixels of 32 × 32 that tell the colour


@dataclass(frozen=True)
class ShapesClasses(Task):
    """n: reference pictures, of every class equally many. seed: of their scenes, which no training
    has, whatever its seed."""

    n: Annotated[int, Range(CLASSES, 10**6)] = 4800
    seed: Seed = 0

    def open(self, kind: Kind, brought: Brought) -> Reference:
        if kind.size[0] != 3 or kind.classes not in (None, CLASSES):
            raise ValueError(f"scores RGB images of {CLASSES} classes or none, not {kind}")
        size = kind.size[1:]
        require_size(size)
        labels = torch.arange(self.n) % CLASSES
        scenes = Scenes.drawn(labels, stream(self.seed, 1))
        return Reference(
            size=kind.size,
            ask=None if kind.classes is None else evenly(CLASSES),
            images=scenes.images(*size),
            labels=labels,
            reader=Reader("pixels", ShapeReader(size)),
            about=f"coloured shapes, {self.n} fresh scenes, seed {self.seed}",
        )


class ShapeReader(nn.Module):
    """Pixels (n, 3 · height · width) in [−1, 1] → logits (n, CLASSES + 1), the last for nothing."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.areas = areas()

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.reshape(-1, 3, *self.size).float() / 2 + 0.5
        ground = border(x).median(2).values
        delta = x - ground[:, :, None, None]
        toward = self.strongest(delta)
        contrast = toward.square().sum(1)
        covered = (delta * toward[:, :, None, None]).sum(1) / contrast[:, None, None].clamp(1e-9)
        errors = self.errors(0.5 + (covered.clamp(EDGE, 1 - EDGE) - 0.5) / (1 - 2 * EDGE))
        away = torch.cdist(ground + toward, palette())
        colours, shapes = (-(d / w).square() / 2 for d, w in zip((away, errors), WIDTHS))
        logits = (colours[:, :, None] + shapes[:, None, :]).flatten(1)
        seen = (errors.min(1).values < FIT) & (contrast > CONTRAST**2)
        nothing = torch.where(seen, -torch.inf, torch.inf)[:, None]
        return torch.cat([logits, nothing.clamp(-1e4, 1e4)], 1)

    def strongest(self, delta: Tensor) -> Tensor:
        """The mean (n, 3) of the pixels (n, 3, height, width) that differ most from the ground."""
        flat = delta.flatten(2)
        count = max(1, STRONGEST * min(self.size) ** 2 // 32**2)
        most = flat.square().sum(1).topk(count).indices
        return flat.gather(2, most[:, None].expand(-1, 3, -1)).mean(2)

    def errors(self, covered: Tensor) -> Tensor:
        """Template errors (n, shapes) of coverages (n, height, width)."""
        n = len(covered)
        area = covered.sum((1, 2)).clamp(min=1e-6)
        rows, columns = (torch.arange(side) + 0.5 for side in self.size)
        centre = torch.stack([covered.sum(2) @ rows, covered.sum(1) @ columns], 1) / area[:, None]
        found = []
        for shape, unit in enumerate(self.areas):
            radius = (area / unit).sqrt()
            which = torch.full((n,), shape)
            drawn = [coverage(which, ratio * radius, centre, self.size) for ratio in RATIOS]
            misses = [(covered - c).square().sum((1, 2)) / area for c in drawn]
            found.append(torch.stack(misses).min(0).values)
        return torch.stack(found, 1)


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
