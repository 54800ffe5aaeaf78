"""Metrics of lost diversity: how different the images are that one sampler makes.

Read by itself such a number says little, so it is given as a ratio to the teacher's of the same
noise, or as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .intervals import of_ratio
from .kept import OfFeatures
from .metric import Blocks, Made, Metric
from .rows import Score


@dataclass
class Spread(Metric):
    """Base of all. ratio: to the teacher at most steps, without which there is none.

    what: it is, in the words of `about`."""

    what: ClassVar[str] = ""
    lower_is_better = False
    decimals = 3
    needs_asked = True
    ratio: bool = True

    @property
    def about(self) -> str:
        """What it says, for the reader of a table."""
        beside = ", as a ratio to that of the teacher at most steps" if self.ratio else ""
        return f"{self.what}{beside}."

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        if not self.ratio:
            return super().score(blocks, best)
        mine, theirs = ([v for block in of for v in block] for of in (blocks, best or []))
        return of_ratio(mine, theirs)


@dataclass
class SpreadOfFeatures(Spread, OfFeatures):
    """Base of those of features and the class, or prompt, of each image."""

    def update(self, made: Made) -> None:
        self.kept.add(made.features(self.space), made.classes())


def groups(rows: Tensor, classes: Tensor) -> list[Tensor]:
    """The rows (n, …) of every class in classes (n,) that has two of them or more."""
    found = (rows[classes == c] for c in classes.unique())
    return [group for group in found if len(group) > 1]
