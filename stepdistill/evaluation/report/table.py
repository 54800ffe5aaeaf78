"""The result table: its columns, numbers as text, notes, and the headline in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...schema import printable
from ..differences import winner
from ..metric import Metric
from ..numerals import number
from ..rows import REAL, STUDENT, TEACHER, Row, Score, timing
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


def headline(rows: Sequence[Row], suite: Suite) -> str:
    """One sentence: the student at fewest steps, of several the best by the headline's first
    metric, against the teacher, by all of the headline's and in time."""
    metrics = [m for m in suite.compared if all(m.name in r.scores for r in rows)]
    if not metrics:
        return "Nothing was measured by which these rows compare."
    students = [row for row in rows if row.model == STUDENT]
    teachers = sorted((row for row in rows if row.model == TEACHER), key=lambda row: row.steps)
    where = f"({', '.join(m.space or m.name for m in metrics)})"
    if not students:
        return "; ".join(f"{_who(row)} {_values(row, metrics)}" for row in rows) + f" {where}."
    student = best_of(students, metrics[0])
    several = len({row.source for row in students}) > 1
    which = f"the best, {student.source}," if several else "the student"
    text = f"In {_steps(student.steps)} {which} scores {_values(student, metrics)} {where}"
    faster = _faster(student, teachers, metrics, timing(rows))
    return text + _against(student, teachers, metrics) + faster + "."


def best_of(students: Sequence[Row], metric: Metric) -> Row:
    """The best of those at fewest steps."""
    fewest = min(row.steps for row in students)
    few = [row for row in students if row.steps == fewest]
    return min(few, key=lambda row: metric.loss(row.value(metric.name)))


def columns_of(rows: Sequence[Row], suite: Suite) -> list[Column]:
    """The columns that have something to say in this table."""
    columns = [
        Column("model", lambda r: r.model, steps_and_source),
        Column("NFE", lambda r: str(r.nfe) if r.nfe else "–"),
        *(_column(metric, _winner(rows, metric)) for metric in suite.metrics),
        Column("ms / image", milliseconds(rows)),
        Column("parameters", lambda r: f"{r.parameters:,}" if r.parameters else "–"),
    ]
    return [column for column in columns if any(column.text(row) != "–" for row in rows)]


def milliseconds(rows: Sequence[Row]) -> Callable[[Row], str]:
    """The time of an image as text, of all rows in the same way."""
    taken = timing(rows)
    return lambda row: amount(taken(row), 1e3)


def amount(value: float | None, unit: float = 1) -> str:
    """Three digits of a cost in units, or that it is unknown; never an exponent."""
    if value is None:
        return "–"
    return f"{unit * value:,.0f}" if unit * value >= 100 else f"{unit * value:.3g}"


def notes_of(rows: Sequence[Row], suite: Suite) -> list[str]:
    """What a reader must know of the columns; metrics of one kind share a note."""
    kinds: dict[str, list[Metric]] = {}
    for metric in suite.metrics:
        if metric.about and any(metric.name in row.scores for row in rows):
            kinds.setdefault(metric.about, []).append(metric)
    notes = [_note(metrics, suite) for metrics in kinds.values()]
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


def _note(metrics: Sequence[Metric], suite: Suite) -> str:
    names = []
    for metric in metrics:
        about = suite.reference.space(metric.space).about if metric.space else ""
        place = f" in {metric.space}" if metric.space else ""
        names.append(f"`{metric.name}`{place}" + (f" ({about})" if about else ""))
    return f"{', '.join(names)}: {metrics[0].about} {metrics[0].way}"


def _against(student: Row, teachers: Sequence[Row], metrics: Sequence[Metric]) -> str:
    """Which teacher the student is as good as."""
    scope = _scope(metrics)
    matched = [row for row in teachers if _no_worse(student, row, metrics)]
    if matched:
        return f": {scope}no worse than {_who(matched[-1])} ({_values(matched[-1], metrics)})"
    if teachers:
        return f": not {scope}as good as {_who(teachers[0])} ({_values(teachers[0], metrics)})"
    return ""


def _faster(
    student: Row,
    teachers: Sequence[Row],
    metrics: Sequence[Metric],
    taken: Callable[[Row], float | None],
) -> str:
    """How much faster than the teacher at most steps; taken(row): seconds an image."""
    if not (teachers and taken(student) and taken(teachers[-1])):
        return ""
    best = teachers[-1]
    speed = taken(best) / taken(student)
    return f", and {speed:.3g}× as fast per image as {_who(best)} ({_values(best, metrics)})"


def _scope(metrics: Sequence[Metric]) -> str:
    if len(metrics) == 1:
        return ""
    many = "both" if len(metrics) == 2 else "all"
    return f"in {many} {'spaces' if all(m.space for m in metrics) else 'scores'} "


def _no_worse(a: Row, b: Row, metrics: Sequence[Metric]) -> bool:
    return not any(m.better(b.value(m.name), a.value(m.name)) for m in metrics)


def _who(row: Row) -> str:
    return "real images" if row.model == REAL else f"the {row.model} at {_steps(row.steps)}"


def _values(row: Row, metrics: Sequence[Metric]) -> str:
    return ", ".join(m.text(row.scores[m.name]) for m in metrics)


def _steps(steps: int) -> str:
    if steps == 0:
        return ""
    return "1 step" if steps == 1 else f"{steps} steps"


def steps_and_source(row: Row) -> str:
    """The small print beside a model."""
    return " · ".join(filter(None, (_steps(row.steps), row.source)))
