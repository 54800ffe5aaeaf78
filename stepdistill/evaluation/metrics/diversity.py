"""How far apart two images of one class are in a space of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spread import SpreadOfFeatures, groups


@dataclass
class Diversity(SpreadOfFeatures):
    """There is none where no class, or prompt, has two images."""

    what = "the mean distance of two images of one class"

    def compute(self) -> list[float]:
        kept = self.kept.all()
        return [diversity(*kept)] if groups(*kept) else []


def diversity(features: Tensor, classes: Tensor) -> float:
    """Mean distance of two images of one class, features (n, d), classes (n,), over all classes.

    Raises ValueError where no class has two images.
    """
    means = [torch.pdist(group.double()).mean() for group in groups(features, classes)]
    if not means:
        raise ValueError("diversity: no class has two images")
    return torch.stack(means).mean().item()
