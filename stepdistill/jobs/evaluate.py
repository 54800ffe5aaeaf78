"""Several models in one table and one report: `stepdistill eval A B …` scores what lies there.

A run, a student that we exported, any other pipeline of diffusers, or a folder of images.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from rich.console import Console

from ..evaluation.evaluate import Sampled, requests
from ..evaluation.evaluate import evaluate as score_all
from ..evaluation.reference import heeded
from ..evaluation.report.names import short
from ..evaluation.report.report import Report, write_report
from ..evaluation.rows import Row
from ..evaluation.suite import Suite
from ..files import LOCK, sweep
from ..runs.config import find
from ..runs.folder import alone, versions_line
from ..runs.progress import progress
from ..schema import ConfigError
from .costs import with_costs
from .distill import waited_for
from .report_images import outliers_of, pairs_of, same_noise, within
from .sources import Against, Opening, gather, lay_all, require_images

SEED = 2000
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
IMAGES = "images"  # in the report's folder, those of pipelines that are not ours
NAMED = 8  # sources that a report names in its heading


class Incomplete(RuntimeError):
    """Sources that could not be scored, after the report of the others is written: their rows."""

    def __init__(self, message: str, rows: list[Row]) -> None:
        super().__init__(message)
        self.rows = rows


class Scored(NamedTuple):
    """rows: of the table. failed: sources whose call fails, and why."""

    rows: list[Row]
    failed: dict[Path, str]


def evaluate(
    sources: Sequence[str | Path],
    suite: str | None = None,
    out: str | Path = "evaluation",
    size: tuple[int, int] = (1000, 3),
    steps: int | None = None,
    reference: str | None = None,
    prompts: str | None = None,
) -> list[Row]:
    """Score models side by side as `stepdistill eval` does, and write the report to `out`.

    sources: folders of runs, of pipelines or of images. suite: a shipped one or a YAML file, None
    for what fits. size: images in a fresh seed block, and blocks. steps: of pipelines, None for the
    fewest or their own. reference: a folder of real images. prompts: a file. Raises ConfigError for
    bad input, and Incomplete, with the rows of the others, where the call of a pipeline fails."""
    against, paths = Against(suite, reference, prompts), [Path(source) for source in sources]
    scored = score(paths, against, Path(out), size, Opening(steps), Console(quiet=True))
    require_all(scored, Path(out))
    return scored.rows


def require_all(scored: Scored, out: Path) -> None:
    """Raise Incomplete if a source could not be scored."""
    if scored.failed:
        reasons = "; ".join(scored.failed.values())
        raise Incomplete(
            f"{len(scored.failed)} not scored, {out} has the others: {reasons}", scored.rows
        )


def score(
    sources: list[Path],
    against: Against,
    out: Path,
    size: tuple[int, int],
    opening: Opening,
    console: Console,
    costs: dict[str, str] | None = None,
) -> Scored:
    """Score every source on the same seed blocks and write results and report to `out`.

    Stopped, the same call goes on. Of several processes each makes its share of the images of
    pipelines that are not ours, and the main one scores them; the others get no rows. A pipeline
    whose call fails is left out, and named in the report. size: (n, blocks). Raises ConfigError for
    a suite that does not exist or does not fit, sources that are none, or that do not belong in one
    table, and where the call of every source fails.
    """
    if against.layout is not None and against.prompts is None:
        raise ConfigError(f"--layout {against.layout}: lays out images of prompts: --prompts FILE")
    if against.suite is not None:
        find(against.suite, "eval/suites", "suite")  # before anything is loaded
    gathered = gather(sources, opening)
    measured = gathered.suite(against)
    n, blocks = size
    require_images(gathered.collections, n * blocks)
    wanted = requests(measured, n, blocks if gathered.others else 0, SEED)  # each has a seed
    state = PartialState(cpu=not torch.accelerator.is_available())
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / LOCK, out) if state.is_main_process else nullcontext():
        sweep(out)
        part = state.process_index, state.num_processes
        shown = console if state.is_main_process else Console(quiet=True)
        with waited_for(state), progress(shown, "making images") as observe:
            gathered.make(wanted, out / IMAGES, part, observe)
        if not state.is_main_process:
            return Scored([], {})
        samplers = gathered.all(wanted)
        for reason in gathered.failed.values():
            console.print(f"left out: {reason}", markup=False, soft_wrap=True)
        lay_all(gathered, against, wanted, out)
        rows = rows_of(samplers, measured, size, out / SCORED, console)
        made = report(sources, samplers, rows, measured, size[0])
        provenance = made.provenance | gathered.remarks
        failed = {made.names[str(source)]: reason for source, reason in gathered.failed.items()}
        made = replace(made, provenance=provenance, costs=costs or {}, failed=failed)
        write_report(out, made)
        (out / SCORED).unlink()
    return Scored(rows, gathered.failed)


def rows_of(
    samplers: list[Sampled], suite: Suite, size: tuple[int, int], file: Path, console: Console
) -> list[Row]:
    """What samplers score, and what they cost. file: see `evaluate`."""
    with progress(console, "evaluating") as observe:
        rows = score_all(samplers, suite, *size, SEED, observe, file)
    with progress(console, "measuring costs") as observe:
        return with_costs(rows, samplers, suite, observe)


def report(
    sources: list[Path], samplers: list[Sampled], rows: list[Row], measured: Suite, n: int
) -> Report:
    """What the rows of several sources are shown in, by short names."""
    names = short([str(source) for source in sources])
    samplers = [replace(c, source=names.get(c.source, c.source)) for c in samplers]
    provenance = {
        "sources": ", ".join(map(str, sources)),
        "versions": versions_line(),
    }
    return Report(
        title=title_of(sources),
        rows=rows,
        suite=measured,
        names=names,
        provenance=provenance | measured.provenance,
        unasked=unasked(samplers, measured),
        grids=[same_noise(samplers, measured, SEED, n)],
        within=within(samplers, measured, SEED, n),
        pairs=pairs_of(samplers, measured, n, SEED),
        worst=outliers_of(samplers, measured, n, SEED),
    )


def unasked(samplers: list[Sampled], suite: Suite) -> dict[str, str]:
    """Sources that were not asked for what the suite asks, and what they were asked for."""
    wanted = suite.reference.asked(1)
    apart = [c for c in samplers if not heeded(wanted, c.asked(wanted, 0, 1))]
    return {c.source or c.model: instead(c) for c in apart}


def instead(c: Sampled) -> str:
    """What a source was asked for in place of what others were."""
    if not c.nfe:
        return "nobody says what its images were asked for"
    if c.kind.prompts:
        return "it takes prompts, and was asked for none"
    if c.kind.classes is None:
        return "it takes neither prompts nor labels: the images are of nothing in particular"
    return f"it takes no prompts: its labels, 0 to {c.kind.classes - 1:,}, were asked for in order"


def title_of(sources: list[Path]) -> str:
    """The report's heading; many names are in its tables alone."""
    few = ", ".join(source.name for source in sources)
    return f"Comparison: {few}" if len(sources) <= NAMED else f"Comparison of {len(sources)}"
