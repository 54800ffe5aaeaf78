"""Settings of diffusers' classes, which check little and take memory and time before they fail."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from ..schema import Count, Decay, Range, fit

Width = Annotated[int, Range(1, 2**14)]
Channels = Annotated[int, Range(1, 1024)]
Labels = Annotated[int, Range(2, 10**6)]
Length = Annotated[int, Range(2, 10**5)]


class Several(NamedTuple):
    """One value of a kind, or a list of them."""

    one: Any


UNET: dict[str, Any] = {
    "in_channels": Channels,
    "out_channels": Channels,
    "down_block_types": list[str],
    "up_block_types": list[str],
    "layers_per_block": Annotated[int, Range(1, 64)],
    "block_out_channels": list[Width],
    "norm_num_groups": Count,
    "attn_norm_num_groups": Count | None,
    "attention_head_dim": Width | None,
    "time_embedding_dim": Width | None,
    "add_attention": bool,
    "dropout": Decay,
    "num_class_embeds": Labels | None,
    "num_train_timesteps": Length | None,
}
CONDITIONED: dict[str, Any] = {
    **{key: UNET[key] for key in ("in_channels", "out_channels", "down_block_types")},
    **{key: UNET[key] for key in ("up_block_types", "block_out_channels", "dropout")},
    "norm_num_groups": Count | None,
    "time_embedding_dim": Width | None,
    "time_cond_proj_dim": Width | None,
    "layers_per_block": Several(Annotated[int, Range(1, 64)]),
    "cross_attention_dim": Several(Width),
    "attention_head_dim": Several(Width),
    "transformer_layers_per_block": Several(Annotated[int, Range(1, 64)]),
    "addition_time_embed_dim": Width | None,
    "projection_class_embeddings_input_dim": Annotated[int, Range(1, 2**16)] | None,
}
SD3: dict[str, Any] = {
    "sample_size": Width,
    "patch_size": Annotated[int, Range(1, 64)],
    "in_channels": Channels,
    "out_channels": Channels,
    "num_layers": Annotated[int, Range(1, 256)],
    "attention_head_dim": Width,
    "num_attention_heads": Width,
    "joint_attention_dim": Width,
    "caption_projection_dim": Width,
    "pooled_projection_dim": Width,
    "pos_embed_max_size": Annotated[int, Range(1, 2048)],
}
VAE: dict[str, Any] = {
    **{key: UNET[key] for key in ("in_channels", "out_channels", "down_block_types")},
    **{key: UNET[key] for key in ("up_block_types", "block_out_channels", "layers_per_block")},
    "latent_channels": Channels,
    "norm_num_groups": Count,
}
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": Annotated[int, Range(2, 10**6)],
    "hidden_size": Width,
    "intermediate_size": Annotated[int, Range(1, 2**16)],
    "num_hidden_layers": Annotated[int, Range(1, 256)],
    "num_attention_heads": Annotated[int, Range(1, 1024)],
    "max_position_embeddings": Annotated[int, Range(2, 2**16)],
}
SCHEDULER: dict[str, Any] = {"num_train_timesteps": Length}
# Of pipelines/extra_inputs.py and pipelines/guidance_adapters.py.
INPUTS: dict[str, Any] = {
    "inputs": list[str],
    "width": Width,
    "path": str,
    "blocks": list[str],
    "shapes": list[list[Width]],
    "labels": Annotated[int, Range(0, 10**6)],
    "hidden": Width,
    "narrow": Width,
}
DEEPEST = 32  # entries of a network's lists
MOST = 4096  # of lists of adapters


def require_bounds(
    values: Mapping[str, Any], bounds: Mapping[str, Any], where: str, longest: int = DEEPEST
) -> None:
    """Raise ConfigError, `where` in front of the name, for the first of `values` outside."""
    for name in [name for name in bounds if name in values]:
        value = values[name]
        if isinstance(value, list | tuple):
            Range(0, longest).check(len(value), f"{where}{name}: its length")
        kind = bounds[name]
        if isinstance(kind, Several):
            kind = list[kind.one] if isinstance(value, list | tuple) else kind.one
        fit(kind, value, f"{where}{name}")
