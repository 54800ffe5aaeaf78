"""Diffusion and flow-matching training from data: how teachers are made.

    L(θ) = E ‖ net_θ(x_t, t, c) − target ‖²,    x_t = α_t x₀ + σ_t ε,

in the network's own prediction space: DDPM's simple loss for "eps" (arXiv:2006.11239), flow
matching for "flow" under rectified flow (arXiv:2210.02747). Labels are dropped by the data.
"""

from dataclasses import dataclass

from ..losses.denoising import denoising_loss
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..solver import Sampler
from ..times import TimeLaw


@dataclass(frozen=True)
class Diffusion(Method):
    """Trains the student alone."""

    time: TimeLaw = TimeLaw()

    needs = Needs(players=("student",))
    paper = "DDPM (arXiv:2006.11239), flow matching (arXiv:2210.02747)"

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        t = self.time.draw(p.student.process, len(batch.x0), batch.local)
        loss = denoising_loss(p.student, batch.x0, batch.noise(), t, batch.cond)
        return Loss({"denoising": loss})

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=0)
