"""Curves of the report as PNG data URIs, in a light and a dark version.

Figures are drawn without pyplot, so nothing global changes and nothing needs a display.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product, repeat

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from ...schema import printable
from ...training.health.reference import Span, StageSpan
from ..rows import REAL, STUDENT, TEACHER, Row
from ..suite import Suite
from .pictures import data_uri

CurvePoint = tuple[float, float]
ValueOf = Callable[[Row], tuple[float, float, float]]  # value, low, high

LOG_RANGE = 20  # a curve that spans more is drawn on a log axis
NAME = 30  # characters of a name in a legend
MARKERS = "Ds^v"  # of students, once every colour is taken
BESIDE = 3  # students whose names have room within the axes; those of more stand below
CROWD = 16  # students that colours and markers tell apart; more share one look and name
LINE = 0.2  # inches a line of a legend
# Logged for every player, and shown after its losses.
HOUSEKEEPING = {"gradient_norm": "gradient norm", "lr": "learning rate"}


@dataclass(frozen=True)
class Frame:
    """Width and height of a drawing and the margins of its axes, in inches.

    Fixed margins align the axes on the page; the sizes keep text readable on a phone.
    """

    width: float
    height: float
    above: float
    left: float = 0.66
    right: float = 0.2
    below: float = 0.5


QUALITY, TRAINING = Frame(4.8, 3.1, above=0.08), Frame(3.9, 2.3, above=0.25)


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance: ink for axes and text, then one for each kind of row."""

    ink: str
    grid: str
    teacher: str
    students: tuple[str, ...]
    untrained: str
    real: str


Drawing = Callable[[Axes, list, Theme], None]
LIGHT = Theme(
    "#3d4451",
    "#e3e6ea",
    "#2563a8",
    ("#d9541e", "#8250c4", "#a87500", "#c22f74"),
    "#8a919c",
    "#2f8f5b",
)
DARK = Theme(
    "#c3c9d2",
    "#343a44",
    "#74b3f0",
    ("#ff9566", "#b898f5", "#e2b23c", "#f288b8"),
    "#8d95a1",
    "#63c792",
)


@dataclass(frozen=True)
class Picture:
    """One drawing, as data URIs for light and dark pages."""

    title: str
    light: str
    dark: str


@dataclass(frozen=True)
class Panel:
    """Pictures that belong together, under one heading."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Series:
    """Scores of one sampler against what they cost, with intervals; sorted by cost."""

    model: str
    name: str
    cost: list[float]
    value: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Curve:
    """One logged number over all updates of a run, and where its stages end.

    player: its place among the players, which has a colour. band: what healthy runs had.
    """

    points: list[CurvePoint]
    stages: Sequence[StageSpan]
    player: int
    band: Sequence[Span] = ()


def quality_panels(rows: Sequence[Row], suite: Suite) -> list[Panel]:
    """The headline's scores against NFE and against time, one picture each. Empty where nothing was
    made."""
    made = [row for row in rows if row.model != REAL]
    timed = [row for row in rows if row.seconds or row.model == REAL]
    panels = []
    if made:
        panels.append(_quality(rows, suite, "network evaluations an image", lambda row: row.nfe))
    if any(row.seconds for row in made):
        title = "milliseconds an image"
        panels.append(_quality(timed, suite, title, lambda row: 1e3 * (row.seconds or 0)))
    return [panel for panel in panels if panel.pictures]


def training_panels(
    curves: dict[str, list[CurvePoint]],
    stages: Sequence[StageSpan] = (),
    bands: Mapping[str, Sequence[Span]] | None = None,
) -> list[Panel]:
    """One panel a player, one picture a quantity; points that are not finite are left out.

    curves: "player: quantity" → [(update, value), …]. stages: in order, updates counted from the
    start of the run. bands: "player: quantity" → what healthy runs had.
    """
    players: dict[str, list[tuple[str, str]]] = {}
    for name in curves:
        player, colon, quantity = name.partition(": ")
        players.setdefault(player if colon else "", []).append((quantity or player, name))
    panels = []
    for place, player in enumerate(sorted(players, key=_player_order)):
        pictures = []
        for quantity, name in sorted(players[player], key=_quantity_order):
            points = [(x, y) for x, y in curves[name] if abs(y) < float("inf")]
            title = HOUSEKEEPING.get(quantity, quantity)
            curve = [Curve(points, stages, place, (bands or {}).get(name, ()))]
            pictures += [_both(title, _draw_training, curve, TRAINING)] if points else []
        panels += [Panel(player or "other", pictures)] if pictures else []
    return panels


def _player_order(player: str) -> tuple[bool, bool, str]:
    return (player == "", player != "student", player)


def _quantity_order(named: tuple[str, str]) -> tuple[bool, str]:
    return (named[0] in HOUSEKEEPING, named[0])


def _quality(rows: Sequence[Row], suite: Suite, title: str, cost: Callable[[Row], float]) -> Panel:
    draw = _draw_quality(title)
    pictures = []
    for metric in suite.compared:
        scored = [row for row in rows if metric.name in row.scores]
        series = _series(scored, cost, value_of(metric.name))
        if any(one.model != REAL for one in series):
            pictures.append(_both(metric.title, draw, series, _roomy(series)))
    return Panel(f"Quality against {title}", pictures)


def value_of(metric: str) -> ValueOf:
    """Value, low and high of the score of a metric."""
    return lambda row: (row.value(metric), *row.scores[metric].ends)


def _series(rows: Sequence[Row], cost: Callable[[Row], float], score: ValueOf) -> list[Series]:
    result = []
    for model, source in dict.fromkeys((row.model, row.source) for row in rows):
        mine = [row for row in rows if (row.model, row.source) == (model, source)]
        columns = zip(*sorted((cost(row), *score(row)) for row in mine), strict=True)
        result.append(Series(model, _name(model, source), *map(list, columns)))
    if not _crowd(result):
        return result
    names = chain([f"{_students(result)} students"], repeat(""))
    return [replace(one, name=next(names)) if one.model == STUDENT else one for one in result]


def _students(series: Sequence[Series]) -> int:
    return sum(one.model == STUDENT for one in series)


def _crowd(series: Sequence[Series]) -> bool:
    return _students(series) > CROWD


def _roomy(series: Sequence[Series]) -> Frame:
    """The frame of a quality picture, taller where its names stand below the axes."""
    named = sum(bool(one.name) for one in series)
    names = LINE * -(-named // 2) if _students(series) > BESIDE else 0
    return replace(QUALITY, height=QUALITY.height + names, below=QUALITY.below + names)


def _name(model: str, source: str) -> str:
    """A legend's entry; of a long source the end, which tells runs apart."""
    if model != STUDENT or not source:
        return "real images at this n" if model == REAL else model
    name = printable(f"{model} {source}")
    return name if len(name) <= NAME else f"{model} …{source[len(model) + 2 - NAME :]}"


def _both(title: str, draw: Drawing, data: list, frame: Frame) -> Picture:
    return Picture(title, _render(draw, data, LIGHT, frame), _render(draw, data, DARK, frame))


def _render(draw: Drawing, data: list, theme: Theme, frame: Frame) -> str:
    width, height = frame.width, frame.height
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    right, top = 1 - frame.right / width, 1 - frame.above / height
    figure.subplots_adjust(frame.left / width, frame.below / height, right, top)
    axes = figure.add_subplot()
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.ink, length=0, labelsize=9.5)
    draw(axes, data, theme)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=170, transparent=True)
    return data_uri(out.getvalue())


def _draw_quality(xlabel: str) -> Drawing:
    def draw(axes: Axes, series: list[Series], theme: Theme) -> None:
        looks = product(MARKERS, theme.students)
        if _crowd(series):
            looks = repeat((".", theme.students[0]))
        for one in series:
            look = next(looks) if one.model == STUDENT else ("D", theme.untrained)
            _draw_series(axes, one, theme, look)
        ticks = sorted({cost for one in series if one.model != REAL for cost in one.cost})
        axes.set_xscale("log")
        axes.set_xticks(_apart(ticks), [_tick(tick) for tick in _apart(ticks)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(xlabel, color=theme.ink, fontsize=10)
        if all(value > 0 for one in series for value in one.value):
            _log_y(axes)
        place = {"loc": "best"}
        if _students(series) > BESIDE:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 0), "ncols": 2}
            place["bbox_transform"] = axes.figure.transFigure
        style = {"fontsize": 9, "frameon": False, "labelcolor": theme.ink, "handlelength": 1.6}
        legend = axes.legend(**place, **style)
        legend.set_zorder(5)
        _as_written(legend.get_texts())

    return draw


def _draw_series(axes: Axes, one: Series, theme: Theme, look: tuple[str, str]) -> None:
    """look: marker and colour of what is neither the teacher nor real."""
    if one.model == REAL:
        line = axes.axhline(one.value[0], color=theme.real, linestyle=(0, (4, 3)))
        line.set_label(one.name)
    elif one.model == TEACHER:
        axes.fill_between(one.cost, one.low, one.high, color=theme.teacher, alpha=0.22, linewidth=0)
        axes.plot(one.cost, one.value, "o-", color=theme.teacher, markersize=4, label=one.name)
    else:
        below = [max(0.0, v - low) for v, low in zip(one.value, one.low, strict=True)]
        above = [max(0.0, high - v) for v, high in zip(one.value, one.high, strict=True)]
        marker, color = look
        style = {"fmt": f"{marker}:", "markersize": 6, "capsize": 3, "linewidth": 1.2, "zorder": 4}
        style |= {"color": color, "label": one.name or None}
        axes.errorbar(one.cost, one.value, (below, above), **style)


def _draw_training(axes: Axes, curves: list[Curve], theme: Theme) -> None:
    (curve,) = curves
    x, y = zip(*curve.points, strict=True)
    color = theme.students[curve.player % len(theme.students)]
    axes.plot(x, y, color=color, linewidth=1.2, marker="." if len(x) == 1 else None)
    for begin, end, low, high in curve.band:
        axes.fill_between((begin, end), low, high, color=theme.grid, linewidth=0, zorder=0)
    axes.set_xlabel("update", color=theme.ink, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
    ends = [0, *(stage.end for stage in curve.stages)]
    axes.set_xlim(0, max(*ends, *x, 1))
    if min(y) > 0 and max(y) > LOG_RANGE * min(y):
        _log_y(axes)
    if len(curve.stages) < 2:
        return
    for name, start, _ in curve.stages:
        if start:
            axes.axvline(start, color=theme.ink, linewidth=0.8, linestyle=(0, (2, 3)))
        place = {"xy": (start, 1), "xycoords": axes.get_xaxis_transform()}
        offset = {"xytext": (4, 2), "textcoords": "offset points"}
        text = axes.annotate(_short(name), **place, **offset, color=theme.ink, fontsize=8.5)
        _as_written([text])


def _short(name: str) -> str:
    return name if len(name) <= NAME // 2 else name[: NAME // 2 - 1] + "…"


def _as_written(texts: Sequence[Text]) -> None:
    """Names are anyone's: a dollar sign in them starts no formula."""
    for text in texts:
        text.set_parse_math(False)


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 100 * low else (1, 3) if high < 1e4 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _apart(ticks: list[float]) -> list[float]:
    """Those ticks whose labels do not touch on a log axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= 1.4 * kept[-1]:
            kept.append(tick)
    return kept


def _tick(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
