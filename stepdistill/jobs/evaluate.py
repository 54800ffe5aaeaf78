"""Several students in one table and one report: `stepdistill eval A B …` scores what lies there."""

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from ..evaluation.evaluate import Sampled, evaluate
from ..evaluation.reference import Kind
from ..evaluation.report.report import Report, write_report
from ..evaluation.rows import TEACHER, Row
from ..evaluation.suite import Suite
from ..files import LOCK, sweep
from ..runs.config import find
from ..runs.folder import RunFolder, alone, versions_line
from ..runs.progress import progress
from ..runs.stages import reopen
from ..schema import ConfigError
from .report_images import outliers_of, same_noise
from .samplers import UNTRAINED, of_folder, of_run
from .suites import kind_of, load

SEED = 2000
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
NAMED = 8  # sources that a report names in its heading


@dataclass(frozen=True)
class Opening:
    """How sources are opened.

    steps: of exported pipelines, their fewest by default. trusted: modules that run folders may
    name, besides those that are shipped.
    """

    steps: int | None = None
    trusted: tuple[str, ...] = ()


def score(
    sources: list[Path],
    suite: str,
    out: Path,
    size: tuple[int, int],
    opening: Opening,
    console: Console,
    costs: dict[str, str] | None = None,
) -> list[Row]:
    """Score every source on the same seed blocks and write results and report to `out`.

    Stopped, the same call goes on. size: (n, blocks). Raises ConfigError for a suite that does not
    exist or does not fit, sources that are neither run nor pipeline, or of several kinds.
    """
    find(suite, "eval/suites", "suite")  # before anything is loaded
    samplers, kind = gather(sources, opening)
    measured = load(suite, kind)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / LOCK, out):
        sweep(out)
        with progress(console, "evaluating") as observe:
            rows = evaluate(samplers, measured, *size, SEED, observe, out / SCORED)
        made = report(sources, samplers, rows, measured, size[0])
        write_report(out, replace(made, costs=costs or {}))
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
        grids=[same_noise(samplers, measured, SEED)],
        worst=outliers_of(samplers, measured, n, SEED),
    )


def title_of(sources: list[Path]) -> str:
    """The report's heading; many names are in its tables alone."""
    few = ", ".join(source.name for source in sources)
    return f"Comparison: {few}" if len(sources) <= NAMED else f"Comparison of {len(sources)}"


def gather(sources: list[Path], opening: Opening) -> tuple[list[Sampled], Kind]:
    """The samplers of all sources, and what they make; a guided teacher that several runs share
    appears once."""
    found: dict[tuple[object, str, int], Sampled] = {}
    kinds = set()
    for source in sources:
        if RunFolder(source).is_run:
            trained = reopen(source, Accelerator(), trusted=opening.trusted)
            kinds.add(kind_of(trained.teacher))
            shared = f"{trained.run.teacher or source}, w = {trained.run.guidance:g}"
            for c in of_run(trained):
                # Untrained students differ by how they are sampled.
                same = {TEACHER: shared, UNTRAINED: repr(trained.run.sampler)}.get(c.model, source)
                owner = shared if c.model == TEACHER else str(source)
                found.setdefault((same, c.model, c.steps), replace(c, source=owner))
        else:
            student, kind = of_folder(source, opening.steps)
            kinds.add(kind)
            key = (source, student.model, student.steps)
            found[key] = replace(student, source=str(source))
    if len(kinds) > 1:
        several = "; ".join(sorted(map(str, kinds)))
        raise ConfigError(f"eval: models of one kind a table, got {several}")
    teachers = {owner for owner, model, _ in found if model == TEACHER}
    if len(teachers) > 1:
        raise ConfigError(f"eval: one teacher a table, got {'; '.join(sorted(teachers))}")
    return list(found.values()), kinds.pop()
