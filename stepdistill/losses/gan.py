"""Losses of a discriminator and of the generator, on the discriminator's logits ℓ.

    softplus    discriminator softplus(ℓ_fake) + softplus(−ℓ_real), generator softplus(−ℓ_fake)
    hinge       ½ [relu(1 + ℓ_fake) + relu(1 − ℓ_real)] and −ℓ_fake

At the optimum of softplus ℓ = log p_real/p_fake (DMD2, arXiv:2405.14867).
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

GanLoss = Literal["softplus", "hinge"]


def discriminator_loss(fake: Tensor, real: Tensor, kind: GanLoss = "softplus") -> Tensor:
    """The discriminator's loss on logits (b,). Where it knows nothing: softplus 2 ln 2, hinge 1."""
    if kind == "hinge":
        return (F.relu(1 + fake).mean() + F.relu(1 - real).mean()) / 2
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def generator_loss(fake: Tensor, kind: GanLoss = "softplus") -> Tensor:
    """The generator's loss on the logits (b,) of its samples; softplus: non-saturating."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def approximate_r1(here: Tensor, there: Tensor, width: float) -> Tensor:
    """E ((ℓ(x + w n) − ℓ(x)) / w)², n ~ N(0, I): R1's ‖∇ℓ‖² as w → 0, without its second backward.

    here, there: logits (b,) of the very tensor the head saw, and of that tensor perturbed with
    std `width` (arXiv:2501.08316).
    """
    return ((there - here) / width).square().mean()
