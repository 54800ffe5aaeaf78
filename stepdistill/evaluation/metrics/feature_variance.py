"""The variance of features within a prompt or class:

mean over classes c of tr Cov(φ(x) | c)

Unlike the number of a Vendi score it does not depend on how many images there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..spread import SpreadOfFeatures, groups


@dataclass
class FeatureVariance(SpreadOfFeatures):
    """There is none where no class, or prompt, has two images."""

    what = "the variance of features among images of one prompt or class"

    def compute(self) -> list[float]:
        found = groups(*self.kept.all())
        return [variance_within(found)] if found else []


def variance_within(found: list[Tensor]) -> float:
    """The mean over groups (n, d), n ≥ 2, of the trace of their covariance, unbiased."""
    return torch.stack([group.double().var(0).sum() for group in found]).mean().item()
