"""Quality against cost: the headline's scores against NFE, time and parameters, as pictures.

The Pareto line joins the models that no other beats: none is as good or better at the same cost or
less, without being equal in both. It is a step, for between two models nothing was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product, repeat
from math import inf

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullLocator

from ...schema import printable
from ..metric import Metric
from ..rows import REAL, STUDENT, TEACHER, Row, timing
from ..suite import Suite
from .figures import NAME, Drawing, Frame, Panel, Theme, as_written, both, log_y

ValueOf = Callable[[Row], tuple[float, float, float]]  # value, low, high

NFE = "network evaluations an image"
PARETO = "Pareto line"
MARKERS = "Ds^v"  # of students, once every colour is taken
BESIDE = 3  # students whose names have room within the axes; those of more stand below
CROWD = 16  # students that colours and markers tell apart; more share one look and name
LINE = 0.2  # inches a line of a legend
QUALITY = Frame(4.8, 3.1, above=0.08)


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
class Axis:
    """A cost that scores are drawn against; of(row) is None where nobody knows it."""

    title: str
    of: Callable[[Row], float | None]


def quality_panels(rows: Sequence[Row], suite: Suite) -> list[Panel]:
    """The headline's scores against NFE, time and parameters, one picture each, without costs that
    are unknown or the same for all. Empty where nothing was made."""
    panels = []
    for axis in axes_of(rows):
        costs = {axis.of(row) for row in rows if row.model != REAL} - {None}
        if len(costs) > 1 or (costs and axis.title == NFE):
            known = [row for row in rows if row.model == REAL or axis.of(row) is not None]
            panels.append(_quality(known, suite, axis))
    return [panel for panel in panels if panel.pictures]


def axes_of(rows: Sequence[Row]) -> list[Axis]:
    """The costs of a table's rows that quality is drawn against."""
    taken = timing(rows)
    return [
        Axis(NFE, lambda row: row.nfe or None),
        Axis("milliseconds an image", lambda row: 1e3 * (taken(row) or 0) or None),
        Axis("parameters", lambda row: row.parameters or None),
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of (cost, loss) no other beats, at no more of one with less of the other; in order of
    cost, and the first of equal ones."""
    found, least = [], inf
    for i in sorted(range(len(points)), key=points.__getitem__):
        if points[i][1] < least:
            found.append(i)
            least = points[i][1]
    return found


def _quality(rows: Sequence[Row], suite: Suite, axis: Axis) -> Panel:
    draw = _draw_quality(axis.title)
    pictures = []
    for metric in suite.compared:
        scored = [row for row in rows if metric.name in row.scores]
        series = _series(scored, lambda row: axis.of(row) or 0, value_of(metric.name))
        if any(one.model != REAL for one in series):
            series += pareto_line(scored, axis, metric)
            pictures.append(both(metric.title, draw, series, _roomy(series)))
    return Panel(f"Quality against {axis.title}", pictures)


def pareto_line(rows: Sequence[Row], axis: Axis, metric: Metric) -> list[Series]:
    """The best that a cost buys, as far as these rows know: from each model that none beats to the
    next one's cost. Nothing where there is one model alone."""
    made = [row for row in rows if row.model != REAL]
    points = [(axis.of(row), metric.loss(row.value(metric.name))) for row in made]
    if len(points) < 2:
        return []
    front = pareto(points)
    cost = [*(points[i][0] for i in front), max(points)[0]]
    value = [made[i].value(metric.name) for i in [*front, front[-1]]]
    return [Series(PARETO, PARETO, cost, value, value, value)]


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
            log_y(axes)
        place = {"loc": "best"}
        if _students(series) > BESIDE:
            place = {"loc": "lower left", "bbox_to_anchor": (0, 0), "ncols": 2}
            place["bbox_transform"] = axes.figure.transFigure
        style = {"fontsize": 9, "frameon": False, "labelcolor": theme.ink, "handlelength": 1.6}
        legend = axes.legend(**place, **style)
        legend.set_zorder(5)
        as_written(legend.get_texts())

    return draw


def _draw_series(axes: Axes, one: Series, theme: Theme, look: tuple[str, str]) -> None:
    """look: marker and colour of what is neither the teacher nor real."""
    if one.model == PARETO:
        style = {"drawstyle": "steps-post", "linewidth": 5, "alpha": 0.18, "zorder": 1}
        axes.plot(one.cost, one.value, color=theme.ink, label=one.name, **style)
    elif one.model == REAL:
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


def _apart(ticks: list[float]) -> list[float]:
    """Those ticks whose labels do not touch on a log axis."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or tick >= 1.4 * kept[-1]:
            kept.append(tick)
    return kept


def _tick(value: float) -> str:
    if value >= 10_000:
        return EngFormatter(places=1, sep="")(value)  # 859.5M
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"
