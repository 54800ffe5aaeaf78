"""Improved distribution matching distillation, DMD2 (Yin et al. 2024, arXiv:2405.14867).

The critic F follows what the student makes; where its denoised image differs from the teacher's,
the student's samples are dense where they should not be. With x the student's sample, noised to
x_t = α x + σ ε, and C the realness of x_t by a head on F's features:

    student    L = pull(x, g) + λ softplus(−C(x_t, t)),     g = (F(x_t, t) − T(x_t, t)) / N,
               N = mean|x − T(x_t, t)| of each sample
    critic     L = E‖net_F(x_t, t) − target‖² + μ [softplus(C(x_t, t)) + softplus(−C(y_t, t))]

with y data; turns and rollouts are those of `matching`. A `stepwise` critic is F(x_t, t, s), s the
time of the step that made x, so that each step's samples are matched by themselves, not their
mixture (ours).
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..families.matching import WithDiscriminator, of_step
from ..losses.gan import generator_loss
from ..losses.score import matching_direction, pull
from ..method import Batch, Loss, Needs, Players
from ..solver import Sampler, clean_end


@dataclass(frozen=True)
class Dmd2(WithDiscriminator):
    """ratio: critic turns for each of the student's.  gan: λ;  gan_critic: μ; both 0 for no GAN.

    rollout: how a student of several steps gets its input, from its own earlier steps or from
    noised data. tap: path of the block whose features the discriminator sees, None for the
    backbone's own. r1: weight of the approximate R1 penalty, with perturbations of std `r1_width`.
    time, critic_time: laws of t in the two turns.
    """

    rollout: Literal["backward", "noised_data"] = "backward"

    paper = "DMD2 (arXiv:2405.14867)"

    @property
    def needs(self) -> Needs:
        needs = super().needs
        return replace(needs, data=needs.data or self.rollout == "noised_data")

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        x, carry, critic = made.x, made.detached(), of_step(p.critic, made.step)

        with torch.no_grad():
            real = p.teacher(x_t, t, batch.cond).x0
        if not self.adversarial:
            with torch.no_grad():
                fake = critic(x_t, t, batch.cond).x0
            return Loss({"dmd": pull(x, matching_direction(x, real, fake))}, carry=carry)
        estimate, realness = critic.discriminate(x_t, t, batch.cond)
        dmd = pull(x, matching_direction(x, real, estimate.x0))
        gan = generator_loss(realness, self.gan_loss)
        return Loss({"dmd": dmd, "gan": self.gan * gan}, carry=carry)

    def simulate(self, p: Players, batch: Batch, times: Tensor) -> Tensor:
        if self.rollout == "backward" or len(times) == 1:
            return super().simulate(p, batch, times)
        t = times[-1].expand(len(batch.x0))
        x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)
        return clean_end(p.student, x_t, times[-1], batch.cond)

    def steps_before(self, sampler: Sampler) -> float:
        return super().steps_before(sampler) if self.rollout == "backward" else 0.0
