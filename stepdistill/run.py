"""The main job: train, export, evaluate, report, in one resumable folder.

    import stepdistill
    result = stepdistill.distill(stepdistill.read("demo"))
    result.student   # the exported pipeline's folder
    result.rows      # what it scored, beside its teacher
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from .config import ConfigError, Run
from .contenders import Draw, label, of_run, teacher_sampler
from .evaluation.report import Grid, read_results, write_report
from .evaluation.suite import Row, Suite, digits_suite, evaluate
from .export import describe, export
from .progress import progress
from .session import Session, accelerator_of, open_folder, versions
from .train import curves, train

COSTS = "costs.json"  # written last: a folder that has it is finished
GRID = 10  # pictures in a row of the report


@dataclass(frozen=True)
class Result:
    """A finished run.

    difference: the largest of a pixel in [0, 1], exported pipeline against trainer's sampler.
    seconds: what each part of the job took, in the process that finished it.
    """

    folder: Path
    student: Path
    rows: list[Row]
    difference: float
    seconds: dict[str, float]


def distill(run: Run, runs: Path = Path("runs"), console: Console | None = None) -> Result:
    """Train `run`, export its student, score it and write the report, below `runs/NAME/`.

    A folder of the same run is continued; a finished one is returned as it is. On several
    processes all train, and the main one does the rest.
    Raises ConfigError for bad input, TrainingFailed and ExportError while running.
    """
    console = console or Console(quiet=True)
    folder = runs / run.name
    done = finished(run, folder)
    if done is not None:
        console.print(f"{folder} is finished")
        return done
    clock = Clock()
    with clock.part("training"):
        session = trained(run, folder, console)
    if session.accelerator.is_main_process:
        complete(session, clock, console)
    session.accelerator.wait_for_everyone()
    session.accelerator.end_training()
    return finished(run, folder)


def complete(session: Session, clock: "Clock", console: Console) -> None:
    """Everything after training, in the run's folder."""
    folder = session.folder
    with clock.part("export"):
        difference = export(session, folder / "student")
    console.print(f"exported to {folder / 'student'}, plain call checked: {difference:.1e}")
    with clock.part("evaluation"):
        rows, suite = score(session, console)
    with clock.part("report"):
        report(session, rows, suite, str(clock), difference)
        describe(session, folder / "student")
    costs = {"difference": difference, "seconds": clock.seconds}
    (folder / COSTS).write_text(json.dumps(costs, indent=1))
    console.print(f"time: {clock}")


class Clock:
    """Adds up what each part of a job takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())


def trained(run: Run, folder: Path, console: Console) -> Session:
    """A session of the run, trained to its end."""
    accelerator = accelerator_of(run, folder)
    session = Session(run, folder, accelerator)  # bad input is found before anything is written
    if accelerator.is_main_process:
        open_folder(run, folder)
    else:
        console = Console(quiet=True)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("stepdistill", init_kwargs={"wandb": {"dir": str(folder)}})
    for warning in session.restore():
        console.print(f"{warning}; going on from the one before", style="yellow")
    title = "training " + " → ".join(stage.method for stage in run.stages)
    with progress(console, title) as observe:
        train(session, observe)
    return session


def score(session: Session, console: Console) -> tuple[list[Row], Suite]:
    """The rows of the run's table."""
    wanted = session.run.evaluation
    suite = digits_suite(conditional=session.teacher.classes is not None)
    with progress(console, "evaluating") as observe:
        rows = evaluate(
            of_run(session), suite, wanted.n, wanted.blocks, wanted.seed, on_progress=observe
        )
    return rows, suite


def report(
    session: Session, rows: list[Row], suite: Suite, spent: str, difference: float
) -> None:
    """results.json, report.md and report.html in the run's folder."""
    run = session.run
    trainer = session.trainer
    provenance = {
        "teacher": run.teacher or "none: this run trains one from data",
        "guidance": f"{run.guidance:g}  (u + w(c − u), 1 neutral)",
        "stages": ", ".join(f"{s.method} × {s.training.updates}" for s in run.stages),
        "steps skipped as not finite": str(trainer.skipped),
        "time": spent,
        "export": f"plain call equals the trainer's sampler to {difference:.1e}",
    }
    provenance |= suite.provenance | versions()
    write_report(
        session.folder,
        rows,
        title=run.name,
        provenance=provenance,
        curves=curves(session.folder / "log.jsonl"),
        grids=[grid(session)],
    )


@torch.no_grad()
def grid(session: Session) -> Grid:
    """Pictures of the same noise and labels, a row for each sampler."""
    run, teacher = session.run, session.teacher
    device = session.accelerator.device
    # Re-noising continues the stream the noise came from; the same seed again would repeat it.
    source = torch.Generator().manual_seed(run.seed)
    noise = torch.randn(GRID, *teacher.event, generator=source)
    labels = teacher.labels(GRID)
    labels = None if labels is None else labels.to(device)

    def row(draw: Draw) -> torch.Tensor:
        return draw(noise.to(device), labels, source.clone_state()).clamp(-1, 1).cpu()

    rows, names = [], []
    if run.network is None:
        euler = teacher_sampler(teacher)
        for n in run.evaluation.teacher_steps:
            rows.append(row(lambda z, c, g, n=n: euler.draw(teacher.guided, z, n, c, g)))
            names.append(label("teacher", n))
    student = session.student()
    for n in run.evaluation.steps:
        rows.append(row(lambda z, c, g, n=n: run.sampler.draw(student, z, n, c, g)))
        names.append(label("student", n))
    return Grid("Same noise, same label", torch.stack(rows), names)


def finished(run: Run, folder: Path) -> Result | None:
    """The result of a folder that already holds this run, complete."""
    if not (folder / COSTS).is_file():
        return None
    open_folder(run, folder)
    rows = read_results(folder / "results.json")
    try:
        costs = json.loads((folder / COSTS).read_text())
        return Result(folder, folder / "student", rows, costs["difference"], costs["seconds"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{folder / COSTS}: damaged ({error}): delete it, run again") from error
