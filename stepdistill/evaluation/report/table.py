"""The result table: its columns, numbers as text, and the headline in one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..suite import REAL, TEACHER, Row

STUDENT = "student"
SPACES = "(domain-cnn, random-conv)"
NOTES = (
    "`frechet` is the Fréchet distance to the reference images in the features of a small "
    "classifier (domain-cnn), `frechet_random` the same in seeded random convolutions "
    "(random-conv). Neither is FID. Smaller is better; the range is the 95 % interval over fresh "
    "seed blocks.",
    "Distances shrink as the number of images grows: compare them only within this table, where "
    "every row has the same n. The row `real` resamples the reference itself and marks the floor.",
    "`KID` is the unbiased kernel distance in domain-cnn, × 1000, ± its standard error; it may be "
    "negative, and is for `real`, which repeats reference images.",
    "`precision` and `recall` (k = 3), and `diversity` within a class as a ratio to the teacher at "
    "most steps, are measured in random-conv. `paired` is the root mean square difference, in "
    "pixel values of [−1, 1], from that teacher's image of the same noise.",
    "`NFE` counts network evaluations an image; guidance counts twice.",
)


@dataclass(frozen=True)
class Column:
    """One column: heading, main text of a cell and the smaller text after it."""

    name: str
    text: Callable[[Row], str]
    small: Callable[[Row], str] = lambda row: ""


def headline(rows: Sequence[Row]) -> str:
    """One sentence: the student at fewest steps, of several the best in domain-cnn, against the
    teacher, in both spaces and in time."""
    students = [row for row in rows if row.model == STUDENT]
    teachers = sorted((row for row in rows if row.model == TEACHER), key=lambda row: row.steps)
    if not students:
        return "; ".join(f"{_who(row)} {_both(row)}" for row in rows) + f" {SPACES}."
    student = min(students, key=lambda row: (row.steps, row.frechet))
    several = len({row.source for row in students}) > 1
    which = f"the best, {student.source}," if several else "the student"
    text = f"In {_steps(student.steps)} {which} scores {_both(student)} {SPACES}"
    matched = [row for row in teachers if _no_worse(student, row)]
    if matched:
        text += f": in both spaces no worse than {_who(matched[-1])} ({_both(matched[-1])})"
    elif teachers:
        text += f": not in both spaces as good as {_who(teachers[0])} ({_both(teachers[0])})"
    if teachers and student.seconds_per_image and teachers[-1].seconds_per_image:
        speed = teachers[-1].seconds_per_image / student.seconds_per_image
        best = teachers[-1]
        text += f", and {speed:.3g}× as fast per image as {_who(best)} ({_both(best)})"
    return text + "."


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say in this table."""
    columns = [
        Column("model", lambda r: r.model, _steps_and_source),
        Column("NFE", lambda r: str(r.nfe) if r.nfe else "–"),
        Column("frechet", lambda r: _number(r.frechet), lambda r: _range(r.low, r.high)),
        Column(
            "frechet_random",
            lambda r: _number(r.frechet_random),
            lambda r: _range(r.low_random, r.high_random),
        ),
        Column("KID", lambda r: _signed(1e3 * r.kid), lambda r: f"± {1e3 * r.kid_error:.1f}"),
        Column("precision", lambda r: f"{r.precision:.3f}"),
        Column("recall", lambda r: f"{r.recall:.3f}"),
        Column("accuracy", lambda r: _optional(r.accuracy, "{:.3f}")),
        Column("diversity", lambda r: _optional(r.diversity, "{:.3f}")),
        Column("paired", lambda r: _optional(r.paired, "{:.3f}")),
        Column("ms / image", lambda r: _optional(r.seconds_per_image, "{:.3g}", 1e3)),
        Column("parameters", lambda r: f"{r.parameters:,}" if r.parameters else "–"),
    ]
    return [column for column in columns if any(column.text(row) != "–" for row in rows)]


def _no_worse(a: Row, b: Row) -> bool:
    return a.frechet <= b.frechet and a.frechet_random <= b.frechet_random


def _who(row: Row) -> str:
    return "real images" if row.model == REAL else f"the {row.model} at {_steps(row.steps)}"


def _both(row: Row) -> str:
    return f"{_number(row.frechet)}, {_number(row.frechet_random)}"


def _steps(steps: int) -> str:
    if steps == 0:
        return ""
    return "1 step" if steps == 1 else f"{steps} steps"


def _steps_and_source(row: Row) -> str:
    return " · ".join(filter(None, (_steps(row.steps), row.source)))


def _number(value: float) -> str:
    """Three significant digits from 0.1 on, four decimals below; never an exponent."""
    decimals = 4 if value < 0.1 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{decimals}f}"


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _range(low: float, high: float) -> str:
    return f"{_number(low)}–{_number(high)}"


def _optional(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "–" if value is None else pattern.format(scale * value)
