"""What a number rests on, and where an evaluation departs from what its suite says.

results.json holds it under "protocol", by metric. Two numbers compare only where all that is in
COMPARED is the same of both; other batches, threads and versions agree to 1e-5 or so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import torch

from ..schema import shown
from .metric import Metric
from .rows import Row
from .suite import Suite, SuiteSettings

WHAT = "metric", "settings", "category", "space", "reference", "prompts", "resize"
COMPARED = (*WHAT, "n", "of", "blocks", "seed")
ONE_BLOCK = "of one block of images, only of what parts of it tell; more, like --blocks 3, make all"


@dataclass(frozen=True)
class Procedure:
    """How many images are scored, and how they are asked for: n in each of so many blocks, from one
    seed. steps, guidance: of pipelines that are not ours, None for their own. size: height and
    width of what is scored."""

    n: int
    blocks: int
    seed: int
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, ...] | None = None

    def departures(self, settings: SuiteSettings) -> list[str]:
        """Where it is not what the suite says, in words."""
        found = []
        for name, used in asdict(self).items():
            said = getattr(settings, name)
            if None not in (said, used) and said != used:
                found.append(f"{name} = {worded(used)} in place of the protocol's {worded(said)}")
        return found

    def provenance(self, suite: Suite) -> dict[str, str]:
        """For the reader of a report."""
        threads = torch.get_num_threads()
        many = f"{self.blocks} × {self.n:,} images" if self.blocks > 1 else f"{self.n:,} images"
        found = {
            "asked": f"{many}, seed {self.seed}, {suite.batch} at a time, {threads} threads",
        }
        departs = [] if suite.settings is None else self.departures(suite.settings)
        if departs:
            found["departs from the protocol"] = "; ".join(departs)
        return found | ({"intervals": ONE_BLOCK} if self.blocks == 1 else {})


def protocols(suite: Suite, procedure: Procedure, versions: str) -> dict[str, dict[str, Any]]:
    """Of every metric, as results.json has it. of: how many images of a block it looks at, of a
    category at most."""
    shared = {
        "suite": suite.name,
        "reference": suite.reference.content,
        "prompts": suite.reference.prompts or None,
        "resize": None if suite.resize is None else str(suite.resize),
        "n": procedure.n,
        "blocks": procedure.blocks,
        "seed": procedure.seed,
        "batch": suite.batch,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
    return {
        metric.name: own(metric, suite) | shared | {"of": metric.of(procedure.n, suite.size)}
        for metric in suite.metrics
    }


def own(metric: Metric, suite: Suite) -> dict[str, Any]:
    """What is a metric's alone. Its space is named with the hash of an extractor's weights, and its
    resize."""
    space = None if metric.space is None else suite.reference.space(metric.space)
    settings = {f.name: getattr(metric, f.name) for f in fields(metric) if f.init}
    return {
        "metric": type(metric).__module__.rpartition(".")[2],
        "settings": settings,
        "category": metric.category or None,
        "space": None if space is None else space.comparable,
        "libraries": None if space is None else space.libraries or None,
    }


def require_one(rows: list[Row], metric: str) -> None:
    """Raise ValueError where rows of several results were not scored alike by a metric."""
    known = [row.protocol[metric] for row in rows if metric in row.protocol]
    for a, b in pairwise(known):
        for name in COMPARED:
            if plain(a.get(name)) != plain(b.get(name)):
                both = f"{shown(a.get(name))} and {shown(b.get(name))}"
                raise ValueError(f"{metric}: rows of unequal {name} do not compare: {both}")


def worded(value: float | tuple[int, ...]) -> str:
    """A number, or height and width, for a reader."""
    return "×".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}"


def plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value
