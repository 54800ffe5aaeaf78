"""A judge of pairs: a head on the teacher's frozen features learns to tell guesses from goals.

Both lie at e. Noised on to one a ~ U[e, e + width], each with noise of its own, they pass the
teacher's network, and with ℓ what the head makes of its features

    judge    ½ E[relu(1 + ℓ(guess)) + relu(1 − ℓ(goal))]        student    −λ E ℓ(guess)

PCM (arXiv:2405.18407), Hyper-SD (arXiv:2404.13686).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .critic import fooling_loss, realness_loss
from .method import Batch, Loss, Passes, Players, Turn
from .schema import NotNegative
from .solver import EVALUATIONS, Sampler
from .trajectory import OnTrajectory


class Pair(NamedTuple):
    """guess, goal: (b, *event), both at `end` (b,), in a part of time that is `width` long."""

    guess: Tensor
    goal: Tensor
    end: Tensor
    width: float


@dataclass(frozen=True)
class Judged(OnTrajectory):
    """Methods on a teacher trajectory whose guesses may be judged.

    adversarial: λ, 0 for no judge.
    """

    adversarial: NotNegative = 0.0

    @abstractmethod
    def pair(self, p: Players, batch: Batch) -> Pair:
        """A guess with a gradient, and its goal."""

    @property
    def needs_judge(self) -> bool:
        return self.adversarial > 0

    def turns(self) -> tuple[Turn, ...]:
        student = Turn("student", self.loss)
        return (student, Turn("critic", self.judge_loss)) if self.needs_judge else (student,)

    def fooling(self, p: Players, batch: Batch, pair: Pair) -> dict[str, Tensor]:
        """The student's adversarial term, if there is a judge."""
        if not self.needs_judge:
            return {}
        (logits,) = judged(p, batch, pair, pair.guess)
        return {"adversarial": self.adversarial * fooling_loss(logits, "hinge")}

    def judge_loss(self, p: Players, batch: Batch) -> Loss:
        """The judge's loss, on a pair of its own."""
        with torch.no_grad():
            pair = self.pair(p, batch)
        fake, real = judged(p, batch, pair, pair.guess, pair.goal)
        shown = {"real": real.mean(), "fake": fake.mean()}
        return Loss({"realness": realness_loss(fake, real, "hinge")}, shown)

    def passes(self, sampler: Sampler) -> Passes:
        teacher = EVALUATIONS[self.solver]
        if not self.needs_judge:
            return Passes(trained=1, frozen=1, teacher=teacher)
        return Passes(trained=2, frozen=1 + 2 + 2, teacher=2 * teacher)


def judged(p: Players, batch: Batch, pair: Pair, *states: Tensor) -> list[Tensor]:
    """The judge's logits (b,) of each of the pair's states (b, *event), noised on to one time."""
    process, share = p.critic.process, torch.rand(len(pair.end), generator=batch.local)
    a = (pair.end + pair.width * share).clamp(process.t_min, process.t_max)
    noised = [process.renoise(x, batch.noise(), pair.end, a) for x in states]
    return [p.critic.judge(x, a, batch.cond)[1] for x in noised]
