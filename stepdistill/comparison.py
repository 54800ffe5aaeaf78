"""Several students in one table and one report: `stepdistill eval A B …` scores what lies there,
`stepdistill compare A B …` trains shipped or own configs first, and says what each cost.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from .cache import passes_of
from .config import ConfigError, Run
from .contenders import of_folder, of_run
from .evaluation.report import Report, write_report
from .evaluation.suite import Contender, Row, digits_suite, evaluate
from .gallery import same_noise, worst
from .progress import progress
from .run import trained
from .session import Session, nfe_of, reopen, versions
from .train import rows as logged

SEED = 2000


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

    What a folder already holds is not trained again. Raises ConfigError if two share a name."""
    names = [run.name for run in wanted]
    if len(set(names)) < len(names):
        raise ConfigError(f"compare: {', '.join(names)}: names one run twice")
    costs = {}
    for run in wanted:
        session = trained(run, runs / run.name, console)
        costs[run.name] = str(cost_of(session))
        session.accelerator.end_training()
    return score([runs / name for name in names], "digits", out, size, None, console, costs)


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


def seconds_of(log: Path) -> float:
    """Seconds of training in a log, whose clock starts anew whenever a run is taken up."""
    clock = [0.0, *(row["seconds"] for row in logged(log)), 0.0]
    return sum(now for now, after in pairwise(clock) if after < now)


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

    size: (n, blocks). Raises ConfigError for an unknown suite, sources that are neither run nor
    pipeline, and conditional beside unconditional ones.
    """
    if suite != "digits":
        raise ConfigError(f"suite '{suite}': the only one is 'digits'")
    contenders, conditional = gather(sources, steps)
    n, blocks = size
    measured = digits_suite(conditional=conditional)
    with progress(console, "evaluating") as observe:
        rows = evaluate(contenders, measured, n, blocks, SEED, on_progress=observe)
    provenance = {
        "sources": ", ".join(map(str, sources)),
        "versions": ", ".join(map(" ".join, versions().items())),
    }
    report = Report(
        title="Comparison: " + ", ".join(source.name for source in sources),
        rows=rows,
        costs=costs or {},
        provenance=provenance | measured.provenance,
        grids=[same_noise(contenders, measured, SEED)],
        worst=worst(contenders, measured, n, SEED),
    )
    write_report(out, report)
    return rows


def gather(sources: list[Path], steps: int | None) -> tuple[list[Contender], bool]:
    """The contenders of all sources; a guided teacher that several runs share appears once."""
    found: dict[tuple[str, str, int], Contender] = {}
    kinds = set()
    for source in sources:
        if (source / "config.yaml").is_file():
            session = reopen(source, Accelerator())
            kinds.add(session.teacher.classes)
            shared = f"{session.run.teacher or source}, w = {session.run.guidance:g}"
            for c in of_run(session):
                owner = str(source) if c.model == "student" else shared
                found.setdefault((owner, c.model, c.steps), replace(c, source=owner))
        else:
            contender, classes = of_folder(source, steps)
            kinds.add(classes)
            key = (str(source), contender.model, contender.steps)
            found[key] = replace(contender, source=str(source))
    if len(kinds) > 1:
        raise ConfigError("eval: conditional and unconditional models do not fit in one table")
    teachers = {owner for owner, model, _ in found if model == "teacher"}
    if len(teachers) > 1:
        raise ConfigError(f"eval: one teacher a table, got {'; '.join(sorted(teachers))}")
    return list(found.values()), kinds.pop() is not None
