"""A run lives in one folder:

    config.yaml    the resolved run           log.jsonl      training curves
    versions.json  what it ran with           checkpoints/   own state: the newest, the best
    student/       the exported pipeline      results.json, report.md, report.html
    cache/         the teacher's trajectories stages/        students the next stage needs again
    costs.json     seconds of each part; its presence says the run is finished
    classes.json   what the labels 0, 1, … are called, where the data say so

It is made whole or not at all, and reopened by the same run alone.
"""

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import DiskError, save_whole, unwritten
from ..schema import ConfigError
from ..training.checkpoint import CheckpointError
from .config import RunConfig, read, text_of

PACKAGES = ("stepdistill", "torch", "diffusers", "accelerate", "safetensors", "omegaconf")


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

    def read(self) -> RunConfig:
        """The run that lies there. Raises ConfigError if there is none."""
        if not self.is_run:
            raise ConfigError(f"{self.path}: not a run (it has no config.yaml)")
        return read(str(self.config))

    def open(self, run: RunConfig) -> None:
        """Create the folder, or reopen it. Raises ConfigError if it holds something else."""
        if self.is_run:
            if text_of(self.read()) != text_of(run):
                raise ConfigError(
                    f"{self.path} holds a run with another configuration: choose another name, "
                    "or remove the folder"
                )
            return
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ConfigError(f"{self.path} exists and is not a run: choose another name")
        self._create(run)

    def _create(self, run: RunConfig) -> None:
        partial = RunFolder(self.path.with_name(f".{self.path.name}.partial"))
        missing = [path for path in self.path.parents if not path.exists()]
        try:
            shutil.rmtree(partial.path, ignore_errors=True)
            partial.path.mkdir(parents=True)
            partial.config.write_text(text_of(run), encoding="utf-8")
            partial.versions.write_text(json.dumps(versions(), indent=1))
            os.replace(partial.path, self.path)
        except OSError as error:
            shutil.rmtree(missing[-1] if missing else partial.path, ignore_errors=True)
            reason = f"cannot be created ({error.strerror}): choose another folder for runs"
            raise ConfigError(f"{self.path} {reason}") from error

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
            return load_file(file)
        except (OSError, SafetensorError) as error:
            advice = "missing or damaged: delete its run, start again"
            raise CheckpointError(f"{file}: {advice}") from error

    def _stage(self, stage: int) -> Path:
        return self.path / "stages" / f"{stage}.safetensors"


def versions() -> dict[str, str]:
    """What a run runs with."""
    return {"python": platform.python_version()} | {p: version(p) for p in PACKAGES}


def versions_line() -> str:
    """The same for readers."""
    return ", ".join(f"{name} {number}" for name, number in versions().items())
