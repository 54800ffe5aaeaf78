"""The fake-score critic, which tracks what the student generates, and discriminators.

A discriminator is a head on the features that a denoiser's network makes of x_t; its logits are
log p_real/p_fake at the optimum. On the critic's own network one pass gives both the estimate and
the logits (DMD2, arXiv:2405.14867); on the teacher's frozen network the head is a player by itself
(LADD, arXiv:2403.12015; PCM, arXiv:2405.18407).
"""

from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from .conditions import NOTHING, Cond, join
from .denoiser import Denoiser
from .networks.taps import NO_TAPS, Taps
from .process import Estimate, NoiseProcess


class Discriminator:
    """A head on the features of some blocks of a frozen denoiser's network.

    head: maps the features (b, c, …) of `taps`, blocks of that network, to logits. net: what is
    trained, the head alone.
    """

    def __init__(self, denoiser: Denoiser, head: nn.Module | None, taps: Taps = NO_TAPS) -> None:
        self.denoiser, self.head, self.taps = denoiser, head, taps
        self.net: nn.Module = nn.ModuleDict({} if head is None else {"head": head})

    @property
    def process(self) -> NoiseProcess:
        return self.denoiser.process

    def toward(self, s: Tensor) -> Self:
        """The same with the input s (b,) of its network, of what is looked at from here on."""
        other = copy(self)
        other.denoiser = replace(self.denoiser, s=s)
        return other

    def discriminate(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> tuple[Estimate, Tensor]:
        """The estimate and the logits, (b,) a head, from one pass. Needs a head."""
        with self.taps.open(self.denoiser.net) as seen:
            estimate = self.denoiser(x_t, t, cond)
        logits = self.head(*seen.features(x_t)).flatten()
        return estimate, logits.to(torch.promote_types(logits.dtype, torch.float32))

    def discriminate_both(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, x_cond: Cond, y_cond: Cond
    ) -> tuple[Estimate, Tensor, Tensor]:
        """The estimate for x_t, its logits, and those of y_t at the same times, from one pass."""
        states, cond, s = torch.cat([x_t, y_t]), join(x_cond, y_cond), self.denoiser.s
        twice = self if s is None else self.toward(s.repeat(2))
        both, logits = twice.discriminate(states, t.repeat(2), cond)
        fake, real = logits.chunk(2)
        return Estimate(*(part[: len(x_t)] for part in both)), fake, real


class Critic(Discriminator):
    """A denoiser that is trained itself, with a discriminator's head if asked.

    net: its network and its head.
    """

    def __init__(
        self, denoiser: Denoiser, head: nn.Module | None = None, taps: Taps = NO_TAPS
    ) -> None:
        super().__init__(denoiser, head, taps)
        self.net = nn.ModuleDict({"network": denoiser.net} | dict(self.net.items()))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate:
        return self.denoiser(x_t, t, cond)
