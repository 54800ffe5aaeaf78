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
from torch import Tensor

from ..denoiser import Cond
from ..distances import Distance, distance, require_weights
from ..method import Batch, Loss, Method, Passes, Players, Turn
from ..process import NoiseProcess, per_sample
from ..schema import NotNegative, Steps
from ..solver import EVALUATIONS, Sampler, Solver, ddim_step, heun_step
from ..times import Grid


@dataclass(frozen=True)
class Consistency(Method):
    """steps: N, the length of the teacher's trajectory.  huber: c of the pseudo-Huber distance."""

    steps: Steps = 18
    grid: Grid = Grid()
    solver: Solver = "heun"
    distance: Distance = "pseudo_huber"
    huber: NotNegative = 0.03

    roles = ("student", "teacher", "target")
    identity_at_clean = True
    paper = "Consistency models (arXiv:2303.01469)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver == "dpmpp":
            raise ValueError("consistency: solver 'dpmpp' needs a history; use 'ddim' or 'heun'")
        if self.distance == "lpips":
            require_weights()

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        times = self.times(p.student.process)
        n = torch.randint(len(times) - 1, (len(batch.x0),), generator=batch.local)
        t, s = times[n], times[n + 1]
        x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)

        with torch.no_grad():
            x_s = self.teacher_step(p, x_t, t, s, batch.cond)
            goal = self.goal(p, x_s, s, batch.cond)
        guess = p.student(x_t, t, batch.cond).x0

        loss = distance(self.distance, guess, goal, self.huber).mean()
        return Loss({"consistency": loss})

    def times(self, process: NoiseProcess) -> Tensor:
        """The trajectory's times, descending, (N + 1,)."""
        return self.grid.times(process, self.steps)

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        return self.times(process)[:-1]

    def teacher_step(self, p: Players, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """x̂_s (b, *event): one step of the teacher's ODE."""
        if self.solver == "heun":
            return heun_step(p.teacher, x_t, t, s, cond)
        return ddim_step(p.teacher.process, p.teacher(x_t, t, cond), s)

    def goal(self, p: Players, x_s: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """f_θ⁻(x̂_s, s), and x̂_s itself where the trajectory ends."""
        process = p.student.process
        inside = s.clamp(min=process.t_min)  # networks are not asked at clean data
        (end,) = per_sample(x_s, s <= self.times(process)[-1])
        return torch.where(end.bool(), x_s, p.target(x_s, inside, cond).x0)

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=1, teacher=EVALUATIONS[self.solver])
