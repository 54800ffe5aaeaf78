"""Derivatives of a function of a state and a time along a direction, without a graph.

    d/dh F(x + h ẋ, t + h ṫ)  at h = 0

in forward mode, exact, or as a central difference, for networks that wiggle in t. Autocast is off
in either: half precision rounds a difference away, and convolutions of mixed dtypes have no
forward mode. Nor have the fused kernels of attention: it runs in plain matrix products.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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
) -> Tensor:
    """dF (b, *event) at (x, t) along (ẋ, ṫ); x and ẋ (b, *event), t and ṫ (b,).

    step: h of a central difference."""
    (x, t), (dx, dt) = at, along
    with torch.autocast(x.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        if mode == "forward":
            _, change = torch.func.jvp(f, at, along)
            return change
        ahead, behind = (f(x + h * dx, t + h * dt) for h in (step, -step))
        return (ahead - behind) / (2 * step)


def normalised(x: Tensor, floor: float) -> Tensor:
    """x / (‖x‖ + floor) of each sample (b, *event), in float64 where x is."""
    (size,) = per_sample(x, x.flatten(1).norm(dim=1))
    return x / (size + floor)
