"""A suite: what samplers are asked for, what their images are compared with, and by which metrics.

It is a YAML of eval/suites/, or anyone's, that names its parts:

    task: digits                 a file of evaluation/suites/, or any importable module, with
    settings: {}                 settings of its own: what is asked for, and the real images
    metrics:                     files of evaluation/metrics/, or any importable modules
      - {name: frechet_random, metric: frechet, settings: {space: random-conv}}
      - {name: accuracy, optional: true}
    headline: [frechet_random]   by which rows are compared in one sentence
    batch: 250                   images that are generated at a time, fewer by default if large

A metric whose weights or libraries are not on this machine is skipped, and named with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..schema import ConfigError, Count
from .gallery import at_once
from .metric import Metric
from .reference import Brought, Kind, Reference, Task
from .weights import Unavailable


class Unfit(ConfigError):
    """A suite that cannot score what it is asked to."""


@dataclass(frozen=True)
class MetricSettings:
    """name: in tables. metric: its module, if that is called otherwise. optional: left out where
    it cannot be computed, as without classes."""

    name: str
    metric: str | None = None
    optional: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteSettings:
    """The YAML, see above."""

    task: str
    metrics: list[MetricSettings]
    headline: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    batch: Count | None = None


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
    def provenance(self) -> dict[str, str]:
        """What a reader must know to repeat the numbers."""
        spaces = {m.space: m for m in self.metrics if m.space is not None}
        identities = {f"space {name}": self.reference.space(name).identity for name in spaces}
        skipped = {f"skipped {name}": reason for name, reason in self.skipped.items()}
        return {"suite": self.name} | self.reference.provenance | identities | skipped


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
    where = ""
    try:
        reference = task.open(kind, brought)
        found, skipped = [], {}
        for metric, asked in zip(metrics, settings.metrics):
            where = f"{metric.name}: "
            if reason := refusal(metric, reference, asked.optional):
                skipped[metric.name] = reason
            else:
                found.append(metric)
    except ValueError as error:
        raise Unfit(f"suite '{name}' {where}{error}") from error
    headline = tuple(each for each in settings.headline if each not in skipped)
    if not headline:
        reasons = "; ".join(f"{each} {skipped[each]}" for each in settings.headline)
        raise Unfit(f"suite '{name}': none of its headline can be computed here: {reasons}")
    batch = settings.batch or at_once(reference.size)
    return Suite(name, reference, tuple(found), headline, batch, settings, skipped)


def refusal(metric: Metric, reference: Reference, optional: bool) -> str:
    """Open a metric; why it cannot be computed here, nothing if it can. Raises ValueError where it
    does not fit but must be."""
    try:
        metric.open(reference)
    except ValueError as error:
        if optional or isinstance(error, Unavailable):
            return str(error)
        raise
    return ""
