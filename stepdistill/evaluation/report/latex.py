"""The tables for a paper, results and costs: tabulars with booktabs' rules, small type for less."""

from __future__ import annotations

from collections.abc import Sequence

from ...schema import printable
from ..rows import Row
from ..suite import Suite
from .costs import cost_columns
from .table import Column, columns_of

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
    """A tabular of scores, and one of costs where these were measured."""
    costly = [row for row in rows if row.costs is not None]
    tables = [(rows, columns_of(rows, suite)), (costly, cost_columns(rows))]
    return "\n".join(tabular(rows, columns) for rows, columns in tables if columns)


def tabular(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Of rows and columns of the report."""
    lines = [" & ".join(escaped(column.name) for column in columns)]
    lines += [
        " & ".join(cell(column.text(row), column.small(row)) for column in columns) for row in rows
    ]
    head, *body = (line + r" \\" for line in lines)
    shape = "l" + "r" * (len(columns) - 1)
    inside = "\n".join([r"\toprule", head, r"\midrule", *body, r"\bottomrule"])
    return f"\\begin{{tabular}}{{{shape}}}\n{inside}\n\\end{{tabular}}\n"


def cell(text: str, small: str) -> str:
    """A cell, with its smaller text if it has any."""
    return escaped(text) + (f" {{\\scriptsize {escaped(small)}}}" if small else "")


def escaped(text: str) -> str:
    """Anyone's words, of which LaTeX obeys none."""
    return "".join(SPECIAL.get(c, c) for c in printable(text))
