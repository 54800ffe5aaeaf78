"""Whether images hold what their captions name, by the exact reader of `features/objects.py`.

An attribute is one of size, colour, shape, ground, position and relation. Of two objects both must
have the colour, or the shape, that is named. They stand in their relation where each half holds
one, and they would not be named better the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..data.captions import Named, read
from ..data.compositions import CENTRES, COLUMNS, LIMIT
from .features.objects import (
    ABOVE,
    ACROSS,
    BELOW,
    COLOUR,
    DOWN,
    ERROR,
    LEFT,
    NUMBERS,
    RADIUS,
    RIGHT,
    SHAPE,
    THERE,
    WHOLE,
)
from .metric import Made

SPACE = "objects"
VIEWS = {None: (WHOLE,), 0: (LEFT, RIGHT), 1: (ABOVE, BELOW)}  # by the axis of two objects
OF_OBJECTS = {"colour": COLOUR, "shape": SHAPE}

named_in = lru_cache(maxsize=2**16)(read)


class Reading:
    """What is seen in an image, of what its caption names. numbers: of the space, (36,)."""

    def __init__(self, numbers: Tensor, named: Named) -> None:
        self.named, self.ground = named, int(numbers[-1])
        views = numbers[:-1].reshape(-1, NUMBERS)
        self.objects = [views[view].tolist() for view in VIEWS[named.axis]]

    @property
    def there(self) -> bool:
        """Whether there are as many objects as are named."""
        return all(seen[THERE] for seen in self.objects)

    @property
    def error(self) -> float:
        """The mean template error of its objects."""
        return sum(seen[ERROR] for seen in self.objects) / len(self.objects)

    def value(self, attribute: str) -> int:
        """Of size, colour, shape, ground or position, of the first object."""
        seen = self.objects[0]
        if attribute in OF_OBJECTS:
            return int(seen[OF_OBJECTS[attribute]])
        if attribute == "ground":
            return self.ground
        if attribute == "size":
            return int(seen[RADIUS] > LIMIT)
        down, across = (nearest(seen[axis]) for axis in (DOWN, ACROSS))
        return down * len(COLUMNS) + across

    def right(self, attribute: str) -> bool | None:
        """Whether an attribute is as it is named; None where it is not named."""
        named = self.named
        if attribute in OF_OBJECTS:
            asked = [thing.get(attribute) for thing in named.objects]
            if all(value is None for value in asked):
                return None
            return self.there and self.agree(attribute, asked) == len(asked)
        if attribute == "relation":
            return None if named.axis is None else self.there and self.in_order()
        one = named.objects[0].get("size") if attribute == "size" else getattr(named, attribute)
        if one is None or (attribute != "ground" and named.axis is not None):
            return None
        return (self.there or attribute == "ground") and self.value(attribute) == one

    def agree(self, attribute: str, asked: Sequence[int | None]) -> int:
        """How many objects have what is asked of them, which is nothing for None."""
        found = [int(seen[OF_OBJECTS[attribute]]) for seen in self.objects]
        return sum(value in (None, other) for value, other in zip(asked, found))

    def in_order(self) -> bool:
        """Whether two objects are named no better the other way round."""
        asked = {kind: [thing.get(kind) for thing in self.named.objects] for kind in OF_OBJECTS}
        straight = sum(self.agree(kind, values) for kind, values in asked.items())
        return straight >= sum(self.agree(kind, values[::-1]) for kind, values in asked.items())


NAMEABLE = ("size", "colour", "shape", "ground", "position", "relation")


def follows(seen: Reading, attribute: str | None) -> bool | None:
    """Whether an attribute, or all that are named, are right; None where nothing is named."""
    if attribute is not None:
        return seen.right(attribute)
    found = [seen.right(each) for each in NAMEABLE]
    return None if all(value is None for value in found) else False not in found


def seen_in(features: Tensor, captions: Sequence[str]) -> list[Reading]:
    """Of images with these features (b, 36) and captions."""
    return [
        Reading(row, named_in(caption)) for row, caption in zip(features, captions, strict=True)
    ]


def read_in(made: Made) -> list[Reading]:
    """Of a batch; none where no prompts were asked for."""
    return seen_in(made.features(SPACE), made.prompts) if made.prompts else []


def nearest(length: float) -> int:
    """Which of the rows, or columns, a centre lies in."""
    return int((torch.tensor(CENTRES) - length).abs().argmin())
