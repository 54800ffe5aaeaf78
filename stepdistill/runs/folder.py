"""A run lives in one folder:

    config.yaml    the resolved run           log.jsonl      training curves
    versions.json  what it ran with           checkpoints/   own state: the newest, the best
    student/       the exported pipeline      results.json, report.md, report.html
    cache/         the teacher's trajectories stages/        students the next stage needs again
    costs.json     seconds of each part; its presence says the run is finished
    validation/    pictures of the student as it was trained
    classes.json   what the labels 0, 1, … are called, where the data say so

It is made whole or not at all, and reopened by the same run alone.
"""

import json
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import (
    LOCK,
    PARTIAL,
    DiskError,
    Taken,
    held,
    read_text,
    regular,
    save_whole,
    sweep,
    sweep_for,
    unwritten,
    write_whole,
)
from ..schema import ConfigError, below, shown
from ..training.checkpoint import CheckpointError, clear, finished, rotate
from .config import RunConfig, labelled, received, text_of, values_of
from .yaml import LARGEST_FILE

PACKAGES = ("stepdistill", "torch", "diffusers", "accelerate", "safetensors", "omegaconf")
# Keys that change no weights.
HARMLESS = (
    "trackers",
    "save_every",
    "keep",
    "log_every",
    "health",
    "evaluation",
    "validation",
)


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files are."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def trajectories(self) -> Path:
        return self.path / "cache"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def validation(self) -> Path:
        return self.path / "validation"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def classes(self) -> Path:
        return self.path / "classes.json"

    @property
    def costs(self) -> Path:
        return self.path / "costs.json"

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        return self.config.is_file()

    def read(self, trusted: Collection[str] = ()) -> RunConfig:
        """The run that lies there; of modules that are not shipped, only `trusted` ones are run.

        Raises ConfigError if there is none."""
        if not self.is_run:
            raise ConfigError(f"{self.path}: not a run (it has no config.yaml)")
        return received(self.config, trusted)

    def open(self, run: RunConfig) -> None:
        """Create the folder, or reopen it. Raises ConfigError if it holds something else."""
        if self.is_run:
            self.require(run)
            return
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigError(f"{self.path} exists and is not a run: choose another name")
        self._create(run)

    def require(self, run: RunConfig) -> None:
        """Raise ConfigError unless this very run lies here; what another one names is not run."""
        if self.differs(run):
            self._require(values_of(self.config), run)

    def differs(self, run: RunConfig) -> bool:
        """Whether another run lies here. Raises ConfigError for what is none."""
        with suppress(OSError, ValueError):
            if read_text(self.config, LARGEST_FILE) == text_of(run):
                return False
        with labelled(str(self.config)):
            return first_difference(asdict(values_of(self.config)), asdict(run)) is not None

    def extend(self, run: RunConfig) -> None:
        """Let the run that lies here go on as `run`, whose last stage is longer, or which differs
        in how it is scored and in what changes no weights. Raises ConfigError for another one."""
        with labelled(str(self.config)):
            found = values_of(self.config)
        self._require(extended(found, run), run)
        self.costs.unlink(missing_ok=True)  # first: what has it is finished
        write_whole(self.config, text_of(run))

    def _require(self, found: RunConfig, run: RunConfig) -> None:
        other = first_difference(asdict(found), asdict(run))
        if other is None:
            return
        key, there, here = other
        advice = "choose another name, or remove the folder"
        if first_difference(asdict(extended(found, run)), asdict(run)) is None:
            advice = f"--extend goes on with it as it is here, or {advice}"
        raise ConfigError(
            f"{self.path} holds a run with another configuration, {key}: {shown(there)} there, "
            f"{shown(here)} here: {advice}"
        )

    @contextmanager
    def held(self, run: RunConfig, extend: bool = False) -> Iterator[None]:
        """Open the folder and let no other process work in it meanwhile; leftovers go first.

        extend: whether it may hold a run that this one goes on with. Raises ConfigError, naming who
        does, where one works."""
        extend = extend and self.is_run and self.differs(run)
        if not extend:
            self.open(run)
        with alone(self.path / LOCK, self.path):
            if extend:
                self.extend(run)
            self._sweep()
            if found := finished(self.checkpoints):  # what the last one's rotation did not reach
                rotate(self.checkpoints, int(found[-1].name), run.keep)
            yield

    def tidy(self) -> None:
        """Clear away the leftovers of a finished run, if that can be done."""
        with suppress(Taken, OSError), held(self.path / LOCK):
            self._sweep()

    def _sweep(self) -> None:
        for folder in (self.path, self.path / "stages", self.validation):
            sweep(folder)
        clear(self.checkpoints)
        sweep_for(self.path.resolve())

    def _create(self, run: RunConfig) -> None:
        # What a link leads to is replaced, not the link.
        place = self.path.resolve() if self.path.is_dir() else self.path
        missing = [path for path in place.parents if not path.exists()]
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(PARTIAL, f".{place.name}.", place.parent) as scratch:
                made = RunFolder(Path(scratch) / "run")
                made.path.mkdir()
                made.config.write_text(text_of(run), encoding="utf-8")
                made.versions.write_text(json.dumps(versions(), indent=1))
                os.replace(made.path, place)
        except OSError as error:
            if self.is_run:  # another process was faster
                return self.require(run)
            with suppress(OSError):  # others may have made theirs there meanwhile
                for path in missing:
                    path.rmdir()
            reason = f"cannot be created ({error.strerror}): choose another folder for runs"
            raise ConfigError(f"{self.path} {reason}") from error
        sweep_for(place)

    def keep_student(self, stage: int, tensors: dict[str, Tensor]) -> None:
        """Write a finished stage's student, whole or not at all. Raises DiskError."""
        file = self._stage(stage)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_whole(file, tensors)
        except (OSError, SafetensorError) as error:
            raise DiskError(unwritten(file, error)) from error

    def kept_student(self, stage: int) -> dict[str, Tensor]:
        """A finished stage's student's tensors. Raises CheckpointError if there are none."""
        file = self._stage(stage)
        try:
            return load_file(regular(file))
        except (OSError, SafetensorError) as error:
            advice = "missing or damaged: delete its run, start again"
            raise CheckpointError(f"{file}: {advice}") from error

    def _stage(self, stage: int) -> Path:
        return self.path / "stages" / f"{stage}.safetensors"


@contextmanager
def alone(lock: Path, place: Path) -> Iterator[None]:
    """Let no other process work at a place meanwhile. Raises ConfigError, naming who does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(lock))
        except Taken as error:
            busy = "wait for it or stop it, and run the same command again"
            raise ConfigError(f"{place}: {error} is at work there: {busy}") from error
        except OSError as error:
            raise ConfigError(f"{place}: cannot be locked: {error.strerror}") from error
        yield


def extended(found: RunConfig, run: RunConfig) -> RunConfig:
    """`found` with what `run` may have otherwise where it goes on with it."""
    stages = found.stages
    if len(stages) == len(run.stages) > 0:
        last, updates = stages[-1], run.stages[-1].training.updates
        longer = max(last.training.updates, updates)
        stages = [*stages[:-1], replace(last, training=replace(last.training, updates=longer))]
    return replace(found, stages=stages, **{key: getattr(run, key) for key in HARMLESS})


def first_difference(found: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The dotted key of the first difference of two nests of plain values, and what they have."""
    if isinstance(found, list | tuple) and isinstance(wanted, list | tuple):
        if len(found) == len(wanted):
            found, wanted = dict(enumerate(found)), dict(enumerate(wanted))
    if isinstance(found, dict) and isinstance(wanted, dict):
        deeper = (
            first_difference(found.get(name), wanted.get(name), below(key, str(name)))
            for name in {**wanted, **found}
        )
        return next((inner for inner in deeper if inner is not None), None)
    return None if found == wanted else (key, found, wanted)


def versions() -> dict[str, str]:
    """What a run runs with."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def versions_line() -> str:
    """The same for readers."""
    return ", ".join(f"{name} {number}" for name, number in versions().items())
