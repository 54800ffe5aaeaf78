"""The manifold of a set of samples: the union of balls around its points, each reaching its k-th
nearest other point (Kynkäänniemi et al. 2019, arXiv 1904.06991), k = 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1000


@dataclass(frozen=True, eq=False)
class Manifold:
    """Balls around points (n, d); radii (n,) reach each point's k-th nearest other point."""

    points: Tensor
    radii: Tensor

    @classmethod
    def of(cls, points: Tensor, k: int = 3, chunk: int = CHUNK) -> Manifold:
        """From features (n, d), distances computed `chunk` rows at a time. ValueError for n ≤ k."""
        if len(points) <= k:
            raise ValueError(f"{len(points)} points have no {k}-th neighbour: need {k + 1}")
        points = points.double()
        # The nearest point of all is the point itself, hence k + 1.
        radii = [torch.cdist(p, points).kthvalue(k + 1, 1).values for p in points.split(chunk)]
        return cls(points, torch.cat(radii))

    def covers(self, points: Tensor, chunk: int = CHUNK) -> Tensor:
        """Which of points (m, d) lie in some ball: bool (m,)."""
        parts = points.double().split(chunk)
        return torch.cat([(torch.cdist(p, self.points) <= self.radii).any(1) for p in parts])

    def share(self, points: Tensor) -> float:
        """The share of points (m, d) that lie in some ball, in 0..1."""
        return self.covers(points).double().mean().item()
