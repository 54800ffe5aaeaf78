"""Dropout: at work in the networks of a turn, silent everywhere else.

A network is in eval mode. While `at_work` is open, each call of one of the networks given switches
its dropout layers on, for that call alone, with the mask that a seed gives. So student and target,
or the ends of a difference, have one mask and differ in weights and inputs alone (as in consistency
models, arXiv:2303.01469). Others that share the layers, as a teacher under low-rank roles, have
none.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd as Layer
from torch.utils.hooks import RemovableHandle


def layers_of(net: nn.Module) -> list[Layer]:
    """The dropout layers that do something when they are at work."""
    return [part for part in net.modules() if isinstance(part, Layer) and part.p > 0]


@contextmanager
def switched_on(layers: list[Layer]) -> Iterator[None]:
    """While open, these layers drop; afterwards they are as they were."""
    before = [layer.training for layer in layers]
    switch(layers, [True] * len(layers))
    try:
        yield
    finally:
        switch(layers, before)


def switch(layers: list[Layer], states: list[bool]) -> None:
    for layer, state in zip(layers, states):
        layer.training = state


@contextmanager
def at_work(nets: Iterable[nn.Module], seed: int) -> Iterator[None]:
    """While open, each call of the networks has the one mask of `seed`.

    torch's own generators are left as they were found."""
    found = {net: layers for net in nets if (layers := layers_of(net))}
    if not found:
        yield
        return
    devices = {p.device.index for net in found for p in net.parameters() if p.is_cuda}
    hooks = [hook for net, layers in found.items() for hook in hooked(net, layers, seed)]
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def hooked(net: nn.Module, layers: list[Layer], seed: int) -> tuple[RemovableHandle, ...]:
    """Hooks that open a call of the network with the mask of `seed`, and close it."""

    def begin(*_: Any) -> None:
        switch(layers, [True] * len(layers))
        torch.manual_seed(seed)

    def end(*_: Any) -> None:
        switch(layers, [False] * len(layers))

    return (
        net.register_forward_pre_hook(begin),
        net.register_forward_hook(end, always_call=True),
    )
