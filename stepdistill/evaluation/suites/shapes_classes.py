"""Coloured shapes, see `data/shapes.py`: fresh scenes of every class, read without learning, see
`evaluation/shape_reader.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ...data.loader import stream
from ...data.shapes import CLASSES, Scenes, require_size
from ...schema import Range, Seed
from ..reference import Brought, Kind, Reader, Reference, Task, evenly
from ..shape_reader import ground_of, pixels_that_tell, see

WIDTHS = 0.05, 0.05  # of colours and of errors, in the confidence


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

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.reshape(-1, 3, *self.size).float() / 2 + 0.5
        seen = see(x, ground_of(x), pixels_that_tell(min(self.size)))
        parts = zip((seen.away, seen.errors), WIDTHS)
        colours, shapes = (-(distance / width).square() / 2 for distance, width in parts)
        logits = (colours[:, :, None] + shapes[:, None, :]).flatten(1)
        nothing = torch.where(seen.fits, -torch.inf, torch.inf)[:, None]
        return torch.cat([logits, nothing.clamp(-1e4, 1e4)], 1)
