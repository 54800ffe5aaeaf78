"""Pipelines of Stable Diffusion in one file, in the names that its authors gave to weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def renamed(name: str, names: Mapping[str, str]) -> str:
    """With the parts of a dotted name replaced."""
    for ours, theirs in names.items():
        name = f".{name}.".replace(f".{ours}.", f".{theirs}.").strip(".")
    return name


def unet(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    layers = net.config.layers_per_block
    for name, value in net.state_dict().items():
        place, _, rest = name.partition("_blocks.")
        if name.startswith("mid_block."):
            ours = name.removeprefix("mid_block.")
            theirs = renamed(ours, MIDDLE)
            yield f"middle_block.{renamed(theirs, RESNET) if 'resnets' in ours else theirs}", value
        elif not rest:
            yield renamed(name, UNET), value
        else:
            block, kind, number, end = rest.split(".", 3)
            yield side(net, place == "down", int(block), kind, int(number), end, layers), value


def side(
    net: nn.Module, down: bool, block: int, kind: str, number: int, end: str, layers: int
) -> str:
    """The name of a weight on the way down or up."""
    each = layers + 1
    if kind == "downsamplers":
        return f"input_blocks.{each * (block + 1)}.0.{end.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        attends = "CrossAttn" in net.config.up_block_types[block]
        return f"output_blocks.{each * (block + 1) - 1}.{1 + attends}.{end}"
    first = f"input_blocks.{1 + each * block}" if down else f"output_blocks.{each * block}"
    room, _, base = first.rpartition(".")
    column = int(kind == "attentions")
    return f"{room}.{int(base) + number}.{column}.{end if column else renamed(end, RESNET)}"


def vae(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    blocks = len(net.config.up_block_types)
    for name, value in net.state_dict().items():
        name = renamed(name, VAE)
        for ours, theirs in (("down_blocks", "down"), ("up_blocks", "up")):
            head, found, rest = name.partition(f".{ours}.")
            if found:
                block, kind, number, end = rest.split(".", 3)
                block = block if theirs == "down" else str(blocks - 1 - int(block))
                inside = f"block.{number}" if kind == "resnets" else f"{theirs}sample"
                name = f"{head}.{theirs}.{block}.{inside}.{end}"
        if ".mid.attn_1." in name and value.ndim == 2:
            value = value[:, :, None, None]
        yield name, value


def open_clip(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A text encoder in the names of OpenCLIP: queries, keys and values are one matrix."""
    state = clip(net)
    plain = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, value in state.items():
        if name in plain:
            yield plain[name], value
        elif name == "text_projection.weight":
            yield "text_projection", value.T.contiguous()
        elif ".q_proj." in name:
            layer = name.partition(".layers.")[2].partition(".")[0]
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            yield (
                f"transformer.resblocks.{layer}.attn.in_proj_{name.rpartition('.')[2]}",
                torch.cat(parts),
            )
        elif ".layers." in name and not any(f".{part}_proj." in name for part in "kv"):
            rest = renamed(name.partition(".layers.")[2], OPEN)
            yield f"transformer.resblocks.{rest}", value


def clip(net: nn.Module) -> dict[str, Tensor]:
    """A text encoder in the names of older transformers."""
    return {
        name if name.startswith("text_") else f"text_model.{name}": value
        for name, value in net.state_dict().items()
    }


def write_original(pipeline: DiffusionPipeline, file: Path, opened: bool = False) -> None:
    """All networks of a pipeline in one file. opened: whether its first encoder is OpenCLIP's, as
    in Stable Diffusion 2."""
    second = getattr(pipeline, "text_encoder_2", None)
    rooms: dict[str, Mapping[str, Tensor]] = {
        "model.diffusion_model": dict(unet(pipeline.unet)),
        "first_stage_model": dict(vae(pipeline.vae)),
    }
    first = "cond_stage_model" if second is None else "conditioner.embedders.0"
    words = pipeline.text_encoder
    rooms |= (
        {f"{first}.model": dict(open_clip(words))}
        if opened
        else {f"{first}.transformer": clip(words)}
    )
    if second is not None:
        rooms["conditioner.embedders.1.model"] = dict(open_clip(second))
    save_file(
        {
            f"{room}.{name}": value.contiguous().clone()
            for room, values in rooms.items()
            for name, value in values.items()
        },
        file,
    )
