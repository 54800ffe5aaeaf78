"""Pictures that words describe: one coloured object, or two that stand in a relation.

A scene is one number, and says all that a caption may name:

    number < 5,184     one object:   size × colour × shape × ground × position
    above              two objects:  two kinds (colour × shape) that differ × ground × axis;
                       along the axis the first stands before the second, to its left or above it

Everything else is drawn at random: both colours jitter, lengths and centres move. Shapes are drawn
as `data/shapes.py` draws them, with its units. Of all singles a tenth, and of all pairs of kinds a
tenth, are held out: teachers and students are trained without them, in whatever order or place the
two objects stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import sqrt

import torch
from torch import Tensor

from .shapes import CLASSES, GROUNDS, PALETTE, REACH, SHAPES, UNITS, coverage, palette

SIZES = ("small", "large")
COLOURS = tuple(PALETTE)
GROUND_NAMES = ("white", "cream", "pale blue", "pale green", "pale pink", "grey")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
POSITIONS = tuple((row, column) for row in ROWS for column in COLUMNS)
AXES = ("across", "down")
ATTRIBUTES = {  # of one object, with the number of their values
    "size": len(SIZES),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "ground": len(GROUNDS),
    "position": len(POSITIONS),
}
SINGLES = len(SIZES) * CLASSES * len(GROUNDS) * len(POSITIONS)
PAIRS = CLASSES * (CLASSES - 1)
DOUBLES = PAIRS * len(GROUNDS) * len(AXES)
HELD_OUT = 0.1

RADII = ((4.7, 5.5), (7.4, 8.2))  # of small and large ones, in units of 1/32 of a side
LIMIT = sqrt(RADII[0][1] * RADII[1][0])  # between small and large
CENTRES = (10.5, 16.0, 21.5)  # of positions
HALVES = (8.0, 24.0)  # of two objects, along their axis
MOVE, SWAY = 0.8, 3.0  # of centres; of two objects across their axis
MARGIN = 0.5  # beside an object
GAP = 1.0  # on each side of the middle line between two
JITTER, PALE_JITTER = 8 / 255, 5 / 255


@dataclass(frozen=True, eq=False)
class Scenes:
    """n scenes of one object or two. Without a second object its entries are those of the first.

    numbers: (n,). kinds: (n, 2), len(SHAPES) · colour + shape. sizes, grounds: (n,). positions:
    (n,) of POSITIONS, −1 for two objects. axes: (n,) of AXES, −1 for one object.
    """

    numbers: Tensor
    kinds: Tensor
    sizes: Tensor
    grounds: Tensor
    positions: Tensor
    axes: Tensor

    @classmethod
    def numbered(cls, numbers: Tensor) -> Scenes:
        """The scenes (n,) of these numbers."""
        two = numbers >= SINGLES
        rest, positions = split(numbers, len(POSITIONS))
        rest, grounds = split(rest, len(GROUNDS))
        sizes, kinds = split(rest, CLASSES)
        rest, axes = split(numbers - SINGLES, len(AXES))
        pairs, other_grounds = split(rest, len(GROUNDS))
        first, second = split(pairs, CLASSES - 1)
        second = second + (second >= first)  # never the same kind twice
        pair, single = torch.stack([first, second], 1), torch.stack([kinds, kinds], 1)
        nothing = torch.full_like(numbers, -1)
        return cls(
            numbers,
            torch.where(two[:, None], pair, single),
            torch.where(two, 0, sizes),
            torch.where(two, other_grounds, grounds),
            torch.where(two, nothing, positions),
            torch.where(two, axes, nothing),
        )

    @classmethod
    def of(
        cls, kinds: Tensor, sizes: Tensor, grounds: Tensor, positions: Tensor, axes: Tensor
    ) -> Scenes:
        """The scenes of these attributes, of which `positions` and `axes` tell which has two."""
        first, second = kinds.T
        single = ((sizes * CLASSES + first) * len(GROUNDS) + grounds) * len(POSITIONS) + positions
        pair = first * (CLASSES - 1) + second - (second > first).long()
        double = SINGLES + (pair * len(GROUNDS) + grounds) * len(AXES) + axes
        return cls.numbered(torch.where(axes >= 0, double, single))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Tensor) -> Scenes:
        return Scenes(*(value[index] for value in vars(self).values()))

    @property
    def two(self) -> Tensor:
        """Which (n,) have two objects."""
        return self.axes >= 0

    def mistaken(self, generator: torch.Generator) -> Scenes:
        """Scenes that differ from these in one attribute, or in none where two objects would be of
        one kind."""
        draws = torch.rand(len(self), 2, generator=generator)
        which = (draws[:, 0] * len(ATTRIBUTES)).long()

        def other(values: Tensor, count: int, on: Tensor) -> Tensor:
            return torch.where(
                on, (values + 1 + (draws[:, 1] * (count - 1)).long()) % count, values
            )

        colours, shapes = split(self.kinds, len(SHAPES))
        first = other(colours[:, 0], len(COLOURS), which == 1) * len(SHAPES)
        first = first + other(shapes[:, 0], len(SHAPES), which == 2)
        again = other(colours[:, 1], len(COLOURS), self.two & (which == 4))
        second = again * len(SHAPES) + shapes[:, 1]
        clash = self.two & (first == second)
        kinds = torch.where(clash[:, None], self.kinds, torch.stack([first, second], 1))
        return Scenes.of(
            kinds,
            other(self.sizes, len(SIZES), ~self.two & (which == 0)),
            other(self.grounds, len(GROUNDS), which == 3),
            other(self.positions, len(POSITIONS), ~self.two & (which == 4)),
            other(self.axes, len(AXES), self.two & (which == 0)),
        )

    def images(self, side: int, generator: torch.Generator) -> Tensor:
        """Their pictures (n, 3, side, side) in [−1, 1], all that no word says drawn at random."""
        n, unit = len(self), side / UNITS
        low, high = torch.tensor(RADII)[self.sizes].T[:, :, None]
        radii = low + (high - low) * torch.rand(n, 2, generator=generator)
        centres = self.centres(radii, generator)
        jitter = 2 * torch.rand(n, 3, 3, generator=generator) - 1
        colours = palette(later=True)[self.kinds // len(SHAPES)] + jitter[:, :2] * JITTER
        ground = (torch.tensor(GROUNDS) / 255)[self.grounds] + jitter[:, 2] * PALE_JITTER
        x = ground[:, :, None, None]
        for which, there in enumerate((torch.ones_like(self.two), self.two)):
            shapes = self.kinds[:, which] % len(SHAPES)
            covered = coverage(
                shapes, radii[:, which] * unit, centres[:, which] * unit, (side, side)
            )
            covered = (covered * there[:, None, None])[:, None]
            x = covered * colours[:, which, :, None, None] + (1 - covered) * x
        return x.clamp(0, 1) * 2 - 1

    def centres(self, radii: Tensor, generator: torch.Generator) -> Tensor:
        """Vertical and horizontal (n, 2 objects, 2), in units, of objects of these radii (n, 2)."""
        reach, middle = REACH * radii, UNITS / 2
        move = 2 * torch.rand(len(self), 2, 2, generator=generator) - 1
        places = torch.tensor([(row, column) for row in CENTRES for column in CENTRES])
        edge = (reach + MARGIN)[:, :, None]
        single = places[self.positions][:, None] + MOVE * move
        single = single.maximum(edge).minimum(UNITS - edge)
        least = torch.stack([reach[:, 0] + MARGIN, middle + GAP + reach[:, 1]], 1)
        most = torch.stack([middle - GAP - reach[:, 0], UNITS - MARGIN - reach[:, 1]], 1)
        along = (torch.tensor(HALVES) + MOVE * move[:, :, 0]).maximum(least).minimum(most)
        pair = torch.stack([along, middle + SWAY * move[:, :, 1]], 2)
        across = (self.axes == AXES.index("across"))[:, None, None]
        pair = torch.where(across, pair.flip(2), pair)
        return torch.where(self.two[:, None, None], pair, single)


def split(numbers: Tensor, base: int) -> tuple[Tensor, Tensor]:
    """What a base goes into numbers (n,), and what is left."""
    return numbers.div(base, rounding_mode="floor"), numbers.remainder(base)


@cache
def held_out() -> Tensor:
    """Which (SINGLES + DOUBLES,) scenes are left out of the training of teachers and students."""
    generator = torch.Generator().manual_seed(0)
    singles = torch.rand(SINGLES, generator=generator) < HELD_OUT
    pairs = torch.rand(CLASSES, CLASSES, generator=generator) < HELD_OUT
    first, second = Scenes.numbered(torch.arange(SINGLES, SINGLES + DOUBLES)).kinds.T
    return torch.cat([singles, pairs[first.minimum(second), first.maximum(second)]])


def some(n: int, two: bool, out: bool, generator: torch.Generator) -> Tensor:
    """The numbers of n scenes of one object or two, of what is held out or of all else."""
    first, last = (SINGLES, SINGLES + DOUBLES) if two else (0, SINGLES)
    among = (held_out()[first:last] == out).nonzero()[:, 0] + first
    return among[torch.randint(len(among), (n,), generator=generator)]
