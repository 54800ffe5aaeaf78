"""The result in one sentence, which says no more than the intervals of differences do.

Of a student and a teacher one is better in a metric only where the interval of their difference
over seed blocks excludes 0; else they are "not distinguishable" in it, which is not to say equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..differences import loss_difference, winner
from ..metric import Metric
from ..rows import REAL, STUDENT, TEACHER, Row, fewest, timing
from ..suite import Suite
from .table import steps_text

NOTHING = "Nothing was measured by which these rows compare."


def headline(rows: Sequence[Row], suite: Suite) -> str:
    """The student at its fewest steps, of several the best by the headline's first metric, against
    the teacher, by all of the headline's and in time. Rows without a score by which others compare
    are left out."""
    rows, metrics = comparable(rows, suite)
    if not metrics:
        return NOTHING
    students = [row for row in rows if row.model == STUDENT]
    teachers = sorted((row for row in rows if row.model == TEACHER), key=lambda row: row.steps)
    where = f"({', '.join(m.space if _by_space(metrics) else m.title for m in metrics)})"
    if not students:
        return "; ".join(f"{_who(row)} {_values(row, metrics)}" for row in rows) + f" {where}."
    student = best_of(students, metrics[0])
    text = f"{_subject(student, students, metrics[0])} {_values(student, metrics)} {where}"
    faster = _faster(student, teachers[-1:], metrics, timing(rows))
    return text + _against(student, teachers, metrics) + faster + "."


def comparable(rows: Sequence[Row], suite: Suite) -> tuple[list[Row], list[Metric]]:
    """Rows, and metrics of the headline that each of them has: of all models if there is one, else
    of those that have the first."""
    models = [row for row in rows if row.model != REAL] or list(rows)
    named = [m for m in suite.compared if any(m.name in row.scores for row in models)]
    shared = [m for m in named if all(m.name in row.scores for row in models)]
    if named and not shared:
        models = [row for row in models if named[0].name in row.scores]
        shared = [m for m in named if all(m.name in row.scores for row in models)]
    kept = [row for row in rows if all(m.name in row.scores for m in shared)]
    return kept, shared


def best_of(students: Sequence[Row], metric: Metric) -> Row:
    """The best of those that each source has at its fewest steps."""
    few = fewest(students)
    return min(few, key=lambda row: metric.loss(row.value(metric.name)))


def _subject(student: Row, students: Sequence[Row], metric: Metric) -> str:
    """Who scores; of several the best, or the first of those that nobody tells apart."""
    rivals, several = fewest(students), len({row.source for row in students}) > 1
    name = student.source if several or not student.steps else ""
    name = name or "the student"
    if several and len(rivals) > 1:
        sure = winner(rivals, metric) is student
        name = f"the best, {name}," if sure else f"{name}, ahead but not surely,"
    how = f"In {steps_text(student.steps)}" if student.steps else "As a folder of images"
    return f"{how} {name} scores"


def _against(student: Row, teachers: Sequence[Row], metrics: Sequence[Metric]) -> str:
    """What is known of the student beside teachers."""
    known = [(row, [standing(student, row, metric) for metric in metrics]) for row in teachers]
    beaten = [row for row, of in known if all(sign < 0 for sign in of)]
    level = [(row, of) for row, of in known if max(of) <= 0 and row not in beaten]
    claims = []
    if beaten:
        claims.append(f"{_scope(metrics)}better than {_beside(beaten[-1], metrics)}")
    if level and (not beaten or level[-1][0].steps > beaten[-1].steps):
        claims.append(f"{_level(level[-1][1], metrics)} {_beside(level[-1][0], metrics)}")
    if teachers and not claims:
        claims = [f"not {_scope(metrics)}as good as {_beside(teachers[0], metrics)}"]
    return ": " + ", ".join(claims) if claims else ""


def _faster(
    student: Row,
    teachers: Sequence[Row],
    metrics: Sequence[Metric],
    taken: Callable[[Row], float | None],
) -> str:
    """How much faster it is than teachers; taken(row): seconds an image."""
    known = [row for row in teachers if taken(student) and taken(row)]
    speeds = [(taken(row) / taken(student), _beside(row, metrics)) for row in known]
    return "".join(f", and {speed:.3g}× as fast per image as {who}" for speed, who in speeds)


def standing(a: Row, b: Row, metric: Metric) -> int:
    """−1 where a is known to be better than b, 1 where it is known to be worse, else 0."""
    found = loss_difference(a, b, metric)
    if found is None or not found.sure:
        return 0
    return 1 if found.value > 0 else -1


def _level(signs: Sequence[int], metrics: Sequence[Metric]) -> str:
    """Nowhere worse, and somewhere not better."""
    better = [metric.title for metric, sign in zip(metrics, signs, strict=True) if sign]
    even = [metric.title for metric, sign in zip(metrics, signs, strict=True) if not sign]
    if not better:
        return f"{_scope(metrics)}not distinguishable from"
    return f"better in {' and '.join(better)}, not distinguishable in {' and '.join(even)} from"


def _scope(metrics: Sequence[Metric]) -> str:
    if len(metrics) == 1:
        return ""
    many = "both" if len(metrics) == 2 else "all"
    return f"in {many} {'spaces' if _by_space(metrics) else 'scores'} "


def _by_space(metrics: Sequence[Metric]) -> bool:
    """Whether they are one quantity in several spaces."""
    one = len({type(metric) for metric in metrics}) == 1
    return one and len(metrics) > 1 and all(metric.space for metric in metrics)


def _beside(row: Row, metrics: Sequence[Metric]) -> str:
    return f"{_who(row)} ({_values(row, metrics)})"


def _who(row: Row) -> str:
    if row.model == REAL:
        return "real images"
    return f"the {row.model} at {steps_text(row.steps)}" if row.steps else f"the {row.model}"


def _values(row: Row, metrics: Sequence[Metric]) -> str:
    return ", ".join(m.text(row.scores[m.name]) for m in metrics)
