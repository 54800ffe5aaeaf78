"""Checkpoints: safetensors and JSON, written atomically, checksummed, never unpickled.

A checkpoint is a folder `NNNNNN/`:

    state.safetensors   every tensor
    state.json          every number, and the score if it has one
    SHA256SUMS          of both, as `sha256sum -c` reads it

It is written under a hidden name, flushed to the disk and renamed; only then do older ones go, each
under a hidden name first. So wherever a process or the machine stops, whatever is called NNNNNN is
whole, and a file that was damaged later is noticed.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import (
    DiskError,
    is_out_of_memory,
    read_text,
    reason,
    remove,
    sha256,
    sync,
    unwritten,
)
from ..schema import ConfigError

TENSORS, NUMBERS, SUMS = "state.safetensors", "state.json", "SHA256SUMS"
DISTANCE = "distance"  # to the teacher: what a score is of, unless a metric gives it
LONGEST = 4096  # bytes of sums


class State(NamedTuple):
    """Named tensors, and JSON numbers, strings and lists."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names it."""


def save(
    folder: Path,
    step: int,
    state: State,
    keep: int = 2,
    score: float | None = None,
    by: str = DISTANCE,
) -> Path:
    """Write checkpoint `step` (≥ 0) into `folder`; keep the newest `keep` (≥ 1) and the best.

    score: lower is better; one that is not finite is none. by: what it is of. One process at a time
    writes a folder. A checkpoint of the same step is replaced, later ones go: a run that went back
    to an earlier checkpoint could not read them. Raises DiskError if the disk is full or fails; the
    checkpoints before it are then as they were.
    """
    if keep < 1:
        raise ValueError(f"keep: at least 1 checkpoint, got {keep}")
    final, partial = folder / f"{step:06d}", folder / f".{step:06d}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear(folder)
        write(partial, state, score, by)
        if final.exists():
            drop(final)
        os.replace(partial, final)
        sync(folder)
        sync(folder.parent)  # the first checkpoint made `folder` itself
    except (OSError, SafetensorError) as error:
        clear(folder)
        size = sum(v.numel() * v.element_size() for v in state.tensors.values())
        raise DiskError(unwritten(final, error, size)) from error
    rotate(folder, step, keep)
    return final


def write(folder: Path, state: State, score: float | None, by: str) -> None:
    """Make a checkpoint's folder, everything in it flushed to the disk."""
    folder.mkdir()
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.tensors.items()}
    score = score if score is not None and math.isfinite(score) else None
    text = json.dumps({"score": score, "by": by, "numbers": state.numbers}, indent=1)
    (folder / NUMBERS).write_text(text, encoding="utf-8")
    save_file(tensors, folder / TENSORS)
    shutil.copymode(folder / NUMBERS, folder / TENSORS)  # safetensors' own is for the owner alone
    sums = [f"{sha256(folder / name)}  {name}\n" for name in (TENSORS, NUMBERS)]
    (folder / SUMS).write_text("".join(sums), encoding="utf-8")
    for name in (TENSORS, NUMBERS, SUMS, ""):
        sync(folder / name)


def rotate(folder: Path, step: int, keep: int) -> None:
    """Drop all but `step`, the `keep` − 1 before it, and the best of these and older ones."""
    for path in finished(folder):
        if int(path.name) > step:
            drop(path)
    kept = {*finished(folder)[-keep:], best(folder)}
    for path in finished(folder):
        if path not in kept:
            drop(path)


def drop(path: Path) -> None:
    """Delete a checkpoint; what is called NNNNNN stays whole until it is gone."""
    hidden = path.with_name(f".{path.name}.dropped")
    with suppress(OSError):  # one that cannot be deleted does no harm
        os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def clear(folder: Path) -> None:
    """Delete what a process that was killed left half-written or half-deleted."""
    for leftover in folder.glob(".[0-9]*"):
        remove(leftover)


def latest(folder: Path) -> tuple[State | None, list[str]]:
    """The newest readable state, or None, and a line for every damaged one passed over.

    Raises CheckpointError if there are checkpoints and none can be read."""
    warnings = []
    found = finished(folder)
    for path in reversed(found):
        try:
            return read_state(path), warnings
        except CheckpointError as error:
            warnings.append(str(error))
    if found:
        raise CheckpointError(
            f"{'; '.join(warnings)}: put back a copy of one, or delete {folder} to start again"
        )
    return None, warnings


def best(folder: Path) -> Path | None:
    """The checkpoint with the lowest score, of those that are scored as the newest is; None if none
    has a score."""
    found = {path: score_of(path) for path in finished(folder)}
    scored = {path: score for path, score in found.items() if score is not None}
    by = next((each[1] for each in reversed(scored.values())), None)
    alike = {path: score for path, (score, of) in scored.items() if of == by}
    return min(alike, key=alike.get, default=None)


def score_of(path: Path) -> tuple[float, str] | None:
    """The score a checkpoint was saved with, and what it is of; None if it has none, or was
    damaged."""
    try:
        found = numbers_of(path)
    except CheckpointError:
        return None
    return None if found["score"] is None else (found["score"], found.get("by", DISTANCE))


def read_state(path: Path) -> State:
    """One checkpoint. Raises CheckpointError if it is incomplete, truncated or altered."""
    numbers = numbers_of(path)["numbers"]
    try:
        tensors = load_file(checked(path, TENSORS))
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path}: {TENSORS} is damaged ({error})") from error
    # Copies: the file itself would stay mapped, and not every file system deletes a mapped file.
    return State({k: v.clone() for k, v in tensors.items()}, numbers)


def numbers_of(path: Path) -> dict[str, Any]:
    """What `write` put there. Raises CheckpointError if it is incomplete, truncated or altered."""
    try:
        found = json.loads(read_text(checked(path, NUMBERS)))
        if isinstance(found["numbers"], dict) and type(found["score"]) in (float, int, NoneType):
            return found
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: {NUMBERS} is damaged ({error})") from error
    raise CheckpointError(f"checkpoint {path}: {NUMBERS} is damaged: no numbers, or no score")


@contextmanager
def fitting(where: Path) -> Iterator[None]:
    """What a state holds is taken up: it may be anyone's, and whatever comes of that is told.

    Raises CheckpointError."""
    try:
        yield
    except (CheckpointError, ConfigError):
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{where}: written by another version of stepdistill (no {error}): go on with that "
            f"one, or delete {where.parent} to start again"
        ) from error
    except Exception as error:  # whatever torch makes of what is not this run's
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{where}: does not fit its config.yaml ({type(error).__name__}): delete "
            f"{where.parent} to start again"
        ) from error


def checked(path: Path, name: str) -> Path:
    """A checkpoint's file. Raises CheckpointError unless it is there and as it was written."""
    try:
        sums = read_text(path / SUMS, LONGEST).split("\n")
        if f"{sha256(path / name)}  {name}" not in sums:
            raise CheckpointError(f"checkpoint {path}: {name} was altered or truncated")
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise CheckpointError(f"checkpoint {path}: {missing} is missing") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"checkpoint {path}: {SUMS} was altered") from error
    return path / name


def finished(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = (p for p in folder.glob("[0-9]*") if p.name.isdecimal() and p.is_dir())
    return sorted(found, key=lambda p: int(p.name))
