"""Settings of diffusers' classes, which check little and take memory and time before they fail."""

from collections.abc import Mapping
from typing import Annotated, Any

from ..schema import Count, Decay, Range, fit

Width = Annotated[int, Range(1, 2**14)]
Channels = Annotated[int, Range(1, 1024)]
Labels = Annotated[int, Range(2, 10**6)]
Length = Annotated[int, Range(2, 10**5)]
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
        fit(bounds[name], value, f"{where}{name}")
