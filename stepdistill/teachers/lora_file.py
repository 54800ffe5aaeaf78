"""A LoRA file, ours or another tool's, as a role of a teacher's network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffusers import DiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from ..networks.lora import LowRank
from .parts import foreign

FOLDER, FILE = "lora", "pytorch_lora_weights.safetensors"  # in the folder of an exported student
READ = "read"  # what its role is called while it is read
FIRST = ("lora_A", "lora.down", "lora_down")  # the first matrix of a layer, by whoever wrote it
BEYOND = ("dora_scale", "magnitude", ".bias", "hada_", "lokr_")  # what no role here has


def role_in(pipeline: DiffusionPipeline, network: str, file: Path) -> LowRank:
    """The role of a component that a file of diffusers or kohya names.

    Raises ValueError for a file of anything else, or of ranks that differ."""
    if not hasattr(pipeline, "lora_state_dict"):
        raise ValueError(f"{file}: no LoRA is loaded into a {type(pipeline).__name__}")
    if file.suffix != ".safetensors":  # diffusers would unpickle it
        raise ValueError(f"{file}: weights are read from .safetensors alone: convert it")
    where = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    with foreign(file), safe_open(file, "pt") as opened:
        other = next((key for key in opened.keys() if any(part in key for part in BEYOND)), None)
        if other is not None:
            raise ValueError(f"holds {other}, which is no matrix of a LoRA")
        found = pipeline.lora_state_dict(file.parent, **where)
    found = found[0] if isinstance(found, tuple) else found  # U-Nets' come with alphas
    other = next((name for name in found if not name.startswith(f"{network}.")), None)
    if other is not None:
        raise ValueError(f"{file}: changes {other}, and a student is a role of {network} alone")
    try:
        with foreign(file):
            pipeline.load_lora_weights(file.parent, adapter_name=READ, **where)
        role = loaded(pipeline.components[network].named_modules(), file)
    finally:
        pipeline.unload_lora_weights()
    asked = sum(any(part in name for part in FIRST) for name in found)
    if 2 * asked != len(role.tensors):
        raise ValueError(f"{file}: is of {asked} layers, of which the network has fewer")
    return role


def loaded(modules: Iterable[tuple[str, nn.Module]], file: Path) -> LowRank:
    """What was loaded into the layers of a network."""
    layers = {name: layer for name, layer in modules if isinstance(layer, LoraLayer)}
    ranks = {layer.r[READ] for layer in layers.values()}
    if len(ranks) != 1:
        raise ValueError(f"{file}: has layers of the ranks {sorted(ranks)}, and a role has one")
    tensors = {}
    for name, layer in layers.items():
        a, b = layer.lora_A[READ].weight.detach(), layer.lora_B[READ].weight.detach()
        tensors[f"{name}.lora_A.weight"] = a.float().clone()
        tensors[f"{name}.lora_B.weight"] = b.float() * layer.scaling[READ]
    return LowRank(tensors, ranks.pop())
