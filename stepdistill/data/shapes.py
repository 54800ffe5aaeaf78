"""Pictures of one coloured shape on a pale ground, drawn at any size from a few numbers.

A scene is a colour, a shape, a ground, a centre and a radius. With d the signed distance, in
pixels, from the edge of the shape, the coverage of a pixel and its value are

    c = clamp(½ − d, 0, 1),        x = c · colour + (1 − c) · ground

Lengths are in units of 1/32 of the shorter side, so a scene looks alike at every size. All that is
random is uniform, so the distribution is known: 48 classes of colour × shape, six grounds, a radius
from 6 to 9, a centre wherever the shape keeps its margin, and a jitter of both colours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PALETTE = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (235, 215, 50),
    "green": (50, 160, 70),
    "blue": (50, 90, 210),
    "purple": (140, 60, 180),
    "pink": (240, 110, 180),
    "black": (30, 30, 30),
}
# That no teacher of ours has seen: what a model may be taught later.
LATER = {"rose": (222, 78, 112), "wine": (145, 38, 42)}
GROUNDS = (
    (245, 245, 245),
    (245, 235, 210),
    (215, 230, 245),
    (220, 240, 220),
    (245, 220, 225),
    (215, 215, 215),
)
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
CLASSES = len(PALETTE) * len(SHAPES)
NAMES = tuple(f"{colour} {shape}" for colour in PALETTE for shape in SHAPES)
UNITS = 32  # to the shorter side
RADII = (6.0, 9.0)
REACH = 1.2  # of a shape of radius 1
MARGIN = 1.5  # pixels around a shape: beyond an acute corner coverage falls by half as much
JITTER = 8 / 255
FEWEST = 16  # pixels a side


@dataclass(frozen=True, eq=False)
class Scenes:
    """n scenes. labels (n,): len(SHAPES) · colour + shape. colours, grounds: (n, 3) in [0, 1].

    radii: (n,) in units. places: (n, 2), vertical and horizontal, in [0, 1] of the way that the
    centre has between its margins.
    """

    labels: Tensor
    colours: Tensor
    grounds: Tensor
    radii: Tensor
    places: Tensor

    @classmethod
    def drawn(cls, labels: Tensor, generator: torch.Generator) -> "Scenes":
        """Scenes of these labels (n,), all else at random from a CPU generator."""
        n = len(labels)
        pale = torch.tensor(GROUNDS) / 255
        jitter = (2 * torch.rand(n, 2, 3, generator=generator) - 1) * JITTER
        low, high = RADII
        return cls(
            labels,
            palette()[labels // len(SHAPES)] + jitter[:, 0],
            pale[torch.randint(len(pale), (n,), generator=generator)] + jitter[:, 1],
            low + (high - low) * torch.rand(n, generator=generator),
            torch.rand(n, 2, generator=generator),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Scenes":
        return Scenes(*(value[index] for value in vars(self).values()))

    def images(self, height: int, width: int) -> Tensor:
        """Their pictures (n, 3, height, width) in [−1, 1]."""
        unit = min(height, width) / UNITS
        radii = self.radii * unit
        reach = (REACH * radii + MARGIN)[:, None]
        sides = torch.tensor([height, width])
        centres = reach + self.places * (sides - 2 * reach)
        covered = coverage(self.labels % len(SHAPES), radii, centres, (height, width))[:, None]
        colours, grounds = (c[:, :, None, None] for c in (self.colours, self.grounds))
        return (covered * colours + (1 - covered) * grounds).clamp(0, 1) * 2 - 1


def coverage(shapes: Tensor, radii: Tensor, centres: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of each pixel (n, *size) belongs to shapes (n,) of radii (n,) at centres (n, 2)."""
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    y = (rows - centres[:, :1])[:, :, None]
    x = (columns - centres[:, 1:])[:, None, :]
    r = radii[:, None, None]
    inside = torch.empty(len(shapes), *size)
    for shape in range(len(SHAPES)):
        rows_of = shapes == shape
        inside[rows_of] = 0.5 - distance(SHAPES[shape], y[rows_of], x[rows_of], r[rows_of])
    return inside.clamp(0, 1)


def distance(shape: str, y: Tensor, x: Tensor, r: Tensor) -> Tensor:
    """From the edge of a shape of radius r around the origin, negative inside; y points down."""
    across, along = x.abs(), y.abs()
    match shape:
        case "circle":
            return torch.hypot(x, y) - r
        case "square":
            return torch.maximum(across, along) - 0.86 * r
        case "triangle":
            return torch.maximum(y, (3**0.5 * across - y) / 2) - 0.6 * r
        case "cross":
            lying = torch.maximum(across - r, along - 0.3 * r)
            return torch.minimum(lying, torch.maximum(along - r, across - 0.3 * r))
        case "ring":
            return (torch.hypot(x, y) - 0.8 * r).abs() - 0.2 * r
        case "diamond":
            return (across + along - REACH * r) / 2**0.5
    raise ValueError(f"{shape}: no shape but {', '.join(SHAPES)}")


def palette(later: bool = False) -> Tensor:
    """The colours (8, 3) in [0, 1]; with those of LATER (10, 3)."""
    return torch.tensor([*PALETTE.values(), *(LATER.values() if later else ())]) / 255


def require_size(size: tuple[int, int]) -> None:
    """Raise ValueError for pictures (height, width) too small to tell shapes apart."""
    if min(size) < FEWEST:
        raise ValueError(f"shapes need at least {FEWEST} pixels a side, got {size[0]}×{size[1]}")
