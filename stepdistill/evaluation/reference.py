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
from ..schema import ConfigError
from ..teachers.backbone import Asked
from .features.space import FeatureSpace
from .gallery import Gallery, Images, chosen
from .moments import Moments
from .published import Statistics
from .summary import Summary, places, summary
from .weights import Unavailable

# n things to ask for: in order without a generator, else drawn with that of a block, as it was
# before the block's noise.
Ask = Callable[[int, torch.Generator | None], Asked]


class RealImages(NamedTuple):
    """Real images (m, c, h, w) in [−1, 1] that a user brings, their labels (m,) or None, and where
    they come from. statistics: brought beside them, or in their place. groups: the subfolder of
    each, where they lie in some."""

    images: Images | None
    labels: Tensor | None
    about: str
    statistics: Statistics | None = None
    groups: Sequence[str] | None = None


One = int | str | None  # what one image is asked for
# Reads what the user brings. Raises NoneBrought where that is nothing, ValueError where it does not
# fit.
Brought = Callable[[], RealImages]


class NoneBrought(ConfigError):
    """The user brings no real images."""


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
    tells classes apart, if anything does. about: where it comes from. statistics: published ones,
    which stand for those of the images in the space that they name. categories: those of each
    prompt, where prompts have any. groups: the category of each real image (m), if they have one.
    category: the one that all are of, see `within`. prompts: a digest of those that are asked for,
    wherever they lie, "" without.
    """

    size: tuple[int, ...]
    ask: Ask | None = None
    images: Images | None = None
    labels: Tensor | None = None
    reader: Reader | None = None
    about: str = ""
    statistics: Statistics | None = None
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    groups: Sequence[str] | None = field(default=None, repr=False)
    category: str = ""
    prompts: str = ""
    _spaces: dict[str, FeatureSpace] = field(default_factory=dict, repr=False)
    _summaries: dict[str, Summary] = field(default_factory=dict, repr=False)

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
        """Those (n, d) of the real images `places`. Raises ValueError where there are none."""
        return self.summary(self.space(name)).rows

    def moments(self, name: str) -> Moments:
        """Of the features of all real images, or as they were published. Raises ValueError where
        there are neither."""
        if self.statistics is not None and self.statistics.space == name:
            return self.statistics.moments(self.space(name), self.size)
        return self.summary(self.space(name)).moments

    @property
    def places(self) -> Tensor:
        """The numbers (n,) of the real images whose features are compared one by one: all of them,
        or 10,000 that are evenly spread."""
        return places(len(self.real))

    def summary(self, space: FeatureSpace) -> Summary:
        """What a space says of the real images, which are looked at once. Raises ValueError where
        there are none."""
        if space.identity not in self._summaries:
            self._summaries[space.identity] = summary(self.real, space)
        return self._summaries[space.identity]

    @property
    def real(self) -> Images:
        """The real images. Raises ValueError where there are none."""
        if self.images is None and self.statistics is not None:
            raise Unavailable(
                f"needs real images, and {self.statistics.file} holds statistics alone: "
                f"{self.statistics}"
            )
        if self.images is None:
            of = f" of the category {self.category}" if self.category else ""
            raise ValueError(f"there are no real images{of} to compare with")
        return self.images

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from, by its content where that lies in files."""
        found = {"reference": self.about}
        if isinstance(self.images, Gallery):
            found["reference"] += f", SHA-256 {self.images.digest[:12]}"
            if len(self.images) > len(self.places):
                some = f"{len(self.places):,} of {len(self.images):,}, evenly spread"
                found["real images that are compared one by one"] = some
        if self.statistics is not None:
            found["statistics of the reference"] = str(self.statistics)
        return found

    @property
    def content(self) -> str:
        """What real images are, wherever they lie: digests of what lies in files, else in words."""
        found = [f"images {self.images.digest[:12]}"] if isinstance(self.images, Gallery) else []
        if self.statistics is not None:
            found.append(f"{self.statistics}, {self.statistics.digest}")
        return "; ".join(found) or self._words

    @property
    def _words(self) -> str:
        """What real images are that have no digest; of prompts, `about` says where they lie."""
        return "none" if self.prompts and self.images is None else self.about

    def named(self) -> list[str]:
        """All categories, in order."""
        return sorted({name for names in self.categories.values() for name in names})

    def within(self, category: str) -> Reference:
        """What a metric of one category looks at: its real images, if there are any, with all that
        is asked for."""
        if not category:
            return self
        rows = [i for i, group in enumerate(self.groups or ()) if group == category]
        images = chosen(self.images, rows) if rows and self.images is not None else None
        return replace(
            self, images=images, labels=None, statistics=None, category=category, _summaries={}
        )

    def asked(self, n: int, generator: torch.Generator | None = None) -> Asked:
        """n things to ask for, in order or drawn."""
        return None if self.ask is None else self.ask(n, generator)

    def draw(self, noise: Tensor, asked: Asked, generator: torch.Generator) -> Tensor:
        """As many real images as noise has rows, with replacement, of the labels asked for."""
        u = torch.rand(len(noise), generator=generator, dtype=torch.float64)
        if self.labels is None or not isinstance(asked, Tensor):
            return self.images[(u * len(self.images)).long()]
        order = self.labels.argsort(stable=True)
        counts = self.labels.bincount()
        starts = counts.cumsum(0) - counts
        return self.images[order[starts[asked] + (u * counts[asked]).long()]]


class Task(ABC):
    """Base of all tasks: a frozen dataclass, whose fields are its settings in the YAML.

    needs_images: whether it measures against the user's own. needs_labels: whether it has no use
    for a folder of them without classes, where samplers have some.
    """

    needs_images: ClassVar[bool] = False

    @property
    def needs_labels(self) -> bool:
        return True

    @abstractmethod
    def open(self, kind: Kind, brought: Brought) -> Reference:
        """The reference for samplers of this kind; brought: for tasks that measure against the
        user's own images. Raises ValueError where they do not fit."""


def heeded(wanted: Asked, given: Asked) -> bool:
    """Whether a model was given what was wanted: labels, prompts, or nothing, which all are."""
    if wanted is None:
        return True
    return given is not None and isinstance(wanted, Tensor) == isinstance(given, Tensor)


def prompts_in(asked: Asked) -> Sequence[str]:
    """What is asked for as texts; none where it is labels, or nothing."""
    return () if asked is None or isinstance(asked, Tensor) else asked


def evenly(classes: int) -> Ask:
    """Asks for each class equally often."""

    def ask(n: int, generator: torch.Generator | None) -> Tensor:
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        return order % classes

    return ask


def in_turn(prompts: Sequence[str], each: int = 1) -> Ask:
    """Asks for prompts one after the other, or in an order that is drawn, each so many times."""

    def ask(n: int, generator: torch.Generator | None) -> list[str]:
        drawn = generator is not None
        order = torch.randperm(len(prompts), generator=generator) if drawn else range(len(prompts))
        return [prompts[int(order[i // each % len(prompts)])] for i in range(n)]

    return ask
