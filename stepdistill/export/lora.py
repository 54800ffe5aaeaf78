"""A student that is a role on its teacher, as the small files that others load.

    lora/pytorch_lora_weights.safetensors    pipe.load_lora_weights(FOLDER), with metadata
    lora/kohya.safetensors                   the same under kohya's names, for other interfaces

B is multiplied by alpha / rank and alpha said to be the rank, in both: whoever reads alpha and
whoever does not come to the same weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from ..networks.lora import LowRank

KOHYA = "kohya.safetensors"


def has_lora_files(pipeline: DiffusionPipeline) -> bool:
    """Whether diffusers loads any for such a pipeline."""
    return hasattr(type(pipeline), "save_lora_weights")


def write_lora(folder: Path, pipeline: DiffusionPipeline, network: str, role: LowRank) -> None:
    """Write the files of a role of a pipeline's component into a new folder."""
    layers: dict[str, Any] = {
        f"{network}_lora_layers": role.tensors,
        f"{network}_lora_adapter_metadata": metadata(role),
    }
    pipeline.save_lora_weights(folder, **layers, safe_serialization=True)
    if network == "unet":  # kohya has no names for others that their loaders know
        named = {f"{network}.{name}": value for name, value in role.tensors.items()}
        kohya = convert_state_dict_to_kohya(named)
        save_file({name: value.contiguous() for name, value in kohya.items()}, folder / KOHYA)


def metadata(role: LowRank) -> dict[str, Any]:
    """What diffusers makes the layers from."""
    targets = sorted({name.rpartition(".lora_")[0] for name in role.tensors})
    return {"r": role.rank, "lora_alpha": role.rank, "target_modules": targets}
