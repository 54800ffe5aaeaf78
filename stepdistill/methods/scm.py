"""Continuous-time consistency distillation, sCM (Lu & Song 2024, arXiv:2410.11081).

In TrigFlow, x_t = cos t x₀ + σ_d sin t ε, with the network's F = (dx/dt)/σ_d and the consistency
function f = cos t x_t − σ_d sin t F, a student is consistent where df/dt = 0 along the ODE:

    g = −cos² t (σ_d F⁻ − ẋ) − r cos t sin t (x_t + σ_d dF⁻/dt),        ẋ = σ_d F_teacher,
    L(θ) = E e^{−u(t)} ‖F_θ − F⁻ − g/(‖g‖ + c)‖²/D + u(t),              F⁻ = F_θ without gradient,

dF⁻/dt the derivative along (ẋ, 1), in forward mode or by differences, at any `precision` in the
weights' own. r rises from 0 to 1 over the share `warmup` of training; u is learnt if `adaptive`.
At r = 1, before it is normalised, g is cos t · df/dt. Teachers and students of any process are seen
through TrigFlow at equal SNR.
"""

from dataclasses import dataclass
from math import cos, sin
from typing import Annotated

import torch
from torch import Tensor

from ..conditions import Cond
from ..denoiser import AnyDenoiser, Rescheduled
from ..losses.jvp import STEP, Mode, derivative, normalised
from ..method import Batch, Loss, Method, Needs, Passes, Players, Turn
from ..process import TrigFlow, per_sample
from ..schema import Positive, Range, Share
from ..solver import Sampler
from ..times import TimeLaw

END = 1e-4  # how far forward mode stays below pure noise, where it divides by zero
Step = Annotated[float, Range(0, 1, above=True)]  # beyond 1, t + step·sin t cos t is not monotone


@dataclass(frozen=True)
class Scm(Method):
    """sigma_data: σ_d.  time: law of t.  tangent: how dF/dt is found.  floor: c.

    step: of the tangent `difference`, a share of sin t cos t. A network that embeds its time in
    fast sines wiggles in t, which drowns an exact tangent: a wide step looks past that.
    """

    sigma_data: Positive = 0.5
    time: TimeLaw = TimeLaw("log_normal", mean=-1.0, std=1.4)
    tangent: Mode = "forward"
    step: Step = STEP
    floor: Positive = 0.1
    warmup: Share = 0.1
    adaptive: bool = True

    paper = "sCM (arXiv:2410.11081)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tangent == "forward" and self.step != STEP:
            raise ValueError("step: belongs to the tangent 'difference': ask for that")

    @property
    def needs(self) -> Needs:
        return Needs(boundary=True, inputs=("logvar",) if self.adaptive else ())

    def turns(self) -> tuple[Turn, ...]:
        return (Turn("student", self.loss),)

    def loss(self, p: Players, batch: Batch) -> Loss:
        trig = TrigFlow(self.sigma_data)
        student, teacher = (Rescheduled(d, trig) for d in (p.student, p.teacher))
        t = self.time.draw(trig, len(batch.x0), batch.local)
        t = t.clamp(max=self.latest(min(student.t_max, teacher.t_max)))
        x_t = trig.add_noise(batch.x0, batch.noise(), t)

        field = Field(student, batch.cond, trig)
        with torch.no_grad():
            velocity = Field(teacher, batch.cond, trig)(x_t, t) * self.sigma_data
        now = field(x_t, t)
        g = self.tangent_of(field, (x_t, t), now.detach(), velocity, self.ramp(batch.progress))
        error = now - now.detach() - normalised(g, self.floor)

        square = error.square().flatten(1).mean(1)
        shown = {"square": square.mean(), "|g|": g.flatten(1).norm(dim=1).mean()}
        if not self.adaptive:
            return Loss({"scm": square.mean()}, shown)
        u = p.student.log_variance(student.inner_time(t))
        return Loss({"scm": (square * (-u).exp() + u).mean()}, shown)

    def tangent_of(
        self, field: "Field", at: tuple[Tensor, Tensor], now: Tensor, velocity: Tensor, r: float
    ) -> Tensor:
        """g (b, *event), without a graph, at (x_t, t), where the field is `now`, F⁻."""
        x_t, t = at
        both = t.cos() * t.sin()
        cos, cos_sin = per_sample(x_t, t.cos(), both)
        along = (cos_sin * velocity, both)
        change = derivative(field, at, along, self.tangent, self.step)
        toward_teacher = -(cos**2) * (self.sigma_data * now - velocity)
        return toward_teacher - r * (cos_sin * x_t + self.sigma_data * change)

    def latest(self, t_max: float) -> float:
        """The last t at which no network is asked for the tangent beyond t_max."""
        if self.tangent == "forward":
            return t_max - END
        low, high = 0.0, t_max
        for _ in range(60):
            t = (low + high) / 2
            low, high = (t, high) if t + self.step * cos(t) * sin(t) <= t_max else (low, t)
        return low

    def ramp(self, progress: float) -> float:
        """r at `progress` in [0, 1) of training."""
        return 1.0 if self.warmup == 0 else min(1.0, progress / self.warmup)

    def passes(self, sampler: Sampler) -> Passes:
        # Forward mode carries a tangent beside every activation: two passes, as a difference is.
        return Passes(trained=1, frozen=2, teacher=1)


@dataclass(frozen=True)
class Field:
    """F(x, t) = (dx/dt)/σ_d of a denoiser under TrigFlow, (b, *event)."""

    denoiser: AnyDenoiser
    cond: Cond
    process: TrigFlow

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        estimate = self.denoiser(x_t, t, self.cond)
        velocity = self.process.target(estimate.x0, estimate.eps, t, "flow")
        return velocity / self.process.sigma_data
