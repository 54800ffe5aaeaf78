"""Batches, numbered: batch k is the same whenever, wherever and however often it is asked for.

A `Source` opens samples that are read by number; the `Loader` walks through them in one fresh
order per epoch, keyed by (seed, epoch), so a resumed run and any number of processes see exactly
the same data, and makes states and conditions of them. What a source keeps for evaluation is in no
batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..conditions import Cond, choose, move
from ..schema import ConfigError, check_fields
from ..solver import Trajectory
from ..teachers.backbone import Asked
from ..teachers.teacher import Teacher

PART = 500  # samples that are read at a time where all are


class Drawn(NamedTuple):
    """Clean samples (size, *event), their conditions, and the trajectories that lead to them."""

    x0: Tensor
    cond: Cond
    path: Trajectory | None = None


class Data(Protocol):
    """What the trainer asks of data."""

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        """`size` samples. `local` is the batch's own stream."""
        ...


class Rows(NamedTuple):
    """Samples of a source: images (n, c, h, w) in [−1, 1], and what a teacher is asked for them."""

    images: Tensor
    asked: Asked


class Samples(ABC):
    """Samples by number, read when they are asked for.

    names: what the labels 0, 1, … are called; none where there are no labels, or only numbers."""

    names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        """The samples (n,) of these numbers, each the same every time but for what is drawn from
        `local`, like crops; without it nothing is drawn."""

    def asked(self) -> Asked:
        """What a teacher is asked for all of them, in order."""
        parts = [self.rows(index).asked for index in self.parts()]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return None if parts[0] is None else [each for part in parts for each in part]

    def digest(self) -> str:
        """SHA-256 of what all images are made of, in order."""
        found = sha256()
        for index in self.parts():
            found.update(self.rows(index).images.contiguous().numpy().tobytes())
        return found.hexdigest()

    def parts(self) -> Sequence[Tensor]:
        """The numbers of all, PART at a time."""
        return torch.arange(len(self)).split(PART)

    def walk(self, first: int, count: int, seed: int) -> Tensor:
        """Numbers first … first + count − 1 of an endless walk through all samples."""
        return shuffled(len(self), first, count, seed)


class Source(ABC):
    """Where samples come from: a frozen dataclass of its settings, found by name as methods are."""

    def __post_init__(self) -> None:
        check_fields(self)

    def prompts(self) -> Sequence[str]:
        """The captions of all samples. Raises ConfigError where there are none without them."""
        raise ConfigError("source: knows no prompts: set prompts, a file of them")

    @abstractmethod
    def open(self, teacher: Teacher) -> Samples:
        """The samples, in the size and channels of the teacher's images, with labels if it takes
        any. Raises ConfigError for what does not fit; it begins with "source: ", or with
        "settings.KEY: " and names the file."""

    def open_held_out(self, teacher: Teacher) -> Samples:
        """The samples kept for evaluation, which `open` leaves out: always the same, nothing drawn
        at random. Raises ConfigError as it, and if there are none."""
        raise ConfigError("source: keeps no samples for evaluation")


@dataclass(frozen=True)
class InMemory(Samples):
    """Samples held in memory. images: (n, c, h, w). labels: (n,), or None."""

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def asked(self) -> Tensor | None:
        return self.labels

    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        return Rows(self.images[index], None if self.labels is None else self.labels[index])


@dataclass(frozen=True)
class Loader:
    """Numbered batches of samples, as a teacher's states and conditions.

    dropout: the probability with which a condition is replaced by the empty one, so that guidance
    has an unconditional side.
    """

    samples: Samples
    teacher: Teacher
    dropout: float = 0.0
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels are called, in their order."""
        return self.samples.names

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        index = self.samples.walk(number * size, size, self.seed)
        images, asked = self.samples.rows(index, local)
        x0 = self.teacher.codec.encode(images.to(self.teacher.device), local)
        return Drawn(x0, dropped(self.teacher, asked, self.dropout, local))


@dataclass(frozen=True)
class Unseen:
    """What there is without data: zeros of the shape of a sample, and labels or prompts, all
    equally often."""

    teacher: Teacher
    dropout: float = 0.0
    names: tuple[str, ...] = ()

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        asked = self.teacher.drawn(size, local)
        x0 = torch.zeros(size, *self.teacher.event)
        return Drawn(x0, dropped(self.teacher, asked, self.dropout, local))


def dropped(teacher: Teacher, asked: Asked, share: float, local: torch.Generator) -> Cond:
    """The conditions of what is asked, a share of them replaced by the empty one."""
    cond = teacher.conditions(asked)
    if not cond:
        return cond
    left_out = torch.rand(len(asked), generator=local) < share
    if share == 0:  # looked at only now: what is drawn later does not depend on it
        return cond
    return choose(left_out, move(teacher.null, teacher.device), cond)


def shuffled(n: int, first: int, count: int, seed: int) -> Tensor:
    """Entries first … first + count − 1 of an endless walk through 0 … n − 1, shuffled anew each
    time round."""
    epochs = range(first // n, (first + count - 1) // n + 1)
    order = torch.cat([torch.randperm(n, generator=stream(seed, 2, e)) for e in epochs])
    start = first - epochs[0] * n
    return order[start : start + count]


def windowed(shards: Sequence[int], window: int, first: int, count: int, seed: int) -> Tensor:
    """The same for samples that are read in order, numbered through shards of these lengths.

    Each time round the shards come in another order, and every `window` samples that follow each
    other in it are shuffled among themselves. So whoever reads holds one window, and whoever begins
    in the middle reads no more than that window again."""
    lengths = torch.tensor(shards)
    begins, n = lengths.cumsum(0) - lengths, int(lengths.sum())
    found = []
    for e in range(first // n, (first + count - 1) // n + 1):
        order = torch.randperm(len(shards), generator=stream(seed, 2, e))
        ends = lengths[order].cumsum(0)
        low, high = max(first - e * n, 0), min(first + count - e * n, n)
        for w in range(low // window, (high - 1) // window + 1):
            size = min(window, n - w * window)
            places = torch.randperm(size, generator=stream(seed, 2, e, w)) + w * window
            places = places[max(low - w * window, 0) : high - w * window]
            k = torch.searchsorted(ends, places, right=True)
            found.append(begins[order[k]] + places - (ends[k] - lengths[order[k]]))
    return torch.cat(found)


def stream(*key: int) -> torch.Generator:
    """A CPU generator keyed by non-negative integers: (run seed, kind of stream, position…)."""
    # The length counts: numpy pads a key with zeros, so (1,) and (1, 0) would be one stream.
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
