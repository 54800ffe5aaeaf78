"""Real images that are read when they are looked at, so that memory does not grow with them.

A gallery stands for the tensor (m, c, h, w) of its images: it has its length, its shape, its rows
by number, and `split`. Whatever measures real images takes either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import prod

import torch
from torch import Tensor

from ..data.loader import Rows, Samples
from ..data.resize import Resize

MOST, VALUES = 250, 2**22  # images, and pixel values, that are held at a time


def at_once(size: Sequence[int], most: int = MOST, values: int = VALUES) -> int:
    """How many images of this size (c, h, w) are held at a time: at most so many, and so many pixel
    values."""
    return max(1, min(most, values // prod(size)))


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images in [−1, 1] of samples that lie somewhere."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor of all: (m, c, h, w)."""
        return len(self), *self[0].shape

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what they are made of."""
        return self.samples.digest()

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        """One image (c, h, w), or some (n, c, h, w). Raises ConfigError for a damaged one."""
        numbers = torch.arange(len(self))[which]
        images = self.samples.rows(numbers.reshape(-1)).images
        return images if numbers.ndim else images[0]

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


Images = Tensor | Gallery  # (m, c, h, w)


@dataclass(frozen=True, eq=False)
class Some(Samples):
    """Those of given numbers of a gallery; with `resize` made smaller when they are read."""

    of: Gallery
    numbers: Tensor
    resize: Resize | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        rows = self.of.samples.rows(self.numbers[index], local)
        return rows if self.resize is None else rows._replace(images=self.resize(rows.images))

    def digest(self) -> str:
        found = sha256(f"{self.of.digest} {self.resize!r} ".encode())
        found.update(self.numbers.numpy().tobytes())
        return found.hexdigest()


def chosen(images: Images, rows: list[int]) -> Images:
    """Some of images, by number."""
    numbers = torch.tensor(rows)
    return Gallery(Some(images, numbers)) if isinstance(images, Gallery) else images[numbers]
