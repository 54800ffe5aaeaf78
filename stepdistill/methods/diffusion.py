"""Diffusion and flow-matching training from data: how teachers are made.

    L(θ) = E w ‖ net_θ(x_t, t, c) − target ‖²,    x_t = α_t x₀ + σ_t ε

in the network's own prediction space, w = 1, or min(SNR, 5) of x₀: DDPM's simple loss for "eps"
(arXiv:2006.11239), flow matching for "flow" under rectified flow (arXiv:2210.02747). Conditions are
dropped by the data.

The simple loss hardly sees what is decided under much noise, as where objects lie. With `most` the
error is weighted as if it were one of a velocity, v = αε − σx₀ (arXiv:2202.00512):
w = min((∂v/∂net)², most), which is min(1 + σ²/α², most) of "eps" where α² + σ² = 1.
"""

from dataclasses import dataclass
from typing import Annotated

from ..losses.denoising import denoising_error
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..process import per_sample
from ..schema import Range
from ..solver import Sampler
from ..times import TimeLaw


@dataclass(frozen=True)
class Diffusion(Method):
    """Trains the student alone. most: of the weight above; None for w above it."""

    time: TimeLaw = TimeLaw()
    most: Annotated[float, Range(1, 10**9)] | None = None

    needs = Needs(players=("student",))
    paper = "DDPM (arXiv:2006.11239), flow matching (arXiv:2210.02747)"

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        student, x0 = p.student, batch.x0
        t = self.time.draw(student.process, len(x0), batch.local)
        eps = batch.noise()
        estimate = student(student.process.add_noise(x0, eps, t), t, batch.cond)
        error = denoising_error(student, estimate, x0, eps, t)
        if self.most is not None:
            error = estimate.raw - student.process.target(x0, eps, t, student.prediction)
            weight = student.process.velocity_weight(student.prediction, t).clamp(max=self.most)
            error = per_sample(x0, weight.sqrt())[0] * error
        return Loss({"denoising": error.square().mean()})

    def passes(self, sampler: Sampler) -> Passes:
        return Passes(trained=1, frozen=0, teacher=0)
