"""Files that are there whole or not at all, locks, checksums, and what to say of a full disk.

Whatever is under way lies under a hidden name that ends with PARTIAL; who holds the lock of a
folder sweeps away what others left there when they were killed.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = ".partial"
LOCK = ".lock"
SMALL, LARGE = 2**24, 2**30  # bytes, of a text that is read at once and of one read by lines


class DiskError(RuntimeError):
    """Something cannot be written; the message says what, where, how much and what to do."""


class Taken(RuntimeError):
    """Another process works there; the message says which."""


def sha256(path: Path) -> str:
    """Raises OSError for what is no file: pipes and devices never end."""
    digest = hashlib.sha256()
    with regular(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def regular(path: Path, most: int | None = None) -> Path:
    """`path`. Raises OSError unless it is a file, of at most `most` bytes."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if most is not None and found.st_size > most:
        size = f"{most >> 20} MiB" if most >= 2**20 else f"{most >> 10} KiB"
        raise OSError(errno.EINVAL, f"larger than {size}", str(path))
    return path


def read_text(path: Path, most: int = SMALL) -> str:
    """What a file says. Raises OSError as `regular` does, and ValueError if it is not UTF-8."""
    return regular(path, most).read_text(encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file so that it is there whole or not at all; several processes may."""
    with tempfile.TemporaryDirectory(PARTIAL, f".{path.name}.", path.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        sync(partial)
        os.replace(partial, path)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file of tensors so that it is there whole or not at all."""
    with whole(path) as partial:
        save_file({k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}, partial)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others are appended to, without a torn last one; none if missing."""
    text = regular(path, LARGE).read_bytes().decode(errors="replace") if path.is_file() else ""
    return [line for line in text.splitlines(True) if line.endswith("\n")]


def replace_folder(partial: Path, out: Path) -> None:
    """Put a folder in the place of another, which goes only then: one of them is always whole."""
    old = set_aside(out)
    if os.path.lexists(out):
        os.replace(out, old)
    os.replace(partial, out)
    remove(old)


def recover_folder(out: Path) -> None:
    """Put back what a process that was killed in `replace_folder` set aside."""
    old = set_aside(out)
    if os.path.lexists(out):
        remove(old)
    elif os.path.lexists(old):
        os.replace(old, out)


def set_aside(out: Path) -> Path:
    """Where an earlier folder lies while another takes its place."""
    return out.with_name(f".{out.name}.old")


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sweep(folder: Path) -> None:
    """Delete what processes that were killed left half-written in a folder."""
    for leftover in folder.glob(f".*{PARTIAL}"):
        remove(leftover)


def sweep_for(path: Path) -> None:
    """Delete what processes that were killed left of `path` beside it."""
    left = re.compile(rf"\.{re.escape(path.name)}(\.[a-z0-9_]{{8}})?{re.escape(PARTIAL)}")
    for leftover in path.parent.glob(f".*{PARTIAL}"):
        if left.fullmatch(leftover.name):
            remove(leftover)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Hold a lock, which is a file. Raises Taken if another process holds it.

    The system lets go of it when a process ends, however it does."""
    handle = take(lock)
    try:
        yield
    finally:
        if is_at(handle, lock):
            remove(lock)
        os.close(handle)


def take(lock: Path) -> int:
    """The handle of a lock that is ours now."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        if not flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            owner = os.pread(handle, 200, 0).decode(errors="replace")
            os.close(handle)
            raise Taken(owner or "another process")
        if is_at(handle, lock):
            break
        os.close(handle)  # of one who has let go, and taken the file with him
    with suppress(OSError):  # a full disk: then nobody learns who we are
        os.truncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return handle


def flock(handle: int, how: int) -> bool:
    """Whether nobody else has a lock; a file system that knows none does without."""
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Write into a folder together with others; whoever finds nobody there sweeps it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB):
            sweep(folder)
        flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was no memory, of the processor or of another device."""
    names = ("MemoryError", "OutOfMemoryError")
    return type(error).__name__ in names or "can't allocate memory" in str(error)


def reason(error: OSError | SafetensorError) -> str:
    """The system's words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rpartition("I/O error: ")[2]


@contextmanager
def tensors_only() -> Iterator[None]:
    """Here `torch.load` reads tensors alone, whatever a library asks of it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
