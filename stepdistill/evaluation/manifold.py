"""The manifold of a set of samples: the union of balls around its points, each reaching its k-th
nearest other point (Kynkäänniemi et al. 2019, arXiv 1904.06991).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK, DISTANCES = 1000, 2**21  # points, and distances, that are looked at at a time


@dataclass(frozen=True, eq=False)
class Manifold:
    """Balls around points (n, d); radii (n,) reach each point's k-th nearest other point."""

    points: Tensor
    radii: Tensor

    @classmethod
    def of(cls, points: Tensor, k: int = 3, chunk: int = CHUNK) -> Manifold:
        """From features (n, d), at most `chunk` rows compared at a time. ValueError for n ≤ k."""
        if len(points) <= k:
            raise ValueError(f"{len(points)} points have no {k}-th neighbour: need {k + 1}")
        points = points.double()
        # The nearest point of all is the point itself, hence k + 1.
        parts = points.split(at_a_time(points, chunk))
        radii = [torch.cdist(part, points).kthvalue(k + 1, 1).values for part in parts]
        return cls(points, torch.cat(radii))

    def covers(self, points: Tensor, chunk: int = CHUNK) -> Tensor:
        """Which of points (m, d) lie in some ball: bool (m,)."""
        return torch.cat([inside.any(1) for inside in self._inside(points, chunk)])

    def share(self, points: Tensor) -> float:
        """The share of points (m, d) that lie in some ball, in 0..1."""
        return self.covers(points).double().mean().item()

    def reached(self, points: Tensor, chunk: int = CHUNK) -> Tensor:
        """Which balls hold some of points (m, d): bool (n,)."""
        inside = [inside.any(0) for inside in self._inside(points, chunk)]
        return torch.stack(inside).any(0)

    def depth(self, points: Tensor, chunk: int = CHUNK) -> float:
        """In how many balls one of points (m, d) lies, on average."""
        return sum(int(inside.sum()) for inside in self._inside(points, chunk)) / len(points)

    def _inside(self, points: Tensor, chunk: int) -> Iterator[Tensor]:
        """Which point lies in which ball: bool (≤ chunk, n), chunk by chunk."""
        for part in points.split(at_a_time(self.points, chunk)):
            yield torch.cdist(part.double(), self.points) <= self.radii


def at_a_time(points: Tensor, chunk: int = CHUNK) -> int:
    """How many others are compared with points (n, d) at a time."""
    return max(1, min(chunk, DISTANCES // max(1, len(points))))
