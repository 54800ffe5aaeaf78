"""Pictures where they lie, by number, before anything of them is decoded; and their classes."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np

from ..schema import ConfigError, shown

Label = int | str


class Stored(ABC):
    """Encoded pictures. labels: of each, whole numbers or names; None without. captions: of each
    what it shows; None without. names: of the numbers, None if they have none. shards: lengths of
    the files they lie in, in order."""

    labels: Sequence[Label] | None
    captions: Sequence[str] | None = None
    names: Sequence[str] | None = None

    @property
    def shards(self) -> tuple[int, ...]:
        return (len(self),)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def file(self, number: int) -> str | BytesIO:
        """A path, or the file itself. Raises ConfigError if it is gone."""

    def read(self, number: int) -> bytes:
        """All of the file. Raises ConfigError if it cannot be read."""
        file = self.file(number)
        if isinstance(file, BytesIO):
            return file.getvalue()
        try:
            return Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.name(number)}: {error.strerror}") from error

    @abstractmethod
    def name(self, number: int) -> str:
        """What a message calls it."""

    @abstractmethod
    def key(self, number: int) -> str:
        """What it is called below the folder of the data, wherever that lies."""


@dataclass(frozen=True)
class Files(Stored):
    """Pictures in files of their own. root: the folder of the data, with which each path begins."""

    root: str
    paths: list[str]
    labels: Sequence[Label] | None
    names: Sequence[str] | None = None
    captions: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, number: int) -> str:
        return self.paths[number]

    def name(self, number: int) -> str:
        return self.paths[number]

    def key(self, number: int) -> str:
        return self.paths[number].removeprefix(self.root).lstrip(os.sep)


def is_held_out(stored: Stored, share: float, seed: int) -> np.ndarray:
    """Which (n,) are kept for evaluation: each by its own key, so that pictures added or taken away
    change nothing for the others."""
    if share == 0:
        return np.zeros(len(stored), bool)
    salt, limit = seed.to_bytes(8, "little"), share * 2**64
    drawn = (
        blake2b(stored.key(i).encode("utf-8", "surrogateescape"), digest_size=8, key=salt)
        for i in range(len(stored))
    )
    return np.fromiter((int.from_bytes(d.digest(), "little") < limit for d in drawn), bool)


def natural(name: str) -> tuple:
    """Sorts 1, 2, 10 in this order, as people do."""
    parts = re.split("([0-9]+)", name)
    digits = [(len(d := part.lstrip("0")), d) for part in parts[1::2]]
    return [item for pair in zip(parts, [*digits, (0, "")]) for item in pair], name


def numbered(
    stored: Stored, names: Sequence[str] | None, classes: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels (n,) int64 in 0 … classes − 1, and what they are called, nothing for mere numbers.

    names: in order; None takes the texts among the labels in natural order, or numbers as they are.
    Raises ConfigError if they are not as many as the teacher's classes."""
    labels = stored.labels
    found = sorted(set(labels), key=lambda label: natural(str(label)))
    texts = all(isinstance(label, str) for label in found)
    if names is None and texts and not all(is_number(label, classes) for label in found):
        names = found
    if names is not None:
        require_names(names, classes)
    place: dict[Label, int] = {name: i for i, name in enumerate(names or ())}
    if not any(name.isdigit() for name in names or ()):
        place |= {label: int(label) for label in found if is_number(label, classes)}
    other = next((label for label in found if label not in place), None)
    if other is not None:
        known = f"the teacher's 0 … {classes - 1}" if names is None else ", ".join(names[:8])
        where = stored.name(labels.index(other))
        raise ConfigError(f"{where}: label {shown(other)}: not among {known}")
    return np.array([place[label] for label in labels], np.int64), tuple(names or ())


def is_number(label: Label, classes: int) -> bool:
    """Whether a label, or its text, is one of 0 … classes − 1."""
    digits = str(label)
    return digits.isascii() and digits.isdigit() and len(digits) < 10 and int(digits) < classes


def require_names(names: Sequence[str], classes: int) -> None:
    """Raise ConfigError for another number of names than the teacher has classes, or unfit ones."""
    if len(names) != classes or len(set(names)) != len(names):
        listed = ", ".join(shown(name) for name in names[:8])
        raise ConfigError(f"{len(names)} classes ({listed}) for the teacher's {classes}")
    for name in names:
        if not (name and name.isprintable()):
            raise ConfigError(f"class {shown(name)}: needs a name of one printable line")
