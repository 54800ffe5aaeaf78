"""The result tables: their columns, numbers as text, and notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...schema import printable
from ..differences import winner
from ..metric import Metric
from ..numerals import number
from ..rows import REAL, STUDENT, Row, Score, timing
from ..suite import Suite

N_NOTE = (
    "Ranges are 95 % intervals over fresh seed blocks. Most distances shrink as the number of "
    "images grows: compare them only within this table, where every row has the same n."
)
REAL_NOTE = "The row `real` resamples the reference itself and marks the floor."
WINNER = " ★"
WINNER_NOTE = (
    "★ marks the student that is better than every other, where the 95 % intervals of their "
    "differences over seed blocks of the same noise all say so; without it, none is known to be."
)
NFE_NOTE = "`NFE` counts network evaluations an image; guidance counts twice."


@dataclass(frozen=True)
class Column:
    """One column: heading, main text of a cell and the smaller text after it."""

    name: str
    text: Callable[[Row], str]
    small: Callable[[Row], str] = lambda row: ""


@dataclass(frozen=True)
class Table:
    """A table: its title, none of the main one, and its columns."""

    title: str
    columns: list[Column]


def tables_of(rows: Sequence[Row], suite: Suite) -> list[Table]:
    """The main table, and those that metrics name, as of categories, which hold these alone."""
    titles = dict.fromkeys(metric.table for metric in suite.metrics if metric.table)
    others = [Table(title, _table_columns(rows, suite, title)) for title in titles]
    return [Table("", columns_of(rows, suite)), *(t for t in others if len(t.columns) > 1)]


def _table_columns(rows: Sequence[Row], suite: Suite, title: str) -> list[Column]:
    metrics = [metric for metric in suite.metrics if metric.table == title]
    named = Column("model", lambda r: r.model, steps_and_source)
    return telling(rows, [named, *(_column(m, _winner(rows, m)) for m in metrics)])


def telling(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """Those that have something to say."""
    return [column for column in columns if any(column.text(row) != "–" for row in rows)]


def columns_of(rows: Sequence[Row], suite: Suite) -> list[Column]:
    """The columns of the main table that have something to say."""
    model, *scores = _table_columns(rows, suite, "")
    columns = [
        model,
        Column("NFE", lambda r: str(r.nfe) if r.nfe else "–"),
        *scores,
        Column("ms / image", milliseconds(rows)),
        Column("parameters", lambda r: f"{r.parameters:,}" if r.parameters else "–"),
    ]
    return telling(rows, columns)


def milliseconds(rows: Sequence[Row]) -> Callable[[Row], str]:
    """The time of an image as text, of all rows in the same way."""
    taken = timing(rows)
    return lambda row: amount(taken(row), 1e3)


def amount(value: float | None, unit: float = 1) -> str:
    """Three digits of a cost in units, or that it is unknown; never an exponent."""
    if value is None:
        return "–"
    return f"{unit * value:,.0f}" if unit * value >= 100 else f"{unit * value:.3g}"


def notes_of(
    rows: Sequence[Row], suite: Suite, first: Mapping[str, int] | None = None
) -> list[str]:
    """What a reader must know of the columns; metrics of one kind share a note. first: how many
    images of a block those metrics look at that do not look at all."""
    kinds: dict[tuple[str, int | None], list[Metric]] = {}
    for metric in suite.metrics:
        if metric.about and any(metric.name in row.scores for row in rows):
            key = metric.about, (first or {}).get(metric.name)
            kinds.setdefault(key, []).append(metric)
    notes = [_note(metrics, suite, few) for (_, few), metrics in kinds.items()]
    real = [REAL_NOTE] if any(row.model == REAL for row in rows) else []
    won = [WINNER_NOTE] if any(_winner(rows, metric) for metric in suite.metrics) else []
    return [*notes, *won, " ".join([N_NOTE, *real]), NFE_NOTE]


def in_markdown(text: str) -> str:
    """Anyone's words in a Markdown page: no tags, no entities, nothing that cannot be seen."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def value_text(score: Score | None) -> str:
    """A score in a table that knows nothing of its metric."""
    return "–" if score is None else number(score.value)


def score_names(rows: Sequence[Row]) -> list[str]:
    """The metrics that some row has a score of, in order."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def _winner(rows: Sequence[Row], metric: Metric) -> Row | None:
    """The student that is better than every other, if one is."""
    return winner([row for row in rows if row.model == STUDENT], metric)


def _column(metric: Metric, best: Row | None) -> Column:
    def text(row: Row) -> str:
        score = row.scores.get(metric.name)
        return "–" if score is None else metric.text(score) + WINNER * (row is best)

    def small(row: Row) -> str:
        score = row.scores.get(metric.name)
        return "" if score is None else metric.small(score)

    return Column(metric.heading, text, small)


def _note(metrics: Sequence[Metric], suite: Suite, few: int | None) -> str:
    names = []
    for metric in metrics:
        about = suite.reference.space(metric.space).about if metric.space else ""
        place = f" in {metric.space}" if metric.space else ""
        names.append(f"`{metric.name}`{place}" + (f" ({about})" if about else ""))
    about = f"{', '.join(names)}: {metrics[0].about} {metrics[0].way}"
    return about if few is None else f"{about} Of the first {few:,} images of a block."


def steps_text(steps: int) -> str:
    """A number of steps; nothing for one that nobody knows."""
    if steps == 0:
        return ""
    return "1 step" if steps == 1 else f"{steps} steps"


def steps_and_source(row: Row) -> str:
    """The small print beside a model."""
    return " · ".join(filter(None, (steps_text(row.steps), row.source)))
