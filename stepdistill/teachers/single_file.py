"""Pipelines of one file, as other interfaces keep them: Stable Diffusion 1, 2 and XL, under the
names that their authors gave to weights.

Such a file says neither its configurations nor its tokens. A folder of diffusers does, of the same
kind of pipeline; its weights are not looked at, and need not be there.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import safe_open
from torch import nn

from . import bounds
from .folder import INDEX, pipeline_folder, read_json, require_own_files, require_whole
from .hub import LEFT_OUT
from .loading import FAMILIES, PARTS, SD, SDXL, kind_named, load_scheduler
from .parts import foreign, load_tokenizer, require_finite, require_network, require_text_encoder


def load_single_file(file: Path, config: str) -> DiffusionPipeline:
    """The pipeline of a file of safetensors, in float32 on the CPU. config: the folder.

    Raises ValueError naming what is missing, damaged, or of no known kind."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"{file}: no file of safetensors, and config is for those: leave it out")
    require_whole(file)
    folder = pipeline_folder(config)
    require_own_files(folder)
    index = read_json(folder / INDEX)
    name = kind_named(index, folder / INDEX)
    if name not in (SD, SDXL):
        raise ValueError(f"{folder / INDEX}: {name} is read from folders alone")
    family = FAMILIES[name]
    require_network(folder / family.part, family.net, family.limits)
    require_network(folder / "vae", AutoencoderKL, bounds.VAE)
    given: dict[str, Any] = {"scheduler": load_scheduler(folder, index)}
    for part in PARTS[name]:
        if part.startswith("text_encoder"):
            require_text_encoder(folder / part)
        if part.startswith("tokenizer"):
            given[part] = load_tokenizer(folder / part)
    known = signature(family.made.__init__).parameters
    given |= {part: None for part in LEFT_OUT if part in known}  # else diffusers imports them
    given |= family.without
    how = {"local_files_only": True, "torch_dtype": torch.float32}
    with foreign(file):
        pipeline = family.made.from_single_file(str(file), config=str(folder), **given, **how)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            require_finite(part.eval().requires_grad_(False), file)
    require_taken(file, pipeline)
    return pipeline


def require_taken(file: Path, pipeline: DiffusionPipeline) -> None:
    """Raise ValueError for weights of the U-Net or the VAE that are left over."""
    with safe_open(file, "pt") as opened:
        names = [*opened.keys()]
    for room, part in (("model.diffusion_model.", "unet"), ("first_stage_model.", "vae")):
        there = sum(name.startswith(room) for name in names)
        taken = len(pipeline.components[part].state_dict())
        if there != taken:
            raise ValueError(f"{file}: {there} weights {room}*, by the config of {part} {taken}")
