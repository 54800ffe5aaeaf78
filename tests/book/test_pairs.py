"""The cover by pairs that the contracts are checked on leaves no pair out."""

from itertools import combinations, product

import pytest
from pairs import pairs

COLUMNS = [
    (range(2), range(2), range(2)),
    (range(19), "abcd", "vwxyz"),
    (range(5), range(4), range(3), range(2), range(2)),
    (range(3), range(7)),
]


@pytest.mark.parametrize("columns", COLUMNS, ids=str)
@pytest.mark.parametrize("banned", [set(), {0, "a"}])
def test_every_allowed_pair_occurs_and_few_rows_do(columns, banned):
    """Ruled out here: rows whose first two values are both of the banned."""

    def allowed(*row):
        return not {*row[:2]} <= banned

    def met(rows):
        return {pair for row in rows for pair in combinations(enumerate(row), 2)}

    rows, whole = pairs(*columns, allowed=allowed), [r for r in product(*columns) if allowed(*r)]
    assert set(rows) <= set(whole) and len(set(rows)) == len(rows)
    assert met(rows) == met(whole)
    least = max(len(a) * len(b) for a, b in combinations(columns, 2))
    assert len(rows) <= 1.6 * least
    assert rows == pairs(*columns, allowed=allowed)


def test_nothing_allowed_is_no_row():
    assert pairs("ab", "cd", allowed=lambda *row: False) == []
