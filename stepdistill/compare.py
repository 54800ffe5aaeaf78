"""`stepdistill eval A B …`: several students in one table and one report."""

from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from .config import ConfigError
from .contenders import of_folder, of_run
from .evaluation.report import Report, write_report
from .evaluation.suite import Contender, Row, digits_suite, evaluate
from .gallery import same_noise, worst
from .progress import progress
from .session import reopen, versions

SEED = 2000


def compare(
    sources: list[Path],
    suite: str,
    out: Path,
    size: tuple[int, int],
    steps: int | None,
    console: Console,
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
