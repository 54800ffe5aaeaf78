"""What samplers are asked for and measured against: a task, one file of `suites/`.

A task looks at what kind of images are to be scored, and either opens a reference for them, or says
why it does not fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..resources import named
from ..teachers.backbone import Asked
from .features.space import FeatureSpace

# n things to ask for: in order without a generator, else drawn with that of a block, as it was
# before the block's noise.
Ask = Callable[[int, torch.Generator | None], Asked]


class RealImages(NamedTuple):
    """Real images (m, c, h, w) in [−1, 1] that a user brings, their labels (m,) or None, and where
    they come from."""

    images: Tensor
    labels: Tensor | None
    about: str


One = int | str | None  # what one image is asked for
# Reads what the user brings. Raises ValueError where nothing is brought, or does not fit.
Brought = Callable[[], RealImages]


@dataclass(frozen=True)
class Kind:
    """What a table's samplers have in common: the size of their images (c, h, w), the number of
    classes that can be asked for, None where none can, and whether they are asked by prompts."""

    size: tuple[int, ...]
    classes: int | None = None
    prompts: bool = False

    @property
    def channels(self) -> int:
        """Of its images."""
        return self.size[0]

    def answer(self, asked: One, place: int) -> One:
        """What such a model is asked where others are asked for this, in a place of an evaluation.

        What it cannot be asked, it is not: it gets its labels in order, no words, or nothing."""
        if self.prompts:
            return asked if isinstance(asked, str) else ""
        if self.classes is None:
            return None
        return place % self.classes if asked is None or isinstance(asked, str) else asked

    def __str__(self) -> str:
        asked = "prompts" if self.prompts else f"{self.classes or 'no'} classes"
        return f"{self.size} of {asked}"


@dataclass(frozen=True, eq=False)
class Reader:
    """A classifier: a head on the features (n, d) of a space, with logits (n, classes)."""

    space: str
    head: nn.Module

    @torch.no_grad()
    def confidences(self, features: Tensor) -> Tensor:
        """The probability of every class (n, classes)."""
        return self.head(features).softmax(1)

    @torch.no_grad()
    def read(self, features: Tensor) -> Tensor:
        """The class (n,) it sees."""
        return self.head(features).argmax(1)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a task opens.

    size: of images, (c, h, w). ask: None where nothing is asked for. images: real ones (m, c, h, w)
    in [−1, 1], None where there are none; labels: theirs (m,), if they have any. reader: what
    tells classes apart, if anything does. about: where it comes from. categories: those of each
    prompt, where prompts have any. groups: the category of each real image (m), if they have one.
    """

    size: tuple[int, ...]
    ask: Ask | None = None
    images: Tensor | None = None
    labels: Tensor | None = None
    reader: Reader | None = None
    about: str = ""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    groups: Sequence[str] | None = field(default=None, repr=False)
    _spaces: dict[str, FeatureSpace] = field(default_factory=dict, repr=False)
    _features: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def space(self, name: str) -> FeatureSpace:
        """A space of images like these: the file `name` of features/, or any importable module;
        after a colon what it takes, see `features.space`.

        Raises ValueError if there is none, or none for these."""
        if name not in self._spaces:
            module, _, place = name.partition(":")
            kind = named("evaluation.features", module.replace("-", "_"), FeatureSpace)
            self._spaces[name] = kind.at(self, place)
        return self._spaces[name]

    def features(self, name: str) -> Tensor:
        """Those of the real images (m, d). Raises ValueError where there are no real images."""
        if self.images is None:
            raise ValueError("there are no real images to compare with")
        if name not in self._features:
            self._features[name] = self.space(name)(self.images)
        return self._features[name]

    def named(self) -> list[str]:
        """All categories, in order."""
        return sorted({name for names in self.categories.values() for name in names})

    def within(self, category: str) -> Reference:
        """What a metric of one category looks at: its real images, with all that is asked for.

        Raises ValueError where real images have no categories, or none is of this one."""
        if not category or self.images is None:
            return self
        rows = [i for i, group in enumerate(self.groups or ()) if group == category]
        if not rows:
            raise ValueError(f"none of the real images is of the category {category}")
        own = replace(self, images=self.images[rows], _features={})
        own._features.update({name: of[rows] for name, of in self._features.items()})
        return own

    def asked(self, n: int, generator: torch.Generator | None = None) -> Asked:
        """n things to ask for, in order or drawn."""
        return None if self.ask is None else self.ask(n, generator)

    def draw(self, noise: Tensor, asked: Asked, generator: torch.Generator) -> Tensor:
        """As many real images as noise has rows, with replacement, of the labels asked for."""
        u = torch.rand(len(noise), generator=generator, dtype=torch.float64)
        if not isinstance(asked, Tensor):
            return self.images[(u * len(self.images)).long()]
        order = self.labels.argsort(stable=True)
        counts = self.labels.bincount()
        starts = counts.cumsum(0) - counts
        return self.images[order[starts[asked] + (u * counts[asked]).long()]]


class Task(ABC):
    """Base of all tasks: a frozen dataclass, whose fields are its settings in the YAML.

    needs_images: whether it measures against the user's own.
    """

    needs_images: ClassVar[bool] = False

    @abstractmethod
    def open(self, kind: Kind, brought: Brought) -> Reference:
        """The reference for samplers of this kind; brought: for tasks that measure against the
        user's own images. Raises ValueError where they do not fit."""


def heeded(wanted: Asked, given: Asked) -> bool:
    """Whether a model was given what was wanted: labels, prompts, or nothing, which all are."""
    if wanted is None:
        return True
    return given is not None and isinstance(wanted, Tensor) == isinstance(given, Tensor)


def evenly(classes: int) -> Ask:
    """Asks for each class equally often."""

    def ask(n: int, generator: torch.Generator | None) -> Tensor:
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        return order % classes

    return ask
