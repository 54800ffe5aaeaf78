"""Short names of folders in tables and pictures: as much of a path's end as tells it apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath


def short(paths: Sequence[str]) -> dict[str, str]:
    """The shortest end of each path that no other one has."""
    parts = {path: PurePath(path).parts for path in paths}
    return {path: _end(path, parts) for path in parts}


def _end(path: str, parts: dict[str, tuple[str, ...]]) -> str:
    own = parts[path]
    others = [of for other, of in parts.items() if other != path]
    for length in range(1, len(own)):
        if own[-length:] not in {of[-length:] for of in others}:
            return str(PurePath(*own[-length:]))
    return path
