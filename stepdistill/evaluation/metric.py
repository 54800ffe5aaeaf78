"""What a metric is: a number that images get, one file of `metrics/`.

A metric is a dataclass whose fields are its settings in the YAML. It is opened once with what its
suite measures against; each sampler gets a fresh one in each block of images, which sees them batch
by batch. What a block gives are the values of `compute`; what a table shows is their `score`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf, prod
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from .intervals import around
from .numerals import number, span
from .reference import Asked, Reference, prompts_in
from .rows import Score

Blocks = Sequence[Sequence[float]]  # values by block
PAIRED = 2**30  # bytes of a block's images that others are compared with, image by image


@dataclass(frozen=True, eq=False)
class Made:
    """A batch of images (b, c, h, w) in [−1, 1] of one sampler, and what was asked for.

    asked: None, too, where that is not what others are asked for, as the labels of one model among
    prompts. paired: images of the teacher at most steps from the same noise, of the first of these
    where a block has more than are kept; None where none are, as without such a teacher. Features
    are computed once, for all metrics that ask. whole: of which it is some rows.
    """

    images: Tensor
    asked: Asked
    paired: Tensor | None
    reference: Reference
    _features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    whole: tuple[Made, Tensor] | None = field(default=None, repr=False)

    @property
    def prompts(self) -> Sequence[str]:
        """What was asked for as texts; none where that is labels, or nothing."""
        return prompts_in(self.asked)

    def features(self, space: str) -> Tensor:
        """Features (b, d) in a space."""
        if self.whole is not None:
            made, rows = self.whole
            return made.features(space)[rows]
        if space not in self._features:
            self._features[space] = self.reference.space(space)(self.images)
        return self._features[space]

    def within(self, category: str) -> Made:
        """The images whose prompts are of a category; all of them without one."""
        if not category:
            return self
        asked, of = self.prompts, self.reference.categories
        places = [i for i, prompt in enumerate(asked) if category in of.get(prompt, ())]
        rows = torch.tensor(places, dtype=torch.long)
        theirs = self.paired
        paired = None if theirs is None else theirs[rows[rows < len(theirs)]]
        prompts = [asked[i] for i in places]
        return Made(self.images[rows], prompts, paired, self.reference, whole=(self, rows))

    def read(self) -> Tensor | None:
        """The classes (b,) that the suite's reader sees; None without a reader."""
        reader = self.reference.reader
        return None if reader is None else reader.read(self.features(reader.space))

    def classes(self) -> Tensor:
        """Labels asked for, a number for each prompt, else classes seen, else 0 for all: (b,)."""
        if isinstance(self.asked, Tensor):
            return self.asked
        if self.asked is not None:
            return torch.tensor([_number_of(prompt) for prompt in self.asked])
        seen = self.read()
        return torch.zeros(len(self.images), dtype=torch.long) if seen is None else seen


class Metric(ABC):
    """Base of all metrics.

    about: what it says, for the reader of a table. decimals: in a table, None for three significant
    digits. ideal: the value of perfect images, where more is as bad as less. least, most: what it
    can be, where intervals end. needs_asked: whether it is of what each image was asked for, and
    does not exist for a model that cannot be asked for what others are. space: the name of the
    space it measures in, None without. name: in the suite's YAML. category: of the prompts whose
    images it sees, "" for all. table: the title of the one it stands in, "" for the main one.
    fewest: images of a block, without which a category has no score.
    """

    about: ClassVar[str] = ""
    lower_is_better: ClassVar[bool] = True
    decimals: ClassVar[int | None] = None
    ideal: ClassVar[float | None] = None
    least: ClassVar[float] = -inf
    most: ClassVar[float] = inf
    needs_asked: ClassVar[bool] = False
    space: str | None = None
    name: str = ""
    category: str = ""
    table: str = ""
    fewest: int = 2

    def open(self, reference: Reference) -> None:
        """Look at what is measured against, once, before anything is made.

        Raises ValueError where the metric cannot be computed."""
        return None

    @abstractmethod
    def reset(self) -> None:
        """Forget all images."""

    @abstractmethod
    def update(self, made: Made) -> None:
        """See a batch."""

    @abstractmethod
    def merge(self, other: Metric) -> None:
        """See what another one of the same block has seen."""

    def of(self, n: int, size: tuple[int, ...]) -> int:
        """How many of a block's n images of this size (c, h, w) it looks at: the first ones."""
        return n

    @abstractmethod
    def compute(self) -> list[float]:
        """The independent values that the images give; none where the quantity does not exist."""

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        """The score of the values of all blocks. best: those of the teacher at most steps.

        None where there are no values. By default their mean, and its interval."""
        values = [value for block in blocks for value in block]
        return around(fmean(values), values, self.least, self.most) if values else None

    def fresh(self) -> Metric:
        """One that has seen nothing."""
        made = copy(self)
        made.reset()
        return made

    @property
    def title(self) -> str:
        """Its name, and its space if it has one."""
        return f"{self.name}, {self.space}" if self.space else self.name

    @property
    def heading(self) -> str:
        """Of its column."""
        return self.category or self.name

    def better(self, a: float, b: float) -> bool:
        """Whether value a is better than value b."""
        return self.loss(a) < self.loss(b)

    def loss(self, value: float) -> float:
        """The smaller, the better the value."""
        if self.ideal is not None:
            return abs(value - self.ideal)
        return value if self.lower_is_better else -value

    @property
    def way(self) -> str:
        """Which values are better, in a sentence."""
        if self.ideal is not None:
            return f"Nearer {self.ideal:g} is better."
        return "Smaller is better." if self.lower_is_better else "Larger is better."

    def text(self, score: Score) -> str:
        """The main text of a cell."""
        if self.decimals is None:
            return number(score.value)
        return f"{score.value:.{self.decimals}f}"

    def small(self, score: Score) -> str:
        """The smaller text after it: the interval, or the error, if there is one."""
        if score.low is not None and score.high is not None:
            return span(score.low, score.high)
        return "" if score.error is None else f"± {number(score.error)}"


def pairs_kept(size: tuple[int, ...]) -> int:
    """How many of a block's images of this size (c, h, w), in float32, fit in PAIRED."""
    return PAIRED // (4 * prod(size))


def _number_of(prompt: str) -> int:
    """The same for the same prompt, in every batch and process."""
    return int.from_bytes(sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:7], "big")
