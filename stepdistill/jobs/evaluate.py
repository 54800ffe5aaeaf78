"""Several students in one table and one report: `stepdistill eval A B …` scores what lies there."""

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from ..evaluation.evaluate import Sampled, evaluate
from ..evaluation.reference import Brought, Kind
from ..evaluation.report.report import Report, write_report
from ..evaluation.rows import TEACHER, Row
from ..runs.config import find
from ..runs.folder import RunFolder, versions_line
from ..runs.progress import progress
from ..runs.stages import reopen
from ..schema import ConfigError
from .report_images import outliers_of, same_noise
from .samplers import UNTRAINED, of_folder, of_run
from .suites import brought, kind_of, load

SEED = 2000
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
NAMED = 8  # sources that a report names in its heading


def score(
    sources: list[Path],
    suite: str,
    out: Path,
    size: tuple[int, int],
    steps: int | None,
    console: Console,
    costs: dict[str, str] | None = None,
    reference: str | None = None,
) -> list[Row]:
    """Score every source on the same seed blocks and write results and report to `out`.

    Stopped, the same call goes on. size: (n, blocks). reference: a folder of real images, for
    suites that need them; None for those that the sources' own data hold out. Raises ConfigError
    for a suite that does not exist or does not fit, sources that are neither run nor pipeline, or
    of several kinds.
    """
    find(suite, "eval/suites", "suite")  # before anything is loaded
    samplers, kind, images = gather(sources, steps, reference)
    n, blocks = size
    measured = load(suite, kind, images)
    with progress(console, "evaluating") as observe:
        rows = evaluate(samplers, measured, n, blocks, SEED, observe, out / SCORED)
    provenance = {
        "sources": ", ".join(map(str, sources)),
        "versions": versions_line(),
    }
    report = Report(
        title=title_of(sources),
        rows=rows,
        suite=measured,
        costs=costs or {},
        provenance=provenance | measured.provenance,
        grids=[same_noise(samplers, measured, SEED)],
        worst=outliers_of(samplers, measured, n, SEED),
    )
    write_report(out, report)
    (out / SCORED).unlink()
    return rows


def title_of(sources: list[Path]) -> str:
    """The report's heading; many names are in its tables alone."""
    few = ", ".join(source.name for source in sources)
    return f"Comparison: {few}" if len(sources) <= NAMED else f"Comparison of {len(sources)}"


def gather(
    sources: list[Path], steps: int | None, reference: str | None
) -> tuple[list[Sampled], Kind, Brought]:
    """The samplers of all sources, what they make, and the real images for them; a guided teacher
    that several runs share appears once."""
    found: dict[tuple[object, str, int], Sampled] = {}
    kinds, data = set(), {}
    for source in sources:
        if RunFolder(source).is_run:
            trained = reopen(source, Accelerator())
            teacher = trained.teacher
            kinds.add(kind_of(teacher))
            data[repr(trained.run.data)] = trained.run.data
            shared = f"{trained.run.teacher or source}, w = {trained.run.guidance:g}"
            for c in of_run(trained):
                # Untrained students differ by how they are sampled.
                same = {TEACHER: shared, UNTRAINED: repr(trained.run.sampler)}.get(c.model, source)
                owner = shared if c.model == TEACHER else str(source)
                found.setdefault((same, c.model, c.steps), replace(c, source=owner))
        else:
            student, teacher = of_folder(source, steps)
            kinds.add(kind_of(teacher))
            key = (source, student.model, student.steps)
            found[key] = replace(student, source=str(source))
    if len(kinds) > 1:
        several = "; ".join(sorted(map(str, kinds)))
        raise ConfigError(f"eval: models of one kind a table, got {several}")
    teachers = {owner for owner, model, _ in found if model == TEACHER}
    if len(teachers) > 1:
        raise ConfigError(f"eval: one teacher a table, got {'; '.join(sorted(teachers))}")
    only = next(iter(data.values())) if len(data) == 1 else None
    return list(found.values()), kinds.pop(), brought(reference, only, teacher)
