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
from datetime import timedelta
from itertools import accumulate
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console
from safetensors import SafetensorError
from torch import distributed

from .bands import along
from .cache import bytes_of
from .checkpoint import DiskError, is_full, unwritten, write_whole
from .config import ConfigError, Run, text_of
from .contenders import of_run
from .evaluation.report import Report, read_results, write_report
from .evaluation.suite import Contender, Row, Suite, digits_suite, evaluate
from .export import describe, export
from .gallery import films, same_noise, worst
from .health import record_of
from .progress import progress
from .session import Session, accelerator_of, open_folder, versions
from .train import curves, train
from .train import rows as logged

COSTS = "costs.json"  # written last: a folder that has it is finished


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
    with waited_for(session.accelerator):
        if session.accelerator.is_main_process:
            complete(session, clock, console)
    session.accelerator.end_training()
    return finished(run, folder)


@contextmanager
def waited_for(accelerator: Accelerator) -> Iterator[None]:
    """At its end all processes wait for the last, however long it takes."""
    # The training's own barrier gives up after minutes, and under NCCL keeps the waiting GPUs busy.
    # Waiting in a group of its own needs no longer limit for training, where it finds deadlocks;
    # gloo waits in sockets and fails at once when the process that is waited for dies.
    alone = accelerator.num_processes == 1
    group = None if alone else distributed.new_group(backend="gloo", timeout=timedelta(days=30))
    yield
    if group is not None:
        distributed.barrier(group)


def complete(session: Session, clock: "Clock", console: Console) -> None:
    """Everything after training, in the run's folder. Raises DiskError where that is full."""
    try:
        finish(session, clock, console)
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise DiskError(unwritten(session.folder / "student", error)) from error


def finish(session: Session, clock: "Clock", console: Console) -> None:
    """Export, evaluate, report; the file that says so comes last."""
    folder = session.folder
    with clock.part("export"):
        difference = export(session, folder / "student")
    console.print(f"exported to {folder / 'student'}, plain call checked: {difference:.1e}")
    with clock.part("evaluation"):
        suite = digits_suite(conditional=session.teacher.classes is not None)
        contenders = of_run(session)
        rows = score(session, suite, contenders, console)
    with clock.part("report"):
        report(session, rows, suite, contenders, clock, difference)
        describe(session, folder / "student")
    costs = {"difference": difference, "seconds": clock.seconds}
    write_whole(folder / COSTS, json.dumps(costs, indent=1))
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
    prepare_cache(session, console)
    for warning in session.restore():
        text = f"{warning}; going on from the one before"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    title = "training " + " → ".join(stage.method for stage in run.stages)
    try:
        with progress(console, title) as show:
            train(
                session,
                lambda moment: show(moment.done, moment.total, str(moment)),
                lambda line: console.print(line, style="yellow", markup=False, soft_wrap=True),
            )
    except KeyboardInterrupt:
        where = f"update {session.trainer.update} of {session.stage_settings.method}"
        text = f"stopped at {where}: the same command goes on from {folder / 'checkpoints'}"
        console.print(text, markup=False, soft_wrap=True)
        raise
    return session


def prepare_cache(session: Session, console: Console) -> None:
    """Compute the teacher's trajectories the run asks for, with their size said before."""
    if session.run.cache is None:
        return
    size = bytes_of(session.teacher, session.run.cache)
    console.print(f"teacher's trajectories: {size / 1e6:.1f} MB", soft_wrap=True)
    with progress(console, "caching") as show:
        session.open_cache(lambda done, total: show(done, total, ""))


def score(
    session: Session, suite: Suite, contenders: list[Contender], console: Console
) -> list[Row]:
    """The rows of the run's table."""
    asked = session.run.evaluation
    with progress(console, "evaluating") as observe:
        return evaluate(
            contenders, suite, asked.n, asked.blocks, asked.seed, on_progress=observe
        )


def report(
    session: Session,
    rows: list[Row],
    suite: Suite,
    contenders: list[Contender],
    clock: "Clock",
    difference: float,
) -> None:
    """results.json, report.md and report.html in the run's folder."""
    run = session.run
    stages = [(stage.method, stage.training.updates) for stage in run.stages]
    write_report(
        session.folder,
        Report(
            title=run.name,
            rows=rows,
            provenance=provenance(session, difference) | suite.provenance,
            costs=costs(session, clock),
            curves=curves(session.folder / "log.jsonl"),
            stages=stage_ends(run),
            grids=[same_noise(contenders, suite, run.seed)],
            films=films(session),
            worst=worst(contenders, suite, run.evaluation.n, run.evaluation.seed),
            health=record_of(logged(session.folder / "log.jsonl"), run.health, stages),
            bands={f"health: {signal}": spans for signal, spans in along(stages).items()},
            config=text_of(run),
        ),
    )


def provenance(session: Session, difference: float) -> dict[str, str]:
    """What was trained, from what, and how far the export can be trusted."""
    run = session.run
    methods = {f"stage {i}": str(method) for i, method in enumerate(session.methods, 1)}
    return {
        "teacher": run.teacher or "none: this run trains one from data",
        "guidance": f"{run.guidance:g}  (u + w(c − u), 1 neutral)",
        **methods,
        "steps skipped as not finite": str(session.trainer.skipped),
        "export": f"plain call equals the trainer's sampler to {difference:.1e}",
        "versions": ", ".join(map(" ".join, versions().items())),
    }


def costs(session: Session, clock: "Clock") -> dict[str, str]:
    """Seconds of each part, and what each stage's updates are made of."""
    spent = {part: f"{seconds:.1f} s" for part, seconds in clock.seconds.items()}
    run = session.run
    for i, (stage, method) in enumerate(zip(run.stages, session.methods, strict=True), 1):
        passes = method.passes(run.sampler)._asdict().items()
        spent[f"stage {i}, {stage.method}"] = (
            f"{stage.training.updates:,} updates of {stage.training.batch} samples; "
            f"network passes an update: {', '.join(f'{n:g} {kind}' for kind, n in passes)}"
        )
    return spent


def stage_ends(run: Run) -> list[tuple[int, str]]:
    """The last update of each stage, counted from the start of the run, and its method."""
    ends = accumulate(stage.training.updates for stage in run.stages)
    return [(end, stage.method) for end, stage in zip(ends, run.stages, strict=True)]


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
