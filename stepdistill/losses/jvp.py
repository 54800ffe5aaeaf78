"""Derivatives of a function of a state and a time along a direction, without a graph.

    d/dh F(x + h ẋ, t + h ṫ)  at h = 0

in forward mode, exact, or as a central difference, for networks whose kernels have no forward mode.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..process import per_sample

Mode = Literal["forward", "difference"]
STEP = 1e-3  # h of a central difference, whose error is of order h² and 1e-7/h


@torch.no_grad()
def derivative(
    f: Callable[[Tensor, Tensor], Tensor],
    at: tuple[Tensor, Tensor],
    along: tuple[Tensor, Tensor],
    mode: Mode = "forward",
    step: float = STEP,
) -> tuple[Tensor, Tensor]:
    """(F, dF), each (b, *event), at (x, t) along (ẋ, ṫ); x and ẋ (b, *event), t and ṫ (b,).

    step: h of a central difference."""
    if mode == "forward":
        return torch.func.jvp(f, at, along)
    (x, t), (dx, dt) = at, along
    ahead, behind = (f(x + h * dx, t + h * dt) for h in (step, -step))
    return f(x, t), (ahead - behind) / (2 * step)


def normalised(x: Tensor, floor: float) -> Tensor:
    """x / (‖x‖ + floor) of each sample (b, *event), in float64 where x is."""
    (size,) = per_sample(x, x.flatten(1).norm(dim=1))
    return x / (size + floor)
