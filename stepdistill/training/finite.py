"""Whether what a checkpoint would keep is still made of numbers.

Losses and gradients are checked in every turn; weights, averages and an optimiser's memory once a
checkpoint, before it takes the place of an older, whole one.
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from .checkpoint import State

PARTS = {  # by how the names of a state begin; carried samples are those of one turn
    "net": "weights of the {player}",
    "optimiser": "moments in the optimiser of the {player}",
    "ema": "averages of the student",
    "target": "weights of the target",
    "kept": "statistics that the method keeps",
}


def broken(state: State, accelerator: Accelerator) -> str | None:
    """Which part of a state holds a NaN or an infinity, on any process; None for none.

    Every process calls it. The host waits for one number."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in state.tensors.items():
        kind, player, *_ = [*name.split("/"), ""]
        if kind in PARTS and tensor.is_floating_point() and tensor.numel():
            groups.setdefault(PARTS[kind].format(player=player), []).append(tensor.detach())
    finite = [all_finite(group, accelerator.device) for group in groups.values()]
    if not finite:
        return None
    bad = accelerator.reduce((~torch.stack(finite)).float(), "sum").tolist()
    return next((part for part, count in zip(groups, bad) if count > 0), None)


def all_finite(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Whether all numbers of the tensors are finite, () on the device."""
    # The largest magnitude of a tensor cannot overflow, and is no number if one of them is none.
    largest = torch._foreach_norm(tensors, torch.inf)
    return torch.stack([size.to(device, torch.float32) for size in largest]).isfinite().all()
