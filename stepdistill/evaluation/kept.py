"""The samples of a block that metrics keep because they compare pairs: the first of them in memory,
or all in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..schema import Range
from .metric import Made, Metric

KEPT, CHUNK = 2000, 1000  # a block unless a suite says so, and of more at a time

Keep = Annotated[int, Range(20, 10**6)] | None  # the first images of a block, None for all


class Kept:
    """The first rows of what is added, tensors that belong together row by row: `most` of them, or
    all."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.parts: list[tuple[Tensor, ...]] = []
        self.n = 0

    def add(self, *tensors: Tensor) -> None:
        """Keep the rows of tensors (b, …) as far as there is room."""
        room = None if self.most is None else self.most - self.n
        if room is None or room > 0:
            self.parts.append(tuple(tensor[:room] for tensor in tensors))
            self.n += len(self.parts[-1][0])

    def merge(self, other: Kept) -> None:
        """Add what another one keeps."""
        for part in other.parts:
            self.add(*part)

    def all(self) -> tuple[Tensor, ...]:
        """All rows of each."""
        return tuple(torch.cat(parts) for parts in zip(*self.parts, strict=True))


class OnDisk:
    """All rows of what is added, tensors (b, d) of one type, in a temporary file."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()
        self.like, self.n = np.empty((0, 0)), 0

    def __len__(self) -> int:
        return self.n

    def add(self, rows: Tensor) -> None:
        """Add rows (b, d)."""
        array = rows.contiguous().numpy()
        self.like = array[:0]
        self.n += len(array)
        self.file.seek(0, 2)
        self.file.write(array.data)

    def merge(self, other: OnDisk) -> None:
        """Add what another one holds."""
        for part in other.split(CHUNK):
            self.add(part)

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, `size` at a time."""
        width, dtype = self.like.shape[1], self.like.dtype
        for start in range(0, self.n, size):
            count = min(size, self.n - start) * width
            self.file.seek(start * width * dtype.itemsize)
            content = bytearray(self.file.read(count * dtype.itemsize))
            yield torch.from_numpy(np.frombuffer(content, dtype).reshape(-1, width))


@dataclass
class OfFeatures(Metric):
    """Base of metrics of the features that a block keeps.

    space: a file of features/, or any importable module. keep: images of a block that it looks at,
    the first ones; null for all of them.
    """

    space: str = "random-conv"
    keep: Keep = KEPT
    kept: Kept = field(init=False, repr=False)

    def reset(self) -> None:
        self.kept = Kept(self.keep)

    def of(self, n: int, size: tuple[int, ...]) -> int:
        return n if self.keep is None else min(n, self.keep)

    def update(self, made: Made) -> None:
        self.kept.add(made.features(self.space))

    def merge(self, other: OfFeatures) -> None:
        self.kept.merge(other.kept)
