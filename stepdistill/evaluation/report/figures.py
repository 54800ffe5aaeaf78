"""Curves of the report as PNG data URIs, in a light and a dark version.

Figures are drawn without pyplot, so nothing global changes and nothing needs a display.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from ...training.health.reference import Span, StageSpan
from .pictures import data_uri

CurvePoint = tuple[float, float]

LOG_RANGE = 20  # a curve that spans more is drawn on a log axis
NAME = 30  # characters of a name in a drawing
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


TRAINING = Frame(3.9, 2.3, above=0.25)


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
class Curve:
    """One logged number over all updates of a run, and where its stages end.

    player: its place among the players, which has a colour. band: what healthy runs had.
    """

    points: list[CurvePoint]
    stages: Sequence[StageSpan]
    player: int
    band: Sequence[Span] = ()


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
            pictures += [both(title, _draw_training, curve, TRAINING)] if points else []
        panels += [Panel(player or "other", pictures)] if pictures else []
    return panels


def _player_order(player: str) -> tuple[bool, bool, str]:
    return (player == "", player != "student", player)


def _quantity_order(named: tuple[str, str]) -> tuple[bool, str]:
    return (named[0] in HOUSEKEEPING, named[0])


def both(title: str, draw: Drawing, data: list, frame: Frame) -> Picture:
    """A drawing for light and for dark pages."""
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
        log_y(axes)
    if len(curve.stages) < 2:
        return
    for name, start, _ in curve.stages:
        if start:
            axes.axvline(start, color=theme.ink, linewidth=0.8, linestyle=(0, (2, 3)))
        place = {"xy": (start, 1), "xycoords": axes.get_xaxis_transform()}
        offset = {"xytext": (4, 2), "textcoords": "offset points"}
        text = axes.annotate(_short(name), **place, **offset, color=theme.ink, fontsize=8.5)
        as_written([text])


def _short(name: str) -> str:
    return name if len(name) <= NAME // 2 else name[: NAME // 2 - 1] + "…"


def as_written(texts: Sequence[Text]) -> None:
    """Names are anyone's: a dollar sign in them starts no formula."""
    for text in texts:
        text.set_parse_math(False)


def log_y(axes: Axes) -> None:
    """A log axis with labels that people read."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 100 * low else (1, 3) if high < 1e4 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())
