"""A network that is told more than it was born to hear, or tells more.

    to        e(t) ← e(t) + E(s): where a step goes                   } added to the network's own
    w         e(t) ← e(t) + E(w): the guidance to imitate             } embedding of the time
    adapters  small modules told w, on the frozen network              (AGD, arXiv:2503.07274)
    logvar    u(t), the log variance of the network's errors           (EDM2, arXiv:2312.02696)

All are zero at birth: an informed network is at first the one it was made from. Inputs act through
hooks that live for one call, so roles on one base do not hear each other's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

EXTRAS = ("to", "w", "adapters", "logvar")
LASTING = ("to", "w")  # of a student that goes on to the next stage
FEATURES = 128


class View(nn.Module):
    """A network seen as somebody's: called with its own arguments, as the view demands."""

    net: nn.Module


class Informed(View):
    """A view of `net`, called with the network's own arguments, that owns its extras.

    inputs: a module of pipelines/, with `attach`, or None. logvar: u(t), or None. frozen: whether
    the network itself belongs to someone else.
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: nn.Module | None,
        logvar: nn.Module | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.inputs, self.logvar, self.frozen = net, inputs, logvar, frozen

    def forward(self, *args, **network_kwargs):
        return self.net(*args, **network_kwargs)


class LogVariance(nn.Module):
    """u(t), (b,), linear in sines of the network's time (b,); zero at birth."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Timesteps(FEATURES, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.linear = nn.Linear(FEATURES, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear(self.features(t).to(self.linear.weight)).flatten()


@contextmanager
def told(
    net: nn.Module, t: Tensor, to: Tensor | None, w: Tensor | float, cond: object
) -> Iterator[None]:
    """While open, an informed network knows `to` (None: t itself) and w; others are as they are.

    t, to: (b,), in the network's own units. w: a number or (b,). cond: labels (b,), or None."""
    if not isinstance(net, Informed) or net.inputs is None:
        yield
        return
    w = torch.as_tensor(w, device=t.device, dtype=t.dtype).expand(len(t))
    hooks = net.inputs.attach(bare(net), t, t if to is None else to, w, cond)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def bare(net: nn.Module) -> nn.Module:
    """The network below all views of it, whose parts have the names they were given."""
    while isinstance(net, View):
        net = net.net
    return net
