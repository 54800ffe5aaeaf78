"""Trajectory-segmented consistency distillation (Hyper-SD, Ren et al. 2024, arXiv:2404.13686).

Time is cut into k even segments, and within its segment a student's jumps must agree:

    L(θ) = E d( J_θ(x_t, t → e), J_θ⁻(x̂_s, s → e) ) − λ E ℓ(J_θ(x_t, t → e)),

s = max(next(t), b(t)), e ~ U[b(t), s], b(t) the low end of the segment t lies in, J the jump
x_e = α_e x̂₀ + σ_e ε̂, ℓ a discriminator's logits of states noised on by up to a segment (see
`adversarial`). A run has stages with k = 8, 4, 2, 1: within a short segment jumps are nearly the
teacher's steps and easily learnt, and each stage starts from the last. A closing `dmd2` stage is
the paper's score distillation for one step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..families.adversarial import Adversarial, StatePair
from ..families.trajectory import Times, agreement
from ..method import Batch, Loss, Players
from ..process import NoiseProcess
from ..schema import Steps


@dataclass(frozen=True)
class Tscd(Adversarial):
    """segments: k.  steps: N, the trajectory's length.  huber: c of a Huber distance.

    adversarial: λ, 0 for no discriminator.
    """

    segments: Steps = 8

    paper = "Hyper-SD (arXiv:2404.13686)"

    def loss(self, p: Players, batch: Batch) -> Loss:
        pair = self.pair(p, batch)
        terms = {"tscd": self.error(pair.guess, pair.goal)}
        return Loss(terms | self.adversarial_term(p, batch, pair))

    def pair(self, p: Players, batch: Batch) -> StatePair:
        process, (n, after) = p.student.process, self.neighbours(batch)
        grid, width = self.times(process), self.width(process)
        low = self.segment_start(process, grid[n])
        s = torch.maximum(grid[after], low)
        end = low + torch.rand(len(s), generator=batch.local) * (s - low)
        return StatePair(*agreement(p, batch, Times(grid[n], s, end), self.solver), end, width)

    def width(self, process: NoiseProcess) -> float:
        """How long a segment is, in the process's clock."""
        return (process.t_max - process.t_clean) / self.segments

    def segment_start(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """b(t): the low end of the segment (b, e] each t (b,) lies in."""
        width = self.width(process)
        return process.t_clean + ((t - process.t_clean) / width - 1e-9).floor() * width
