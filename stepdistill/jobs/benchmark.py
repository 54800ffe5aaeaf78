"""Methods at equal cost: `stepdistill compare A B … --budget 1e6 --seeds 3`.

Every config is trained at every budget with every seed, the updates of its stages and the samples
of its cache scaled by one factor. A budget counts network passes of one sample: a forward is 1, a
forward and its backward 3, whoever's network; a guided teacher's call is 2. All students are scored
on the same noise. The summary has, for each config, budget and number of steps, the mean over seeds
and its 95 % interval. Seconds are those of training alone, without the teacher's trajectories; the
memory is what all roles hold from update to update.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from rich.console import Console

from ..evaluation.intervals import interval
from ..evaluation.metric import Metric
from ..evaluation.report.table import in_markdown
from ..evaluation.rows import REAL, STUDENT, TEACHER, Row
from ..evaluation.suite import Suite
from ..files import whole, write_whole
from ..runs.config import RunConfig
from ..runs.costs import held, sample_passes, scaled
from ..runs.folder import RunFolder
from ..runs.log import seconds_of
from ..runs.plan import rehearsal, walk
from ..schema import ConfigError
from .compare import modules_named, require_all, require_comparable, train_all
from .evaluate import score
from .sources import Opening
from .suites import require_suite

TOLERANCE = 0.05  # of a budget
MARKERS = "os^Dv"  # of neighbours whose colours are alike


@dataclass(frozen=True)
class Axis:
    """What a student's scores are drawn against, and which of a config's students are shown."""

    label: str
    of: Callable[["Summary"], float]
    fewest_steps: bool = True
    all_budgets: bool = True
    scale: str = "log"

    def shown(self, summaries: Sequence["Summary"]) -> list["Summary"]:
        """Those in the fewest steps, or at the largest budget, or both."""
        fewest = min(s.steps for s in summaries)
        largest = max(s.budget for s in summaries)
        few = [s for s in summaries if s.steps == fewest or not self.fewest_steps]
        return [s for s in few if s.budget == largest or self.all_budgets]


STEPS = Axis("evaluations an image, largest budget", lambda s: s.steps, False, False)
AXES = (
    Axis("network passes of one sample, fewest steps", lambda s: s.budget),
    STEPS,
    Axis("seconds of training, fewest steps", lambda s: s.seconds),
    Axis("MiB held in training, fewest steps", lambda s: s.bytes / 2**20, True, False, "linear"),
)


@dataclass(frozen=True)
class BudgetedConfig:
    """A config at a budget: its runs, one a seed, and the bytes that the roles of its largest
    stage hold from update to update."""

    config: str
    budget: float
    runs: list[RunConfig]
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What an entry reached in `steps` steps: (mean, low, high) over seeds of the scores that the
    suite compares by, and the mean of its training's seconds."""

    config: str
    budget: float
    steps: int
    scores: dict[str, tuple[float, float, float]]
    seconds: float
    bytes: int


def benchmark(
    configs: list[RunConfig],
    budgets: list[float],
    seeds: int,
    runs: Path,
    out: Path,
    size: tuple[int, int],
    console: Console,
) -> list[Summary]:
    """Train, score and summarise; what lies below `runs` already is not trained again.

    Writes comparison.md, comparison.json and comparison.png beside the report of all students.
    Raises ConfigError, before anything is written, for configs that cannot be trained, scaled or
    compared, and TrainingFailed, at the end, if some could not be trained to theirs."""
    entries = [entry for run in configs for entry in enter(run, budgets, seeds)]
    wanted = [run for entry in entries for run in entry.runs]
    against = require_comparable(wanted, runs)
    suite = [require_suite(run) for run in configs][0]
    costs = train_all(wanted, runs, console)
    opening = Opening(trusted=modules_named(wanted))
    sources = [runs / name for name in costs]
    rows = score(sources, against, out, size, opening, console, costs).rows
    summaries = [s for entry in entries for s in summarise(entry, rows, runs, suite.headline)]
    known = [row for row in rows if row.model in (TEACHER, REAL)]
    write_whole(out / "comparison.json", json.dumps([asdict(s) for s in summaries], indent=1))
    write_whole(out / "comparison.md", table(summaries, known, suite))
    draw(out / "comparison.png", summaries, known, suite)
    require_all(wanted, costs, out)
    return summaries


def enter(run: RunConfig, budgets: Sequence[float], seeds: int) -> Iterator[BudgetedConfig]:
    """A config at each budget. Raises ConfigError if it cannot be scaled to one."""
    with rehearsal(run) as stages:
        teacher = stages.setup.teacher
        most = max(sum(h.bytes for h in held(stages.trainer, teacher)) for _ in walk(stages))
    for budget in budgets:
        if not 1 <= budget < inf:
            raise ConfigError(f"--budget {budget:g}: must be a number of network passes")
        enough = scaled(run, budget / sample_passes(stages.setup))
        spent = sample_passes(replace(stages.setup, run=enough))
        if not abs(spent / budget - 1) <= TOLERANCE:
            raise ConfigError(
                f"--budget {budget:g}: {run.name} would take {spent:,.0f} passes, for its updates "
                "are whole: choose a larger one"
            )
        name = f"{run.name}-{budget:.3g}".replace("+", "")
        made = [replace(enough, name=f"{name}-{seed}", seed=seed) for seed in range(seeds)]
        yield BudgetedConfig(run.name, budget, made, most)


def summarise(
    entry: BudgetedConfig, rows: Sequence[Row], runs: Path, metrics: Sequence[str]
) -> Iterator[Summary]:
    """One summary for each number of steps, of the scores of these metrics."""
    sources = {str(runs / run.name) for run in entry.runs}
    mine = [row for row in rows if row.source in sources and row.model == STUDENT]
    seconds = [seconds_of(RunFolder(Path(source)).log) for source in {row.source for row in mine}]
    for steps in sorted({row.steps for row in mine}):
        few = [row for row in mine if row.steps == steps]
        scores = {name: over_seeds([row.value(name) for row in few]) for name in metrics}
        mean = sum(seconds) / len(seconds)
        yield Summary(entry.config, entry.budget, steps, scores, mean, entry.bytes)


def over_seeds(values: list[float]) -> tuple[float, float, float]:
    """Mean, low and high; one seed has no interval."""
    return interval(values) if len(values) > 1 else (values[0],) * 3


def table(summaries: Sequence[Summary], known: Sequence[Row], suite: Suite) -> str:
    """The summary as Markdown, the best of a budget and number of steps first; below it the rows of
    teachers and real images."""
    metrics = suite.compared
    names = " | ".join(metric.space or metric.name for metric in metrics)
    lines = [
        f"| config | passes | steps | {names} | seconds | MiB |",
        f"|---|---:|---:|{'---:|' * len(metrics)}---:|---:|",
    ]
    first = metrics[0]
    ranked = sorted(
        summaries, key=lambda s: (s.budget, s.steps, first.loss(s.scores[first.name][0]))
    )
    for s in ranked:
        cells = ["{:.3f} ({:.3f} – {:.3f})".format(*s.scores[m.name]) for m in metrics]
        cost = f"{s.seconds:,.0f} | {s.bytes / 2**20:.1f}"
        name = f"`{in_markdown(s.config)}` | {s.budget:.3g} | {s.steps}"
        lines.append(f"| {name} | {' | '.join(cells)} | {cost} |")
    for row in known:
        name = f"{row.model} | – | {row.steps or '–'}"
        cells = [f"{row.value(m.name):.3f}" if m.name in row.scores else "–" for m in metrics]
        lines.append(f"| {name} | {' | '.join(cells)} | – | – |")
    about = __doc__.partition("\n\n")[2]
    return "\n".join(["# Methods at equal cost", "", about, *lines, ""])


def draw(file: Path, summaries: Sequence[Summary], known: Sequence[Row], suite: Suite) -> None:
    """The compared scores against all costs, one colour a config, the teacher in grey."""
    metrics = suite.compared
    figure = Figure(figsize=(16, 4 * len(metrics)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, metric in zip(figure.subplots(len(metrics), 4, sharey="row", squeeze=False), metrics):
        row[0].set_ylabel(metric.title)
        levels = [
            (r.nfe, r.steps, r.value(metric.name))
            for r in known
            if r.model == TEACHER and metric.name in r.scores
        ]
        positive = all(s.scores[metric.name][0] > 0 for s in summaries)
        for axes, cost in zip(row, AXES):
            axes.set_yscale("log" if positive else "linear")
            draw_students(axes, summaries, metric, cost)
            draw_teacher(axes, levels, along=cost is STEPS)
        highest = max(s.scores[metric.name][2] for s in summaries)
        if positive:
            row[0].set_ylim(top=1.5 * highest)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right", fontsize=9)
    with whole(file) as partial:
        figure.savefig(partial, dpi=100)


def draw_students(axes: Axes, summaries: Sequence[Summary], metric: Metric, cost: Axis) -> None:
    """One score of every config against one cost."""
    axes.set(xscale=cost.scale, xlabel=cost.label)
    if cost.scale == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    for i, config in enumerate(dict.fromkeys(s.config for s in summaries)):
        mine = cost.shown([s for s in summaries if s.config == config])
        points = sorted((cost.of(s), *s.scores[metric.name]) for s in mine)
        x, y, low, high = zip(*points)
        ends = ([a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)])
        style = {"color": colormaps["tab20"](i % 20), "markersize": 5, "linewidth": 1}
        fewest = min(s.steps for s in mine)
        name = f"{config}, {fewest} step{'s' * (fewest > 1)}"
        line = f"{MARKERS[i % len(MARKERS)]}-"
        axes.errorbar(x, y, ends, fmt=line, elinewidth=0.6, label=name, **style)


def draw_teacher(axes: Axes, points: Sequence[tuple[int, int, float]], along: bool) -> None:
    """The teacher's (NFE, steps, distance): a curve along an axis of NFE, levels beside others."""
    if along and points:
        nfe, _, distances = zip(*sorted(points))
        axes.plot(nfe, distances, "s--", color="grey", markersize=4)
    for _, steps, distance in () if along else points:
        axes.axhline(distance, color="grey", linewidth=0.8, linestyle=":")
        place = {"xy": (1, distance), "xycoords": axes.get_yaxis_transform()}
        text = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right"}
        text["annotation_clip"] = True
        axes.annotate(f"teacher, {steps}", **place, **text, fontsize=8, color="grey")
