"""Checkpoints: safetensors and JSON, written atomically, checksummed, never unpickled.

A checkpoint is a folder `NNNNNN/` with `state.safetensors` (every tensor) and `state.json` (every
number, and the hash of the tensors). It is written beside its final place, synced, and renamed, so
a crash leaves the previous one intact.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, NUMBERS = "state.safetensors", "state.json"


class State(NamedTuple):
    """Named tensors, and JSON numbers, strings and lists."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class CheckpointError(RuntimeError):
    """No checkpoint can be read; the message names it."""


def save(folder: Path, step: int, state: State, keep: int = 2) -> Path:
    """Write checkpoint `step` into `folder` and drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    final, partial = folder / f"{step:06d}", folder / f".{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.tensors.items()}
    save_file(tensors, partial / TENSORS)
    numbers = {**state.numbers, "sha256": sha256(partial / TENSORS)}
    (partial / NUMBERS).write_text(json.dumps(numbers, indent=1))
    for name in (TENSORS, NUMBERS, ""):
        sync(partial / name)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    sync(folder)
    for old in finished(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def latest(folder: Path) -> tuple[State | None, list[str]]:
    """The newest readable state, or None, and a line for every damaged one passed over.

    Raises CheckpointError if there are checkpoints and none can be read."""
    warnings = []
    found = finished(folder)
    for path in reversed(found):
        try:
            return read(path), warnings
        except CheckpointError as error:
            warnings.append(str(error))
    if found:
        raise CheckpointError("; ".join(warnings) + "; delete the folder to start again")
    return None, warnings


def read(path: Path) -> State:
    """One checkpoint. Raises CheckpointError if it is truncated or altered."""
    try:
        numbers = json.loads((path / NUMBERS).read_text())
        if sha256(path / TENSORS) != numbers.pop("sha256"):
            raise CheckpointError(f"checkpoint {path}: {TENSORS} was altered or truncated")
        return State(load_file(path / TENSORS), numbers)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path}: unreadable ({error})") from error


def finished(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir()), key=lambda p: int(p.name))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
