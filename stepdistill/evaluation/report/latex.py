"""The result table for a paper: a tabular with booktabs' rules, intervals in small type."""

from __future__ import annotations

from collections.abc import Sequence

from ...schema import printable
from ..rows import Row
from ..suite import Suite
from .costs import cost_tables
from .table import Table, tables_of

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
}


def latex(rows: Sequence[Row], suite: Suite) -> str:
    """A tabular for each of the report's tables."""
    return "\n".join(
        tabular(rows, table) for table in [*tables_of(rows, suite), *cost_tables(rows)]
    )


def tabular(rows: Sequence[Row], table: Table) -> str:
    """Rows and columns of a table; its title is a comment."""
    columns = table.columns
    lines = [" & ".join(escaped(column.name) for column in columns)]
    lines += [
        " & ".join(cell(column.text(row), column.small(row)) for column in columns) for row in rows
    ]
    head, *body = (line + r" \\" for line in lines)
    shape = "l" + "r" * (len(columns) - 1)
    inside = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    title = f"% {escaped(' '.join(table.title.split()))}\n" if table.title else ""
    return f"{title}\\begin{{tabular}}{{{shape}}}\n{inside}\n\\end{{tabular}}\n"


def cell(text: str, small: str) -> str:
    """A cell, with its smaller text if it has any."""
    return escaped(text) + (f" {{\\scriptsize {escaped(small)}}}" if small else "")


def escaped(text: str) -> str:
    """Anyone's words, of which LaTeX obeys none."""
    return "".join(SPECIAL.get(c, c) for c in printable(text))
