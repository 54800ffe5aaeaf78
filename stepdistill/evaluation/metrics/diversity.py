"""How far apart two images of one class are, as a ratio to the teacher at most steps."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..kept import OfFeatures
from ..metric import Blocks, Made
from ..rows import Score


@dataclass
class Diversity(OfFeatures):
    """There is none without a teacher."""

    about = (
        "the mean distance of two images of one class, as a ratio to that of the teacher at most "
        "steps."
    )
    lower_is_better = False
    decimals = 3

    def update(self, made: Made) -> None:
        self.kept.add(made.features(self.space), made.classes())

    def compute(self) -> list[float]:
        return [diversity(*self.kept.all())]

    def score(self, blocks: Blocks, best: Blocks | None) -> Score | None:
        if best is None:
            return None
        return Score(fmean(v for b in blocks for v in b) / fmean(v for b in best for v in b))


def diversity(features: Tensor, classes: Tensor) -> float:
    """Mean distance of two images of one class, features (n, d), classes (n,), over all classes.

    Raises ValueError where no class has two images.
    """
    groups = [features[classes == c].double() for c in classes.unique()]
    means = [torch.pdist(group).mean() for group in groups if len(group) > 1]
    if not means:
        raise ValueError("diversity: no class has two images")
    return torch.stack(means).mean().item()
