"""What families of `UNet2DConditionModel` share: latents of a VAE, and blocks of a U-Net."""

from __future__ import annotations

from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..denoiser import Weight
from ..networks.guidance_embedding import GuidanceEmbedding, embedded
from ..networks.views import bare
from ..schema import shown
from .backbone import Backbone
from .codec import Latents, Size

OTHERS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")


class Conditioned(Backbone):
    """`unet` of class UNet2DConditionModel, asked by prompts. added: its addition_embed_type."""

    network = "unet"
    time_embedding = "time_embedding"
    tap = "mid_block"
    prompted = True
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
        latent = pipeline.vae.config.latent_channels
        if net.config.in_channels != latent:
            raise ValueError(
                f"in_channels {net.config.in_channels}: the VAE's latents have {latent}"
            )

        self.embedded = self.reads_guidance(net)
        for tokenizer, encoder in self.encoders():
            require_fit(tokenizer, encoder.config)

    def reads_guidance(self, net: nn.Module) -> bool:
        return bare(net).config.time_cond_proj_dim is not None

    def guidance_input(self) -> GuidanceEmbedding:
        return GuidanceEmbedding(self.net.time_embedding.linear_1.in_features)

    def guidance_of(self, net: nn.Module, x: Tensor, w: Weight) -> Tensor | None:
        """What the network x (b, …) is for is given of guidance; None where it does not read it."""
        if not self.reads_guidance(net):
            return None
        return embedded(w, bare(net).config.time_cond_proj_dim, x)

    def encoders(self) -> list[tuple[PreTrainedTokenizerBase, nn.Module]]:
        """Each tokenizer of the pipeline with its text encoder."""
        parts = self.pipeline.components
        names = [name for name in parts if name.startswith("tokenizer")]
        pairs = [(parts[n], parts[n.replace("tokenizer", "text_encoder")]) for n in names]
        return [(tokenizer, net) for tokenizer, net in pairs if tokenizer is not None]

    def encoding(self) -> list[nn.Module]:
        return [net for _, net in self.encoders()]

    def to(self, device: torch.device) -> None:
        for net in self.encoding():
            net.to(device)

    @property
    def size(self) -> Size:
        latent, factor = self.net.config.sample_size, self.pipeline.vae_scale_factor
        sides = (latent, latent) if isinstance(latent, int) else latent
        if not isinstance(sides, list | tuple) or [type(side) for side in sides] != [int, int]:
            raise ValueError(f"the network's sample_size is {shown(latent)}: give teacher.size")
        return sides[0] * factor, sides[1] * factor

    def codec(self) -> Latents:
        return Latents(self.pipeline.vae, self.pipeline.vae_scale_factor)

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


def require_fit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Raise ValueError for tokens, or prompts, that a text encoder has no place for."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"its tokenizer knows {len(tokenizer)} tokens, vocab_size says fewer")
    if tokenizer.model_max_length > config.max_position_embeddings:
        longest = tokenizer.model_max_length
        raise ValueError(f"its tokenizer makes prompts of {longest} tokens: too many to encode")
