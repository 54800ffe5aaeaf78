"""Batches, numbered: batch k is the same whenever, wherever and however often it is asked for.

Images are walked through in one fresh permutation per epoch, keyed by (seed, epoch), so a resumed
run and any number of processes see exactly the same data.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Cond
from ..solver import Trajectory


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


@dataclass(frozen=True)
class Images:
    """Images held in memory.

    images: (n, c, h, w) in [−1, 1]. labels: (n,) or None. dropout: the probability with which a
    label is replaced by `null`, so that guidance has an unconditional side.
    """

    images: Tensor
    labels: Tensor | None
    null: int = 0
    dropout: float = 0.0
    seed: int = 0

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        index = shuffled(len(self.images), number * size, size, self.seed)
        if self.labels is None:
            return Drawn(self.images[index], None)
        dropped = torch.rand(size, generator=local) < self.dropout
        return Drawn(self.images[index], torch.where(dropped, self.null, self.labels[index]))


@dataclass(frozen=True)
class Shapes:
    """What there is without data: zeros of the shape of a sample, and labels, all equally often.

    classes: how many labels, None without; the empty one is the next. dropout: as of `Images`.
    """

    event: tuple[int, ...]
    classes: int | None
    dropout: float = 0.0

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        x0 = torch.zeros(size, *self.event)
        if self.classes is None:
            return Drawn(x0, None)
        labels = torch.randint(self.classes, (size,), generator=local)
        dropped = torch.rand(size, generator=local) < self.dropout
        return Drawn(x0, torch.where(dropped, self.classes, labels))


def shuffled(n: int, first: int, count: int, seed: int) -> Tensor:
    """Entries first … first + count − 1 of an endless walk through 0 … n − 1, shuffled anew each
    time round."""
    epochs = range(first // n, (first + count - 1) // n + 1)
    order = torch.cat([torch.randperm(n, generator=stream(seed, 2, e)) for e in epochs])
    start = first - epochs[0] * n
    return order[start : start + count]


def stream(*key: int) -> torch.Generator:
    """A CPU generator keyed by non-negative integers: (run seed, kind of stream, position…)."""
    # The length counts: numpy pads a key with zeros, so (1,) and (1, 0) would be one stream.
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
