"""The result of an evaluation: results.json, report.md, table.tex, a self-contained report.html.

The page carries its styles, its one script and its pictures inside and asks no server for anything;
its content security policy admits exactly that style and that script, by their hashes. Of large
images it holds thumbnails, with links to the full ones beside it. Everything that is put into the
page is escaped.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor

from ...files import read_text, write_whole
from ...schema import ConfigError, printable
from ...training.health.monitor import Record, Signal
from ...training.health.reference import Span, StageSpan
from ..protocol import require_one
from ..rows import Row, read, written
from ..suite import Suite
from .costs import cost_notes, cost_tables
from .figures import CurvePoint, training_panels
from .headline import headline
from .latex import latex
from .outliers import Outlier, Outliers
from .pairs import Pair, Pairs
from .pictures import FOLDER, SLIDE, Album, Strip, clipped, mosaic
from .quality import quality_panels
from .table import Table, in_markdown, notes_of, tables_of

HERE = files("stepdistill.evaluation.report")
ACROSS, STRIP = 5, 10  # images in a row under the slider, and of the static grid
WORDS, FEW_WORDS = 300, 100  # characters of a prompt that are shown, and below a picture
HEALTH = ("last value", "allowed", "usual on digits", "verdict")


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Images (rows, cols, c, h, w) in [−1, 1]; a column shares its noise, a row its sampler.

    pair: the rows between which the slider starts, left and right. note: what a reader must know of
    rows that are not alike. asked: the prompts of the columns, none where there are none.
    """

    title: str
    images: Tensor
    row_labels: list[str]
    pair: tuple[int, int] = (0, -1)
    note: str = ""
    asked: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Within:
    """Images (n, c, h, w) of one prompt or label, those of each sampler by its label."""

    asked: str
    images: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class TrajectoryStrip:
    """Images (takes, frames, c, h, w) in [−1, 1] along a way: x̂₀ of one sampler's, or a student's
    while it is trained; a label for each frame."""

    title: str
    images: Tensor
    frame_labels: list[str]


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report shows; what is empty is left out.

    suite: what the rows were scored by. names: shorter ones of sources. remark: a sentence that
    must not be missed. failed: sources that could not be scored, and why. unasked: those that were
    not asked for what others were, and what instead. curves: "player: quantity" → [(update, value),
    …]. bands: the same → [(from update, to update, least, most), …] of healthy runs. stages: in
    order, updates counted from the start of the run. costs, provenance: name → text. protocol: of
    every metric, see `protocol`. config: the resolved configuration.
    """

    title: str
    rows: Sequence[Row]
    suite: Suite
    provenance: dict[str, str]
    names: dict[str, str] = field(default_factory=dict)
    remark: str = ""
    failed: dict[str, str] = field(default_factory=dict)
    unasked: dict[str, str] = field(default_factory=dict)
    costs: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[CurvePoint]] = field(default_factory=dict)
    bands: dict[str, list[Span]] = field(default_factory=dict)
    stages: Sequence[StageSpan] = ()
    grids: Sequence[ImageGrid] = ()
    within: Sequence[Within] = ()
    pairs: Sequence[Pairs] = ()
    films: Sequence[TrajectoryStrip] = ()
    trained: Sequence[TrajectoryStrip] = ()
    worst: Sequence[Outliers] = ()
    health: Record = Record([], [])
    config: str = ""
    protocol: dict[str, dict[str, Any]] = field(default_factory=dict)

    def named(self) -> Report:
        """The same with sources by their shorter names."""
        rows = [replace(row, source=self.names.get(row.source, row.source)) for row in self.rows]
        return replace(self, rows=rows)


def write_report(folder: Path, report: Report) -> None:
    """Write results.json, report.md, report.html and table.tex into `folder`, made if missing, and
    large images into its FOLDER.

    Raises ValueError for no rows, rows of unequal n, scores that are not finite, or pictures whose
    labels do not match; then nothing is written.
    """
    _check(report)
    protocol = {"protocol": report.protocol} if report.protocol else {}
    results = json.dumps(written(report.rows) | protocol, indent=1, allow_nan=False)
    folder, shown = Path(folder), report.named()
    album = Album(folder / FOLDER)
    made = {
        "results.json": results + "\n",
        "report.md": markdown(shown),
        "report.html": page(shown, album),
        "table.tex": latex(shown.rows, shown.suite),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        write_whole(folder / name, text)
    album.prune()


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
    for metric in report.suite.metrics:
        require_one(list(report.rows), metric.name)
    for grid in report.grids:
        _check_labels("grid", grid.title, grid.images, grid.row_labels, axis=0)
    for film in (*report.films, *report.trained):
        _check_labels("film", film.title, film.images, film.frame_labels, axis=1)


def _check_labels(kind: str, title: str, images: Tensor, labels: list[str], axis: int) -> None:
    if images.ndim != 5 or images.shape[axis] != len(labels):
        raise ValueError(
            f"{kind} '{title}' has images {tuple(images.shape)} and {len(labels)} labels: "
            f"expected 5 dimensions and one label for each entry of dimension {axis}"
        )


# The page


def page(report: Report, album: Album | None = None) -> str:
    """The HTML page. album: for the images that it links to, None to keep none."""
    album = album or Album()
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
        tables=_tables(report),
        missing=missing(report),
        notes=[_code_parts(note) for note in _notes(report)],
        quality=quality_panels(report.rows, report.suite),
        training=training_panels(report.curves, report.stages, report.bands),
        grids=[_Pictures.of(grid, album) for grid in report.grids],
        within=[(clipped(one.asked, WORDS), _samples(one, album)) for one in report.within],
        pairs=[(one, _sides(one, album)) for one in report.pairs],
        films=[(film, _frames(film)) for film in report.films],
        trained=[(film, _frames(film)) for film in report.trained],
        worst=[(one, [_card(outlier, album) for outlier in one.found]) for one in report.worst],
        signals=[(signal, *_signal(signal)) for signal in report.health.signals],
        health=HEALTH,
        provenance=_provenance(report),
    )


@dataclass(frozen=True)
class _Pictures:
    """A grid as pictures: one per row for the slider and a strip per row for the static grid.

    asked: the prompts of its columns that are shown."""

    shown: ImageGrid
    asked: list[str]
    wipes: list[str]
    strips: list[Strip]
    left: int
    right: int

    @classmethod
    def of(cls, grid: ImageGrid, album: Album) -> _Pictures:
        rows = len(grid.images)
        left, right = (i % rows for i in grid.pair)
        across = min(ACROSS, grid.images.shape[1])
        wipes = [mosaic(row, across, SLIDE) for row in grid.images] if left != right else []
        strips = [
            album.strip(row[:STRIP], min(STRIP, len(row)), label)
            for row, label in zip(grid.images, grid.row_labels, strict=True)
        ]
        asked = [clipped(prompt, WORDS) for prompt in grid.asked[:STRIP]]
        return cls(grid, asked, wipes, strips, left, right)


def _samples(one: Within, album: Album) -> list[tuple[str, Strip]]:
    """The images of each sampler, in two columns."""
    said = clipped(one.asked, FEW_WORDS)
    return [(name, album.strip(x, 2, f"{name}: {said}")) for name, x in one.images.items()]


def _sides(one: Pairs, album: Album) -> list[tuple[str, list[tuple[Strip, str, str]]]]:
    """Heading, and cards of picture, distance and words, of the nearest and the farthest."""

    def card(pair: Pair, number: int, which: str) -> tuple[Strip, str, str]:
        both = torch.stack([pair.student, pair.teacher])
        strip = album.strip(both, 2, f"{one.student} beside {one.teacher}, {which} {number}")
        return strip, f"distance {pair.distance:.3f}", clipped(pair.asked, FEW_WORDS)

    lists = {"nearest": one.best, "farthest": one.worst}
    return [
        (which, [card(p, i, which) for i, p in enumerate(of, 1)]) for which, of in lists.items()
    ]


def _frames(film: TrajectoryStrip) -> list[tuple[str, str]]:
    """(label, picture) of each frame, all its takes below one another."""
    pictures = [mosaic(frame, columns=1) for frame in film.images.transpose(0, 1)]
    return list(zip(film.frame_labels, pictures, strict=True))


def _card(outlier: Outlier, album: Album) -> tuple[Strip, str, list[str]]:
    """Picture, heading and small print of one outlier."""
    heading, *small = _said(outlier)
    both = torch.stack([outlier.image, outlier.nearest])
    return album.strip(both, 2, f"{heading}, and the real image nearest to it"), heading, small


def _said(outlier: Outlier) -> list[str]:
    """What there is to say of an outlier, the heading first."""
    distance = f"distance {outlier.distance:.1f}"
    if outlier.read is None:
        return [distance]
    share = f"{100 * outlier.confidence:.0f} %"
    if outlier.label is None:
        return [distance, f"read as {outlier.read}: {share}"]
    heading = f"asked {outlier.label}, read as {outlier.read}"
    return [heading, f"confidence in {outlier.label}: {share}", distance]


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
        *(line for table in _tables(report) for line in _scores(table, report)),
        *(f"* {_plain(note)}" for note in _notes(report)),
        "",
    ]
    for title, found in {"not scored": report.failed, "not measured": missing(report)}.items():
        lines += _words([title, "because"], found) if found else []
    if report.health.signals:
        signals = [[s.name, *_signal(s), s.verdict] for s in report.health.signals]
        lines += _table(["training health", *HEALTH], signals)
    if report.costs:
        lines += _words(["cost", ""], report.costs)
    lines += _words(["provenance", ""], _provenance(report))
    return "\n".join(lines)


def _scores(table: Table, report: Report) -> list[str]:
    """A table of scores, below its title if it has one."""
    title = [f"## {_plain(table.title)}", ""] if table.title else []
    cells = [[f"{c.text(r)} {c.small(r)}".strip() for c in table.columns] for r in report.rows]
    return title + _table([c.name for c in table.columns], cells)


def _words(header: list[str], items: dict[str, str]) -> list[str]:
    return _table(header, [list(item) for item in items.items()], "---")


def _table(header: list[str], body: list[list[str]], align: str = "---:") -> list[str]:
    rule = ["---"] + [align] * (len(header) - 1)
    return [_line(header), _line(rule), *map(_line, body), ""]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    return in_markdown(" ".join(text.split()))


# Texts of both


def _tables(report: Report) -> list[Table]:
    return [*tables_of(report.rows, report.suite), *cost_tables(report.rows)]


def _notes(report: Report) -> list[str]:
    said = report.protocol.items()
    first = {name: of["of"] for name, of in said if of.get("of", of["n"]) < of["n"]}
    return [*notes_of(report.rows, report.suite, first), *cost_notes(report.rows)]


def missing(report: Report) -> dict[str, str]:
    """What was not measured, and why: metrics of all models, and models that some do not fit."""
    reasons: dict[str, list[str]] = {}
    for name, reason in report.suite.skipped.items():
        reasons.setdefault(reason, []).append(name)
    skipped = {", ".join(names): reason for reason, names in reasons.items()}
    asked = [metric.name for metric in report.suite.metrics if metric.needs_asked]
    without = f" Not measured of it: {', '.join(asked)}." if asked else ""
    apart = {name: f"{reason}.{without}" for name, reason in report.unasked.items()}
    return skipped | apart


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
