"""A discriminator of pairs: a head on the teacher's frozen features tells guesses from goals.

Both lie at e. Noised on to one a ~ U[e, e + width], each with noise of its own, they pass the
teacher's network, and with ℓ what the head makes of its features

    discriminator    ½ E[relu(1 + ℓ(guess)) + relu(1 − ℓ(goal))]        student    −λ E ℓ(guess)

PCM (arXiv:2405.18407), Hyper-SD (arXiv:2404.13686).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses.gan import discriminator_loss, generator_loss
from ..method import Batch, Loss, Needs, Passes, Players, Turn
from ..schema import NotNegative
from ..solver import EVALUATIONS, Sampler
from .trajectory import ON_TRAJECTORY, OnTrajectory


class StatePair(NamedTuple):
    """guess, goal: (b, *event), both at `end` (b,), in a part of time that is `width` long."""

    guess: Tensor
    goal: Tensor
    end: Tensor
    width: float


@dataclass(frozen=True)
class Adversarial(OnTrajectory):
    """Methods on a teacher trajectory, with a discriminator of guesses if asked.

    adversarial: λ, 0 for no discriminator.
    """

    adversarial: NotNegative = 0.0

    @abstractmethod
    def pair(self, p: Players, batch: Batch) -> StatePair:
        """A guess with a gradient, and its goal."""

    @property
    def needs(self) -> Needs:
        discriminator = "teacher" if self.adversarial > 0 else None
        return Needs(ON_TRAJECTORY, boundary=True, discriminator=discriminator)

    def turns(self) -> tuple[Turn, ...]:
        turns = (Turn("student", self.loss), Turn("discriminator", self.discriminator_turn))
        return turns if self.adversarial > 0 else turns[:1]

    def adversarial_term(self, p: Players, batch: Batch, pair: StatePair) -> dict[str, Tensor]:
        """The student's term by the discriminator, if there is one."""
        if self.adversarial == 0:
            return {}
        (logits,) = pair_logits(p, batch, pair, pair.guess)
        return {"adversarial": self.adversarial * generator_loss(logits, "hinge")}

    def discriminator_turn(self, p: Players, batch: Batch) -> Loss:
        """The discriminator's loss, on a pair of its own."""
        with torch.no_grad():
            pair = self.pair(p, batch)
        fake, real = pair_logits(p, batch, pair, pair.guess, pair.goal)
        shown = {"real": real.mean(), "fake": fake.mean()}
        return Loss({"realness": discriminator_loss(fake, real, "hinge")}, shown)

    def passes(self, sampler: Sampler) -> Passes:
        teacher = EVALUATIONS[self.solver]
        if self.adversarial == 0:
            return Passes(trained=1, frozen=1, teacher=teacher)
        return Passes(trained=2, frozen=1 + 2 + 2, teacher=2 * teacher)


def pair_logits(p: Players, batch: Batch, pair: StatePair, *states: Tensor) -> list[Tensor]:
    """Logits (b,) of each of the pair's states (b, *event), noised on to one time."""
    process, share = p.discriminator.process, torch.rand(len(pair.end), generator=batch.local)
    a = (pair.end + pair.width * share).clamp(process.t_min, process.t_max)
    noised = [process.renoise(x, batch.noise(), pair.end, a) for x in states]
    return [p.discriminator.discriminate(x, a, batch.cond)[1] for x in noised]
