"""Pictures of the report as PNG data URIs: curves in a light and a dark version, and image strips.

Figures are drawn without pyplot, so nothing global changes and nothing needs a display.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from PIL import Image
from torch import Tensor

from stepdistill.evaluation.suite import REAL, TEACHER, Row

Point = tuple[float, float]
SIZE = (4.4, 3.2)  # inches: text stays readable on a phone
STRIP_PIXELS = 48  # least height of an image in a strip
LOG_RANGE = 20  # a curve that spans more is drawn on a log axis


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance: ink for axes and text, then one for each kind of row."""

    ink: str
    grid: str
    teacher: str
    student: str
    untrained: str
    real: str


Draw = Callable[[Axes, list, Theme], None]
LIGHT = Theme("#3d4451", "#e3e6ea", "#2563a8", "#d9541e", "#8a919c", "#2f8f5b")
DARK = Theme("#c3c9d2", "#343a44", "#74b3f0", "#ff9566", "#8d95a1", "#63c792")


@dataclass(frozen=True)
class Picture:
    """One drawing, as data URIs for light and dark pages."""

    title: str
    light: str
    dark: str


@dataclass(frozen=True)
class Series:
    """Distances of one model against NFE, with 95 % intervals; sorted by NFE."""

    model: str
    nfe: list[int]
    value: list[float]
    low: list[float]
    high: list[float]


def quality_pictures(rows: Sequence[Row]) -> list[Picture]:
    """Distance against NFE, one picture a space. Empty where no row was generated."""
    made = [row for row in rows if row.model != REAL]
    if not made:
        return []
    domain = [(r.frechet, r.low, r.high) for r in rows]
    random = [(r.frechet_random, r.low_random, r.high_random) for r in rows]
    return [
        _both(f"Fréchet distance in {space}", _draw_quality, _series(rows, scores))
        for space, scores in (("domain-cnn", domain), ("random-conv", random))
    ]


def training_pictures(curves: dict[str, list[Point]]) -> list[Picture]:
    """One picture a curve name → [(update, value), …]; points that are not finite are left out."""
    finite = {
        name: [(x, y) for x, y in points if abs(y) < float("inf")]
        for name, points in curves.items()
    }
    return [_both(name, _draw_training, points) for name, points in finite.items() if points]


def strip(images: Tensor) -> str:
    """PNG data URI of images (cols, c, h, w) in [−1, 1] side by side, c = 1 or 3, clear gaps."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"strip of shape {tuple(images.shape)}: expected (cols, 1 or 3, h, w)")
    pixels = images.nan_to_num().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1)
    pixels = torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], 1)
    zoom = -(-STRIP_PIXELS // pixels.shape[2])
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    gap = max(2, zoom // 2)
    padded = torch.nn.functional.pad(pixels, (0, gap))
    row = padded.permute(2, 0, 3, 1).flatten(1, 2)[:, :-gap]
    out = io.BytesIO()
    Image.fromarray(row.contiguous().numpy(), "RGBA").save(out, "PNG", optimize=True)
    return _uri(out.getvalue())


def _series(rows: Sequence[Row], scores: list[tuple[float, float, float]]) -> list[Series]:
    models = dict.fromkeys(row.model for row in rows)
    result = []
    for model in models:
        mine = sorted((r.nfe, *s) for r, s in zip(rows, scores, strict=True) if r.model == model)
        result.append(Series(model, *(list(column) for column in zip(*mine, strict=True))))
    return result


def _both(title: str, draw: Draw, data: list) -> Picture:
    return Picture(title, _render(draw, data, LIGHT), _render(draw, data, DARK))


def _render(draw: Draw, data: list, theme: Theme) -> str:
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.ink, length=0, labelsize=9.5)
    draw(axes, data, theme)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=170, transparent=True)
    return _uri(out.getvalue())


def _draw_quality(axes: Axes, series: list[Series], theme: Theme) -> None:
    for one in series:
        _draw_series(axes, one, theme)
    ticks = sorted({nfe for one in series if one.model != REAL for nfe in one.nfe})
    axes.set_xscale("log")
    axes.set_xticks(_apart(ticks), [str(tick) for tick in _apart(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("network evaluations an image", color=theme.ink, fontsize=10)
    if all(value > 0 for one in series for value in one.value):
        _log_y(axes)
    legend = axes.legend(fontsize=9, frameon=False, labelcolor=theme.ink, handlelength=1.6)
    legend.set_zorder(5)


def _draw_series(axes: Axes, one: Series, theme: Theme) -> None:
    if one.model == REAL:
        label = "real images at this n"
        axes.axhline(one.value[0], color=theme.real, linestyle=(0, (4, 3)), label=label)
    elif one.model == TEACHER:
        axes.fill_between(one.nfe, one.low, one.high, color=theme.teacher, alpha=0.22, linewidth=0)
        axes.plot(one.nfe, one.value, "o-", color=theme.teacher, markersize=4, label=one.model)
    else:
        color = theme.student if one.model == "student" else theme.untrained
        below = [max(0.0, v - low) for v, low in zip(one.value, one.low, strict=True)]
        above = [max(0.0, high - v) for v, high in zip(one.value, one.high, strict=True)]
        style = {"fmt": "D:", "markersize": 6, "capsize": 3, "linewidth": 1.2, "zorder": 4}
        axes.errorbar(
            one.nfe, one.value, yerr=(below, above), color=color, label=one.model, **style
        )


def _draw_training(axes: Axes, points: list[Point], theme: Theme) -> None:
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=theme.student, linewidth=1.2)
    axes.set_xlabel("update", color=theme.ink, fontsize=10)
    if min(y) > 0 and max(y) > LOG_RANGE * min(y):
        _log_y(axes)


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 100 * low else (1, 3) if high < 1e4 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _apart(ticks: list[int]) -> list[int]:
    """Those ticks whose labels do not touch on a log axis."""
    kept: list[int] = []
    for tick in ticks:
        if not kept or tick >= 1.4 * kept[-1]:
            kept.append(tick)
    return kept


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
