"""A student and the critic that follows it: what methods that match distributions have in common.

    student   x = G(z) by its own sampler; x_t = α x + σ ε; what critic F and teacher T make of x_t
              says where x should go
    critic    L = E‖net_F(x_t, t) − target‖² (+ μ [softplus(C(x_t, t)) + softplus(−C(y_t, t))])

with y data and C the realness of a state by a head on F's features. The critic takes `ratio` turns
for each of the student's, the first on the sample the student has just moved by, the others on
fresh ones. A student of several steps is trained on the states its own sampler leads to (backward
simulation, arXiv:2405.14867), up to a step drawn anew each turn, equal on all ranks.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from ..conditions import Cond
from ..critic import Critic
from ..losses.denoising import denoising_error, lag
from ..losses.gan import GanLoss, approximate_r1, discriminator_loss
from ..losses.score import project
from ..method import Batch, Loss, Method, Needs, Passes, Players, Sample, Turn
from ..process import NoiseProcess
from ..schema import Count, NotNegative, Positive
from ..solver import Sampler, rollout
from ..times import TimeLaw

MATCHING = ("student", "teacher", "critic")


@dataclass(frozen=True)
class Generating(Method):
    """Methods whose student is trained on samples that it makes from noise.

    ratio: turns of the player that follows it for each of its own.  time: law of t in its turns.
    """

    ratio: Count = 1
    time: TimeLaw = TimeLaw(low=0.02, high=0.98)

    dropout = False  # what is matched are the samples of the student as it will be sampled

    @abstractmethod
    def student_loss(self, p: Players, batch: Batch) -> Loss:
        """The student's loss, which carries its sample."""

    def cycle(self, player: str, loss: Callable[..., Loss]) -> tuple[Turn, ...]:
        """The student's turn and those of the player that follows it: loss(p, batch, carried)."""
        first = Turn(player, partial(loss, carried=True))
        return (Turn("student", self.student_loss), first, *[Turn(player, loss)] * (self.ratio - 1))

    def noised(self, p: Players, batch: Batch) -> tuple[Sample, Tensor, Tensor]:
        """(made, x_t, t): what the student made, with its graph, noised by its law of t."""
        made = self.generate(p, batch)
        t = self.time.draw(p.student.process, len(made.x), batch.local)
        return made, p.student.process.add_noise(made.x, batch.noise(), t), t

    def generate(self, p: Players, batch: Batch) -> Sample:
        """What the student makes, with a gradient through its last step."""
        return Sample(self.simulate(p, batch, self.exit_times(p, batch)), batch.cond)

    def simulate(self, p: Players, batch: Batch, times: Tensor) -> Tensor:
        """`generate`, up to the last of `times`."""
        return rollout(p.student, batch.noise(), times, batch.cond, batch.local, p.sampler.gamma)

    def sample(self, p: Players, batch: Batch, carried: bool) -> Sample:
        """What the turn of the player that follows looks at."""
        return p.carry if carried else self.fresh(p, batch)

    @torch.no_grad()
    def fresh(self, p: Players, batch: Batch) -> Sample:
        return self.generate(p, batch)

    def exit_times(self, p: Players, batch: Batch) -> Tensor:
        """The first k of the times of n steps, n and k at random: what is simulated this turn."""

        def pick(n: int) -> int:
            return int(torch.randint(n, (), generator=batch.shared))

        n = p.sampler.steps[pick(len(p.sampler.steps))]
        return p.sampler.times(p.student.process, n)[: pick(n) + 1]

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor:
        if not sampler.steps:
            raise ValueError("the method needs the numbers of steps the student is sampled with")
        return torch.cat([sampler.times(process, n) for n in sampler.steps])

    def steps_before(self, sampler: Sampler) -> float:
        """How many steps of the student's come before the one that is trained, on average."""
        return fmean((n - 1) / 2 for n in sampler.steps)


@dataclass(frozen=True)
class Matching(Generating):
    """ratio: critic turns for each of the student's.  time, critic_time: laws of t in the two."""

    critic_time: TimeLaw = TimeLaw()

    needs = Needs(MATCHING, data=False)

    def turns(self) -> tuple[Turn, ...]:
        return self.cycle("critic", self.critic_loss)

    def critic_loss(self, p: Players, batch: Batch, carried: bool = False) -> Loss:
        x, cond, step = self.sample(p, batch, carried)
        critic = of_step(p.critic, step)
        cond, eps = self.critic_cond(p, cond, batch), batch.noise()
        t = self.critic_time.draw(critic.process, len(x), batch.local)
        guess = critic(critic.process.add_noise(x, eps, t), t, cond)
        error = denoising_error(critic.denoiser, guess, x, eps, t)
        return Loss({"denoising": error.square().mean()}, {"lag": lag(error)})

    def critic_cond(self, p: Players, cond: Cond, batch: Batch) -> Cond:
        """The condition that a critic's turn gives for a sample."""
        return cond

    def passes(self, sampler: Sampler) -> Passes:
        before = self.steps_before(sampler)
        fresh = (self.ratio - 1) * (before + 1)
        return Passes(trained=1 + self.ratio, frozen=before + 1 + fresh, teacher=1)


def of_step(critic: Critic, step: Tensor | None) -> Critic:
    """The critic of what one step of the student's makes, (b,) its time; None for of all steps."""
    return critic if step is None else critic.toward(step)


@dataclass(frozen=True)
class WithDiscriminator(Matching):
    """Matching by a critic with a discriminator's head: one pass of it serves both.

    gan: λ, of the student's term;  gan_critic: μ; both 0 for no GAN. tap: path of the block whose
    features the head sees, None for the backbone's own; one near the output sees texture. r1:
    weight of the approximate R1 penalty, with perturbations of std `r1_width`. clip: whether
    samples are kept in [−1, 1], as their images will be; without it their background gives them
    away. stepwise: whether the critic is given the time of the student's step that made a sample.
    If not, what all steps make together is matched, and no more: one step may be too bright where
    another is too dark, by as much more as it is trained less often.
    """

    ratio: Count = 5
    gan: NotNegative = 3e-3
    gan_critic: NotNegative = 1e-2
    gan_loss: GanLoss = "softplus"
    tap: str | None = None
    r1: NotNegative = 0.0
    r1_width: Positive = 0.1
    clip: bool = False
    stepwise: bool = False

    renamed = {"block": "tap"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.gan > 0) != (self.gan_critic > 0) or (self.r1 > 0 and not self.adversarial):
            raise ValueError("gan, gan_critic (and r1) need one another: set both, or none")

    @property
    def adversarial(self) -> bool:
        """Whether the critic has a discriminator's head."""
        return self.gan_critic > 0

    @property
    def needs(self) -> Needs:
        judged = "critic" if self.adversarial else None
        return Needs(
            MATCHING,
            data=self.adversarial,
            discriminator=judged,
            tap=self.tap,
            stepwise=self.stepwise,
        )

    def generate(self, p: Players, batch: Batch) -> Sample:
        times = self.exit_times(p, batch)
        x = self.simulate(p, batch, times)
        step = times[-1].to(x).expand(len(x)) if self.stepwise else None
        return Sample(project(x) if self.clip else x, batch.cond, step)

    def critic_loss(self, p: Players, batch: Batch, carried: bool = False) -> Loss:
        if not self.adversarial:
            return super().critic_loss(p, batch, carried)
        x, cond, step = self.sample(p, batch, carried)
        critic = of_step(p.critic, step)
        eps, t = batch.noise(), self.critic_time.draw(critic.process, len(x), batch.local)
        x_t = critic.process.add_noise(x, eps, t)
        y_t = critic.process.add_noise(batch.x0, batch.noise(), t)

        estimate, fake, real = critic.discriminate_both(x_t, y_t, t, cond, batch.cond)
        error = denoising_error(critic.denoiser, estimate, x, eps, t)
        terms = {
            "denoising": error.square().mean(),
            "realness": self.gan_critic * discriminator_loss(fake, real, self.gan_loss),
        }
        if self.r1 > 0:
            _, there = critic.discriminate(y_t + self.r1_width * batch.noise(), t, batch.cond)
            terms["r1"] = self.r1 * approximate_r1(real, there, self.r1_width)
        shown = {"lag": lag(error), "real": real.mean(), "fake": fake.mean()}
        return Loss(terms, shown)

    def passes(self, sampler: Sampler) -> Passes:
        before, fresh = self.steps_before(sampler), self.ratio - 1
        critic = 1 + self.adversarial + (self.r1 > 0)
        trained = 1 + self.adversarial + self.ratio * critic
        frozen = before + (not self.adversarial) + fresh * (before + 1)
        return Passes(trained, frozen, teacher=1)
