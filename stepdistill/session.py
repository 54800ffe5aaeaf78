"""From a configuration to players in a folder: what `train`, `sample`, `export` and `eval` share.

A run lives in one folder:

    config.yaml    the resolved run           log.jsonl      training curves
    versions.json  what it ran with           checkpoints/   own state: the newest, the best
    student/       the exported pipeline      results.json, report.md, report.html
    cache/         the teacher's trajectories stages/        students the next stage needs again
    costs.json     seconds of each part; its presence says the run is finished
"""

import json
import os
import platform
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import digits
from .adapters import AdapterView, load_own, own_tensors, standalone
from .cache import Cache, build, times_of, trajectories
from .cache import load as load_cache
from .checkpoint import CheckpointError, DiskError, State, best, latest, save_whole, unwritten
from .checkpoint import read as read_state
from .config import ConfigError, Run, Stage, read, text_of
from .data import Data, Images, Shapes
from .denoiser import Denoiser
from .images import load as load_images
from .informed import EXTRAS, LASTING
from .method import Method
from .roles import Casting, cast
from .teacher import Teacher, load_pipeline, new_pipeline
from .trainer import Trainer

PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # ours (YAML reads "no" as false) → accelerate's
HEARING = {"w", "adapters"}  # extras of a student that is told its guidance
PACKAGES = ("stepdistill", "torch", "diffusers", "accelerate", "safetensors", "omegaconf")


def teacher_of(run: Run) -> Teacher:
    """The run's teacher, or its new network in the same shape. Raises ConfigError."""
    try:
        if run.network is None:
            pipeline = load_pipeline(run.teacher)
        else:
            n = run.network
            pipeline = new_pipeline(n.unet, n.scheduler, n.scheduler_config, run.seed)
        teacher = Teacher.from_pipeline(pipeline, run.guidance)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"teacher: {error}") from error
    if run.adapters is None:
        return teacher
    return teacher.with_net(AdapterView(teacher.denoiser.net, None))


def data_of(run: Run, teacher: Teacher, needed: bool = True) -> Data:
    """The run's training data; shapes and labels alone if none is needed. Raises ConfigError if the
    data, or the suite that will score the student, do not fit the network."""
    if teacher.event != digits.EVENT or teacher.classes not in (None, digits.CLASSES):
        raise ConfigError(
            f"evaluation.suite: 'digits' scores images {digits.EVENT} of {digits.CLASSES} classes "
            f"or none; the teacher makes {teacher.event} of {teacher.classes or 'no'} classes"
        )
    if teacher.classes is None and run.data.dropout > 0:
        raise ConfigError("data.dropout: the network takes no labels (num_class_embeds): use 0")
    if not needed:
        return Shapes(teacher.event, teacher.classes, run.data.dropout)
    if run.data.name == "digits":
        images, labels = digits.load()
    else:
        try:
            images, labels = load_images(run.data.path, teacher.event, teacher.classes)
        except ConfigError as error:
            raise ConfigError(f"data.path: {error}") from error
    if teacher.classes is None:
        return Images(images, None, seed=run.seed)
    return Images(images, labels, teacher.classes, run.data.dropout, run.seed)


def check_guidance(run: Run, methods: list[Method], teacher: Teacher) -> None:
    """Raise ConfigError for a teacher that a stage cannot learn from, and for guidance, the run's,
    a method's or the cache's, that would do nothing."""
    told: set[str] = set()
    for i, (stage, method) in enumerate(zip(run.stages, methods)):
        own = stage.teacher == "run"
        ranged = method.needs_cache and run.cache is not None and run.cache.guidance is not None
        try:
            method.check_teacher(teacher.guided if own else teacher.denoiser)
        except ValueError as error:
            raise ConfigError(f"stages.{i}: {error}") from error
        if (method.guides or ranged) and teacher.classes is None:
            raise ConfigError(f"stages.{i}: guidance needs a class-conditional teacher")
        if method.guides and not own and not told & HEARING:
            raise ConfigError(f"stages.{i}: guides the last student, which is told no guidance")
        if ranged and not HEARING & {*method.extras}:
            raise ConfigError(f"stages.{i}: {stage.method} tells no student w: no cache.guidance")
        told |= {*method.extras}
    asked = [m.needs_cache or m.passes(run.sampler).teacher > 0 for m in methods]
    if run.guidance != 1 and not any(asked):
        raise ConfigError(f"guidance: {run.guidance:g} is for a teacher that no stage asks: use 1")


def nfe_of(run: Run, stage: int, method: Method, teacher: Teacher) -> int:
    """Networks a call of the stage's teacher asks: guidance doubles them, unless it is told."""
    if run.stages[stage].teacher == "last":
        return 1
    return 2 if method.guides else teacher.nfe


def keep_student(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a finished stage's student, whole or not at all. Raises DiskError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_whole(file, tensors)
    except (OSError, SafetensorError) as error:
        raise DiskError(unwritten(file, error)) from error


def kept_student(file: Path) -> dict[str, Tensor]:
    """The tensors of a finished stage's student. Raises CheckpointError if there are none."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: missing or damaged: delete its run, start again") from error


def check_times(run: Run, methods: list[Method], denoiser: Denoiser) -> None:
    """Raise ConfigError for sampling times the student never sees, or where x̂₀ is undefined."""
    process, offered = denoiser.process, {*run.sampler.steps, *run.evaluation.steps}
    try:
        *_, trained = (method.trained_times(process, run.sampler) for method in methods)
        for n in sorted(offered):
            times = run.sampler.times(process, n)
            process.require_well_posed(denoiser.prediction, float(times[0]))
            check_trained(n, times, trained, tolerance=1e-6 * process.t_max)
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from error


def check_trained(n: int, times: Tensor, trained: Tensor | None, tolerance: float) -> None:
    """Raise ValueError if one of `times` is not among `trained`; None trains everywhere."""
    if trained is None:
        return
    gaps = (times[:, None] - trained).abs().min(dim=1).values
    if float(gaps.max()) > tolerance:
        t = float(times[gaps.argmax()])
        raise ValueError(
            f"{n} steps ask the student at t = {t:g}, which the last stage never trains: choose a "
            "grid that holds it (such as 16 uniform steps for 1, 2 and 4), or other steps"
        )


class Session:
    """One run in its folder: its teacher, and the trainer of its present stage."""

    def __init__(self, run: Run, folder: Path, accelerator: Accelerator) -> None:
        self.run, self.folder, self.accelerator = run, folder, accelerator
        self.methods = [stage.build() for stage in run.stages]
        self.teacher = teacher_of(run)
        check_times(run, self.methods, self.teacher.denoiser)
        self.teacher.denoiser.net.to(accelerator.device)
        looked_at = any(method.needs_data for method in self.methods)
        self.data = data_of(run, self.teacher, looked_at)
        check_guidance(run, self.methods, self.teacher)
        self.acting = self.teacher  # the teacher of the present stage
        self.cache: Data | None = None
        self.pending: dict[str, dict[str, Any]] = {}  # a checkpoint's means that are not yet logged
        self.health: dict[str, Any] = {}  # a checkpoint's state of the stage's monitor
        self.stage = 0
        self.trainer = self._trainer(None)

    @property
    def stage_settings(self) -> Stage:
        return self.run.stages[self.stage]

    @property
    def finished(self) -> bool:
        return self.stage + 1 == len(self.run.stages) and self.trainer.done

    def next_stage(self, start: dict[str, Tensor] | None = None) -> None:
        """Start the next stage from the averaged student of this one, or from these tensors.

        A critic goes on where it was."""
        start, critic = start or self.trainer.averaged(), self.trainer.players.critic
        critic = None if critic is None or critic.frozen else own_tensors(critic.denoiser.net)
        taught = self.run.stages[self.stage + 1].teacher == "last"
        kept = taught or self.methods[self.stage + 1].needs_origin
        if kept and self.accelerator.is_main_process:
            keep_student(self._stage_file(self.stage), start)
        if taught:
            self._promote()
        self.stage += 1
        self.health = {}
        self.trainer = self._trainer(start, critic)

    def open_cache(self, observe: Callable[[int, int], None]) -> None:
        """Build what is missing of the run's cache, with all processes, and open it."""
        settings = self.run.cache
        if settings is None or not any(method.needs_cache for method in self.methods):
            return
        folder = Path(settings.path) if settings.path else self.folder / "cache"
        part = self.accelerator.process_index, self.accelerator.num_processes
        build(folder, self.teacher, settings, part, observe)
        self.accelerator.wait_for_everyone()
        self.cache = load_cache(folder, self.teacher, settings, self.run.seed)
        self.trainer.data = self._data()

    def rehearse_cache(self) -> None:
        """A few trajectories in memory, in place of the cache that training will build."""
        settings = self.run.cache
        if settings is not None:
            few = replace(settings, samples=1, shard=1)
            tensors = trajectories(self.teacher, few, 0)
            self.cache = Cache(times_of(self.teacher, few), [tensors], 1)
            self.trainer.data = self._data()

    def _data(self) -> Data:
        """The data of the present stage; those of a cache come with `open_cache`."""
        return self.cache if self.methods[self.stage].needs_cache else self.data

    def _promote(self) -> None:
        """Let the present stage's student, as it is, teach the next stage."""
        self.acting = replace(self.teacher, guided=self.student())

    def _stage_file(self, stage: int) -> Path:
        return self.folder / "stages" / f"{stage}.safetensors"

    def student(self) -> Denoiser:
        """The averaged student, a plain network with weights of its own."""
        student = self.trainer.players.student
        student = replace(student, net=deepcopy(student.net))
        load_own(student.net, self.trainer.averaged())
        student = replace(student, net=standalone(student.net))
        student.net.eval().requires_grad_(False)
        return student

    def restore(self) -> list[str]:
        """Continue from the newest readable checkpoint, if any; warnings about damaged ones.

        Raises CheckpointError if none of them can be read, or if it is no state of this run."""
        folder = self.folder / "checkpoints"
        state, warnings = latest(folder)
        if state is not None:
            self.go_on_from(state, folder)
        return warnings

    def go_on_from(self, state: State, folder: Path) -> None:
        """Take up a state read from `folder`. Raises CheckpointError if it is not of this run."""
        try:
            self._call_teachers(state.numbers["stage"])
            self.stage, self.pending = state.numbers["stage"], state.numbers["pending"]
            self.health = state.numbers["health"]
            self.trainer = self._trainer(self._origin())
            self.trainer.restore(state)
        except (KeyError, IndexError) as error:
            raise CheckpointError(
                f"{folder}: written by another version of stepdistill (no {error}): go on with "
                f"that one, or delete {self.folder} to start again"
            ) from error

    def _call_teachers(self, until: int) -> None:
        """Give stage `until` the teacher it has. Raises CheckpointError if it was not kept."""
        for stage in range(until):
            if self.run.stages[stage + 1].teacher == "last":
                self.stage = stage
                self.trainer = self._trainer(kept_student(self._stage_file(stage)))
                self._promote()

    def _origin(self) -> dict[str, Tensor] | None:
        """What the present stage started from, if its method needs it again."""
        if self.stage == 0 or not self.methods[self.stage].needs_origin:
            return None
        return kept_student(self._stage_file(self.stage - 1))

    def _trainer(
        self, start: dict[str, Tensor] | None, critic: dict[str, Tensor] | None = None
    ) -> Trainer:
        run, stage, method = self.run, self.stage_settings, self.methods[self.stage]
        casting = Casting(
            run.sampler,
            run.adapters,
            run.checkpointing,
            stage.training.target,
            self._needs_skip(),
            self._extras(),
            start,
            critic,
            (run.seed, self.stage),
        )
        try:
            players = cast(method, self.acting, casting)
        except ValueError as error:
            raise ConfigError(f"stages.{self.stage}: {error}") from error
        seeds = (run.seed, self.stage)
        return Trainer(method, players, self._data(), stage.training, self.accelerator, seeds)

    def _extras(self) -> tuple[str, ...]:
        # What a student's network was told it is told in later stages; it need not tell as much.
        before = {name for method in self.methods[: self.stage] for name in method.extras}
        asked = before & {*LASTING} | {*self.methods[self.stage].extras}
        return tuple(name for name in EXTRAS if name in asked)

    def _needs_skip(self) -> bool:
        # A student that has been a consistency function stays one in later stages.
        teacher = self.teacher.denoiser
        asked = any(method.identity_at_clean for method in self.methods[: self.stage + 1])
        return asked and not teacher.process.has_identity_at_clean(teacher.prediction)


def open_folder(run: Run, folder: Path) -> None:
    """Create the run's folder, or reopen it. Raises ConfigError if it holds something else."""
    file = folder / "config.yaml"
    if file.is_file():
        if text_of(read(str(file))) != text_of(run):
            raise ConfigError(
                f"{folder} holds a run with another configuration: choose another name, "
                "or remove the folder"
            )
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not a run: choose another name")
    create(run, folder)


def create(run: Run, folder: Path) -> None:
    """Make the folder of a new run, whole or not at all. Raises ConfigError if it cannot be."""
    partial = folder.with_name(f".{folder.name}.partial")
    missing = [path for path in folder.parents if not path.exists()]
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / "config.yaml").write_text(text_of(run), encoding="utf-8")
        (partial / "versions.json").write_text(json.dumps(versions(), indent=1))
        os.replace(partial, folder)
    except OSError as error:
        shutil.rmtree(missing[-1] if missing else partial, ignore_errors=True)
        reason = f"cannot be created ({error.strerror}): choose another folder for runs"
        raise ConfigError(f"{folder} {reason}") from error


def reopen(folder: Path, accelerator: Accelerator, at_best: bool = False) -> Session:
    """The session of a trained run, at its end or at the checkpoint nearest to the teacher.

    Raises ConfigError if it is not one, or not finished, CheckpointError if it is damaged."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder}: not a run (it has no config.yaml)")
    run = read(str(folder / "config.yaml"))
    try:
        session = Session(run, folder, accelerator)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    try:
        session.restore()
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        # Whatever torch makes of numbers and tensors that are not this run's.
        reason = f"its checkpoints do not fit its config.yaml ({type(error).__name__})"
        raise ConfigError(f"{folder}: {reason}: train it again") from error
    if not session.finished:
        raise ConfigError(f"{folder}: its training is not finished; `stepdistill run` goes on")
    if at_best:
        checkpoint = best(folder / "checkpoints")
        if checkpoint is None:
            raise ConfigError(f"{folder}: no checkpoint has a score: its method has no teacher")
        session.go_on_from(read_state(checkpoint), checkpoint)
    return session


def versions() -> dict[str, str]:
    """What the run ran with."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def accelerator_of(run: Run, folder: Path) -> Accelerator:
    """The accelerator of a run, logging below its folder."""
    AcceleratorState._reset_state()  # else an earlier run of this process fixes the precision
    trackers = list(run.trackers) or None
    if "wandb" in run.trackers and find_spec("wandb") is None:
        raise ConfigError("trackers: wandb is not installed: pip install 'stepdistill[wandb]'")
    return Accelerator(
        mixed_precision=PRECISIONS[run.precision], log_with=trackers, project_dir=str(folder)
    )
