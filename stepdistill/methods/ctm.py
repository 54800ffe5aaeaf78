"""Consistency trajectory models, CTM (Kim et al. 2023, arXiv:2310.02279), distillation part.

The target time is an input of the student: G_θ(x_t, t, e) is the jump from t to any e ≤ t, by its
x̂₀ at (t, e). Two points of a teacher trajectory, k steps apart, must agree at e, and from there at
the clean end, through an average of the student that the gradient passes:

    L(θ) = E d( G_θ⁻(G_θ(x_t, t, e), e, 0), G_θ⁻(G_sg(θ)(x̂_u, u, e), e, 0) )
           + λ E ‖net_θ(x_t, t, t) − target‖²,       t = t_i, u = t_{i+k}, e ∈ {t_{i+k}, …, t_N},

P(k) ∝ k. The second term keeps G(·, t, t) a denoiser. `match: end` compares at e itself, with the
average's own jump there: d(G_θ(x_t, t, e), G_θ⁻(x̂_u, u, e)) (SoundCTM, arXiv:2405.18503), and
`distance: teacher` in what the teacher's own blocks see of the two there. Without an average
(`target_ema: 0`) θ⁻ is θ, and the outer jump is trained through as well, which papers stop. The
paper's average has 0.999. Sample with any `sampler.gamma`; without noise every step is exact.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..denoiser import unguided
from ..families.trajectory import ON_TRAJECTORY, OnTrajectory, up_to
from ..losses.denoising import denoising_loss
from ..losses.distances import Distance, feature_distance
from ..method import Batch, Loss, Needs, Passes, Players
from ..schema import NotNegative, Steps
from ..solver import EVALUATIONS, OneStep, Sampler, jump, ode_step
from ..times import Grid, TimeLaw


@dataclass(frozen=True)
class Ctm(OnTrajectory):
    """steps: N.  distance: "teacher" for that of the teacher's features.  huber: c of a Huber one.

    match: where the two are compared.  denoising: λ.  time: law of t in the denoising term.
    """

    steps: Steps = 18
    grid: Grid = Grid("karras")
    solver: OneStep = "heun"
    distance: Literal[Distance, "teacher"] = "pseudo_huber"
    huber: NotNegative = 0.03
    match: Literal["clean", "end"] = "clean"
    denoising: NotNegative = 1.0
    time: TimeLaw = TimeLaw("log_normal", mean=-1.2, std=1.2)

    needs = Needs(ON_TRAJECTORY, boundary=True, inputs=("s",))
    paper = "CTM (arXiv:2310.02279)"

    def loss(self, p: Players, batch: Batch) -> Loss:
        path, end = self.draw(p, batch)
        t, u = path[0], path[-1]
        x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)

        guess = jump(p.student, x_t, t, end, batch.cond)
        with torch.no_grad():
            x_u = x_t
            for now, after in pairwise(path):
                x_u = ode_step(p.teacher, x_u, now, after, batch.cond, self.solver)
            inner = p.student if self.match == "clean" else p.target
            goal = jump(inner, x_u, u, end, batch.cond)
        met = end
        if self.match == "clean":
            met = torch.full_like(end, p.student.process.t_clean)
            guess = jump(p.target, guess, end, met, batch.cond)
            with torch.no_grad():
                goal = jump(p.target, goal, end, met, batch.cond)

        if self.distance == "teacher":
            error = feature_distance(unguided(p.teacher), guess, goal, met, batch.cond).mean()
        else:
            error = self.error(guess, goal)
        terms = {"ctm": error}
        if self.denoising > 0:
            t = self.time.draw(p.student.process, len(t), batch.local)
            denoising = denoising_loss(p.student, batch.x0, batch.noise(), t, batch.cond)
            terms["denoising"] = self.denoising * denoising
        return Loss(terms)

    def draw(self, p: Players, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's times (k + 1, b), from t to u, and the end (b,)."""
        grid, b = self.times(p.student.process), len(batch.x0)
        weights = torch.arange(1.0, self.steps + 1)
        k = 1 + int(torch.multinomial(weights, 1, generator=batch.shared))
        i = torch.randint(self.steps - k + 1, (b,), generator=batch.local)
        path = torch.stack([grid[i + j] for j in range(k + 1)])
        return path, grid[up_to(self.steps, i + k, batch.local)]

    def passes(self, sampler: Sampler) -> Passes:
        mean = sum(k * k for k in range(1, self.steps + 1)) / sum(range(1, self.steps + 1))
        pushed, denoised = self.match == "clean", self.denoising > 0
        seen, teacher = self.distance == "teacher", mean * EVALUATIONS[self.solver]
        return Passes(1 + pushed + denoised + seen, frozen=1 + pushed + seen, teacher=teacher)
