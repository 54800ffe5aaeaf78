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

from ...schema import Range
from ..metric import Made, Metric
from ..reference import Reference

SEED = 2020


@dataclass
class InceptionScore(Metric):
    """space: one with classes. splits: of a block's images; it grows with the images in each."""

    about = (
        "how sure a classifier is of each image, and how many classes it sees in all, from 1 to "
        "the number of classes, ± its standard error over splits, with whose size it grows."
    )
    lower_is_better = False
    space: str = "inception-tf"
    splits: Annotated[int, Range(1, 1000)] = 10
    classes: Reference = field(init=False, repr=False)
    logits: list[Tensor] = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.classes = reference
        if reference.space(self.space).head is None:
            raise ValueError(f"the space {self.space} tells no classes apart")

    def reset(self) -> None:
        self.logits = []

    def update(self, made: Made) -> None:
        space = self.classes.space(self.space)
        self.logits.append(space.logits(made.features(self.space)))

    def merge(self, other: InceptionScore) -> None:
        self.logits += other.logits

    def compute(self) -> list[float]:
        return inception_scores(torch.cat(self.logits), self.splits)


def inception_scores(logits: Tensor, splits: int = 1) -> list[float]:
    """The score of each split of logits (n, classes), at most as many as there are images."""
    n = len(logits)
    order = np.random.RandomState(SEED).permutation(n)  # as torch-fidelity draws it
    log_p = logits[torch.from_numpy(order)].double().log_softmax(1)
    ends = [i * n // splits for i in range(splits + 1)]
    parts = [log_p[start:end] for start, end in zip(ends, ends[1:]) if end > start]
    return [_score(part) for part in parts]


def _score(log_p: Tensor) -> float:
    p = log_p.exp()
    return float((p * (log_p - p.mean(0).log())).nan_to_num(0).sum(1).mean().exp())
