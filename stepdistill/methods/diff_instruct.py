"""Diff-Instruct (Luo et al. 2023, arXiv:2305.18455): the integral KL divergence along the process.

With x the student's sample, x_t = α x + σ ε, F the critic and T the teacher,

    L(θ) = E Σ_elements ⟨F(x_t, t) − T(x_t, t), x⟩,     no gradient through F, T and x_t:

DMD's direction without its normaliser, so that a sample far from the teacher is pulled harder. The
paper's weight w(t) is σ²/α² of the KL divergence here, as in its code. Needs no data.
"""

from dataclasses import dataclass

import torch

from ..families.matching import Matching
from ..losses.score import pull
from ..method import Batch, Loss, Players
from ..times import TimeLaw


@dataclass(frozen=True)
class DiffInstruct(Matching):
    """ratio: critic turns for each of the student's.  time, critic_time: laws of t in the two."""

    time: TimeLaw = TimeLaw("log_normal", mean=-1.2, std=1.2)
    critic_time: TimeLaw = TimeLaw("log_normal", mean=-1.2, std=1.2)

    paper = "Diff-Instruct (arXiv:2305.18455)"

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        x = made.x
        with torch.no_grad():
            real, fake = p.teacher(x_t, t, batch.cond).x0, p.critic(x_t, t, batch.cond).x0
        loss = x[0].numel() * pull(x, fake - real)
        return Loss({"kl": loss}, carry=made.detached())
