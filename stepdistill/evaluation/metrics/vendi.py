"""The Vendi score (Friedman and Dieng 2023, arXiv 2210.02410), the effective number of different
images:

exp(− Σ λᵢ log λᵢ)   of the eigenvalues of K / n,   K_ij = φᵢ·φⱼ / ‖φᵢ‖ ‖φⱼ‖

k groups of equal images, orthogonal to one another and equally many, give k; n images at most n.
It grows with n: compare at equal n only.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ..spread import SpreadOfFeatures, groups


@dataclass
class Vendi(SpreadOfFeatures):
    """per_class: the mean over prompts or classes that have two images, else of all at once."""

    ratio: bool = False
    per_class: bool = False

    @property
    def needs_asked(self) -> bool:
        return self.per_class

    @property
    def what(self) -> str:
        """It is, in the words of `about`."""
        where = "of one prompt or class, on average" if self.per_class else "of all"
        return f"the effective number of different images {where} (Vendi score)"

    def compute(self) -> list[float]:
        features, classes = self.kept.all()
        found = groups(features, classes) if self.per_class else [features]
        return [fmean(map(vendi, found))] if found else []


def vendi(features: Tensor) -> float:
    """The score of features (n, d), n ≥ 1, in 1..n. Features of all zeros are like no other."""
    x = torch.nn.functional.normalize(features.double(), dim=1)
    kernel = x.T @ x if len(x) > x.shape[1] else x @ x.T  # of the same eigenvalues
    values = torch.linalg.eigvalsh(kernel / len(x)).clamp(min=0)
    return torch.special.entr(values).sum().exp().item()
