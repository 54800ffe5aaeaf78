"""Latent adversarial diffusion distillation, LADD (Sauer et al. 2024, arXiv:2403.12015).

Nothing but a GAN, whose discriminator is a projection head on each block of the teacher's frozen
network, at noised samples. With x the student's sample, y data (the paper's is made by the
teacher), ℓ_k the logits of head k, and x_t, y_t noised to one t, each with noise of its own:

    student         −E mean_k ℓ_k(x_t, t)
    discriminator   ½ E mean_k [relu(1 + ℓ_k(x_t, t)) + relu(1 − ℓ_k(y_t, t))]

A low t shows it texture, a high one structure: t is logit-normal, towards noise.
"""

from dataclasses import dataclass

from ..families.matching import Generating
from ..losses.gan import GanLoss, discriminator_loss, generator_loss
from ..method import Batch, Loss, Needs, Passes, Players, Turn
from ..solver import Sampler
from ..times import TimeLaw


@dataclass(frozen=True)
class Ladd(Generating):
    """gan_loss: hinge, or softplus.  ratio: the discriminator's turns for each of the student's.

    time, discriminator_time: laws of t in the two.
    """

    time: TimeLaw = TimeLaw("logit_normal", mean=1.0, std=1.0)
    discriminator_time: TimeLaw = TimeLaw("logit_normal", mean=1.0, std=1.0)
    gan_loss: GanLoss = "hinge"

    renamed = {"critic_time": "discriminator_time"}
    needs = Needs(discriminator="teacher")
    paper = "LADD (arXiv:2403.12015)"

    def turns(self) -> tuple[Turn, ...]:
        return self.cycle("discriminator", self.discriminator_loss)

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        _, realness = p.discriminator.discriminate(x_t, t, batch.cond)
        loss = generator_loss(realness, self.gan_loss)
        return Loss({"gan": loss}, carry=made.detached())

    def discriminator_loss(self, p: Players, batch: Batch, carried: bool = False) -> Loss:
        x, cond, _ = self.sample(p, batch, carried)
        process = p.discriminator.process
        t = self.discriminator_time.draw(process, len(x), batch.local)
        x_t, y_t = (process.add_noise(v, batch.noise(), t) for v in (x, batch.x0))
        _, fake, real = p.discriminator.discriminate_both(x_t, y_t, t, cond, batch.cond)
        shown = {"real": real.mean(), "fake": fake.mean()}
        return Loss({"realness": discriminator_loss(fake, real, self.gan_loss)}, shown)

    def passes(self, sampler: Sampler) -> Passes:
        before = self.steps_before(sampler)
        fresh = (self.ratio - 1) * (before + 1)
        # The teacher's network is passed backwards by the student's turn alone.
        return Passes(trained=2, frozen=before + fresh + 2 * self.ratio, teacher=0)
