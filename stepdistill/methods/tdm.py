"""Trajectory distribution matching, TDM (Luo et al. 2025, arXiv:2503.06674): K steps without noise.

A student of K steps walks the teacher's own deterministic sampler, t_1 > … > t_K > t_{K+1}, clean
at the end. From the state it reaches at t_k it makes x̂₀, and arrives at x_s, s = t_{k+1}. Noised on
to τ between s and t_k, x_τ = a x_s + β n, its distribution there is matched to the teacher's:

    student  L = pull(x̂₀, (F(x_τ, τ) − T(x_τ, τ)) / N),          N = mean|x̂₀ − T(x_τ, τ)|
    critic   L = E w ‖F's answer − its target at x_τ‖²

with the critic's target, in its own prediction space, that of

    interval   ε* = σ_τ n / β, x₀* = (x_τ − σ_τ ε*)/α_τ, w = β²/σ_τ²: the score of x_τ, whatever the
               law of x_s (derived for Phased DMD, arXiv:2510.27684)
    published  x̂₀, w = min(SNR, 5)·exp((‖n‖² − ‖(x_τ − α_τ x̂₀)/σ_τ‖²)/2D): biased, for x_s is no
               independent corruption of x̂₀

k, s and τ are drawn for each sample. Needs no data; sampled with `sampler.gamma: 0`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from ..denoiser import Denoiser, toward
from ..families.matching import Matching
from ..losses.denoising import denoising_error, lag
from ..losses.score import matching_direction, pull
from ..method import Batch, Loss, Passes, Players, Turn
from ..process import Estimate, NoiseProcess, per_sample
from ..schema import Range
from ..solver import Sampler, ddim_step, states


class Rung(NamedTuple):
    """x0, the student's x̂₀; x_s, where it arrives; n, the noise that leads to x_t at τ = t."""

    x0: Tensor
    x_s: Tensor
    n: Tensor
    x_t: Tensor
    s: Tensor
    t: Tensor


@dataclass(frozen=True)
class Tdm(Matching):
    """critic_target: what the critic learns.  margin: share of the way from s to t_k that τ keeps
    from both ends.  ratio: critic turns for each of the student's."""

    critic_target: Literal["interval", "published"] = "interval"
    margin: Annotated[float, Range(0, 0.5, below=True)] = 0.05

    paper = "TDM (arXiv:2503.06674)"

    def turns(self) -> tuple[Turn, ...]:
        critic = Turn("critic", self.critic_loss)
        return (Turn("student", self.student_loss), *[critic] * self.ratio)

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        at = self.point(p, batch)
        with torch.no_grad():
            real = p.teacher(at.x_t, at.t, batch.cond).x0
            fake = p.critic(at.x_t, at.t, batch.cond).x0
        return Loss({"tdm": pull(at.x0, matching_direction(at.x0, real, fake))})

    def critic_loss(self, p: Players, batch: Batch, carried: bool = False) -> Loss:
        with torch.no_grad():
            at = self.point(p, batch)
        guess = p.critic(at.x_t, at.t, batch.cond)
        if self.critic_target == "published":
            # No lag: its weight knows the noise, so even the best critic's error has a mean.
            error = self.published_error(p.critic.denoiser, at, guess)
            return Loss({"denoising": error.square().mean()})
        error = self.interval_error(p.critic.denoiser, at, guess)
        return Loss({"denoising": error.square().mean()}, {"lag": lag(error)})

    def interval_error(self, critic: Denoiser, at: Rung, guess: Estimate) -> Tensor:
        """√w (answer − target), (b, *event), of the target `interval`."""
        process = critic.process
        (alpha_s, sigma_s), (alpha, sigma) = process.scales(at.s), process.scales(at.t)
        share = (1 - (alpha * sigma_s / (alpha_s * sigma)).square()).sqrt()  # β/σ_τ
        alpha, sigma, share = per_sample(at.x_t, alpha, sigma, share)
        eps = at.n / share
        return share * denoising_error(critic, guess, (at.x_t - sigma * eps) / alpha, eps, at.t)

    def published_error(self, critic: Denoiser, at: Rung, guess: Estimate) -> Tensor:
        """√w (x̂₀ of the critic − x̂₀ of the student), (b, *event)."""
        process = critic.process
        mixed = process.estimate(at.x_t, at.x0, at.t, "x0").eps
        nearer = (at.n.square() - mixed.square()).flatten(1).mean(1) / 2
        importance, snr = per_sample(at.x0, nearer.exp(), process.loss_weight("x0", at.t))
        return (importance * snr).sqrt() * (guess.x0 - at.x0)

    def point(self, p: Players, batch: Batch) -> Rung:
        """Where each sample is looked at; only x0 has a graph."""
        process, b = p.student.process, len(batch.x0)
        n = p.sampler.steps[int(torch.randint(len(p.sampler.steps), (), generator=batch.shared))]
        times = p.sampler.times(process, n)
        ends = torch.cat([times[1:], times.new_tensor([process.t_clean])])
        k = torch.randint(n, (b,), generator=batch.local)
        with torch.no_grad():
            walk = states(p.student, batch.noise(), times, batch.cond, None, 0.0)
            x_t = torch.stack(list(walk))[k, torch.arange(b)]
        here = toward(p.student, ends[k])(x_t, times[k], batch.cond)

        x_s = ddim_step(process, here, ends[k]).detach()
        u = torch.rand(b, generator=batch.local, dtype=torch.float64)
        share = self.margin + (1 - 2 * self.margin) * u
        t = (ends[k] + share * (times[k] - ends[k])).clamp(min=process.t_min)
        noise = batch.noise()
        return Rung(here.x0, x_s, noise, process.renoise(x_s, noise, ends[k], t), ends[k], t)

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        if sampler.gamma > 0 and max(sampler.steps, default=1) > 1:
            raise ValueError("tdm trains a student that is sampled without noise: use gamma 0")
        return super().trained_times(process, sampler)

    def passes(self, sampler: Sampler) -> Passes:
        walked = 2 * self.steps_before(sampler)  # to the last state, for each sample its own k
        frozen = walked + 1 + self.ratio * (walked + 1)
        return Passes(trained=1 + self.ratio, frozen=frozen, teacher=1)
