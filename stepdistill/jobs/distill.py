"""The main job: train, export, evaluate, report, in one resumable folder. From Python:

    import stepdistill
    result = stepdistill.distill(stepdistill.read("demo"))
    result.student   # the exported pipeline's folder
    result.rows      # what it scored, beside its teacher

What is finished already is returned as it is.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

from accelerate import Accelerator, PartialState
from rich.console import Console
from safetensors import SafetensorError
from torch import distributed

from ..data.latents import latent_bytes
from ..data.loader import Loader
from ..data.texts import text_bytes
from ..evaluation.evaluate import Sampled, evaluate
from ..evaluation.protocol import Procedure, protocols
from ..evaluation.report.report import Report, read_results, write_report
from ..evaluation.rows import Row
from ..evaluation.suite import Suite
from ..export.export import describe, export
from ..files import DiskError, is_full, read_text, unwritten, write_whole
from ..runs import classes
from ..runs.config import RunConfig, guidance_of, text_of
from ..runs.costs import stage_costs, trajectory_bytes
from ..runs.folder import RunFolder, versions_line
from ..runs.log import curves, log_rows
from ..runs.loop import train
from ..runs.progress import progress
from ..runs.setup import Setup, accelerator_of, check_batches
from ..runs.stages import Stages, TrainedRun
from ..schema import ConfigError, fit
from ..training.health.monitor import record_of
from ..training.health.reference import StageSpan, spans
from .costs import with_costs
from .report_images import outliers_of, pairs_of, same_noise, strips, within
from .samplers import of_run
from .suites import require, require_images, suite_for
from .validation import Validator, as_trained


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


def distill(
    run: RunConfig,
    runs: Path = Path("runs"),
    console: Console | None = None,
    extend: bool = False,
) -> Result:
    """Train `run`, export its student, score it and write the report, below `runs/NAME/`.

    A folder of the same run is continued; a finished one is returned as it is. extend: whether the
    folder may hold one whose last stage is shorter, or that is scored otherwise, and this one goes
    on with it. On several processes all train, and the main one does the rest.
    Raises ConfigError for bad input, TrainingFailed and ExportError while running.
    """
    console = console or Console(quiet=True)
    folder = RunFolder(runs / run.name)
    goes_on = extend and folder.is_run and folder.differs(run)
    done = None if goes_on else finished(run, folder)
    if done is not None:
        folder.tidy()
        console.print(f"{folder.path} is finished")
        return done
    clock = Clock()
    with opened(run, folder.path, extend) as stages:
        with clock.part("training"):
            train_stages(stages, console)
        accelerator = stages.setup.accelerator
        with waited_for(accelerator):
            if accelerator.is_main_process:
                complete(stages.result(), clock, console)
    accelerator.end_training()
    return finished(run, folder)


@contextmanager
def waited_for(accelerator: Accelerator | PartialState) -> Iterator[None]:
    """At its end all processes wait for the last, however long it takes."""
    # The training's own barrier gives up after minutes, and under NCCL keeps the waiting GPUs busy.
    # Waiting in a group of its own needs no longer limit for training, where it finds deadlocks;
    # gloo waits in sockets and fails at once when the process that is waited for dies.
    alone = accelerator.num_processes == 1
    group = None if alone else distributed.new_group(backend="gloo", timeout=timedelta(days=30))
    yield
    if group is not None:
        distributed.barrier(group)


def complete(trained: TrainedRun, clock: "Clock", console: Console) -> None:
    """Everything after training, in the run's folder. Raises DiskError where that is full."""
    try:
        finish(trained, clock, console)
    except (OSError, SafetensorError) as error:
        if not is_full(error):
            raise
        raise DiskError(unwritten(trained.folder.student, error)) from error


def finish(trained: TrainedRun, clock: "Clock", console: Console) -> None:
    """Export, evaluate, report; the file that says so comes last."""
    folder = trained.folder
    with clock.part("export"):
        difference = export(trained, folder.student)
    console.print(f"exported to {folder.student}, plain call checked: {difference:.1e}")
    with clock.part("evaluation"):
        suite, remark = suite_for(trained.run, trained.teacher)
        if remark:
            warn(console, remark)
        samplers = of_run(trained)
        rows = score(trained.run, suite, samplers, console)
    with clock.part("report"):
        made = report(trained, rows, suite, samplers, clock, difference)
        write_report(folder.path, replace(made, remark=remark))
        describe(trained, folder.student, rows)
    costs = {"difference": difference, "seconds": clock.seconds}
    write_whole(folder.costs, json.dumps(costs, indent=1))  # last: a folder that has it is finished
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


def train_run(run: RunConfig, folder: Path, console: Console, extend: bool = False) -> Stages:
    """The stages of the run, trained to their end in its folder. extend: see `distill`."""
    with opened(run, folder, extend) as stages:
        train_stages(stages, console)
    return stages


@contextmanager
def opened(run: RunConfig, folder: Path, extend: bool = False) -> Iterator[Stages]:
    """The stages of the run, as they are, in its folder, where no other run's processes work.

    Raises ConfigError for a run that cannot be trained there."""
    settings, task, _ = require(run.evaluation.suite)
    accelerator = accelerator_of(run, folder)
    stages = Stages.of(run, folder, accelerator)  # bad input is found before anything is written
    require_images(settings, task, run, stages.setup.teacher)
    check_batches(stages.setup)
    with stages.folder.held(run, extend) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        yield stages


def train_stages(stages: Stages, console: Console) -> None:
    """Train the stages of a run to their end, from wherever they were."""
    run, accelerator = stages.setup.run, stages.setup.accelerator
    if accelerator.is_main_process:
        show_classes(stages, console)
    else:
        console = Console(quiet=True)
    where = {"wandb": {"dir": str(stages.folder.path)}}
    accelerator.init_trackers("stepdistill", init_kwargs=where)
    prepare_cache(stages, console)
    for warning in stages.restore():
        warn(console, f"{warning}; going on from the one before")
    title = "training " + " → ".join(stage.method for stage in run.stages)
    try:
        with progress(console, title) as show:
            train(
                stages,
                lambda snapshot: show(snapshot.done, snapshot.total, str(snapshot)),
                partial(warn, console),
                Validator(stages),
            )
    except KeyboardInterrupt:
        where = f"update {stages.trainer.update} of {stages.settings.method}"
        text = f"stopped at {where}: the same command goes on from {stages.folder.checkpoints}"
        console.print(text, markup=False, soft_wrap=True)
        raise


def show_classes(stages: Stages, console: Console) -> None:
    """Keep what the labels are called in the run's folder, and say it. Raises ConfigError."""
    names = stages.setup.data.names
    classes.keep(stages.folder.classes, names)
    if names:
        console.print(f"classes: {classes.listed(names)}", markup=False, soft_wrap=True)


def warn(console: Console, line: str) -> None:
    """Show a line that asks for attention."""
    console.print(line, style="yellow", markup=False, soft_wrap=True)


def prepare_cache(stages: Stages, console: Console) -> None:
    """Encode the prompts and the images and compute the trajectories that the run asks for, with
    their sizes said before."""
    setup = stages.setup
    if setup.run.prompts is not None and setup.run.prompts.cache is not None:
        size = text_bytes(setup.teacher, setup.run.prompts.dtype)
        console.print(f"encoded prompts: {size / 1e6:.1f} MB", soft_wrap=True)
        with progress(console, "encoding") as show:
            stages.open_texts(lambda done, total: show(done, total, ""))
    if setup.run.data.cache is not None and isinstance(setup.data, Loader):
        size = latent_bytes(setup.data, setup.run.data.dtype)
        console.print(f"encoded images: {size / 1e6:.1f} MB", soft_wrap=True)
        with progress(console, "encoding") as show:
            stages.open_latents(lambda done, total: show(done, total, ""))
    if setup.run.cache is None:
        return
    size = trajectory_bytes(setup.teacher, setup.run.cache)
    console.print(f"teacher's trajectories: {size / 1e6:.1f} MB", soft_wrap=True)
    with progress(console, "caching") as show:
        stages.open_cache(lambda done, total: show(done, total, ""))


def score(run: RunConfig, suite: Suite, samplers: list[Sampled], console: Console) -> list[Row]:
    """The rows of the run's table."""
    asked = run.evaluation
    with progress(console, "evaluating") as observe:
        rows = evaluate(samplers, suite, asked.n, asked.blocks, asked.seed, on_progress=observe)
    with progress(console, "measuring costs") as observe:
        return with_costs(rows, samplers, suite, observe)


def report(
    trained: TrainedRun,
    rows: list[Row],
    suite: Suite,
    samplers: list[Sampled],
    clock: "Clock",
    difference: float,
) -> Report:
    """What results.json, report.md and report.html of the run's folder show."""
    run, log = trained.run, trained.folder.log
    stages, n, seed = stage_spans(run), run.evaluation.n, run.evaluation.seed
    procedure = Procedure(n, run.evaluation.blocks, seed, size=suite.size[1:])
    with suite.threaded():
        protocol, made = protocols(suite, procedure, versions_line()), procedure.provenance(suite)
    return Report(
        title=run.name,
        rows=rows,
        suite=suite,
        provenance=provenance(trained, difference) | suite.provenance | made,
        protocol=protocol,
        costs=costs(trained.setup, clock),
        curves=curves(log),
        stages=stages,
        grids=[same_noise(samplers, suite, run.seed)],
        within=within(samplers, suite, run.seed, n),
        pairs=pairs_of(samplers, suite, n, seed),
        films=strips(trained),
        trained=as_trained(trained),
        worst=outliers_of(samplers, suite, n, seed),
        health=record_of(log_rows(log), run.health, stages),
        bands={f"health: {signal}": found for signal, found in spans(stages).items()},
        config=text_of(run),
    )


def provenance(trained: TrainedRun, difference: float) -> dict[str, str]:
    """What was trained, from what, and how far the export can be trusted."""
    run = trained.run
    methods = {f"stage {i}": str(method) for i, method in enumerate(trained.setup.methods, 1)}
    began = {} if run.student is None else {"the student began as": run.student}
    return {
        "teacher": str(run.teacher or "none: this run trains one from data"),
        **began,
        "guidance": f"{guidance_of(run)}  in u + w(c − u), 1 neutral",
        **methods,
        "steps skipped as not finite": str(trained.skipped),
        "export": f"plain call equals the trainer's sampler to {difference:.1e}",
        "versions": versions_line(),
    }


def costs(setup: Setup, clock: "Clock") -> dict[str, str]:
    """Seconds of each part, and what each stage's updates are made of."""
    spent = {part: f"{seconds:.1f} s" for part, seconds in clock.seconds.items()}
    stages = zip(setup.run.stages, stage_costs(setup), strict=True)
    return spent | {f"stage {i}, {s.method}": str(c) for i, (s, c) in enumerate(stages, 1)}


def stage_spans(run: RunConfig) -> list[StageSpan]:
    """The stages of a run, in order."""
    ends = [0, *accumulate(stage.training.updates for stage in run.stages)]
    return [StageSpan(s.method, *span) for s, span in zip(run.stages, pairwise(ends), strict=True)]


def finished(run: RunConfig, folder: RunFolder) -> Result | None:
    """The result of a folder that already holds this run, complete.

    Raises ConfigError where that is damaged."""
    if not (folder.costs.is_file() and folder.results.is_file()):
        return None
    folder.open(run)
    rows = read_results(folder.results)
    try:
        costs = json.loads(read_text(folder.costs))
        difference = fit(float, costs["difference"], "difference")
        seconds = {part: fit(float, spent, part) for part, spent in costs["seconds"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{folder.costs}: damaged ({error}): delete it, run again") from error
    return Result(folder.path, folder.student, rows, difference, seconds)
