"""A suite: what samplers are asked for, what their images are compared with, and by which metrics.

It is a YAML of eval/suites/, or anyone's, that names its parts:

    task: digits                 a file of evaluation/suites/, or any importable module, with
    settings: {}                 settings of its own: what is asked for, and the real images
    metrics:                     files of evaluation/metrics/, or any importable modules
      - {name: frechet_random, metric: frechet, settings: {space: random-conv}}
      - {name: accuracy, optional: true}
    headline: [frechet_random]   by which rows are compared in one sentence

and what else a protocol fixes; what is left out is the caller's affair:

    n: 1000, blocks: 3, seed: 0  images in a block, blocks of them, and what all seeds come from
    size: [64, 64]               height and width of what is scored
    steps: 4, guidance: 0        how pipelines that are not ours are called
    batch: 250, threads: 1       images that are generated at a time, and threads of the CPU
    resize: {side: 256}          what becomes of images before they are scored, see `resize`
    brings: {prompts: …}         what the user brings, in words, for who does not
    layout: geneval              copies of images for another's scorer
    dataset: {id: …, task: …}    the benchmark of the hub that the headline's first metric is

With `each: category` a metric stands for one of each category that the prompts have.

A metric whose weights or libraries are not on this machine is skipped, and named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import torch

from ..data.resize import Resize
from ..schema import ConfigError, Count, Range, Seed, Steps
from .gallery import at_once
from .metric import Metric
from .reference import Brought, Kind, RealImages, Reference, Task
from .weights import Unavailable


class Unfit(ConfigError):
    """A suite that cannot score what it is asked to."""


@dataclass(frozen=True)
class MetricSettings:
    """name: in tables. metric: its module, if that is called otherwise. optional: left out where
    it cannot be computed, as without classes. each: one of every category of the prompts. table:
    the title of a table of its own, that of its categories unless it is said."""

    name: str
    metric: str | None = None
    optional: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    each: Literal["category"] | None = None
    table: str | None = None

    @property
    def title(self) -> str:
        """Of its table, nothing for the main one."""
        return self.table or (f"{self.name} by {self.each}" if self.each else "")


@dataclass(frozen=True)
class Brings:
    """What a protocol takes from the user, in words that say which file, and where people get it;
    None for what may be left out."""

    prompts: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A benchmark as the hub knows it: the dataset's id and the task's in it."""

    id: str
    task: str


@dataclass(frozen=True)
class SuiteSettings:
    """The YAML, see above."""

    task: str
    metrics: list[MetricSettings]
    headline: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    batch: Count | None = None
    threads: Annotated[int, Range(1, 1024)] | None = None
    n: Annotated[int, Range(20, 10**6)] | None = None
    blocks: Annotated[int, Range(1, 1000)] | None = None
    seed: Seed | None = None
    size: tuple[Count, Count] | None = None
    steps: Steps | None = None
    guidance: Annotated[float, Range(0, 1000)] | None = None
    resize: Resize | None = None
    brings: Brings = Brings()
    layout: Literal["geneval", "compbench"] | None = None
    dataset: Dataset | None = None


@dataclass(frozen=True, eq=False)
class Suite:
    """Opened for samplers of one kind.

    headline: names of the metrics that rows are compared by. batch: images generated at a time,
    which bounds memory. settings: its YAML. skipped: metrics that cannot be computed here, with the
    reason.
    """

    name: str
    reference: Reference
    metrics: tuple[Metric, ...]
    headline: tuple[str, ...]
    batch: int
    settings: SuiteSettings | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, ...]:
        """Of images, (c, h, w)."""
        return self.reference.size

    @property
    def compared(self) -> tuple[Metric, ...]:
        """The metrics of the headline."""
        named = {metric.name: metric for metric in self.metrics}
        return tuple(named[name] for name in self.headline)

    @property
    def space(self) -> str | None:
        """The space of the first of the headline's metrics that has one."""
        return next((m.space for m in self.compared if m.space is not None), None)

    @property
    def resize(self) -> Resize | None:
        """What becomes of images before they are scored."""
        return None if self.settings is None else self.settings.resize

    @contextmanager
    def threaded(self) -> Iterator[None]:
        """As many threads of the CPU as it fixes, within the block."""
        before = torch.get_num_threads()
        fixed = None if self.settings is None else self.settings.threads
        torch.set_num_threads(fixed or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @property
    def provenance(self) -> dict[str, str]:
        """What a reader must know to repeat the numbers."""
        spaces = {m.space: m for m in self.metrics if m.space is not None}
        identities = {f"space {name}": self.reference.space(name).identity for name in spaces}
        resize = {} if self.resize is None else {"resize": str(self.resize)}
        said = {"suite": self.name} | self.reference.provenance | resize
        return said | identities


def opened(
    name: str,
    settings: SuiteSettings,
    task: Task,
    metrics: tuple[Metric, ...],
    kind: Kind,
    brought: Brought,
) -> Suite:
    """The suite of a YAML and its parts, for samplers of this kind.

    Raises Unfit where the suite cannot score them."""
    where, seen = "", kind
    if settings.resize is not None:
        seen = replace(kind, size=(kind.channels, *[settings.resize.side] * 2))
        brought = partial(brought, settings.resize)
    try:
        reference = task.open(seen, partial(sized, brought, seen))
        found, skipped = [], {}
        for metric, asked in zip(metrics, settings.metrics):
            where = f"{metric.name}: "
            several = of_each(metric, asked, reference)
            if not several:
                skipped[metric.name] = "what is asked for has no categories"
            reasons = {one.name: refusal(one, reference, asked.optional) for one in several}
            found += [one for one in several if not reasons[one.name]]
            skipped |= {name: reason for name, reason in reasons.items() if reason}
    except ValueError as error:
        raise Unfit(f"suite '{name}' {where}{error}") from error
    headline = tuple(each for each in settings.headline if each not in skipped)
    if not headline:
        reasons = "; ".join(f"{each} {skipped[each]}" for each in settings.headline)
        raise Unfit(f"suite '{name}': none of its headline can be computed here: {reasons}")
    batch = settings.batch or at_once(kind.size)
    return Suite(name, reference, tuple(found), headline, batch, settings, skipped)


def sized(brought: Brought, kind: Kind) -> RealImages:
    """What is brought. Raises ValueError for images of another size."""
    real = brought()
    if real.images is not None and tuple(real.images.shape[1:]) != kind.size:
        raise ValueError(f"the real images are {tuple(real.images.shape[1:])}, the samples {kind}")
    return real


def of_each(metric: Metric, asked: MetricSettings, reference: Reference) -> list[Metric]:
    """The metric, or one of it for each category, none where there is none."""
    metric.table = asked.title
    if asked.each is None:
        return [metric]
    if metric.space is not None:
        with suppress(ValueError):  # made for all real images, whose categories share it
            reference.space(metric.space)
    found = []
    for category in reference.named():
        one = copy(metric)
        one.category, one.name = category, f"{metric.name} {category}"
        found.append(one)
    return found


def refusal(metric: Metric, reference: Reference, optional: bool) -> str:
    """Open a metric; why it cannot be computed here, nothing if it can. Raises ValueError where it
    does not fit but must be."""
    try:
        metric.open(reference.within(metric.category))
    except ValueError as error:
        if optional or isinstance(error, Unavailable):
            return str(error)
        raise
    return ""
