"""Pictures in tar archives, as WebDataset has them.

    00000.tar    0001.jpg  0001.cls  0001.txt  0001.json  0002.jpg  0002.cls  …

What has one name up to its first dot is one sample. Opening reads the headers of all archives and
the labels, once; then each picture is read where it lies, so that nothing is copied or unpacked.
With `streaming` the archives are read in order, one after the other in an order of their own each
time round, and `buffer` samples are shuffled among themselves.
"""

import os
import tarfile
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ...schema import ConfigError, Count, shown
from .. import listing
from ..images import Images
from ..pictures import SUFFIXES
from ..prompts import LONGEST
from ..stored import Label, Stored

BESIDE = ("cls", "json", "txt")  # what may stand beside a picture
LARGEST = {"label": 4096, "caption": 4 * LONGEST}  # bytes of a file beside a picture
BLOCK = 512


@dataclass(frozen=True)
class WebDataset(Images):
    """The settings of `Images`; path: an archive, or a folder of them.

    label: the extension of the files that hold the class, a number or a name. caption: of those
    that hold the caption. streaming: read in order. buffer: samples that are then shuffled among
    themselves.
    """

    label: str = "cls"
    caption: str = "txt"
    streaming: bool = False
    buffer: Count = 10_000

    def window(self) -> int | None:
        return self.buffer if self.streaming else None

    def find(self, classes: int | None, captioned: bool = False) -> "Archives":
        alone = self.path.endswith(".tar") and os.path.isfile(self.path)
        paths = [self.path] if alone else listing.files(self.path, (".tar",), "an archive")
        label = None if classes is None else ("label", self.label)
        wanted = ("caption", self.caption) if captioned else label
        return Archives(paths, [scan(path, wanted) for path in paths], captioned)


class Archive(NamedTuple):
    """Where the n pictures of an archive lie: offsets and sizes in bytes, and what stands beside
    each."""

    offsets: np.ndarray
    sizes: np.ndarray
    words: list[Label]


class Archives(Stored):
    """Pictures in archives, numbered through. captioned: whether captions stand beside them."""

    def __init__(self, paths: list[str], archives: list[Archive], captioned: bool) -> None:
        self.paths, self.archives = paths, archives
        self.begins = np.cumsum([0, *self.shards])
        self.labels = words = [word for archive in archives for word in archive.words]
        self.captions = words if captioned else None

    @property
    def shards(self) -> tuple[int, ...]:
        return tuple(len(archive.sizes) for archive in self.archives)

    def __len__(self) -> int:
        return int(self.begins[-1])

    def file(self, number: int) -> BytesIO:
        path, archive, i = self._place(number)
        try:
            with open(path, "rb") as file:
                file.seek(archive.offsets[i])
                return BytesIO(file.read(archive.sizes[i]))
        except OSError as error:
            raise ConfigError(f"{path}: unreadable ({error.strerror})") from error

    def name(self, number: int) -> str:
        path, archive, i = self._place(number)
        with open(path, "rb") as file:
            file.seek(archive.offsets[i] - BLOCK)  # the header stands before what it describes
            header = file.read(BLOCK)
        return f"{path}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name}"

    def key(self, number: int) -> str:
        path, _, i = self._place(number)
        return f"{os.path.basename(path)}:{i}"

    def _place(self, number: int) -> tuple[str, Archive, int]:
        """The archive that holds a picture, and its place there."""
        k = int(np.searchsorted(self.begins, number, side="right")) - 1
        return self.paths[k], self.archives[k], number - int(self.begins[k])


Wanted = tuple[str, str] | None  # label or caption, and the extension of its files


def scan(path: str, wanted: Wanted) -> Archive:
    """Where the pictures of an archive lie, and what is wanted beside them.

    Raises ConfigError for a damaged archive, and for files in it that nothing reads."""
    try:
        with tarfile.open(path, "r:", errorlevel=2) as archive:
            members = [m for m in archive if kept(m, path)]
            require_whole(path, archive.members[-1:])
            samples = [list(group) for _, group in groupby(members, lambda m: parts(m.name)[0])]
            found = [sample(group, wanted, archive, path) for group in samples]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f"{path}: not a whole tar archive ({error}); pack it anew") from error
    if not found:
        raise ConfigError(f"{path}: holds no images ({', '.join(SUFFIXES)})")
    offsets, sizes, labels = zip(*found)
    return Archive(np.array(offsets, np.int64), np.array(sizes, np.int64), list(labels))


def kept(member: tarfile.TarInfo, path: str) -> bool:
    """Whether a member counts. Raises ConfigError for one that nothing reads."""
    name = os.path.basename(member.name)
    if member.isdir() or name.startswith("."):
        return False
    if not member.isreg() or member.issparse():
        raise ConfigError(f"{path}: {shown(member.name)}: a link or device; pack files alone")
    if not (is_picture(name) or parts(name)[1].split(".")[-1] in BESIDE):
        known = ", ".join([*SUFFIXES, *(f".{extension}" for extension in BESIDE)])
        raise ConfigError(f"{path}: {shown(member.name)}: none of {known}; leave it out")
    return True


def require_whole(path: str, last: list[tarfile.TarInfo]) -> None:
    """Raise ConfigError unless nothing but zeros follows the last member.

    tarfile ends without a word where a header in the middle is damaged, and where archives were
    strung together."""
    end = last[0].offset_data + -(-last[0].size // BLOCK) * BLOCK if last else 0
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(1 << 20)
    if len(rest) < BLOCK or rest.strip(b"\0"):
        raise ConfigError(f"{path}: damaged or cut off after {end} bytes; pack it anew")


def sample(
    group: list[tarfile.TarInfo], wanted: Wanted, archive: tarfile.TarFile, path: str
) -> tuple[int, int, Label]:
    """Offset and size of the picture among files of one name, and what is wanted beside it."""
    where = f"{path}: {shown(group[0].name)}"
    pictures = [member for member in group if is_picture(member.name)]
    if len(pictures) != 1:
        raise ConfigError(f"{where}: {len(pictures)} images in one sample, not 1")
    if wanted is None:
        return pictures[0].offset_data, pictures[0].size, ""
    kind, extension = wanted
    words = [member for member in group if parts(member.name)[1] == extension]
    if len(words) != 1:
        raise ConfigError(
            f"{where}: {len(words)} files .{extension} beside it, not 1 (settings.{kind})"
        )
    if words[0].size > LARGEST[kind]:
        raise ConfigError(f"{where}: a {kind} of {words[0].size} bytes (settings.{kind})")
    text = archive.extractfile(words[0]).read().decode("utf-8", "replace").strip()
    return pictures[0].offset_data, pictures[0].size, text


def parts(name: str) -> tuple[str, str]:
    """The name of a sample, up to the first dot of its last part, and the extension after it."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}", extension.lower()


def is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)
