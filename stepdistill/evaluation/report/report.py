"""The result of an evaluation: results.json, report.md, table.tex, a self-contained report.html.

The page carries its styles, its one script and its pictures inside and asks no server for anything;
its content security policy admits exactly that style and that script, by their hashes. Everything
that is put into the page is escaped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor

from ...files import read_text, write_whole
from ...schema import ConfigError, printable
from ...training.health.monitor import Record, Signal
from ...training.health.reference import Span, StageSpan
from ..rows import Row, read, written
from ..suite import Suite
from .costs import cost_columns, cost_notes
from .figures import CurvePoint, mosaic, training_panels
from .latex import latex
from .outliers import Outlier, Outliers
from .quality import quality_panels
from .table import Column, columns_of, headline, in_markdown, notes_of

HERE = files("stepdistill.evaluation.report")
ACROSS, STRIP = 5, 10  # images in a row under the slider, and in a row of the static grid
HEALTH = ("last value", "allowed", "usual on digits", "verdict")


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Images (rows, cols, c, h, w) in [−1, 1]; a column shares its noise, a row its sampler.

    pair: the rows between which the slider starts, left and right.
    """

    title: str
    images: Tensor
    row_labels: list[str]
    pair: tuple[int, int] = (0, -1)


@dataclass(frozen=True, eq=False)
class TrajectoryStrip:
    """x̂₀ (takes, frames, c, h, w) in [−1, 1] along one sampler's way; a label for each frame."""

    title: str
    images: Tensor
    frame_labels: list[str]


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report shows; what is empty is left out.

    suite: what the rows were scored by. remark: a sentence that must not be missed. curves:
    "player: quantity" → [(update, value), …]. bands: the same → [(from update, to update, least,
    most), …] of healthy runs. stages: in order, updates counted from the start of the run. costs,
    provenance: name → text. config: the resolved configuration.
    """

    title: str
    rows: Sequence[Row]
    suite: Suite
    provenance: dict[str, str]
    remark: str = ""
    costs: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[CurvePoint]] = field(default_factory=dict)
    bands: dict[str, list[Span]] = field(default_factory=dict)
    stages: Sequence[StageSpan] = ()
    grids: Sequence[ImageGrid] = ()
    films: Sequence[TrajectoryStrip] = ()
    worst: Sequence[Outliers] = ()
    health: Record = Record([], [])
    config: str = ""


def write_report(folder: Path, report: Report) -> None:
    """Write results.json, report.md, report.html and table.tex into `folder`, made if missing.

    Raises ValueError for no rows, rows of unequal n, scores that are not finite, or pictures whose
    labels do not match; then nothing is written.
    """
    _check(report)
    results = json.dumps(written(report.rows), indent=1, allow_nan=False)
    made = {
        "results.json": results + "\n",
        "report.md": markdown(report),
        "report.html": page(report),
        "table.tex": latex(report.rows, report.suite),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        write_whole(folder / name, text)


def read_results(path: Path) -> list[Row]:
    """The rows of a results.json, the floor last. Raises ConfigError if it holds none."""
    try:
        return read(json.loads(read_text(Path(path))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged ({error}): delete it, and run again") from error


def _check(report: Report) -> None:
    if not report.rows:
        raise ValueError("a report needs at least one row")
    sizes = sorted({row.n for row in report.rows})
    if len(sizes) > 1:
        raise ValueError(f"rows of n = {sizes}: distances at different n do not compare, use one n")
    for grid in report.grids:
        _check_labels("grid", grid.title, grid.images, grid.row_labels, axis=0)
    for film in report.films:
        _check_labels("film", film.title, film.images, film.frame_labels, axis=1)


def _check_labels(kind: str, title: str, images: Tensor, labels: list[str], axis: int) -> None:
    if images.ndim != 5 or images.shape[axis] != len(labels):
        raise ValueError(
            f"{kind} '{title}' has images {tuple(images.shape)} and {len(labels)} labels: "
            f"expected 5 dimensions and one label for each entry of dimension {axis}"
        )


# The page


def page(report: Report) -> str:
    """The HTML page."""
    style, script = _asset("report.css"), _asset("report.js")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.from_string(_asset("report.html.j2")).render(
        report=report,
        style=style,
        script=script,
        policy=_policy(style, script),
        headline=headline(report.rows, report.suite),
        columns=columns_of(report.rows, report.suite),
        prices=cost_columns(report.rows),
        notes=[_code_parts(note) for note in _notes(report)],
        quality=quality_panels(report.rows, report.suite),
        training=training_panels(report.curves, report.stages, report.bands),
        grids=[_Pictures.of(grid) for grid in report.grids],
        films=[(film, _frames(film)) for film in report.films],
        worst=[(one, [_card(outlier) for outlier in one.found]) for one in report.worst],
        signals=[(signal, *_signal(signal)) for signal in report.health.signals],
        health=HEALTH,
        provenance=_provenance(report),
    )


@dataclass(frozen=True)
class _Pictures:
    """A grid as pictures: one per row for the slider and one per row for the static grid."""

    title: str
    labels: list[str]
    wipes: list[str]
    strips: list[str]
    left: int
    right: int

    @classmethod
    def of(cls, grid: ImageGrid) -> _Pictures:
        rows = len(grid.images)
        left, right = (i % rows for i in grid.pair)
        wipes = [mosaic(row, min(ACROSS, len(row))) for row in grid.images] if left != right else []
        strips = [mosaic(row[:STRIP], min(STRIP, len(row))) for row in grid.images]
        return cls(grid.title, grid.row_labels, wipes, strips, left, right)


def _frames(film: TrajectoryStrip) -> list[tuple[str, str]]:
    """(label, picture) of each frame, all its takes below one another."""
    pictures = [mosaic(frame, columns=1) for frame in film.images.transpose(0, 1)]
    return list(zip(film.frame_labels, pictures, strict=True))


def _card(outlier: Outlier) -> tuple[str, str, list[str]]:
    """Picture, heading and small print of one outlier."""
    picture = mosaic(torch.stack([outlier.image, outlier.nearest]), columns=2)
    distance = f"distance {outlier.distance:.1f}"
    if outlier.read is None:
        return picture, distance, []
    share = f"{100 * outlier.confidence:.0f} %"
    if outlier.label is None:
        return picture, distance, [f"read as {outlier.read}: {share}"]
    heading = f"asked {outlier.label}, read as {outlier.read}"
    return picture, heading, [f"confidence in {outlier.label}: {share}", distance]


def _code_parts(note: str) -> list[tuple[str, bool]]:
    """A note cut at its backticks: (text, is code)."""
    return [(part, index % 2 == 1) for index, part in enumerate(note.split("`"))]


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy: this style, this script, pictures inside the page, no more."""
    only = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src 'sha256-{only[0]}'; script-src 'sha256-{only[1]}'"
    )


# The same in Markdown


def markdown(report: Report) -> str:
    """The tables as Markdown."""
    lines = [
        f"# {_plain(report.title)}",
        "",
        _plain(headline(report.rows, report.suite)),
        "",
        *([_plain(report.remark), ""] if report.remark else []),
        *(f"* **alarm**: {_plain(alarm)}" for alarm in report.health.alarms),
        *[""][: len(report.health.alarms)],
        *_rows(report.rows, columns_of(report.rows, report.suite)),
        *_rows([row for row in report.rows if row.costs], cost_columns(report.rows)),
        *(f"* {_plain(note)}" for note in _notes(report)),
        "",
    ]
    if report.health.signals:
        signals = [[s.name, *_signal(s), s.verdict] for s in report.health.signals]
        lines += _table(["training health", *HEALTH], signals)
    if report.costs:
        lines += _table(["cost", ""], [list(item) for item in report.costs.items()])
    lines += _table(["provenance", ""], [list(item) for item in _provenance(report).items()])
    return "\n".join(lines)


def _rows(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Nothing without columns."""
    cells = [[f"{c.text(row)} {c.small(row)}".strip() for c in columns] for row in rows]
    return _table([c.name for c in columns], cells) if columns else []


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return [_line(header), _line(rule), *map(_line, body), ""]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    return in_markdown(" ".join(text.split()))


# Texts of both


def _notes(report: Report) -> list[str]:
    return [*notes_of(report.rows, report.suite), *cost_notes(report.rows)]


def _provenance(report: Report) -> dict[str, str]:
    return {**report.provenance, "images a row": f"{report.rows[0].n:,}"}


def _signal(signal: Signal) -> tuple[str, str, str]:
    """Last value, allowed and usual range of a signal as text."""
    value = f"{signal.value:.3g}" if math.isfinite(signal.value) else "not finite"
    usual = _range(*signal.usual) if signal.usual else "–"
    return value, _range(signal.low, signal.high), usual


def _range(low: float, high: float) -> str:
    """From least to most as text; an infinite end is left out."""
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:.3g} – {high:.3g}"
    if math.isfinite(low):
        return f"≥ {low:.3g}"
    return f"≤ {high:.3g}" if math.isfinite(high) else "any"
