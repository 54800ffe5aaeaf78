"""Pixel pipelines of diffusers' `UNet2DModel`, with class labels or without.

The last label stands for no class: a table of n labels is read as n − 1 classes, and nothing in a
config tells one without an empty label. Of twice the channels the first half is the prediction, and
the second a learned variance, which no step asks for. Under a flow the network's time is the
scheduler's timestep, 1000 t; under a table it is the process's own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ...conditions import NOTHING, Cond
from ...denoiser import Weight
from ...schema import shown
from ..backbone import Asked, Backbone
from ..codec import Pixels, Size
from ..schedulers import is_flow

LARGEST = 1024  # height or width of a network's samples


class UNet2D(Backbone):
    """`unet` of class UNet2DModel."""

    pipelines = ("DDPMPipeline", "DDIMPipeline", "FewStepPipeline")
    network = "unet"
    time_embedding = "time_embedding"
    tap = "mid_block"  # the bottleneck

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        if not isinstance(pipeline.components.get("unet"), UNet2DModel):
            raise ValueError(
                f"{type(pipeline).__name__}: its network is not of a known class (UNet2DModel)"
            )
        require_understood(self.net.config)
        flow, scheduler = is_flow(pipeline.scheduler), pipeline.scheduler.config
        self.scale = float(scheduler.num_train_timesteps) if flow else 1.0

    @property
    def classes(self) -> int | None:
        labels = self.net.config.num_class_embeds
        return None if labels is None else labels - 1

    @property
    def size(self) -> Size:
        return sides(self.net.config.sample_size)

    def codec(self) -> Pixels:
        return Pixels(self.net.config.in_channels)

    def call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
        output = net(x, timestep=t, class_labels=cond.get("label"), return_dict=False)[0]
        return output[:, : x.shape[1]]  # without a learned variance

    def time(self, t: Tensor) -> Tensor:
        return t * self.scale

    def encode(self, asked: Asked, size: Size) -> Cond:
        return NOTHING if self.classes is None or asked is None else {"label": asked}

    def null(self, size: Size) -> Cond:
        return NOTHING if self.classes is None else {"label": torch.tensor([self.classes])}

    def taps(self) -> tuple[str, ...]:
        kinds = (ResnetBlock2D, Attention)
        return tuple(name for name, part in self.net.named_modules() if isinstance(part, kinds))


def require_understood(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a network's config that means another clock, condition or output."""
    labels, kind = config["num_class_embeds"], config["class_embed_type"]
    if labels is not None and labels < 2:
        raise ValueError(f"num_class_embeds {labels}: needs a class and the empty label")
    if kind is not None:
        raise ValueError(f"class_embed_type {shown(kind)}: only a table of labels is known (null)")
    if config["time_embedding_type"] == "fourier":
        raise ValueError("time_embedding_type 'fourier': its clock is σ, which is not known here")
    into, out = config["in_channels"], config["out_channels"]
    if out not in (into, 2 * into):
        raise ValueError(f"out_channels {out}: needs {into}, or {2 * into} with a learned variance")


def sides(size: object) -> Size:
    """Height and width of a network's samples. Raises ValueError if its config does not say."""
    pair = (size, size) if isinstance(size, int) else size
    numbers = isinstance(pair, list | tuple) and [type(n) for n in pair] == [int, int]
    if not numbers or not all(1 <= n <= LARGEST for n in pair):
        raise ValueError(f"the network's sample_size is {shown(size)}: needs 1 to {LARGEST} pixels")
    return tuple(pair)
