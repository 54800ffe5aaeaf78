"""Files that are there whole or not at all, their checksums, and what to say of a full disk."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskError(RuntimeError):
    """Something cannot be written; the message says what, where, how much and what to do."""


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


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all; several processes may."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others are appended to, without a torn last one; none if missing."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def save_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of tensors so that it is there whole or not at all; several processes may."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}, partial)
    sync(partial)
    os.replace(partial, path)


def unwritten(path: Path, error: OSError | SafetensorError, size: int | None = None) -> str:
    """What to tell the user when `path` could not be written, which needs `size` bytes."""
    place = next(p for p in path.parents if p.is_dir())
    free = f"{shutil.disk_usage(place).free / 1e6:.1f} MB are free"
    needed = "" if size is None else f"it needs {size / 1e6:.1f} MB, "
    cure = "make room" if is_full(error) else "put that right"
    return (
        f"{path} could not be written: {reason(error)} ({needed}{free}). What was saved before is "
        f"intact: {cure}, and the same command goes on from there"
    )


def is_full(error: OSError | SafetensorError) -> bool:
    """Whether writing failed because there is no room; safetensors has the number in its text."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def reason(error: OSError | SafetensorError) -> str:
    """The system's words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rpartition("I/O error: ")[2]
