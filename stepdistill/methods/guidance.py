"""Distillation of guidance into one pass (Meng et al. 2022, arXiv:2210.03142, stage 1).

The student is given w and answers, in one evaluation, what the teacher's two make together:

    L(θ) = E ‖net_θ(x_t, w, t, c) − target(x̂₀^w, ε̂^w)‖²,    x̂₀^w = u + w(c − u), ε̂^w alike,

in the network's own prediction space, x_t noised data, w from `guidance`. The paper's w is ours
less one. The number of steps does not change: this makes a teacher of half the cost, whose guidance
stays a dial. At large w a sampler visits other states than noised data; `agd` trains on those.
"""

from dataclasses import dataclass

import torch

from ..losses.denoising import denoising_error
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..schema import Positive
from ..solver import Sampler
from ..times import TimeLaw


@dataclass(frozen=True)
class Guidance(Method):
    """guidance: range of w.  time: law of t."""

    guidance: tuple[Positive, Positive] = (1.0, 6.0)
    time: TimeLaw = TimeLaw()

    paper = "On distillation of guided diffusion models (arXiv:2210.03142)"

    @property
    def needs(self) -> Needs:
        return Needs(guidance=self.guidance, inputs=("w",))

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        p = p.at_guidance(batch.uniform(*self.guidance))
        t = self.time.draw(p.student.process, len(batch.x0), batch.local)
        x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)

        with torch.no_grad():
            goal = p.teacher(x_t, t, batch.cond)
        guess = p.student(x_t, t, batch.cond)
        error = denoising_error(p.student, guess, goal.x0, goal.eps, t)
        return Loss({"guidance": error.square().mean()})

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=1)
