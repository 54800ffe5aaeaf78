"""The Inception score (Salimans et al. 2016, arXiv 1606.03498):

exp mean_x KL(p(y|x) ‖ p(y)),   p(y) = mean_x p(y|x)

with p(y|x) from a space that tells classes apart. It needs no real images, and sees no lost variety
within a class. Of each block of images, the mean over `splits` of them, which a seeded permutation
makes, the same as torch-fidelity's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.special import entr

from ...schema import Range
from ..kept import CHUNK, OnDisk
from ..metric import Made, Metric
from ..reference import Reference

SEED = 2020


@dataclass
class InceptionScore(Metric):
    """space: one with classes. splits: of a block's images; it grows with the images in each."""

    about = (
        "how sure a classifier is of each image, and how many classes it sees in all, from 1 to "
        "the number of classes; it grows with the images in a split. Its range is the 95 % "
        "interval over splits, of one block as well."
    )
    lower_is_better = False
    space: str = "inception-tf"
    splits: Annotated[int, Range(1, 1000)] = 10
    classes: Reference = field(init=False, repr=False)
    logits: OnDisk = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.classes = reference
        if reference.space(self.space).head is None:
            raise ValueError(f"the space {self.space} tells no classes apart")

    def reset(self) -> None:
        self.logits = OnDisk()

    def update(self, made: Made) -> None:
        space = self.classes.space(self.space)
        self.logits.add(space.logits(made.features(self.space)))

    def merge(self, other: InceptionScore) -> None:
        self.logits.merge(other.logits)

    def compute(self) -> list[float]:
        return inception_scores(self.logits, self.splits)


def inception_scores(logits: Tensor | OnDisk, splits: int = 1) -> list[float]:
    """The score of each split of logits (n, classes), at most as many as there are images.

    KL of a split is mean Σ p log p − Σ p̄ log p̄, whose sums are taken chunk by chunk."""
    own = split_of(len(logits), splits)
    counts = own.bincount().double()
    sharp, mean = torch.zeros(len(counts), dtype=torch.float64), None
    for part, rows in zip(logits.split(CHUNK), own.split(CHUNK)):
        p = part.double().softmax(1)
        mean = p.new_zeros(len(counts), p.shape[1]) if mean is None else mean
        mean.index_add_(0, rows, p)
        sharp.index_add_(0, rows, -entr(p).sum(1))
    if mean is None:
        return []
    scores = sharp / counts + entr(mean / counts[:, None]).sum(1)
    return scores[counts > 0].exp().tolist()


def split_of(n: int, splits: int) -> Tensor:
    """Which split (n,) each image is in."""
    order = np.random.RandomState(SEED).permutation(n)  # as torch-fidelity draws it
    found = torch.empty(n, dtype=torch.long)
    for number in range(splits):
        found[order[number * n // splits : (number + 1) * n // splits]] = number
    return found
