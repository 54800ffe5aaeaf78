"""Few rows of a product of parameters, in which all pairs of values meet."""

from collections.abc import Callable, Sequence
from itertools import combinations, product

Row = tuple


def pairs(*columns: Sequence, allowed: Callable[..., bool] = lambda *row: True) -> list[Row]:
    """Rows of the product of `columns` in which every two values of two columns occur together,
    if any allowed row has both. Greedy, so nearly as few as can be; the same at every call.
    """
    rows = [indices for indices in product(*(range(len(column)) for column in columns))]
    rows = [row for row in rows if allowed(*values(columns, row))]
    missing, chosen = set().union(*map(met, rows)) if rows else set(), []
    while missing:
        chosen.append(max(rows, key=lambda row: len(met(row) & missing)))
        missing -= met(chosen[-1])
    return [values(columns, row) for row in chosen]


def values(columns: Sequence[Sequence], row: Row) -> Row:
    return tuple(column[k] for column, k in zip(columns, row, strict=True))


def met(row: Row) -> set[tuple]:
    """The pairs of (column, value) of a row."""
    return set(combinations(enumerate(row), 2))
