"""Phased consistency distillation (Wang et al. 2024, arXiv:2405.18407).

The teacher trajectory t_0 > … > t_N is cut into M phases, and within each the student is a
consistency function that leads to the phase's end e(t):

    L(θ) = E d( J_θ(x_t, t → e(t)), J_θ⁻(x̂_s, s → e(t)) ) − λ E ℓ(J_θ(x_t, t → e(t))),

t = t_n, s = t_{n+1} ≥ e(t), J the jump x_e = α_e x̂₀ + σ_e ε̂, θ⁻ the student itself
(`target_ema: 0`; an average, unless that is written), ℓ a discriminator's logits of states noised
on within the phase (see `adversarial`). Sampled without noise in M steps, from phase to phase.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ..families.adversarial import Adversarial, StatePair
from ..families.trajectory import Times, agreement
from ..losses.distances import Distance
from ..method import Batch, Loss, Players
from ..process import NoiseProcess
from ..schema import Steps
from ..solver import Sampler
from ..times import Grid


@dataclass(frozen=True)
class Pcm(Adversarial):
    """steps: N.  phases: M.  huber: c of the Huber distance.  grid.rounding: of phases if M ∤ N.

    adversarial: λ, 0 for no discriminator.
    """

    phases: Steps = 4
    grid: Grid = Grid(rounding="up")
    distance: Distance = "huber"

    paper = "PCM (arXiv:2405.18407)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phases > self.steps:
            raise ValueError(f"phases: at most one a step, {self.steps}, got {self.phases}")

    def loss(self, p: Players, batch: Batch) -> Loss:
        pair = self.pair(p, batch)
        terms = {"pcm": self.error(pair.guess, pair.goal)}
        return Loss(terms | self.adversarial_term(p, batch, pair))

    def pair(self, p: Players, batch: Batch) -> StatePair:
        process = p.student.process
        grid, (n, after) = self.times(process), self.neighbours(batch)
        end = next_edge(grid[n], self.edges(process))
        guess, goal = agreement(p, batch, Times(grid[n], grid[after], end), self.solver)
        return StatePair(guess, goal, end, (process.t_max - process.t_clean) / self.phases)

    def edges(self, process: NoiseProcess) -> Tensor:
        """Where phases start, and where the last ends, descending, (M + 1,)."""
        return replace(self.grid, of=self.steps).times(process, self.phases)

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        if sampler.steps != (self.phases,):
            raise ValueError(f"pcm with {self.phases} phases is sampled in so many steps alone")
        if sampler.gamma > 0 and self.phases > 1:
            raise ValueError("pcm trains a student that is sampled without noise: use gamma 0")
        return self.edges(process)[:-1]


def next_edge(t: Tensor, edges: Tensor) -> Tensor:
    """The first of the descending `edges` below each t (b,)."""
    return edges[(t[:, None] <= edges).sum(1)]
