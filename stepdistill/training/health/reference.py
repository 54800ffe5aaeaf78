"""What healthy runs looked like: the range of each health signal along a stage, by method.

`assets/bands.json` keeps, for every method and signal, the least and the most in each tenth of a
stage, null where nothing was probed; `eval/bands.py` makes it from finished runs on digits. A
report shows a run beside them. They raise no alarm: another teacher has bands of its own.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from ...resources import PACKAGE

PARTS = 10
FILE = PACKAGE / "assets" / "bands.json"

Extent = tuple[float, float]
Bands = dict[str, dict[str, list[Extent | None]]]
Span = tuple[float, float, float, float]  # from update, to update, least, most


class StageSpan(NamedTuple):
    """A stage of a run: its method, and its updates counted from the start of the run."""

    method: str
    begin: int
    end: int


@cache
def known() -> Bands:
    """The bands that travel with the package."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def part_of(share: float) -> int:
    """In which of the PARTS of a stage a share of its updates, in [0, 1], falls."""
    return min(int(share * PARTS), PARTS - 1)


def range_at(method: str, signal: str, share: float) -> Extent | None:
    """(least, most) of healthy runs when this share of a stage was done; None where not known."""
    band = known().get(method, {}).get(signal)
    found = band and band[part_of(share)]
    return tuple(found) if found else None


def spans(stages: Sequence[StageSpan]) -> dict[str, list[Span]]:
    """Bands of a run's stages, by signal, over updates counted from the start of the run."""
    spans: dict[str, list[Span]] = {}
    for method, begin, end in stages:
        for signal, band in known().get(method, {}).items():
            edges = [begin + (end - begin) * i / PARTS for i in range(PARTS + 1)]
            parts = zip(edges, edges[1:], band)
            spans.setdefault(signal, []).extend((a, b, *range_) for a, b, range_ in parts if range_)
    return spans


def collect(probes: Iterable[tuple[str, float, dict[str, float]]]) -> Bands:
    """Bands of probes: (method, share of its stage, signals)."""
    found: Bands = {}
    for method, share, signals in probes:
        for signal, value in signals.items():
            band = found.setdefault(method, {}).setdefault(signal, [None] * PARTS)
            low, high = band[part_of(share)] or (value, value)
            band[part_of(share)] = (min(low, value), max(high, value))
    return found
