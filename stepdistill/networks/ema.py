"""Exponential moving averages of weights, in float32, counted in student updates.

    θ̄ ← θ̄ + (1 − m_n)(θ − θ̄),   m_n = min(m, (1 + n)/(10 + n)),   n updates so far.

The warm-up m_n keeps the average from being anchored at the initial weights.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .views import trainable


class EMA:
    """Averages into the tensors it is given: clones, or the own tensors of a target network."""

    def __init__(self, averaged: list[Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay of an average must lie in [0, 1), got {decay}")
        self.averaged, self.decay, self.updates = averaged, decay, 0

    @classmethod
    def of(cls, net: nn.Module, decay: float) -> "EMA":
        """An average of a network's trainable tensors, starting at their present values."""
        clones = [p.detach().to(torch.float32, copy=True) for p in trainable(net)]
        return cls(clones, decay)

    @torch.no_grad()
    def update(self, current: list[Tensor]) -> None:
        """Move towards `current`, in the order given at construction. Call after the step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        values = [v.to(m) for m, v in zip(self.averaged, current, strict=True)]
        get_ema_multi_avg_fn(decay)(self.averaged, values, self.updates)
        self.updates += 1
