"""Several models in one table and one report: `stepdistill eval A B …` scores what lies there.

A run, a student that we exported, any other pipeline of diffusers, or a folder of images.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console

from ..evaluation.evaluate import Sampled, requests
from ..evaluation.evaluate import evaluate as score_all
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
from .report_images import outliers_of, same_noise
from .sources import Against, Opening, gather, lay_all, require_images

SEED = 2000
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
IMAGES = "images"  # in the report's folder, those of pipelines that are not ours
NAMED = 8  # sources that a report names in its heading


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
    bad input."""
    against, paths = Against(suite, reference, prompts), [Path(source) for source in sources]
    return score(paths, against, Path(out), size, Opening(steps), Console(quiet=True))


def score(
    sources: list[Path],
    against: Against,
    out: Path,
    size: tuple[int, int],
    opening: Opening,
    console: Console,
    costs: dict[str, str] | None = None,
) -> list[Row]:
    """Score every source on the same seed blocks and write results and report to `out`.

    Stopped, the same call goes on. Of several processes each makes its share of the images of
    pipelines that are not ours, and the main one scores them; the others get no rows. size: (n,
    blocks). Raises ConfigError for a suite that does not exist or does not fit, sources that are
    none, or of several kinds.
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
            samplers = gathered.all(wanted, out / IMAGES, part, observe)
        if not state.is_main_process:
            return []
        lay_all(gathered, against, wanted, out)
        with progress(console, "evaluating") as observe:
            rows = score_all(samplers, measured, *size, SEED, observe, out / SCORED)
        with progress(console, "measuring costs") as observe:
            rows = with_costs(rows, samplers, measured, observe)
        made = report(sources, samplers, rows, measured, size[0])
        provenance = made.provenance | gathered.remarks
        made = replace(made, provenance=provenance, costs=costs or {})
        write_report(out, made)
        (out / SCORED).unlink()
    return rows


def report(
    sources: list[Path], samplers: list[Sampled], rows: list[Row], measured: Suite, n: int
) -> Report:
    """What the rows of several sources are shown in."""
    provenance = {
        "sources": ", ".join(map(str, sources)),
        "versions": versions_line(),
    }
    return Report(
        title=title_of(sources),
        rows=rows,
        suite=measured,
        provenance=provenance | measured.provenance,
        grids=[same_noise(samplers, measured, SEED, n)],
        worst=outliers_of(samplers, measured, n, SEED),
    )


def title_of(sources: list[Path]) -> str:
    """The report's heading; many names are in its tables alone."""
    few = ", ".join(source.name for source in sources)
    return f"Comparison: {few}" if len(sources) <= NAMED else f"Comparison of {len(sources)}"
