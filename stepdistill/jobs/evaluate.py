"""Several students in one table and one report: `stepdistill eval A B …` scores what lies there."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from rich.console import Console

from ..evaluation.evaluate import Sampled, evaluate
from ..evaluation.reference import Brought
from ..evaluation.report.report import Report, write_report
from ..evaluation.rows import TEACHER, Row
from ..evaluation.suite import Suite
from ..files import LOCK, sweep
from ..runs.config import RunConfig, find
from ..runs.folder import RunFolder, alone, versions_line
from ..runs.progress import progress
from ..runs.stages import reopen
from ..schema import ConfigError
from ..teachers.teacher import Teacher
from .report_images import outliers_of, same_noise
from .samplers import UNTRAINED, of_folder, of_run
from .suites import brought, brought_by, kind_of, load

SEED = 2000
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
DEFAULT = "digits"  # the suite of pipelines that come without a run
NAMED = 8  # sources that a report names in its heading


@dataclass(frozen=True)
class Opening:
    """How sources are opened.

    steps: of exported pipelines, their fewest by default. trusted: modules that run folders may
    name, besides those that are shipped.
    """

    steps: int | None = None
    trusted: tuple[str, ...] = ()


class Against(NamedTuple):
    """What sources are measured against; None for what their own runs say.

    suite: a shipped one, or a YAML file. reference: a folder of real images."""

    suite: str | None = None
    reference: str | None = None


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

    Stopped, the same call goes on. size: (n, blocks). Raises ConfigError for a suite that does not
    exist or does not fit, sources that are neither run nor pipeline, or of several kinds.
    """
    if against.suite is not None:
        find(against.suite, "eval/suites", "suite")  # before anything is loaded
    gathered = gather(sources, opening)
    samplers, measured = gathered.samplers, gathered.suite(against)
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


@dataclass(frozen=True)
class Gathered:
    """What sources hold. samplers: of all. teacher: of one of them, whose kind all are of. runs:
    of those that are runs."""

    samplers: list[Sampled]
    teacher: Teacher
    runs: list[RunConfig]

    def suite(self, against: Against) -> Suite:
        """The suite that scores them. Raises ConfigError where the runs say several."""
        named = sorted({run.evaluation.suite for run in self.runs})
        if against.suite is None and len(named) > 1:
            several = ", ".join(named)
            raise ConfigError(f"eval: one suite a table, got {several}: choose by --suite")
        name = against.suite or (named[0] if named else DEFAULT)
        return load(name, kind_of(self.teacher), self._images(against.reference))

    def _images(self, reference: str | None) -> Brought:
        """Those of a folder, else what the runs name, if all name the same."""
        said = {repr((run.data, run.evaluation.reference)) for run in self.runs}
        if reference is None and len(said) == 1:
            return brought_by(self.runs[0], self.teacher)
        return brought(reference, None, self.teacher)


def title_of(sources: list[Path]) -> str:
    """The report's heading; many names are in its tables alone."""
    few = ", ".join(source.name for source in sources)
    return f"Comparison: {few}" if len(sources) <= NAMED else f"Comparison of {len(sources)}"


def gather(sources: list[Path], opening: Opening) -> Gathered:
    """What all sources hold; a guided teacher that several runs share appears once."""
    found: dict[tuple[object, str, int], Sampled] = {}
    kinds, runs = set(), []
    for source in sources:
        if RunFolder(source).is_run:
            trained = reopen(source, Accelerator(), trusted=opening.trusted)
            teacher = trained.teacher
            kinds.add(kind_of(teacher))
            runs.append(trained.run)
            shared = f"{trained.run.teacher or source}, w = {trained.run.guidance:g}"
            for c in of_run(trained):
                # Untrained students differ by how they are sampled.
                same = {TEACHER: shared, UNTRAINED: repr(trained.run.sampler)}.get(c.model, source)
                owner = shared if c.model == TEACHER else str(source)
                found.setdefault((same, c.model, c.steps), replace(c, source=owner))
        else:
            student, teacher = of_folder(source, opening.steps)
            kinds.add(kind_of(teacher))
            key = (source, student.model, student.steps)
            found[key] = replace(student, source=str(source))
    if len(kinds) > 1:
        several = "; ".join(sorted(map(str, kinds)))
        raise ConfigError(f"eval: models of one kind a table, got {several}")
    teachers = {owner for owner, model, _ in found if model == TEACHER}
    if len(teachers) > 1:
        raise ConfigError(f"eval: one teacher a table, got {'; '.join(sorted(teachers))}")
    return Gathered(list(found.values()), teacher, runs)
