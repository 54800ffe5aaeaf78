"""What lies in a folder, in natural order, with everything unfit refused by name.

Hidden entries are left out. Links to folders are refused, so that no walk is endless; links to
files are followed.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ..schema import ConfigError
from .stored import natural


def listed(folder: str | Path) -> list[os.DirEntry]:
    """The entries of a folder. Raises ConfigError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no folder has such a name"
        raise ConfigError(f"{shortened(folder)}: not a readable folder ({reason})") from error
    return sorted(seen, key=lambda entry: natural(entry.name))


def folders(folder: str | Path) -> list[os.DirEntry]:
    """The subfolders. Raises ConfigError for loose files and links."""
    entries = listed(folder)
    for entry in entries:
        if not entry.is_dir(follow_symlinks=False):
            where = "a link" if entry.is_symlink() else "lies in no subfolder"
            raise ConfigError(f"{shortened(entry.path)}: {where}, so it has no class; move it")
    return entries


def files(folder: str | Path, suffixes: tuple[str, ...], kind: str = "an image") -> list[str]:
    """Paths of all files below a folder. Raises ConfigError for anything without these suffixes,
    and if there is none."""
    found = list(walk(folder, suffixes, kind))
    if not found:
        raise ConfigError(f"{shortened(folder)}: holds no {kind.split()[-1]}s {offered(suffixes)}")
    return found


def walk(folder: str | Path, suffixes: tuple[str, ...], kind: str) -> Iterator[str]:
    waiting = listed(folder)[::-1]
    while waiting:
        entry = waiting.pop()
        if entry.is_dir(follow_symlinks=False):
            waiting += listed(entry.path)[::-1]
        elif entry.is_file() and entry.name.lower().endswith(suffixes):
            yield entry.path
        else:
            name = shortened(entry.path)
            raise ConfigError(f"{name}: not {kind} {offered(suffixes)}; move it elsewhere")


def offered(suffixes: tuple[str, ...]) -> str:
    return f"({', '.join(suffixes)})"


def shortened(path: str | Path) -> str:
    """A path as a message shows it: without the middle of an endless one."""
    text = str(path)
    return text if len(text) <= 500 else f"{text[:300]}…{text[-100:]}"
