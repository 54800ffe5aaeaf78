"""Trajectory consistency distillation (Zheng et al. 2024, arXiv:2402.19159).

Neighbouring points of a teacher trajectory t_0 > t_1 > … > t_N must agree wherever they go:

    L(θ) = E d( J_θ(x_t, t → e), J_θ⁻(x̂_s, s → e) ),    t = t_n, s = t_{n+1}, e ∈ {t_{n+1}, …, t_N},

J the jump x_e = α_e x̂₀ + σ_e ε̂. The network is not given e, so a large jump is a compromise between
the posterior mean and the end of the trajectory: one step loses variance by construction, which
segments (`tscd`), phases (`pcm`) and telling e (`ctm`) mend. Sample with `sampler.gamma` between 0
and 1.
"""

from dataclasses import dataclass

from ..families.trajectory import OnTrajectory, Times, agreement, up_to
from ..method import Batch, Loss, Players


@dataclass(frozen=True)
class Tcd(OnTrajectory):
    """steps: N, the length of the teacher's trajectory.  huber: c of a Huber distance."""

    paper = "TCD (arXiv:2402.19159)"

    def loss(self, p: Players, batch: Batch) -> Loss:
        grid, (n, after) = self.times(p.student.process), self.neighbours(batch)
        times = Times(grid[n], grid[after], grid[up_to(self.steps, after, batch.local)])

        guess, goal = agreement(p, batch, times, self.solver)
        return Loss({"tcd": self.error(guess, goal)})
