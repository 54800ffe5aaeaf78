"""Phased consistency distillation, deterministic (Wang et al. 2024, arXiv:2405.18407).

The teacher trajectory t_0 > … > t_N is cut into M phases, and within each the student is a
consistency function that leads to the phase's end e(t):

    L(θ) = E d( J_θ(x_t, t → e(t)), J_θ⁻(x̂_s, s → e(t)) ),    t = t_n, s = t_{n+1} ≥ e(t),

J the jump x_e = α_e x̂₀ + σ_e ε̂, θ⁻ the student itself (`target: 0`). Sampled without noise in M
steps, from phase to phase.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from ..distances import Distance
from ..method import Batch, Loss, Players
from ..process import NoiseProcess
from ..schema import Steps
from ..solver import Sampler
from ..times import Grid
from ..trajectory import OnTrajectory, Times, agreement


@dataclass(frozen=True)
class Pcm(OnTrajectory):
    """steps: N.  phases: M.  huber: c of the Huber distance.  grid.rounding: of phases if M ∤ N."""

    phases: Steps = 4
    grid: Grid = Grid(rounding="up")
    distance: Distance = "huber"

    paper = "PCM (arXiv:2405.18407)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phases > self.steps:
            raise ValueError(f"phases: at most one a step, {self.steps}, got {self.phases}")

    def loss(self, p: Players, batch: Batch) -> Loss:
        grid, (n, after) = self.times(p.student.process), self.neighbours(batch)
        end = next_edge(grid[n], self.edges(p.student.process))

        guess, goal = agreement(p, batch, Times(grid[n], grid[after], end), self.solver)
        return Loss({"pcm": self.error(guess, goal)})

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
