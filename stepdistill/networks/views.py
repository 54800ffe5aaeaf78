"""A network seen as somebody's, and what a player has for itself in a network.

A view is called with its network's own arguments and answers as the view demands. Several may look
at one network, so each says what is its own: a role's low-rank tensors, more inputs.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class View(nn.Module):
    """A network seen as somebody's: called with its own arguments, as the view demands."""

    net: nn.Module

    @abstractmethod
    def own(self) -> dict[str, Tensor]:
        """What it has for itself, by name, not copied."""

    @abstractmethod
    def size(self) -> int:
        """Parameters that take part when it is called."""

    @abstractmethod
    def standalone(self) -> nn.Module:
        """The network to ship, without what serves training alone; may change the view."""

    @abstractmethod
    def over(self, net: nn.Module) -> View:
        """A view like this one, with copies of what is its own, of another network."""


def bare(net: nn.Module) -> nn.Module:
    """The network below all views of it, whose parts have the names they were given."""
    while isinstance(net, View):
        net = net.net
    return net


def own_tensors(net: nn.Module) -> dict[str, Tensor]:
    """What a player has for itself, by name: what its view says, else parameters and buffers."""
    if isinstance(net, View):
        return net.own()
    if isinstance(net, nn.ModuleDict):
        parts = {name: own_tensors(part) for name, part in net.items()}
        return {f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()}
    return net.state_dict(keep_vars=True)


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """The tensors a player may move. Floating point ones; the trainer switches requires_grad."""
    own = own_tensors(net).values()
    return [p for p in own if isinstance(p, nn.Parameter) and p.is_floating_point()]


def load_own(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy `state` into a player's own tensors; ValueError unless names and shapes agree."""
    own = own_tensors(net)
    wrong = own.keys() ^ state.keys() or {k for k in own if own[k].shape != state[k].shape}
    if wrong:
        raise ValueError(
            f"{len(wrong)} tensors differ in name or shape, first '{min(wrong)}': they were saved "
            "from another network, rank or set of targets"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def standalone(net: nn.Module) -> nn.Module:
    """The network to ship. Networks that are no view are the same object."""
    return net.standalone() if isinstance(net, View) else net


def parameter_count(net: nn.Module) -> int:
    """Parameters that take part when this network or view is called."""
    return net.size() if isinstance(net, View) else sum(p.numel() for p in net.parameters())
