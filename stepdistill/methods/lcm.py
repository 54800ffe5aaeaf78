"""Latent consistency distillation, LCM (Luo et al. 2023, arXiv:2310.04378).

Consistency distillation along a trajectory of N long steps whose guidance is folded in:

    L(θ) = E d( f_θ(x_t, w, t), f_θ⁻(x̂_s, w, s) ),    x̂_s = a step of u + w(c − u),

t = t_n, s = t_{n+1} = t − T/N (the skipping step), f = x̂₀, d an element-wise Huber distance. w is
the run's guidance, or drawn per sample from `guidance`; with `embedding` it is given w, and
at sampling the run's. The paper's w, and that of its embedding, is ours less one. Its c_skip is
7e-6 at most wherever a network is asked, so only the identity at the end is kept of it.
"""

from dataclasses import dataclass

import torch

from ..families.trajectory import ON_TRAJECTORY, OnTrajectory, Times, agreement
from ..losses.distances import Distance
from ..method import Batch, Loss, Needs, Players
from ..schema import Positive


@dataclass(frozen=True)
class Lcm(OnTrajectory):
    """steps: N.  huber: c.  guidance: range of w, None for the run's.  embedding: is w an input?"""

    distance: Distance = "huber"
    guidance: tuple[Positive, Positive] | None = None
    embedding: bool = False

    paper = "LCM (arXiv:2310.04378)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding and self.guidance is None:
            raise ValueError("embedding: needs a range of guidance to draw w from")

    @property
    def needs(self) -> Needs:
        inputs = ("w",) if self.embedding else ()
        return Needs(ON_TRAJECTORY, boundary=True, guidance=self.guidance, inputs=inputs)

    def loss(self, p: Players, batch: Batch) -> Loss:
        grid, (n, after) = self.times(p.student.process), self.neighbours(batch)
        times = Times(grid[n], grid[after], torch.full_like(grid[n], grid[-1]))
        if self.guidance is not None:
            p = p.at_guidance(batch.uniform(*self.guidance))

        guess, goal = agreement(p, batch, times, self.solver)
        return Loss({"lcm": self.error(guess, goal)})
