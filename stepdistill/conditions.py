"""What a network is given of each sample: a flat mapping of named tensors, one row a sample.

    {"label": (b,)}    {"text": (b, n, d), "mask": (b, n)}    {}, which says nothing

Methods hand conditions on and never look inside; only here are they repeated, joined, chosen and
moved. Whatever has no row a sample (positions, the size of a grid) is no condition: a backbone
derives it from the shape of x_t.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Cond = Mapping[str, Tensor]
NOTHING: Cond = {}


def repeat(row: Cond, n: int) -> Cond:
    """One row (1, …) n times, without copies."""
    return {name: value.expand(n, *value.shape[1:]) for name, value in row.items()}


def join(first: Cond, second: Cond) -> Cond:
    """The rows of both, of the same names."""
    return {name: torch.cat([first[name], second[name]]) for name in first}


def choose(mask: Tensor, yes: Cond, no: Cond) -> Cond:
    """The rows of `yes` where mask (b,) is true, elsewhere those of `no`; either may be one row."""
    return {
        name: torch.where(
            mask.to(value.device).reshape(-1, *[1] * (value.ndim - 1)), value, no[name].to(value)
        )
        for name, value in yes.items()
    }


def move(cond: Cond, device: torch.device | str) -> Cond:
    """The same on a device."""
    return {name: value.to(device) for name, value in cond.items()}
