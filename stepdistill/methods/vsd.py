"""Variational score distillation, one step: SwiftBrush (Nguyen & Tran 2023, arXiv:2312.05239).

With x the student's sample, x_t = α x + σ ε, and the same guidance w on teacher and critic,

    L(θ) = pull(x, σ² (ε_T^w(x_t, t) − ε_F^w(x_t, t))),

the weight σ² of ProlificDreamer (arXiv:2305.16213), no normaliser. The critic learns the unguided
answer too: a share `dropout` of conditions is left out. It is meant to be low-rank on the teacher's
frozen network: `adapters: {roles: [critic]}`. Needs no data.

    guidance: [a, b]       w ~ U[a, b] of each sample, in place of the run's  (SNOOPI, 2412.02687)
    entropy: λ             the critic's guidance is 1 − λ: its score is λ of the marginal's and
                           1 − λ of the condition's  (ESD, 2401.00909, whose condition is a camera)

With labels, `entropy` pushes classes apart, E_c KL(q_c‖p_c) − λ I(x; c), and takes width from
within them: it is no cure for a class that collapses.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditions import Cond, choose, move
from ..denoiser import AnyDenoiser, Guided
from ..families.matching import MATCHING, Matching
from ..losses.score import pull
from ..method import Batch, Loss, Needs, Passes, Players
from ..process import per_sample
from ..schema import Positive, Share
from ..solver import Sampler


@dataclass(frozen=True)
class Vsd(Matching):
    """guidance: range of w, None for the run's.  entropy: λ, None for the teacher's guidance.

    dropout: share of conditions left out in the critic's turns.  Others: see `matching`.
    """

    guidance: tuple[Positive, Positive] | None = None
    entropy: Share | None = None
    dropout: Share = 0.1

    paper = "VSD (arXiv:2305.16213), SwiftBrush (arXiv:2312.05239)"

    @property
    def needs(self) -> Needs:
        return Needs(MATCHING, data=False, guidance=self.guidance)

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        x = made.x
        teacher = self.drawn(p.teacher, batch)
        with torch.no_grad():
            real = teacher(x_t, t, batch.cond).eps
            fake = self.alike(p.critic.denoiser, teacher)(x_t, t, batch.cond).eps
        (variance,) = per_sample(x, p.student.process.scales(t)[1].square())
        loss = pull(x, variance * (real - fake))
        return Loss({"vsd": loss}, carry=made.detached())

    def drawn(self, teacher: AnyDenoiser, batch: Batch) -> AnyDenoiser:
        """The teacher, at a guidance of each sample's own if it is drawn."""
        if self.guidance is None:
            return teacher
        return replace(teacher, w=batch.uniform(*self.guidance))

    def alike(self, critic: AnyDenoiser, teacher: AnyDenoiser) -> AnyDenoiser:
        """The critic, guided as the teacher is, or as `entropy` asks."""
        if not isinstance(teacher, Guided):
            return critic
        return replace(teacher, denoiser=critic, w=self.critic_guidance(teacher))

    def critic_guidance(self, teacher: Guided) -> Tensor | float:
        return teacher.w if self.entropy is None else 1.0 - self.entropy

    def check_teacher(self, teacher: AnyDenoiser) -> None:
        if not isinstance(teacher, Guided):
            if self.entropy is not None:
                raise ValueError("entropy: needs a class-conditional teacher, not a student")
            return
        guided = self.guidance is not None or self.critic_guidance(teacher) != 1
        if self.dropout == 0 and guided:
            raise ValueError("dropout: a guided critic is asked without a label too: use 0.1")

    def critic_cond(self, p: Players, cond: Cond, batch: Batch) -> Cond:
        if not isinstance(p.teacher, Guided):
            return cond
        left_out = torch.rand(len(batch.x0), generator=batch.local) < self.dropout
        return choose(left_out, move(p.teacher.null, batch.x0.device), cond)

    def passes(self, sampler: Sampler) -> Passes:
        plain = super().passes(sampler)
        if self.entropy is not None:
            return plain._replace(frozen=plain.frozen + 1)
        # In the student's turn the critic is asked as often as the teacher.
        return plain._replace(frozen=plain.frozen - 1, teacher=2)
