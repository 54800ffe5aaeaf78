"""Whether one row of a table is better than another, and how sure that is.

All rows meet the same noise and are asked for the same, block by block, so what a block has in
common cancels in the differences of its two scores a and b:

d_b = a_b − b_b     difference d̄ ± t₀.₉₇₅(B−1) · sd(d) / √B

Where a metric has an ideal i, gaps to it are compared, d_b = ±(a_b − i) ∓′ (b_b − i), each with the
sign that makes its mean positive. A row is better only where the interval excludes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .intervals import alike, interval
from .metric import Metric
from .protocol import require_one
from .rows import Row


@dataclass(frozen=True)
class Difference:
    """Of two values, a − b, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def difference(a: Row, b: Row, metric: str) -> Difference | None:
    """Of the scores of two rows of one table; None where a row has no score, or no blocks, or all
    differences are alike, which cannot tell how sure they are.

    Raises ValueError for rows of unequal n, numbers of blocks or protocols, which do not compare.
    """
    return _interval(*_blocks(a, b, metric))


def loss_difference(a: Row, b: Row, metric: Metric) -> Difference | None:
    """The same, in the direction of the metric: negative where a is better."""
    signs = [_sign(row, metric) for row in (a, b)]
    blocks = _blocks(a, b, metric.name)
    shift = metric.ideal or 0.0
    return _interval(*([s * (v - shift) for v in of] for s, of in zip(signs, blocks)))


def better(a: Row, b: Row, metric: Metric) -> bool:
    """Whether a is better than b, by the interval of their difference."""
    found = loss_difference(a, b, metric)
    return found is not None and found.high < 0


def winner(rows: Sequence[Row], metric: Metric) -> Row | None:
    """The one of several rows that is better than each other; None where none is known to be."""
    scored = [row for row in rows if metric.name in row.scores]
    if len(scored) < 2:
        return None
    best = min(scored, key=lambda row: metric.loss(row.value(metric.name)))
    others = (row for row in scored if row is not best)
    return best if all(better(best, other, metric) for other in others) else None


def _blocks(a: Row, b: Row, metric: str) -> tuple[Sequence[float], Sequence[float]]:
    """The blocks of both, as many; none where one of them has none."""
    require_one([a, b], metric)
    if a.n != b.n:
        raise ValueError(f"{metric}: rows of {a.n} and {b.n} images do not compare, use one n")
    mine, theirs = (row.scores[metric].blocks if metric in row.scores else () for row in (a, b))
    if mine and theirs and len(mine) != len(theirs):
        raise ValueError(
            f"{metric}: rows of {len(mine)} and {len(theirs)} blocks do not compare, use as many"
        )
    return (mine, theirs) if mine and theirs else ((), ())


def _interval(mine: Sequence[float], theirs: Sequence[float]) -> Difference | None:
    found = [a - b for a, b in zip(mine, theirs)]
    return None if alike(found) else Difference(*interval(found))


def _sign(row: Row, metric: Metric) -> int:
    """By which a value less the ideal becomes a loss."""
    if metric.ideal is None:
        return 1 if metric.lower_is_better else -1
    return 1 if metric.name in row.scores and row.value(metric.name) >= metric.ideal else -1
