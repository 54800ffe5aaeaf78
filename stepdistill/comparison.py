"""Several students in one table and one report: `stepdistill eval A B …` scores what lies there,
`stepdistill compare A B …` trains shipped or own configs first, and says what each cost.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from .cache import passes_of
from .config import ConfigError, Run
from .contenders import UNTRAINED, of_folder, of_run
from .evaluation.report import Report, write_report
from .evaluation.suite import TEACHER, Contender, Row, digits_suite, evaluate
from .gallery import same_noise, worst
from .plan import rehearsal
from .progress import progress
from .run import trained
from .session import Session, nfe_of, open_folder, reopen, versions
from .train import seconds_of
from .trainer import TrainingFailed

SEED = 2000
SCORED = "scored.jsonl"  # in the report's folder, until there is a report
NAMED = 8  # sources that a report names in its heading


@dataclass(frozen=True)
class Cost:
    """What a run's training took; passes are those of a batch, a backward not counted."""

    updates: int
    own: float
    teacher: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.updates:,} student updates, {self.own:,.0f} passes of student and critic, "
            f"{self.teacher:,.0f} of the teacher, {self.seconds:,.0f} s"
        )


def compare(
    wanted: list[Run], runs: Path, out: Path, size: tuple[int, int], console: Console
) -> list[Row]:
    """Train each run below `runs`, or go on with it, then score all students as `score` does.

    What a folder already holds is not trained again. Raises ConfigError, before anything is
    written, for runs that cannot be trained or do not fit in one table, and TrainingFailed, at the
    end, if some could not be trained to theirs."""
    require_comparable(wanted, runs)
    for run in wanted:
        with rehearsal(run):
            pass
    costs = train_all(wanted, runs, console)
    rows = score([runs / name for name in costs], "digits", out, size, None, console, costs)
    require_all(wanted, costs, out)
    return rows


def require_comparable(wanted: list[Run], runs: Path) -> None:
    """Raise ConfigError for names, teachers or folders that forbid a comparison."""
    names = [run.name for run in wanted]
    if len(set(names)) < len(names):
        raise ConfigError(f"compare: {', '.join(names)}: names one run twice")
    scored = [run for run in wanted if run.evaluation.teacher_steps and run.teacher is not None]
    teachers = {f"{run.teacher}, w = {run.guidance:g}" for run in scored}
    if len(teachers) > 1:
        raise ConfigError(f"compare: one teacher a table, got {'; '.join(sorted(teachers))}")
    for run in wanted:
        if (runs / run.name / "config.yaml").is_file():
            open_folder(run, runs / run.name)


def train_all(wanted: list[Run], runs: Path, console: Console) -> dict[str, str]:
    """Train every run to its end; what each cost, by name, without those whose training failed.

    Raises TrainingFailed if all did."""
    costs, failed = {}, None
    for run in wanted:
        try:
            session = trained(run, runs / run.name, console)
        except TrainingFailed as error:
            console.print(f"{run.name}: {error}", markup=False)
            failed = error
            continue
        costs[run.name] = str(cost_of(session))
        session.accelerator.end_training()
    if failed is not None and not costs:
        raise failed
    return costs


def require_all(wanted: list[Run], costs: dict[str, str], out: Path) -> None:
    """Raise TrainingFailed if a run has no cost, for it was not trained to its end."""
    missing = [run.name for run in wanted if run.name not in costs]
    if missing:
        raise TrainingFailed(f"{', '.join(missing)}: not trained; {out} has the others")


def cost_of(session: Session) -> Cost:
    """What the training of a finished run took; seconds of every time it was taken up."""
    run, updates, own, taught = session.run, 0, 0.0, 0.0
    for i, (stage, method) in enumerate(zip(run.stages, session.methods, strict=True)):
        n, passes = stage.training.updates * stage.training.accumulation, method.passes(run.sampler)
        updates += stage.training.updates
        own += n * (passes.trained + passes.frozen)
        taught += n * passes.teacher * nfe_of(run, i, method, session.teacher)
    cached = [s.training.batch for s, m in zip(run.stages, session.methods) if m.needs_cache]
    if cached:
        taught += passes_of(session.teacher, run.cache) / cached[0]
    return Cost(updates, own, taught, seconds_of(session.folder / "log.jsonl"))


def score(
    sources: list[Path],
    suite: str,
    out: Path,
    size: tuple[int, int],
    steps: int | None,
    console: Console,
    costs: dict[str, str] | None = None,
) -> list[Row]:
    """Score every source on the same seed blocks and write results and report to `out`.

    Stopped, the same call goes on. size: (n, blocks). Raises ConfigError for an unknown suite,
    sources that are neither run nor pipeline, and conditional beside unconditional ones.
    """
    if suite != "digits":
        raise ConfigError(f"suite '{suite}': the only one is 'digits'")
    contenders, conditional = gather(sources, steps)
    n, blocks = size
    measured = digits_suite(conditional=conditional)
    with progress(console, "evaluating") as observe:
        rows = evaluate(contenders, measured, n, blocks, SEED, observe, out / SCORED)
    provenance = {
        "sources": ", ".join(map(str, sources)),
        "versions": ", ".join(map(" ".join, versions().items())),
    }
    report = Report(
        title=title_of(sources),
        rows=rows,
        costs=costs or {},
        provenance=provenance | measured.provenance,
        grids=[same_noise(contenders, measured, SEED)],
        worst=worst(contenders, measured, n, SEED),
    )
    write_report(out, report)
    (out / SCORED).unlink()
    return rows


def title_of(sources: list[Path]) -> str:
    """The report's heading; many names are in its tables alone."""
    few = ", ".join(source.name for source in sources)
    return f"Comparison: {few}" if len(sources) <= NAMED else f"Comparison of {len(sources)}"


def gather(sources: list[Path], steps: int | None) -> tuple[list[Contender], bool]:
    """The contenders of all sources; a guided teacher that several runs share appears once."""
    found: dict[tuple[object, str, int], Contender] = {}
    kinds = set()
    for source in sources:
        if (source / "config.yaml").is_file():
            session = reopen(source, Accelerator())
            kinds.add(session.teacher.classes)
            shared = f"{session.run.teacher or source}, w = {session.run.guidance:g}"
            for c in of_run(session):
                # Untrained students differ by how they are sampled.
                same = {TEACHER: shared, UNTRAINED: repr(session.run.sampler)}.get(c.model, source)
                owner = shared if c.model == TEACHER else str(source)
                found.setdefault((same, c.model, c.steps), replace(c, source=owner))
        else:
            contender, classes = of_folder(source, steps)
            kinds.add(classes)
            key = (source, contender.model, contender.steps)
            found[key] = replace(contender, source=str(source))
    if len(kinds) > 1:
        raise ConfigError("eval: conditional and unconditional models do not fit in one table")
    teachers = {owner for owner, model, _ in found if model == TEACHER}
    if len(teachers) > 1:
        raise ConfigError(f"eval: one teacher a table, got {'; '.join(sorted(teachers))}")
    return list(found.values()), kinds.pop() is not None
