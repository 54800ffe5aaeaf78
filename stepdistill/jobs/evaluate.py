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
from ..evaluation.protocol import Procedure, protocols
from ..evaluation.reference import heeded
from ..evaluation.report.hub import write_results
from ..evaluation.report.names import short
from ..evaluation.report.report import Report, write_report
from ..evaluation.rows import Row
from ..evaluation.suite import Suite
from ..files import LOCK, sweep
from ..runs.folder import RunFolder, alone, versions_line
from ..runs.progress import progress
from ..schema import ConfigError
from .costs import with_costs
from .distill import waited_for
from .report_images import outliers_of, pairs_of, same_noise, within
from .sources import (
    IMAGES,
    Against,
    Gathered,
    Opening,
    as_folders,
    gather,
    lay_all,
    require_images,
    shelves,
)
from .suites import require

Size = tuple[int | None, int | None]  # images in a block, and blocks
SEED, USUAL = 2000, (1000, 3)  # where neither the user nor the suite says otherwise
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
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
    size: Size = (None, None),
    steps: int | None = None,
    reference: str | None = None,
    prompts: str | None = None,
) -> list[Row]:
    """Score models side by side as `stepdistill eval` does, and write the report to `out`.

    sources: folders of runs, of pipelines or of images. suite: a shipped one or a YAML file, None
    for what fits. size: images in a seed block, and blocks; None for what the suite says, or 1000
    and 3. steps: of pipelines, None for the suite's, the fewest or their own. reference: a folder
    of real images, or a published file. prompts: a file. Raises ConfigError for bad input, and
    Incomplete, with the rows of the others, where the call of a pipeline fails."""
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
    size: Size,
    opening: Opening,
    console: Console,
    costs: dict[str, str] | None = None,
) -> Scored:
    """Score every source on the same seed blocks and write results and report to `out`.

    Stopped, the same call goes on. Of several processes each makes its share of the images of
    pipelines that are not ours, and the main one scores them; the others get no rows. A pipeline
    whose call fails is left out, and named in the report. Raises ConfigError for a suite that does
    not exist or does not fit, sources that are none, or that do not belong in one table, and where
    the call of every source fails.
    """
    sources, opening = as_folders(sources, opening)
    against, opening = by_protocol(against, opening, sources)  # before anything is loaded
    gathered = gather(sources, opening)
    measured = gathered.suite(against)
    procedure = procedure_of(measured, size, opening)
    n, blocks, seed = procedure.n, procedure.blocks, procedure.seed
    require_images(gathered.collections, n * blocks)
    state = PartialState(cpu=not torch.accelerator.is_available())
    with measured.threaded():
        wanted = requests(measured, n, blocks if gathered.others else 0, seed)  # each has a seed
        where = shelves(gathered, against, wanted, out, short([str(each) for each in sources]))
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
            lay_all(gathered, where)
            rows = rows_of(samplers, measured, procedure, out / SCORED, console)
            made = report(sources, gathered, samplers, rows, measured, procedure)
            write_report(out, replace(made, costs=costs or {}))
            write_results(out, rows, measured, procedure)
            (out / SCORED).unlink()
    return Scored(rows, gathered.failed)


def by_protocol(against: Against, opening: Opening, sources: list[Path]) -> tuple[Against, Opening]:
    """What is said, and what the suite that is named says beside. Raises ConfigError for a suite
    that there is not, and where what it takes from the user is not brought."""
    if against.suite is not None:
        settings, _, _ = require(against.suite, against.prompts)
        brings, name = settings.brings, Path(against.suite).stem
        bring(name, brings.prompts, against.prompts or settings.settings.get("prompts"), "prompts")
        if not any(RunFolder(source).is_run for source in sources):  # a run may name its own
            bring(name, brings.reference, against.reference, "reference")
        opening = replace(
            opening,
            steps=settings.steps if opening.steps is None else opening.steps,
            guidance=settings.guidance if opening.guidance is None else opening.guidance,
        )
        against = against._replace(layout=against.layout or settings.layout)
    if against.layout is not None and against.prompts is None:
        raise ConfigError(f"--layout {against.layout}: lays out images of prompts: --prompts FILE")
    return against, opening


def bring(suite: str, wanted: str | None, given: object, option: str) -> None:
    """Raise ConfigError where a suite wants something from the user that is not given."""
    if wanted is not None and given is None:
        raise ConfigError(f"suite {suite}: needs --{option}: {wanted}")


def procedure_of(measured: Suite, size: Size, opening: Opening) -> Procedure:
    """How many images are made, and how: what is said, else what the suite says, else as ever."""
    said = measured.settings
    n, blocks = (
        mine or theirs or usual
        for mine, theirs, usual in zip(size, (said.n, said.blocks), USUAL, strict=True)
    )
    seed = SEED if said.seed is None else said.seed
    return Procedure(n, blocks, seed, opening.steps, opening.guidance, measured.size[1:])


def rows_of(
    samplers: list[Sampled], suite: Suite, procedure: Procedure, file: Path, console: Console
) -> list[Row]:
    """What samplers score, and what they cost. file: see `evaluate`."""
    with progress(console, "evaluating") as observe:
        rows = score_all(
            samplers, suite, procedure.n, procedure.blocks, procedure.seed, observe, file
        )
    with progress(console, "measuring costs") as observe:
        return with_costs(rows, samplers, suite, observe)


def report(
    sources: list[Path],
    gathered: Gathered,
    samplers: list[Sampled],
    rows: list[Row],
    measured: Suite,
    procedure: Procedure,
) -> Report:
    """What the rows of several sources are shown in, by short names."""
    names = short([str(source) for source in sources])
    samplers = [replace(c, source=names.get(c.source, c.source)) for c in samplers]
    versions, n, seed = versions_line(), procedure.n, procedure.seed
    provenance = {"sources": ", ".join(map(str, sources)), "versions": versions}
    provenance |= measured.provenance | procedure.provenance(measured) | gathered.remarks
    return Report(
        title=title_of(sources),
        rows=rows,
        suite=measured,
        names=names,
        provenance=provenance,
        protocol=protocols(measured, procedure, versions),
        failed={names[str(source)]: reason for source, reason in gathered.failed.items()},
        unasked=unasked(samplers, measured),
        grids=[same_noise(samplers, measured, seed, n)],
        within=within(samplers, measured, seed, n),
        pairs=pairs_of(samplers, measured, n, seed),
        worst=outliers_of(samplers, measured, n, seed),
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
