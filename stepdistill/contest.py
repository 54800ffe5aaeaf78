"""Methods at equal cost: `stepdistill compare A B … --budget 1e6 --seeds 3`.

Every config is trained at every budget with every seed, the updates of its stages and the samples
of its cache scaled by one factor. A budget counts network passes of one sample: a forward is 1, a
forward and its backward 3, whoever's network; a guided teacher's call is 2. All students are scored
on the same noise. The summary has, for each config, budget and number of steps, the mean over seeds
and its 95 % interval.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate import Accelerator
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from .cache import passes_of
from .checkpoint import write_whole
from .comparison import compare, seconds_of
from .config import Run
from .evaluation.metrics import interval
from .evaluation.suite import TEACHER, Row
from .evaluation.table import STUDENT
from .plan import roles, walk
from .session import Session
from .train import Course

SPACES = {"domain-cnn": "frechet", "random-conv": "frechet_random"}


@dataclass(frozen=True)
class Cost:
    """What a student's distance is drawn against, and which of a config's students are shown."""

    label: str
    of: Callable[["Summary"], float]
    fewest_steps: bool = True
    all_budgets: bool = True

    def shown(self, summaries: Sequence["Summary"]) -> list["Summary"]:
        """Those in the fewest steps, or at the largest budget, or both."""
        fewest = min(s.steps for s in summaries)
        largest = max(s.budget for s in summaries)
        few = [s for s in summaries if s.steps == fewest or not self.fewest_steps]
        return [s for s in few if s.budget == largest or self.all_budgets]


STEPS = Cost("evaluations an image, largest budget", lambda s: s.steps, False, False)
COSTS = (
    Cost("network passes of one sample, fewest steps", lambda s: s.budget),
    STEPS,
    Cost("seconds of training, fewest steps", lambda s: s.seconds),
    Cost("MiB held in training, fewest steps", lambda s: s.bytes / 2**20, all_budgets=False),
)


@dataclass(frozen=True)
class Entry:
    """A config at a budget: its runs, one a seed, and the bytes that the roles of its largest
    stage hold from update to update."""

    config: str
    budget: float
    runs: list[Run]
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What an entry reached in `steps` steps: (mean, low, high) over seeds in both spaces, and the
    mean of its training's seconds."""

    config: str
    budget: float
    steps: int
    frechet: tuple[float, float, float]
    frechet_random: tuple[float, float, float]
    seconds: float
    bytes: int


def contest(
    configs: list[Run],
    budgets: list[float],
    seeds: int,
    runs: Path,
    out: Path,
    size: tuple[int, int],
    console: Console,
) -> list[Summary]:
    """Train, score and summarise; what lies below `runs` already is not trained again.

    Writes comparison.md, comparison.json and comparison.png beside the report of all students."""
    entries = [entry for run in configs for entry in enter(run, budgets, seeds)]
    rows = compare([run for entry in entries for run in entry.runs], runs, out, size, console)
    summaries = [s for entry in entries for s in summarise(entry, rows, runs)]
    teachers = [row for row in rows if row.model == TEACHER]
    write_whole(out / "comparison.json", json.dumps([asdict(s) for s in summaries], indent=1))
    write_whole(out / "comparison.md", table(summaries, teachers, rows[-1]))
    draw(out / "comparison.png", summaries, teachers)
    return summaries


def enter(run: Run, budgets: Sequence[float], seeds: int) -> Iterator[Entry]:
    """A config at each budget."""
    with TemporaryDirectory() as folder:
        session = Session(run, Path(folder), Accelerator(cpu=True))
        costs = Course.of(session).costs
        held = max(sum(role.bytes for role in roles(session)) for _ in walk(session))
        total = passes_of(session.teacher, run.cache) if run.cache else 0
    trainings = [stage.training for stage in run.stages]
    total += sum(t.updates * t.batch * t.accumulation * c for t, c in zip(trainings, costs))
    for budget in budgets:
        scaled = scale(run, budget / total)
        name = f"{run.name}-{budget:.3g}".replace("+", "")
        made = [replace(scaled, name=f"{name}-{seed}", seed=seed) for seed in range(seeds)]
        yield Entry(run.name, budget, made, held)


def scale(run: Run, factor: float) -> Run:
    """The run with `factor` times its updates and cached samples, at least one of each."""

    def scaled(number: int) -> int:
        return max(1, round(number * factor))

    trainings = [replace(s.training, updates=scaled(s.training.updates)) for s in run.stages]
    stages = [replace(s, training=t) for s, t in zip(run.stages, trainings)]
    cache = run.cache and replace(run.cache, samples=scaled(run.cache.samples))
    return replace(run, stages=stages, cache=cache)


def summarise(entry: Entry, rows: Sequence[Row], runs: Path) -> Iterator[Summary]:
    """One summary for each number of steps."""
    folders = [runs / run.name for run in entry.runs]
    sources = {str(folder) for folder in folders}
    seconds = [seconds_of(folder / "log.jsonl") for folder in folders]
    mine = [row for row in rows if row.source in sources and row.model == STUDENT]
    for steps in sorted({row.steps for row in mine}):
        scores = [
            over_seeds([getattr(row, score) for row in mine if row.steps == steps])
            for score in SPACES.values()
        ]
        mean = sum(seconds) / len(seconds)
        yield Summary(entry.config, entry.budget, steps, *scores, mean, entry.bytes)


def over_seeds(values: list[float]) -> tuple[float, float, float]:
    """Mean, low and high; one seed has no interval."""
    return interval(values) if len(values) > 1 else (values[0],) * 3


def table(summaries: Sequence[Summary], teachers: Sequence[Row], real: Row) -> str:
    """The summary as Markdown, the best of a budget and number of steps first."""
    lines = [
        "| config | passes | steps | domain-cnn | random-conv | seconds | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for s in sorted(summaries, key=lambda s: (s.budget, s.steps, s.frechet[0])):
        spaces = (s.frechet, s.frechet_random)
        both = " | ".join(f"{mean:.3f} ({low:.3f} – {high:.3f})" for mean, low, high in spaces)
        cost = f"{s.seconds:,.0f} | {s.bytes / 2**20:.1f}"
        lines.append(f"| `{s.config}` | {s.budget:.3g} | {s.steps} | {both} | {cost} |")
    for row in (*teachers, real):
        name = f"{row.model} | – | {row.steps or '–'}"
        lines.append(f"| {name} | {row.frechet:.3f} | {row.frechet_random:.3f} | – | – |")
    about = __doc__.partition("\n\n")[2]
    return "\n".join(["# Methods at equal cost", "", about, *lines, ""])


def draw(file: Path, summaries: Sequence[Summary], teachers: Sequence[Row]) -> None:
    """Distances in both spaces against all costs, one colour a config, the teacher in grey."""
    figure = Figure(figsize=(16, 8), layout="constrained")
    FigureCanvasAgg(figure)
    configs = list(dict.fromkeys(s.config for s in summaries))
    for row, (space, score) in zip(figure.subplots(2, 4, sharey="row"), SPACES.items()):
        row[0].set_ylabel(f"Fréchet distance, {space}")
        for axes, cost in zip(row, COSTS):
            axes.set(xscale="log", yscale="log", xlabel=cost.label)
            for i, config in enumerate(configs):
                mine = cost.shown([s for s in summaries if s.config == config])
                points = sorted((cost.of(s), *getattr(s, score)) for s in mine)
                x, y, low, high = zip(*points)
                ends = ([a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)])
                style = {"color": colormaps["tab20"](i % 20), "markersize": 5, "linewidth": 1}
                axes.errorbar(x, y, ends, fmt="o-", elinewidth=0.6, label=config, **style)
            draw_teacher(axes, [(t.steps, getattr(t, score)) for t in teachers], cost is STEPS)
        row[0].set_ylim(top=1.5 * max(getattr(s, score)[2] for s in summaries))
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right", fontsize=9)
    figure.savefig(file, dpi=100)


def draw_teacher(axes: Axes, points: Sequence[tuple[int, float]], along: bool) -> None:
    """The teacher's (steps, distance): a curve along an axis of steps, levels beside others."""
    if along:
        axes.plot(*zip(*sorted(points)), "s--", color="grey", markersize=4)
        return
    for steps, distance in points:
        axes.axhline(distance, color="grey", linewidth=0.8, linestyle=":")
        place = {"xy": (1, distance), "xycoords": axes.get_yaxis_transform()}
        text = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right"}
        text["annotation_clip"] = True
        axes.annotate(f"teacher, {steps}", **place, **text, fontsize=8, color="grey")
