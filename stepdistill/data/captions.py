"""Scenes of `compositions` in words, in several wordings, and words read back.

    a small red circle, at the top left, on pale green     on pale green, red disc, upper left
    an orange ring to the right of a purple square, on grey     black plus under a pink triangle

A caption says of a scene what it names; what it leaves out may be anything. Every word has one
meaning, so what a caption names is read from its words, whoever wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .compositions import COLOURS, GROUND_NAMES, POSITIONS, Scenes
from .shapes import LATER, SHAPES

SIZE_WORDS = (("small", "tiny", "little"), ("large", "big", "huge"))
SHAPE_WORDS = {"circle": ("disc",), "square": ("block",), "cross": ("plus",), "ring": ("hoop",)}
COLOUR_NAMES = (*COLOURS, *LATER)
ANYTHING = ("shape", "object")  # of no shape in particular
ROW_WORDS = {"top": ("top", "upper"), "middle": ("middle",), "bottom": ("bottom", "lower")}
# First to second object, along an axis: as it stands, and turned round.
RELATIONS = (
    (("left of", "to the left of"), ("right of", "to the right of")),
    (("above", "over"), ("below", "under")),
)
ON = ("on {}", "on a {} ground", "against {}")


@dataclass(frozen=True)
class Named:
    """What a caption names. objects: of each the attributes "size", "colour" and "shape" by their
    values; one object or two. ground, position: values; None where unsaid. axis: of two objects,
    which then are in the order of the scene."""

    objects: tuple[Mapping[str, int], ...] = field(default_factory=tuple)
    ground: int | None = None
    position: int | None = None
    axis: int | None = None


class Wording:
    """Choices that make one caption, from numbers in [0, 1) one after the other."""

    def __init__(self, draws: Sequence[float], said: float) -> None:
        self.draws, self.said = iter(draws), said

    def of(self, options: Sequence[str]) -> str:
        """One of several."""
        return options[int(next(self.draws) * len(options))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return next(self.draws) < probability

    def thing(self, kind: int, size: int | None) -> str:
        """An object: article, size if it has any, colour and shape."""
        parts = [] if size is None or not self.chance(self.said) else [self.of(SIZE_WORDS[size])]
        parts += [COLOUR_NAMES[kind // len(SHAPES)]] if self.chance(self.said) else []
        name = SHAPES[kind % len(SHAPES)]
        known = self.chance(self.said)
        parts.append(self.of((name, *SHAPE_WORDS.get(name, ())) if known else ANYTHING))
        words = " ".join(parts)
        return f"{article(words)} {words}" if self.chance(0.7) else words

    def ground(self, value: int) -> str:
        """Where it lies, or "" unsaid."""
        return self.of(ON).format(GROUND_NAMES[value]) if self.chance(self.said) else ""

    def position(self, value: int) -> str:
        """Where an object is, or "" unsaid."""
        if not self.chance(self.said):
            return ""
        row, column = POSITIONS[value]
        place = self.of(ROW_WORDS[row])
        place = place if row == column == "middle" else f"{place} {column}"
        return f"{'in' if row == 'middle' else 'at'} the {place}" if self.chance(0.7) else place


DRAWS = 24  # numbers a caption may take


def captions(scenes: Scenes, generator: torch.Generator, said: float = 0.88) -> list[str]:
    """Of each scene one, in a wording drawn from a CPU generator; said: the probability with which
    each attribute is named."""
    draws = torch.rand(len(scenes), DRAWS, generator=generator, dtype=torch.float64).tolist()
    rows = zip(
        scenes.kinds.tolist(),
        scenes.sizes.tolist(),
        scenes.grounds.tolist(),
        scenes.positions.tolist(),
        scenes.axes.tolist(),
    )
    return [caption(row, Wording(numbers, said)) for row, numbers in zip(rows, draws, strict=True)]


def caption(row: tuple[list[int], int, int, int, int], wording: Wording) -> str:
    """One, of the kinds, size, ground, position and axis of a scene."""
    (first, second), size, ground, position, axis = row
    lies = wording.ground(ground)
    if axis < 0:
        thing, place = wording.thing(first, size), wording.position(position)
        orders = (thing, place, lies), (place, thing, lies), (lies, thing, place)
    else:
        straight = wording.chance(0.5)
        relation = wording.of(RELATIONS[axis][0 if straight else 1])
        things = [wording.thing(kind, None) for kind in (first, second)]
        thing = f" {relation} ".join(things if straight else things[::-1])
        orders = (thing, lies), (lies, thing)
    order = orders[int(next(wording.draws) * len(orders))]
    return ", ".join(part for part in order if part)


def article(words: str) -> str:
    """Before these words."""
    return "an" if words[0] in "aeiou" else "a"


def read(text: str) -> Named:
    """What a caption names. Words that mean nothing here are passed over."""
    text = " ".join(re.findall(r"[a-z]+", text.lower()))
    text, ground = taken(text, {name: value for value, name in enumerate(GROUND_NAMES)})
    for axis, words in enumerate(RELATIONS):
        for turned, relations in enumerate(words):
            parts = re.split(rf"\b(?:{'|'.join(relations)})\b", text)
            if len(parts) == 2:
                objects = [attributes_in(part) for part in (parts[::-1] if turned else parts)]
                return Named(tuple(objects), ground, None, axis)
    text, position = taken(text, PLACES)
    return Named((attributes_in(text),), ground, position)


def attributes_in(text: str) -> dict[str, int]:
    """The attributes of one object that words name."""
    found = {}
    for name, words in WORDS.items():
        _, value = taken(text, words)
        if value is not None:
            found[name] = value
    return found


def taken(text: str, words: Mapping[str, int]) -> tuple[str, int | None]:
    """The text without the first of these words that it holds, the longest first, and its value."""
    for word in sorted(words, key=len, reverse=True):
        left, found, right = f" {text} ".partition(f" {word} ")
        if found:
            return f"{left} {right}".strip(), words[word]
    return text, None


PLACES = {
    f"{word} {column}": value
    for value, (row, column) in enumerate(POSITIONS)
    for word in ROW_WORDS[row]
} | {"middle": POSITIONS.index(("middle", "middle"))}
WORDS: dict[str, dict[str, int]] = {
    "size": {word: value for value, words in enumerate(SIZE_WORDS) for word in words},
    "colour": {name: value for value, name in enumerate(COLOUR_NAMES)},
    "shape": {
        word: value
        for value, name in enumerate(SHAPES)
        for word in (name, *SHAPE_WORDS.get(name, ()))
    },
}
