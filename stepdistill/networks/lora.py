"""Student, critic, target and teacher as views of one frozen network.

A role is a low-rank correction (LoRA, Hu et al., arXiv 2106.09685) of chosen weights W:

    W_role = W + (alpha / rank) · B A,    A: (rank, in),  B: (out, rank),  B = 0 at first,

so a new role is the base bit for bit, `role=None` (the teacher) stays it for ever, and each role
costs its A and B only. With the role an argument of the forward, one graph may run through several
of them: x = student(z), score = critic(x), backward through the critic to the student's A and B.

All LoRA layers of a network share one list that names the role at work; it is empty outside every
view. A view sets it for one forward and puts back what it found, so views nest and survive
exceptions; a checkpointed block remembers it and sets it again when the backward recomputes it.
The library's own switch (`set_adapter`, `disable_adapters`) flips `requires_grad` and is read anew
at recomputation, which drops or falsifies gradients: a network it was used on is refused. So it is
with dropout: a block recomputes with the layers at work that were in its forward.
`requires_grad` belongs to the trainer: a new role is trainable, and nothing here changes it later.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .dropout import layers_of, switched_on
from .views import View, bare


class _AtWork(list[str]):
    """The role at work in one network; empty for the base. Its type tells our list from peft's."""


def add_adapter(
    net: nn.Module,
    role: str,
    *,
    rank: int,
    alpha: float | None = None,
    targets: tuple[str, ...] | None = None,
) -> None:
    """Give `net` a role: float32 LoRA weights, A from torch's global generator, B = 0.

    `alpha` defaults to `rank`, that is W + B A. `targets` are module names or their dotted endings
    ("to_q", "mid_block.resnets.0.conv1"); by default every linear layer inside diffusers attention
    modules, and in a network without attention every linear layer and convolution.
    The base is frozen; the roles already there keep their `requires_grad`.
    Raises ValueError if the role's name is taken or no identifier, if rank or alpha is not
    positive, if a target matches no layer, or if the network carries foreign LoRA layers.
    """
    at_work = _at_work(net)
    if not role.isidentifier() or role in _role_names(net):
        raise ValueError(f"adapter role {role!r}: taken or no identifier; choose another name")
    alpha = rank if alpha is None else alpha
    if rank < 1 or alpha <= 0:
        raise ValueError(f"adapter role {role!r}: rank {rank}, alpha {alpha}; both must be > 0")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_target_names(net, targets))
    trainable = [p for n, p in net.named_parameters() if ".lora_" in n and p.requires_grad]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(config, net, adapter_name=role)
    for _, layer in _lora_layers(net):
        layer._active_adapter = at_work
    new = AdapterView(net, role).own().values()
    for parameter in new:
        # peft gives new weights the base's dtype; bfloat16 would swallow small updates
        parameter.data = parameter.data.float()
    net.requires_grad_(False)
    for parameter in (*trainable, *new):
        parameter.requires_grad_(True)


class AdapterView(View):
    """One role of a network, called with the network's own arguments; None is the bitwise base.

    Views share their network: `.to()` and `.eval()` on one act on all.
    Raises ValueError if the network has no such role.
    """

    def __init__(self, net: nn.Module, role: str | None) -> None:
        super().__init__()
        if role is not None and role not in _role_names(net):
            raise ValueError(f"adapter role {role!r}: the network only has {_role_names(net)}")
        self.net = net
        self.role = role

    def forward(self, *args, **network_kwargs):
        with _working(_at_work(self.net), [self.role] if self.role else []):
            return self.net(*args, **network_kwargs)

    def own(self) -> dict[str, Tensor]:
        """This role's A and B tensors, whatever their `requires_grad`; none for the base."""
        return dict(self._named())

    def size(self) -> int:
        base = sum(p.numel() for n, p in self.net.named_parameters() if ".lora_" not in n)
        return base + sum(p.numel() for p in self.own().values())

    def standalone(self) -> nn.Module:
        """A plain copy of the network with this role's correction added to its weights."""
        return merged(self)

    def over(self, net: nn.Module) -> AdapterView:
        raise ValueError("a role belongs to its own network: give the other one a role of its own")

    def state(self) -> dict[str, Tensor]:
        """This role's tensors (not copies), keyed as diffusers' LoRA loaders expect them.

        Rank and alpha are not inside: recreate the role with the same ones before `load_own`, or
        hand `net.peft_config[role].to_dict()` to diffusers as the adapter's metadata.
        """
        return {name: parameter.detach() for name, parameter in self._named().items()}

    def _named(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{half}.weight": matrices[self.role].weight
            for name, layer in _lora_layers(self.net)
            for half, matrices in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
            if self.role in matrices
        }


class LowRank(NamedTuple):
    """A role by itself: its A and B, named as in `AdapterView.state`, B multiplied by alpha / rank,
    so that alpha is the rank."""

    tensors: dict[str, Tensor]
    rank: int


def low_rank(view: AdapterView, values: Mapping[str, Tensor]) -> LowRank:
    """A role with these values of its own tensors, copied."""
    config = view.net.peft_config[view.role]
    scale = config.lora_alpha / config.r
    tensors = {
        name: (value * scale if ".lora_B." in name else value.clone()).cpu()
        for name, value in values.items()
    }
    return LowRank(tensors, config.r)


def merged(view: AdapterView) -> nn.Module:
    """A plain copy of the network with the role's correction added to its weights, in float32 or
    finer."""
    net = deepcopy(view.net)
    if next(net.parameters()).dtype in (torch.float16, torch.bfloat16):
        net.float()
    for _, layer in _lora_layers(net):
        if view.role in layer.lora_A:
            weight = layer.get_base_layer().weight
            weight.data += layer.get_delta_weight(view.role).to(weight.dtype)
    return without_roles(net)


def without_roles(net: nn.Module) -> nn.Module:
    """The network itself, after taking every role out of it."""
    for name, layer in list(_lora_layers(net)):
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, layer.get_base_layer())
    if "peft_config" in vars(net):
        del net.peft_config
    return net


def base_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the network below all views, named as if it had no roles."""
    net, prefixes = bare(net), [f"{name}." for name, _ in _lora_layers(bare(net))]
    found = {}
    for name, tensor in net.state_dict().items():
        layer = next((p for p in prefixes if name.startswith(p)), "")
        part = name.removeprefix(layer)
        if layer and not part.startswith("base_layer."):
            continue
        found[layer + part.removeprefix("base_layer.")] = tensor
    return found


def enable_checkpointing(net: nn.Module) -> None:
    """Recompute the blocks of a diffusers model in the backward, each in its forward's role."""
    net.enable_gradient_checkpointing(_checkpoint)


def _checkpoint(block, *inputs):
    # some networks hand over a bound `block.__call__` instead of the block
    at_work = _at_work(getattr(block, "__self__", block))
    role = list(at_work)
    dropping = [part for part in layers_of(getattr(block, "__self__", block)) if part.training]

    def run(*inputs):
        with _working(at_work, role), switched_on(dropping):
            return block(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)


@contextmanager
def _working(at_work: _AtWork, role: list[str]) -> Iterator[None]:
    before = list(at_work)
    at_work[:] = role
    try:
        yield
    finally:
        at_work[:] = before


def _at_work(module: nn.Module) -> _AtWork:
    for _, layer in _lora_layers(module):
        if layer.disable_adapters or not isinstance(layer.active_adapter, _AtWork):
            raise ValueError(
                "the network's LoRA layers were loaded or switched by another library; fuse or "
                "unload them before add_adapter, and choose roles through AdapterView only"
            )
        return layer.active_adapter
    return _AtWork()


def _lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, LoraLayer))


def _role_names(net: nn.Module) -> list[str]:
    return sorted({role for _, layer in _lora_layers(net) for role in layer.lora_A})


def _maps(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The linear layers and convolutions below `module`, named as if no adapter wrapped them."""
    for name, child in module.named_children():
        base = child.get_base_layer() if isinstance(child, LoraLayer) else child
        # exact types: torch's own attention reads a subclassed projection without calling it
        if type(base) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            yield prefix + name, base
        else:
            yield from _maps(base, f"{prefix}{name}.")


def _attention_names(net: nn.Module) -> list[str]:
    return [
        f"{outer}.{inner}"
        for outer, module in net.named_modules()
        if isinstance(module, (Attention, AttentionModuleMixin))
        for inner, layer in _maps(module)
        if type(layer) is nn.Linear
    ]


def _target_names(net: nn.Module, targets: tuple[str, ...] | None) -> list[str]:
    names = [name for name, _ in _maps(net)]
    if targets is None:
        targets = tuple(_attention_names(net) or names)
    found = {t: {n for n in names if f".{n}".endswith(f".{t}")} for t in targets}
    missing = [t for t in targets if not found[t]]
    if missing or not targets:
        raise ValueError(
            f"adapter targets {missing}: no such linear layer or convolution in "
            f"{type(net).__name__}; take names from its named_modules()"
        )
    return sorted(set().union(*found.values()))
