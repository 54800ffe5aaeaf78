"""Improved distribution matching distillation, DMD2 (Yin et al. 2024, arXiv:2405.14867).

The critic F follows what the student makes; where its denoised image differs from the teacher's,
the student's samples are dense where they should not be. With x the student's sample, noised to
x_t = α x + σ ε, and C the realness of x_t by a head on F's features:

    student    L = pull(x, g) + λ softplus(−C(x_t, t)),     g = (F(x_t, t) − T(x_t, t)) / N,
               N = mean|x − T(x_t, t)| of each sample
    critic     L = E‖net_F(x_t, t) − target‖² + μ [softplus(C(x_t, t)) + softplus(−C(y_t, t))]

with y data. The critic takes `ratio` turns for each of the student's, the first on the sample the
student has just moved by, the others on fresh ones. One pass of F denoises and judges. A student of
several steps is trained on the states its own sampler leads to (backward simulation), up to a step
drawn anew each turn, equal on all ranks.
"""

from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from ..critic import (
    GanLoss,
    approximate_r1,
    denoising_error,
    fooling_loss,
    lag,
    matching_direction,
    pull,
    realness_loss,
)
from ..method import Batch, Loss, Method, Passes, Players, Sample, Turn
from ..process import NoiseProcess
from ..schema import Count, NotNegative, Positive
from ..solver import Sampler, rollout
from ..times import TimeLaw


@dataclass(frozen=True)
class Dmd2(Method):
    """ratio: critic turns for each of the student's.  gan: λ;  gan_critic: μ; both 0 for no GAN.

    rollout: how a student of several steps gets its input, from its own earlier steps or from
    noised data. r1: weight of the approximate R1 penalty, with perturbations of std `r1_width`.
    time, critic_time: laws of t in the two turns.
    """

    ratio: Count = 5
    rollout: Literal["backward", "noised_data"] = "backward"
    gan: NotNegative = 3e-3
    gan_critic: NotNegative = 1e-2
    gan_loss: GanLoss = "softplus"
    r1: NotNegative = 0.0
    r1_width: Positive = 0.1
    time: TimeLaw = TimeLaw(low=0.02, high=0.98)
    critic_time: TimeLaw = TimeLaw()

    roles = ("student", "teacher", "critic")
    paper = "DMD2 (arXiv:2405.14867)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.gan > 0) != (self.gan_critic > 0) or (self.r1 > 0 and not self.needs_head):
            raise ValueError("dmd2: gan, gan_critic (and r1) need one another: set both, or none")

    @property
    def needs_head(self) -> bool:
        return self.gan_critic > 0

    def turns(self) -> tuple[Turn, ...]:
        first, fresh = partial(self.critic_loss, carried=True), self.critic_loss
        turns = [Turn("critic", first)] + [Turn("critic", fresh)] * (self.ratio - 1)
        return (Turn("student", self.student_loss), *turns)

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        x = self.generate(p, batch)
        t = self.time.draw(p.student.process, len(x), batch.local)
        x_t = p.student.process.add_noise(x, batch.noise(), t)
        carry = Sample(x.detach(), batch.cond)

        with torch.no_grad():
            real = p.teacher(x_t, t, batch.cond).x0
        if not self.needs_head:
            with torch.no_grad():
                fake = p.critic(x_t, t, batch.cond).x0
            return Loss({"dmd": pull(x, matching_direction(x, real, fake))}, carry=carry)
        estimate, realness = p.critic.judge(x_t, t, batch.cond)
        dmd = pull(x, matching_direction(x, real, estimate.x0))
        gan = fooling_loss(realness, self.gan_loss)
        return Loss({"dmd": dmd, "gan": self.gan * gan}, carry=carry)

    def critic_loss(self, p: Players, batch: Batch, carried: bool = False) -> Loss:
        x, cond = p.carry if carried else self.fresh(p, batch)
        eps, t = batch.noise(), self.critic_time.draw(p.critic.process, len(x), batch.local)
        x_t = p.critic.process.add_noise(x, eps, t)

        if not self.needs_head:
            error = denoising_error(p.critic.denoiser, p.critic(x_t, t, cond), x, eps, t)
            return Loss({"denoising": error.square().mean()}, {"lag": lag(error)})
        estimate, fake = p.critic.judge(x_t, t, cond)
        error = denoising_error(p.critic.denoiser, estimate, x, eps, t)
        y_t = p.critic.process.add_noise(batch.x0, batch.noise(), t)
        _, real = p.critic.judge(y_t, t, batch.cond)
        terms = {
            "denoising": error.square().mean(),
            "realness": self.gan_critic * realness_loss(fake, real, self.gan_loss),
        }
        if self.r1 > 0:
            _, there = p.critic.judge(y_t + self.r1_width * batch.noise(), t, batch.cond)
            terms["r1"] = self.r1 * approximate_r1(real, there, self.r1_width)
        shown = {"lag": lag(error), "real": real.mean(), "fake": fake.mean()}
        return Loss(terms, shown)

    def generate(self, p: Players, batch: Batch) -> Tensor:
        """The student's samples (b, *event), with a gradient through their last step."""
        times = self.exit_times(p, batch)
        if self.rollout == "noised_data" and len(times) > 1:
            t = times[-1].expand(len(batch.x0))
            x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)
            return p.student(x_t, t, batch.cond).x0
        return rollout(
            p.student, batch.noise(), times, batch.cond, batch.local, p.sampler.gamma
        )

    @torch.no_grad()
    def fresh(self, p: Players, batch: Batch) -> Sample:
        return Sample(self.generate(p, batch), batch.cond)

    def exit_times(self, p: Players, batch: Batch) -> Tensor:
        """The first k of the times of n steps, n and k at random: what is simulated this turn."""

        def pick(n: int) -> int:
            return int(torch.randint(n, (), generator=batch.shared))

        n = p.sampler.steps[pick(len(p.sampler.steps))]
        return p.sampler.times(p.student.process, n)[: pick(n) + 1]

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        if not sampler.steps:
            raise ValueError("dmd2 needs the numbers of steps the student will be sampled with")
        return torch.cat([sampler.times(process, n) for n in sampler.steps])

    def passes(self, sampler: Sampler) -> Passes:
        before = fmean((n - 1) / 2 for n in sampler.steps) if self.rollout == "backward" else 0
        judged = 1 + self.needs_head + (self.r1 > 0)
        trained = 1 + self.needs_head + self.ratio * judged
        fresh = (self.ratio - 1) * (before + 1)
        return Passes(trained, frozen=before + (not self.needs_head) + fresh, teacher=1)
