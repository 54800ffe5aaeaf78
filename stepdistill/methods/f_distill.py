"""f-distill (Xu et al. 2025, arXiv:2502.15681): distribution matching by a general f-divergence.

D_f(p‖q) = ∫ q f(p/q). DMD2's direction g times a weight h(r) = f″(r) r² of the density ratio
r = p_t/q_t, which the optimal discriminator gives, r = exp C(x_t, t):

    L(θ) = pull(x, (h/h̄) g) + λ softplus(−C(x_t, t)),        h̄ the turn's mean

    divergence   reverse_kl   kl   js          softened_kl   hellinger   jeffreys   neyman
    h(r)         1            r    r/(2+2r)    1/(1+r)       √r/2        1+r        2/r

`reverse_kl` is DMD2. r is kept in [0.1, 20] and, with `bins` > 0, divided by its mean m_k in each
of so many equal parts k of time: the weight compares samples of one noise level. With r̄_k the mean
of the turn's samples in part k,

    m_k ← ρ m_k + (1 − ρ) r̄_k,    m_k = 1 at first,    as it was where a part has no sample,

ρ = `memory` (the authors' code: 0, and 0.5 on ImageNet-64). The turn's samples are those of all
micro-batches and processes, so that neither number matters, and there must be four a part or
more: a sample alone in its part has r = 1. Several micro-batches take one forward more of student
and critic in the student's turn, which `passes` leaves out.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..families.matching import WithDiscriminator, of_step
from ..losses.gan import generator_loss
from ..losses.score import matching_direction, pull
from ..method import Batch, Loss, Needs, Players, Turn
from ..process import NoiseProcess, per_sample
from ..schema import Decay, Whole

Divergence = Literal["reverse_kl", "kl", "js", "softened_kl", "hellinger", "jeffreys", "neyman"]
LEAST_RATIO, LARGEST_RATIO = 0.1, 20.0
LEAST_A_BIN = 4  # samples, on average


def weight(divergence: Divergence, r: Tensor) -> Tensor:
    """h(r) = f″(r) r², of ratios (b,)."""
    return {
        "reverse_kl": torch.ones_like(r),
        "kl": r,
        "js": r / (1 + r) / 2,
        "softened_kl": 1 / (1 + r),
        "hellinger": r.sqrt() / 2,
        "jeffreys": 1 + r,
        "neyman": 2 / r,
    }[divergence]


@dataclass(frozen=True)
class FDistill(WithDiscriminator):
    """divergence: f.  bins: parts of time in which r is normalised, 0 for none.  memory: ρ.

    Other settings, gan the λ, are those of `matching.WithDiscriminator`; a GAN is needed, for its
    head gives r.
    """

    divergence: Divergence = "js"
    bins: Whole = 10
    memory: Decay = 0.0

    paper = "f-distill (arXiv:2502.15681)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adversarial or self.gan_loss != "softplus":
            raise ValueError("gan_critic, gan_loss: r is given by a softplus GAN: use one")
        if self.memory > 0 and self.bins == 0:
            raise ValueError("memory: is that of the bins: set bins, or leave it out")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, batch=max(LEAST_A_BIN * self.bins, 1))

    def turns(self) -> tuple[Turn, ...]:
        student, *others = super().turns()
        return (student._replace(rows=self.rows), *others)

    def rows(self, p: Players, batch: Batch) -> Tensor:
        """What `student_loss` pools."""
        made, x_t, t = self.noised(p, batch)
        _, realness = of_step(p.critic, made.step).discriminate(x_t, t, batch.cond)
        return self.ratios(realness, t, p.student.process)

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        made, x_t, t = self.noised(p, batch)
        x, critic = made.x, of_step(p.critic, made.step)
        with torch.no_grad():
            real = p.teacher(x_t, t, batch.cond).x0
        estimate, realness = critic.discriminate(x_t, t, batch.cond)

        rows = self.ratios(realness.detach(), t, p.student.process)
        turn = batch.pool(rows)
        means = self.means(turn, p.kept.get("bins"))
        (h,) = per_sample(x, self.weights(rows, means) / self.weights(turn, means).mean())
        f = pull(x, h * matching_direction(x, real, estimate.x0))
        terms = {"f": f, "gan": self.gan * generator_loss(realness, self.gan_loss)}
        kept = {"bins": means} if self.memory > 0 else {}
        return Loss(terms, {"h": h.std(correction=0)}, made.detached(), kept)

    def ratios(self, realness: Tensor, t: Tensor, process: NoiseProcess) -> Tensor:
        """(b, 2): r of logits (b,), and the number of the part of time that t (b,) lies in."""
        r = realness.clamp(-10, 10).exp().clamp(LEAST_RATIO, LARGEST_RATIO)
        share, last = (t - process.t_min) / (process.t_max - process.t_min), max(self.bins - 1, 0)
        return torch.stack([r, (share * self.bins).long().clamp(0, last).to(r)], dim=1)

    def means(self, rows: Tensor, before: Tensor | None) -> Tensor:
        """m (bins,), from the rows (B, 2) of a turn and what m was; 1 alone without bins."""
        if self.bins == 0:
            return rows.new_ones(1)
        r, place = rows[:, 0], rows[:, 1].long()
        sums = rows.new_zeros(self.bins).index_add(0, place, r)
        counts = place.bincount(minlength=self.bins)
        before = torch.ones_like(sums) if before is None else before.to(sums)
        moved = self.memory * before + (1 - self.memory) * sums / counts.clamp(min=1)
        return torch.where(counts > 0, moved, before)

    def weights(self, rows: Tensor, means: Tensor) -> Tensor:
        """h (b,) of rows (b, 2)."""
        return weight(self.divergence, rows[:, 0] / means[rows[:, 1].long()])
