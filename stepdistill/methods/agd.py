"""Adapter guidance distillation, AGD (Jensen & Sadat 2025, arXiv:2503.07274).

The teacher's network stays frozen, and small adapters, given w, t and the label, make its one
conditional pass answer as the two of guidance would:

    L(A) = E ‖net_A(x_t, w, t, c) − target(x̂₀^w, ε̂^w)‖²,    x̂₀^w = u + w(c − u), ε̂^w alike,

in the network's own prediction space, with x_t and x̂₀^w from the cache of *guided* trajectories,
the states that a guided sampler visits, which noised data are not. At w = 1 the adapters are
silent, and taken off they leave the network as it was.
"""

from dataclasses import dataclass

import torch

from ..losses.denoising import denoising_error
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..solver import Sampler


@dataclass(frozen=True)
class Agd(Method):
    """No settings: w, the trajectories and their steps are the cache's."""

    needs = Needs(data=False, trajectories=True, inputs=("adapters",))
    dropout = False  # the network is the teacher's own
    paper = "Adapter guidance distillation (arXiv:2503.07274)"

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        path, process = batch.path, p.student.process
        j = torch.randint(path.x0.shape[1], (len(path.x0),), generator=batch.local)
        row = torch.arange(len(j))
        x_t, x0, t = path.x[row, j], path.x0[row, j], path.times[j]

        eps = process.estimate(x_t, x0, t, "x0").eps
        guess = p.at_guidance(path.w).student(x_t, t, batch.cond)
        error = denoising_error(p.student, guess, x0, eps, t)
        return Loss({"agd": error.square().mean()})

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=0)
