"""Consistency distillation (Song et al. 2023, arXiv:2303.01469).

The student f maps every point of a teacher ODE trajectory to its clean end. Neighbouring points of
a grid t_0 > t_1 > … > t_N must agree:

    L(θ) = E d( f_θ(x_t, t), f_θ⁻(x̂_s, s) ),   x̂_s = one teacher ODE step from x_t, s = next(t),
    f(x_{t_N}, t_N) = x_{t_N},

with f = x̂₀, d pseudo-Huber by default, θ⁻ an average of θ or θ itself, never differentiated. Any
process and prediction: "eps", "v", "flow" and "edm" keep the identity at σ = 0 by themselves;
an "x0" student gets c_skip and c_out. The grid ends at clean data, so the last target is the
teacher's own answer.
"""

from dataclasses import dataclass

import torch

from ..families.trajectory import OnTrajectory, Times, agreement
from ..losses.distances import Distance
from ..method import Batch, Loss, Players
from ..schema import NotNegative, Steps
from ..solver import OneStep


@dataclass(frozen=True)
class Consistency(OnTrajectory):
    """steps: N, the length of the teacher's trajectory.  huber: c of the pseudo-Huber distance."""

    steps: Steps = 18
    solver: OneStep = "heun"
    distance: Distance = "pseudo_huber"
    huber: NotNegative = 0.03

    paper = "Consistency models (arXiv:2303.01469)"

    def loss(self, p: Players, batch: Batch) -> Loss:
        grid, (n, after) = self.times(p.student.process), self.neighbours(batch)
        times = Times(grid[n], grid[after], torch.full_like(grid[n], grid[-1]))

        guess, goal = agreement(p, batch, times, self.solver)
        return Loss({"consistency": self.error(guess, goal)})
