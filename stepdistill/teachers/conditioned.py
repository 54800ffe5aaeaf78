"""What families of `UNet2DConditionModel` share: latents of a VAE, and blocks of a U-Net."""

from __future__ import annotations

from typing import ClassVar

from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..denoiser import Weight
from ..networks.guidance_embedding import GuidanceEmbedding, embedded
from ..networks.views import bare
from ..schema import shown
from .prompted import Prompted

OTHERS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")


class Conditioned(Prompted):
    """`unet` of class UNet2DConditionModel, asked by prompts. added: its addition_embed_type."""

    network = "unet"
    time_embedding = "time_embedding"
    tap = "mid_block"
    added: ClassVar[str | None] = None

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        kind, net = type(pipeline).__name__, self.net
        if not isinstance(net, UNet2DConditionModel):
            raise ValueError(f"{kind}: its network is no UNet2DConditionModel")
        for key in OTHERS:
            if net.config[key] is not None:
                raise ValueError(f"{key} {shown(net.config[key])}: asks for more than a prompt")
        if net.config.addition_embed_type != self.added:
            found = shown(net.config.addition_embed_type)
            raise ValueError(f"addition_embed_type {found}: {kind} has {shown(self.added)}")
        self.embedded = self.reads_guidance(net)
        self.require_parts()

    def reads_guidance(self, net: nn.Module) -> bool:
        return bare(net).config.time_cond_proj_dim is not None

    def guidance_input(self) -> GuidanceEmbedding:
        return GuidanceEmbedding(self.net.time_embedding.linear_1.in_features)

    def guidance_of(self, net: nn.Module, x: Tensor, w: Weight) -> Tensor | None:
        """What the network x (b, …) is for is given of guidance; None where it does not read it."""
        if not self.reads_guidance(net):
            return None
        return embedded(w, bare(net).config.time_cond_proj_dim, x)

    def features(self, output: Tensor, x: Tensor) -> Tensor:
        """Tokens (b, n, d), row by row, as a map."""
        if output.ndim == 4:
            return output
        rows, columns = x.shape[-2:]
        while rows * columns > output.shape[1]:
            rows, columns = -(-rows // 2), -(-columns // 2)
        return output.transpose(1, 2).unflatten(2, (rows, columns))

    def taps(self) -> tuple[str, ...]:
        kinds = (ResnetBlock2D, Attention)
        return tuple(name for name, part in self.net.named_modules() if isinstance(part, kinds))
