"""Weights that others trained: where they lie on this machine, and what to do where they do not.

A file is looked for in $STEPDISTILL_WEIGHTS and in $TORCH_HOME/hub/checkpoints, where
torch-fidelity, torchmetrics, clean-fid and lpips keep theirs; a model folder of the hub in
$STEPDISTILL_WEIGHTS and in the hub's own cache. What a user names is taken as it is: the identity
of its space says what it holds. Nothing is fetched unless `DOWNLOADS.allowed`; what is missing is
known at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate.utils import parse_flag_from_env
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import hub

from ..files import sha256
from ..resources import DOWNLOADS

OWN = "STEPDISTILL_WEIGHTS"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEXED = tuple(f"{name}.index.json" for name in WEIGHTS)  # of weights in several files
HASH = re.compile(r"-([0-9a-f]{8,})\.")  # the start of a file's SHA-256 in its name


class Unavailable(ValueError):
    """What a metric needs is not on this machine; one line says what, and what to do."""


class WeightsUnavailable(Unavailable):
    """A file of weights is not here, or is not what it should be."""


@dataclass(frozen=True)
class File:
    """One file: its name, its size, where it comes from, its SHA-256 if that is known, and other
    names of the same content."""

    name: str
    megabytes: float
    source: str
    sha256: str = ""
    also: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What its SHA-256 begins with; nothing where that is not known."""
        found = HASH.search(self.name)
        return self.sha256 or (found[1] if found else "")

    def __str__(self) -> str:
        return described(self.name, self.megabytes, self.source, self.expected)


@dataclass(frozen=True)
class Model:
    """A folder of the hub that transformers loads: its name there, and its file of weights."""

    repo: str
    megabytes: float
    file: str
    sha256: str = ""

    @property
    def source(self) -> str:
        """Where it comes from."""
        return f"https://huggingface.co/{self.repo}"

    def __str__(self) -> str:
        return described(f"{self.repo}/{self.file}", self.megabytes, self.source, self.sha256)


def described(name: str, megabytes: float, source: str, checksum: str) -> str:
    """What a user must know to get a file."""
    known = f"SHA-256 {checksum}" if checksum else "checksum not known"
    return f"{name} ({megabytes:.1f} MB from {source}, {known})"


def find_file(file: File, given: str = "") -> Path:
    """Where a file lies; given: what a user names instead.

    Raises WeightsUnavailable, and ValueError where a user names no file."""
    if given:
        return require(Path(given).expanduser(), Path.is_file, "no file")
    searched = [*own_folder(), Path(hub.get_dir()) / "checkpoints"]
    for path in (folder / name for folder in searched for name in (file.name, *file.also)):
        if path.is_file():
            return _checked(path, file.expected)
    if DOWNLOADS.allowed:
        return _fetched(file, searched[-1])
    raise missing(file, searched)


def find_model(model: Model, given: str = "") -> Path:
    """Where a model folder lies; given: what a user names instead.

    Raises WeightsUnavailable, and ValueError where a user names no such folder."""
    if given:
        return require(
            Path(given).expanduser(), is_whole, "no folder with a model's config and weights"
        )
    named = model.repo, model.repo.rpartition("/")[2]
    searched = [folder / name for folder in own_folder() for name in named]
    for folder in (*searched, *_cached(model)):
        if is_whole(folder):
            weights = folder / model.file
            if weights.is_file():
                _checked(weights, model.sha256)
            return folder
    if DOWNLOADS.allowed:
        return _fetched_model(model)
    raise missing(model, [*own_folder(), hub_cache()])


def own_folder() -> list[Path]:
    """The user's own folder of weights, if there is one."""
    own = os.environ.get(OWN)
    return [Path(own).expanduser()] if own else []


def hub_cache() -> Path:
    """Where the hub's own library keeps what it fetches."""
    return Path(constants.HF_HUB_CACHE)


def missing(what: File | Model, searched: list[Path]) -> WeightsUnavailable:
    """To be raised."""
    where = ", ".join(map(str, searched))
    own = "" if own_folder() else f" or to a folder that ${OWN} names"
    return WeightsUnavailable(
        f"needs {what}, which is not in {where}: put it there{own}, or allow downloads (--download)"
    )


def require(path: Path, fits: Callable[[Path], bool], otherwise: str) -> Path:
    """A path that a user names. Raises ValueError unless it fits."""
    if not fits(path):
        raise ValueError(f"{path} is {otherwise}")
    return path


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model's config and its weights."""
    has = [name for name in ("config.json", *WEIGHTS, *INDEXED) if (folder / name).is_file()]
    return has[:1] == ["config.json"] and len(has) > 1


def fast_device() -> torch.device:
    """Where large networks run: the accelerator, if there is one that accelerate may use."""
    if torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.accelerator.current_accelerator()
    return torch.device("cpu")


def unfit(path: Path, what: str, error: Exception) -> WeightsUnavailable:
    """To be raised where a file or a folder holds something else."""
    lines = str(error).strip().splitlines() or [""]
    return WeightsUnavailable(f"{path} holds no {what} ({type(error).__name__}: {lines[0]})")


def require_extra(extra: str, *modules: str) -> None:
    """Raise Unavailable where a library of an extra is not installed."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        raise Unavailable(f"needs {', '.join(absent)}: pip install 'stepdistill[{extra}]'")


def versions(*packages: str) -> str:
    """Of installed packages, for the identity of a space."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def _checked(path: Path, expected: str) -> Path:
    found = sha256(path) if expected else ""
    if not found.startswith(expected):
        raise WeightsUnavailable(
            f"{path} is damaged, or another file: its SHA-256 is {found[:12]}…, not "
            f"{expected[:12]}…: delete it, or name it as weights of your own"
        )
    return path


def _cached(model: Model) -> list[Path]:
    try:
        return [Path(snapshot_download(model.repo, cache_dir=hub_cache(), local_files_only=True))]
    except (LocalEntryNotFoundError, OSError):
        return []


def _fetched(file: File, folder: Path) -> Path:
    path = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(file.source, str(path), file.expected or None, progress=False)
    except (OSError, RuntimeError, ValueError) as error:  # no network, a wrong checksum, no URL
        raise _not_fetched(file, error) from error
    return path


def _fetched_model(model: Model) -> Path:
    wanted = [model.file, *INDEXED, "*.json", "*.txt"]
    try:
        folder = Path(snapshot_download(model.repo, cache_dir=hub_cache(), allow_patterns=wanted))
        require(folder, is_whole, "not a whole model")
    except Exception as error:  # each of the hub's layers has errors of its own
        raise _not_fetched(model, error) from error
    _checked(folder / model.file, model.sha256)
    return folder


def _not_fetched(what: File | Model, error: Exception) -> WeightsUnavailable:
    reason = " ".join(str(error).split()) or type(error).__name__
    return WeightsUnavailable(f"{what} could not be downloaded: {reason}")
