"""Two neighbouring states of one teacher trajectory, and the student's jump from each.

    x_t = α_t x₀ + σ_t ε,    x̂_s = one step of the teacher's ODE from x_t,
    guess = J_θ(x_t, t → e),    goal = J_θ⁻(x̂_s, s → e) without gradient,    e ≤ s < t,

J the jump of `solver`. Where the trajectory ends at s itself the goal is x̂_s. Every method of
discrete consistency distillation is a law of (t, s, e) and a distance between the two.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoiser import AnyDenoiser
from ..losses.distances import Distance, distance, require_weights
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..process import NoiseProcess
from ..schema import NotNegative, Steps
from ..solver import EVALUATIONS, OneStep, Sampler, jump, ode_step
from ..times import Grid

ON_TRAJECTORY = ("student", "teacher", "target")


class Times(NamedTuple):
    """t > s ≥ end, each (b,) float64."""

    t: Tensor
    s: Tensor
    end: Tensor


@dataclass(frozen=True)
class OnTrajectory(Method):
    """What the methods on a teacher trajectory t_0 > t_1 > … > t_N have in common.

    steps: N.  huber: c of a Huber distance.
    """

    steps: Steps = 50
    grid: Grid = Grid()
    solver: OneStep = "ddim"
    distance: Distance = "l2"
    huber: NotNegative = 0.001

    needs = Needs(ON_TRAJECTORY, boundary=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance == "lpips":
            require_weights()

    @abstractmethod
    def loss(self, p: Players, batch: Batch) -> Loss:
        """The student's loss."""

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def times(self, process: NoiseProcess) -> Tensor:
        """The trajectory's times, descending, (N + 1,)."""
        return self.grid.times(process, self.steps)

    def neighbours(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Places (b,) of a time in the trajectory, and of the next."""
        n = torch.randint(self.steps, (len(batch.x0),), generator=batch.local)
        return n, n + 1

    def error(self, guess: Tensor, goal: Tensor) -> Tensor:
        """The mean distance, a scalar."""
        return distance(self.distance, guess, goal, self.huber).mean()

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        return self.times(process)[:-1]

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=1, teacher=EVALUATIONS[self.solver])


def agreement(
    p: Players,
    batch: Batch,
    times: Times,
    solver: OneStep,
    teacher: AnyDenoiser | None = None,
) -> tuple[Tensor, Tensor]:
    """(guess, goal), each (b, *event). teacher: whose trajectory, by default the players' own."""
    (t, s, end), teacher = times, p.teacher if teacher is None else teacher
    x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)
    with torch.no_grad():
        x_s = ode_step(teacher, x_t, t, s, batch.cond, solver)
        goal = jump(p.target, x_s, s, end, batch.cond)
    return jump(p.student, x_t, t, end, batch.cond), goal


def up_to(last: int, first: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform whole numbers (b,) from `first` (b,) to `last`, both among them."""
    u = torch.rand(len(first), generator=generator, dtype=torch.float64)
    return first + (u * (last - first + 1)).long()
