"""The result of an evaluation as results.json, report.md and one self-contained report.html.

The page carries its styles and pictures inside and asks no server for anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from torch import Tensor

from stepdistill.evaluation.figures import Point, quality_pictures, strip, training_pictures
from stepdistill.evaluation.suite import REAL, TEACHER, Row
from stepdistill.schema import ConfigError

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


@dataclass(frozen=True, eq=False)
class Grid:
    """Images (rows, cols, c, h, w) in [−1, 1]; a column shares its noise, a row its label."""

    title: str
    images: Tensor
    row_labels: list[str]


@dataclass(frozen=True)
class Column:
    """One column: heading, main text of a cell and the smaller text after it."""

    name: str
    text: Callable[[Row], str]
    small: Callable[[Row], str] = lambda row: ""


def write_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    title: str,
    provenance: dict[str, str],
    curves: dict[str, list[Point]],
    grids: Sequence[Grid],
) -> None:
    """Write results.json, report.md and report.html into `folder`, which is made if missing.

    curves: name → [(update, value), …]. Raises ValueError for no rows, rows of unequal n, numbers
    that are not finite, or a grid whose labels do not match its rows.
    """
    _check(rows, grids)
    results = json.dumps(_results(rows), indent=1, allow_nan=False)
    page = _page(rows, title, provenance, curves, grids)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_markdown(rows, title, provenance), encoding="utf-8")
    (folder / "report.html").write_text(page, encoding="utf-8")


def read_results(path: Path) -> list[Row]:
    """The rows of a results.json, the floor last. Raises ConfigError if it holds none."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return [Row(**row) for row in (*results["rows"], *results["floor"])]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error}): delete it, and run again") from error


def _results(rows: Sequence[Row]) -> dict[str, list[dict]]:
    """Models in "rows", resampled real images in "floor"."""
    models = [asdict(row) for row in rows if row.model != REAL]
    return {"rows": models, "floor": [asdict(row) for row in rows if row.model == REAL]}


def headline(rows: Sequence[Row]) -> str:
    """One sentence: the student at fewest steps against the teacher, in both spaces and in time."""
    students = [row for row in rows if row.model == STUDENT]
    teachers = sorted((row for row in rows if row.model == TEACHER), key=lambda row: row.steps)
    if not students:
        return "; ".join(f"{_who(row)} {_both(row)}" for row in rows) + f" {SPACES}."
    student = min(students, key=lambda row: row.steps)
    text = f"In {_steps(student.steps)} the student scores {_both(student)} {SPACES}"
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


def _check(rows: Sequence[Row], grids: Sequence[Grid]) -> None:
    if not rows:
        raise ValueError("a report needs at least one row")
    sizes = sorted({row.n for row in rows})
    if len(sizes) > 1:
        raise ValueError(f"rows of n = {sizes}: distances at different n do not compare, use one n")
    for grid in grids:
        if grid.images.ndim != 5 or len(grid.images) != len(grid.row_labels):
            raise ValueError(
                f"grid '{grid.title}' has images {tuple(grid.images.shape)} and "
                f"{len(grid.row_labels)} labels: expected (rows, cols, c, h, w), one label a row"
            )


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have something to say in this table."""
    columns = [
        Column("model", lambda r: r.model, lambda r: _steps(r.steps)),
        Column("source", lambda r: r.source or "–"),
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


def _page(
    rows: Sequence[Row],
    title: str,
    provenance: dict[str, str],
    curves: dict[str, list[Point]],
    grids: Sequence[Grid],
) -> str:
    template = (files("stepdistill.evaluation") / "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        title=title,
        headline=headline(rows),
        columns=_columns(rows),
        rows=rows,
        notes=[_code_parts(note) for note in NOTES],
        quality=quality_pictures(rows),
        training=training_pictures(curves),
        grids=[(grid.title, _strips(grid)) for grid in grids],
        provenance=_with_n(rows, provenance),
    )


def _strips(grid: Grid) -> list[tuple[str, str]]:
    return [
        (label, strip(images)) for label, images in zip(grid.row_labels, grid.images, strict=True)
    ]


def _markdown(rows: Sequence[Row], title: str, provenance: dict[str, str]) -> str:
    columns = _columns(rows)
    table = [[f"{c.text(row)} {c.small(row)}".strip() for c in columns] for row in rows]
    lines = [
        f"# {_plain(title)}",
        "",
        headline(rows),
        "",
        _line([c.name for c in columns]),
        _line(["---"] + ["---:"] * (len(columns) - 1)),
        *(_line(cells) for cells in table),
        "",
        *(f"* {note}" for note in NOTES),
        "",
        _line(["provenance", ""]),
        _line(["---", "---"]),
        *(_line(list(item)) for item in _with_n(rows, provenance).items()),
    ]
    return "\n".join(lines) + "\n"


def _with_n(rows: Sequence[Row], provenance: dict[str, str]) -> dict[str, str]:
    return {**provenance, "images a row": f"{rows[0].n:,}"}


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    return " ".join(text.split())


def _code_parts(note: str) -> list[tuple[str, bool]]:
    """A note cut at its backticks: (text, is code)."""
    return [(part, index % 2 == 1) for index, part in enumerate(note.split("`"))]


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
