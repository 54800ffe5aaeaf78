"""f-distill (Xu et al. 2025, arXiv:2502.15681): distribution matching by a general f-divergence.

D_f(p‖q) = ∫ q f(p/q). DMD2's direction g times a weight h(r) = f″(r) r² of the density ratio
r = p_t/q_t, which the optimal discriminator gives, r = exp C(x_t, t):

    L(θ) = pull(x, (h/h̄) g) + λ softplus(−C(x_t, t)),        h̄ the batch's mean

    divergence   reverse_kl   kl   js          softened_kl   hellinger   jeffreys   neyman
    h(r)         1            r    r/(2+2r)    1/(1+r)       √r/2        1+r        2/r

`reverse_kl` is DMD2. r is kept in [0.1, 20] and, with `bins` > 0, divided by its mean over the
batch in each of so many equal parts of time: the weight compares samples of one noise level.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..families.matching import WithDiscriminator
from ..losses.gan import generator_loss
from ..losses.score import matching_direction, pull
from ..method import Batch, Loss, Players, Sample
from ..process import NoiseProcess, per_sample
from ..schema import Whole

Divergence = Literal["reverse_kl", "kl", "js", "softened_kl", "hellinger", "jeffreys", "neyman"]
LEAST_RATIO, LARGEST_RATIO = 0.1, 20.0


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
    """divergence: f.  bins: parts of time in which r is normalised, 0 for none: a sample that is
    alone in its part has r = 1, so keep them well below the batch.  gan: λ.

    Other settings are those of `matching.WithDiscriminator`; a GAN is needed, for its head gives r.
    """

    divergence: Divergence = "js"
    bins: Whole = 10

    paper = "f-distill (arXiv:2502.15681)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adversarial or self.gan_loss != "softplus":
            raise ValueError("gan_critic, gan_loss: r is given by a softplus GAN: use one")

    def student_loss(self, p: Players, batch: Batch) -> Loss:
        x, x_t, t = self.noised(p, batch)
        with torch.no_grad():
            real = p.teacher(x_t, t, batch.cond).x0
        estimate, realness = p.critic.discriminate(x_t, t, batch.cond)

        h = weight(self.divergence, self.ratio_of(realness.detach(), t, p.student.process))
        (h,) = per_sample(x, h / h.mean())
        f = pull(x, h * matching_direction(x, real, estimate.x0))
        terms = {"f": f, "gan": self.gan * generator_loss(realness, self.gan_loss)}
        return Loss(terms, {"h": h.std(correction=0)}, Sample(x.detach(), batch.cond))

    def ratio_of(self, realness: Tensor, t: Tensor, process: NoiseProcess) -> Tensor:
        """r (b,) of logits (b,) at times t (b,)."""
        r = realness.clamp(-10, 10).exp().clamp(LEAST_RATIO, LARGEST_RATIO)
        if self.bins == 0:
            return r
        share = (t - process.t_min) / (process.t_max - process.t_min)
        place = (share * self.bins).long().clamp(0, self.bins - 1).to(r.device)
        sums = torch.zeros(self.bins, dtype=r.dtype, device=r.device).index_add(0, place, r)
        return r / (sums / place.bincount(minlength=self.bins).clamp(min=1))[place]
