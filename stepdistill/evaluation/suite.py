"""A suite: what samplers are asked for, what their images are compared with, and by which metrics.

It is a YAML of eval/suites/, or anyone's, that names its parts:

    task: digits                 a file of evaluation/suites/, or any importable module, with
    settings: {}                 settings of its own: what is asked for, and the real images
    metrics:                     files of evaluation/metrics/, or any importable modules
      - {name: frechet_random, metric: frechet, settings: {space: random-conv}}
    headline: [frechet_random]   by which rows are compared in one sentence
    batch: 250                   images that are generated at a time, fewer by default if large
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from ..runs.config import find
from ..runs.yaml import load as load_values
from ..schema import ConfigError, Count, fit
from .metric import Metric
from .named import class_of
from .reference import Kind, Reference, Task

Part = TypeVar("Part")
MOST, VALUES = 250, 2**22  # images, and pixel values, that are generated at a time


class Unfit(ConfigError):
    """A suite that cannot score what it is asked to."""


@dataclass(frozen=True)
class MetricSettings:
    """name: in tables. metric: its module, if that is called otherwise."""

    name: str
    metric: str | None = None
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
    which bounds memory. settings: its YAML.
    """

    name: str
    reference: Reference
    metrics: tuple[Metric, ...]
    headline: tuple[str, ...]
    batch: int
    settings: SuiteSettings | None = None

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
        return {"suite": self.name, "reference": self.reference.about} | identities


def load(name: str, kind: Kind) -> Suite:
    """The suite of a shipped name or a YAML file, for samplers of this kind.

    Raises Unfit where the suite cannot score them, and ConfigError for a YAML or a part of it that
    is none."""
    path, settings, task, metrics = require(name)
    where = ""
    try:
        reference = task.open(kind)
        for metric in metrics:
            where = f"{metric.name}: "
            metric.open(reference)
    except ValueError as error:
        raise Unfit(f"suite '{name}' {where}{error}") from error
    batch = settings.batch or max(1, min(MOST, VALUES // prod(reference.size)))
    return Suite(path.stem, reference, metrics, settings.headline, batch, settings)


def require(name: str) -> tuple[Path, SuiteSettings, Task, tuple[Metric, ...]]:
    """The file of a suite, what it says and what it names. Raises ConfigError for what is none."""
    path = find(name, "eval/suites", "suite")
    try:
        return path, *parts(path)
    except ConfigError as error:
        raise ConfigError(f"suite {name}: {error}") from error


def parts(path: Path) -> tuple[SuiteSettings, Task, tuple[Metric, ...]]:
    """What a suite's YAML says and names. Raises ConfigError for what is none."""
    settings = fit(SuiteSettings, load_values(path))
    task = made(Task, settings.task, "suites", settings.settings, "task")
    metrics = []
    for i, asked in enumerate(settings.metrics):
        key = f"metrics.{i}"
        metric = made(Metric, asked.metric or asked.name, "metrics", asked.settings, key)
        metric.name = asked.name
        metrics.append(metric)
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ConfigError("metrics: two of one name: give each a name of its own")
    unknown = [name for name in settings.headline if name not in names]
    if unknown or not settings.headline:
        listed = ", ".join(names) or "none"
        raise ConfigError(
            f"headline: {list(settings.headline)}: name some of the metrics: {listed}"
        )
    return settings, task, tuple(metrics)


def made(base: type[Part], name: str, room: str, settings: dict[str, Any], key: str) -> Part:
    """The task or metric of module `name` with these settings. Raises ConfigError with `key`."""
    kind = class_of(name, room, base, key)
    if not is_dataclass(kind):
        raise ConfigError(f"{key}: '{name}' needs @dataclass before its class")
    return fit(kind, settings, f"{key}.settings" if key != "task" else "settings")
