"""The code that computes a network's attention, chosen by name.

    sdpa        torch's fused attention, which networks have if nobody says otherwise
    eager       its formula written out
    xformers    the memory-efficient attention of that package, on a GPU
    others      of diffusers' dispatcher, like "flash" and "sage", in networks that go through it

diffusers' own switch leaves other networks as they are, unsaid, and holds for the whole process.
Here each layer of one network changes, or is refused.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
)
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
    XFormersAttnProcessor,
    XFormersJointAttnProcessor,
)
from torch import nn

# What a layer without the dispatcher may have: classes that compute the same.
ALIKE: tuple[dict[str, type], ...] = (
    {"sdpa": AttnProcessor2_0, "eager": AttnProcessor, "xformers": XFormersAttnProcessor},
    {"sdpa": JointAttnProcessor2_0, "xformers": XFormersJointAttnProcessor},
)
DISPATCHED = {"sdpa": "native", "eager": "_native_math"}  # ours → diffusers'
# Those of the hub fetch code, and run it.
OTHERS = {each.value: each for each in AttentionBackendName if not each.value.endswith("_hub")}


def set_attention(net: nn.Module, name: str) -> None:
    """Compute all attention of `net` so. Raises ValueError, before anything is changed, where it
    has none, or a layer cannot."""
    layers = [part for part in net.modules() if isinstance(part, Attention | AttentionModuleMixin)]
    if not layers:
        raise ValueError(f"{type(net).__name__} has none: leave it out")
    found = [offered(layer) for layer in layers]
    for layer, names in zip(layers, found, strict=True):
        if name not in names:
            kind, known = type(layer.processor).__name__, ", ".join(names) or "none"
            raise ValueError(f"{name!r} is not known to its {kind}: one of {known}")
    if name == "xformers":
        require_xformers()
    elif name in OTHERS:
        require_package(OTHERS[name])
    for layer, names in zip(layers, found, strict=True):
        chosen = names[name]
        if isinstance(chosen, type):
            layer.set_processor(chosen())
        else:
            layer.processor._attention_backend = chosen


def offered(layer: nn.Module) -> dict[str, type | AttentionBackendName]:
    """What a layer's attention may be computed by, by name."""
    if hasattr(layer.processor, "_attention_backend"):
        return {ours: OTHERS[theirs] for ours, theirs in DISPATCHED.items()} | OTHERS
    alike = (each for each in ALIKE if type(layer.processor) in each.values())
    return dict(next(alike, {}))


def require_package(backend: AttentionBackendName) -> None:
    """Raise ValueError where the package of a backend is not there."""
    try:
        _check_attention_backend_requirements(backend)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def require_xformers() -> None:
    """Raise ValueError where the package cannot compute attention."""
    if find_spec("xformers") is None:
        raise ValueError("xformers is not installed: pip install 'stepdistill[xformers]'")
    if not torch.cuda.is_available():
        raise ValueError("xformers needs a GPU of CUDA, and there is none: use sdpa")
