"""A network with more inputs, or one more output, than the one it was made from.

    s         e(t) ← e(t) + E(s): the target time of a step            } added to the network's own
    w         e(t) ← e(t) + E(w): the guidance to imitate             } embedding of the time
    adapters  small modules on the frozen network, given w             (AGD, arXiv:2503.07274)
    logvar    u(t), the log variance of the network's errors           (EDM2, arXiv:2312.02696)

All are zero at first: the network then is the one it was made from. Inputs act through hooks that
live for one call, so roles on one base do not meet each other's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from .guidance_embedding import GuidanceEmbedding
from .views import View, bare, own_tensors, parameter_count, standalone

INPUTS = ("s", "w", "adapters", "logvar")
KEPT_INPUTS = ("s", "w")  # of a student that goes on to the next stage
GUIDANCE_INPUTS = ("w", "adapters")  # through which a student is given its guidance
FEATURES = 128


class WithInputs(View):
    """A view of `net`, called with the network's own arguments, that owns its inputs.

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

    def own(self) -> dict[str, Tensor]:
        own = {} if self.frozen else own_tensors(self.net)
        for name, part in self._parts().items():
            own |= {f"{name}.{k}": v for k, v in part.state_dict(keep_vars=True).items()}
        return own

    def size(self) -> int:
        added = sum(p.numel() for part in self._parts().values() for p in part.parameters())
        return parameter_count(self.net) + added

    def standalone(self) -> nn.Module:
        """The network below, with its inputs if it has any, within it where it has a place for
        them; changed in place."""
        self.net, self.logvar = standalone(self.net), None
        if isinstance(self.inputs, GuidanceEmbedding):
            return self.inputs.folded(self.net)
        return self.net if self.inputs is None else self

    def over(self, net: nn.Module) -> "WithInputs":
        return WithInputs(net, deepcopy(self.inputs), deepcopy(self.logvar), self.frozen)

    def _parts(self) -> dict[str, nn.Module]:
        parts = {"inputs": self.inputs, "logvar": self.logvar}
        return {name: part for name, part in parts.items() if part is not None}


class LogVariance(nn.Module):
    """u(t), (b,), linear in sines of the network's time (b,); zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Timesteps(FEATURES, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.linear = nn.Linear(FEATURES, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, t: Tensor) -> Tensor:
        return self.linear(self.features(t).to(self.linear.weight)).flatten()


def is_given_guidance(net: nn.Module) -> bool:
    """Whether guidance is an input of this network, from outside of it."""
    if not isinstance(net, WithInputs) or net.inputs is None:
        return False
    return bool({*net.inputs.config.get("inputs", ("adapters",))} & {*GUIDANCE_INPUTS})


@contextmanager
def conditioned(
    net: nn.Module,
    t: Tensor,
    s: Tensor | None,
    w: Tensor | float,
    cond: Mapping[str, Tensor],
) -> Iterator[None]:
    """While open, a network with inputs has s (None: t itself) and w; others are as they are.

    t, s: (b,), in the network's own units. w: a number or (b,). cond: may hold labels."""
    if not isinstance(net, WithInputs) or net.inputs is None:
        yield
        return
    w = torch.as_tensor(w, device=t.device, dtype=t.dtype).expand(len(t))
    target = t if s is None else s
    hooks = net.inputs.attach(bare(net), t, target, w, cond.get("label"))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
