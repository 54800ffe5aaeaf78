"""Published references: one file .npz of images, of statistics of their features, or of both.

    mu (d,), sigma (d, d)      mean and covariance, as EDM's and clean-fid's files have them
    arr_0 (m, h, w, c) uint8   images, as ADM's reference batches have them (arXiv 2105.05233)
    arr_1 (m,)                 their labels, if there are any
    n                          of how many images the statistics are; few files say it

Which network's features statistics are of cannot be known from a file, so they are taken only where
a suite says it. Those beside images, in ADM's batches, are of more images than lie in the file, by
its own graph of TensorFlow; mu_s and sigma_s, of its sFID, are not looked at. Images are read when
they are looked at, compressed ones from a temporary file. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ..data.loader import Rows, Samples
from ..files import regular, sha256
from ..schema import ConfigError
from .features.space import FeatureSpace
from .moments import Moments

SUFFIX = ".npz"
IMAGES, LABELS, MEAN, COVARIANCE, COUNT = "arr_0", "arr_1", "mu", "sigma", "n"
WIDEST, PACKED = 2**13, 2**34  # numbers of a feature, bytes of images that are compressed
CHUNK, LOCAL = 2**20, 30  # bytes read at a time, and of a member's own header
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True, eq=False)
class Statistics:
    """mean (d,) and covariance (d, d) in float64, of n images, None if nobody says of how many.

    file: they come from. space: whose features they are of, None where nobody says: then all that
    they tell is why there are no images."""

    mean: Tensor
    covariance: Tensor
    n: int | None
    file: str
    space: str | None = None

    def moments(self, space: FeatureSpace, size: tuple[int, ...]) -> Moments:
        """As those of a space of images of this size. Raises ValueError for another width."""
        d = space(torch.zeros(1, *size)).shape[1]
        if d != len(self.mean):
            raise ValueError(
                f"{self.file}: statistics of {len(self.mean)} numbers, not the {d} of {self.space}"
            )
        # As of two samples, whose scatter is their covariance: it is only divided by n − 1.
        return Moments(space.identity, 2, self.mean, self.covariance)

    @property
    def digest(self) -> str:
        """Of their numbers."""
        both = torch.cat([self.mean, self.covariance.flatten()])
        return hashlib.sha256(both.numpy().tobytes()).hexdigest()[:12]

    def __str__(self) -> str:
        of = "n unknown" if self.n is None else f"n = {self.n:,}"
        where = f"taken for {self.space}" if self.space else "of a space that nobody names"
        return f"mean and covariance ({of}), {where}"


class Published(NamedTuple):
    """What a file holds, at least one of both. sha256: of the file."""

    images: Batch | None
    statistics: Statistics | None
    sha256: str


@dataclass(frozen=True, eq=False)
class Batch(Samples):
    """Images of one array (m, h, w, c) of bytes.

    file: it lies in, from byte `start` on. labels: (m,), or None. content: SHA-256."""

    file: BinaryIO
    start: int
    array: tuple[int, ...]
    labels: Tensor | None
    content: str

    def __len__(self) -> int:
        return self.array[0]

    def asked(self) -> Tensor | None:
        return self.labels

    def digest(self) -> str:
        return self.content

    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        size, handle = prod(self.array[1:]), self.file.fileno()
        found = b"".join(os.pread(handle, size, self.start + i * size) for i in index.tolist())
        pixels = np.frombuffer(found, np.uint8).reshape(-1, *self.array[1:]).transpose(0, 3, 1, 2)
        # In the order in memory that other sources have, on which a network's last bits depend.
        images = torch.from_numpy(pixels.astype(np.float32, order="C")) / 127.5 - 1
        return Rows(images, None if self.labels is None else self.labels[index])


class Header(NamedTuple):
    """Of an array in an archive. begins: its first byte, from where its member begins."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    begins: int


def published(path: Path) -> Published:
    """What lies in a file. Raises ConfigError for what is damaged, or no reference."""
    try:
        digest = sha256(regular(path))
        file = path.open("rb")
        with ZipFile(file) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            images = batch(file, archive, held, digest) if IMAGES in held else None
            statistics = None
            if {MEAN, COVARIANCE} <= held:
                statistics = statistics_in(archive, held, path)
    except Exception as error:  # of an archive, its packing, and arrays: each has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{path}: no readable {SUFFIX} of a reference ({reason})") from error
    if images is None:
        file.close()
    if images is None and statistics is None:
        kinds = f"neither images ({IMAGES}) nor statistics ({MEAN} and {COVARIANCE})"
        raise ConfigError(f"{path}: holds {kinds}")
    return Published(images, statistics, digest)


def statistics_in(archive: ZipFile, held: set[str], path: Path) -> Statistics:
    """Mean and covariance. Raises ValueError where they are none."""
    mean, covariance = (
        array(archive, name, WIDEST).astype(np.float64) for name in (MEAN, COVARIANCE)
    )
    d = len(mean) if mean.ndim == 1 else 0
    if d < 1 or covariance.shape != (d, d):
        raise ValueError(f"{MEAN} {mean.shape} and {COVARIANCE} {covariance.shape} do not fit")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{MEAN} or {COVARIANCE} is not finite")
    if not np.allclose(covariance, covariance.T) or covariance.diagonal().min() < 0:
        raise ValueError(f"{COVARIANCE} is no covariance")
    n = int(array(archive, COUNT, 1)) if COUNT in held else None
    return Statistics(torch.from_numpy(mean), torch.from_numpy(covariance), n, str(path))


def batch(file: BinaryIO, archive: ZipFile, held: set[str], digest: str) -> Batch:
    """Its images. Raises ValueError where they are none."""
    head, info = header(archive, IMAGES), archive.getinfo(f"{IMAGES}.npy")
    size = prod(head.shape)
    if len(head.shape) != 4 or head.dtype != np.uint8 or head.fortran or not size:
        raise ValueError(f"{IMAGES} {head.shape} {head.dtype} are no images (m, h, w, c) of bytes")
    if info.file_size != head.begins + size:
        raise ValueError(f"{IMAGES} is cut short")
    if info.compress_type == ZIP_STORED:
        checked(archive, None)
        start = begins(file, info.header_offset) + head.begins
    elif size <= PACKED:
        file = tempfile.TemporaryFile()
        checked(archive, file)
        start = head.begins
    else:
        raise ValueError(f"{IMAGES} is compressed, and larger than {PACKED >> 30} GiB")
    labels = array(archive, LABELS, head.shape[0]) if LABELS in held else None
    if labels is not None and (labels.shape != head.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"{LABELS} {labels.shape} {labels.dtype} are no labels of {head.shape[0]}")
    found = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Batch(file, start, head.shape, found, digest)


def checked(archive: ZipFile, copy: BinaryIO | None) -> None:
    """Read all images once, and copy them: the archive compares them with its checksum."""
    with archive.open(f"{IMAGES}.npy") as stream:
        while chunk := stream.read(CHUNK):
            if copy is not None:
                copy.write(chunk)
    if copy is not None:
        copy.flush()


def begins(file: BinaryIO, header_offset: int) -> int:
    """Where the bytes of a member begin that is not compressed."""
    local = os.pread(file.fileno(), LOCAL, header_offset)
    name, extra = struct.unpack("<HH", local[-4:])  # lengths of what follows
    return header_offset + LOCAL + name + extra


def array(archive: ZipFile, name: str, longest: int) -> np.ndarray:
    """An array of numbers, none of its sides longer than that. Raises ValueError for another."""
    head = header(archive, name)
    if max(head.shape, default=1) > longest or len(head.shape) > 2 or head.dtype.kind not in "fiu":
        raise ValueError(f"{name} {head.shape} {head.dtype} is not taken")
    with archive.open(f"{name}.npy") as stream:
        return npy.read_array(stream, allow_pickle=False)


def header(archive: ZipFile, name: str) -> Header:
    """What an array says of itself. Raises ValueError where that is nothing known."""
    with archive.open(f"{name}.npy") as stream:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"{name} is of version {version}")
        return Header(*HEADERS[version](stream), stream.tell())
