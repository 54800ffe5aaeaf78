"""What families that are asked by prompts share: text encoders, and latents of a VAE."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..schema import shown
from .backbone import Backbone
from .codec import Latents, Size


class Prompted(Backbone):
    """A pipeline with tokenizers, text encoders of the same numbers, and a VAE."""

    prompted = True

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

    def require_parts(self) -> None:
        """Raise ValueError for a VAE or tokens that the networks have no place for."""
        latent, channels = self.pipeline.vae.config.latent_channels, self.net.config.in_channels
        if channels != latent:
            raise ValueError(f"in_channels {channels}: the VAE's latents have {latent}")
        for tokenizer, encoder in self.encoders():
            require_fit(tokenizer, encoder.config)


def require_fit(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Raise ValueError for tokens, or prompts, that a text encoder has no place for."""
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"its tokenizer knows {len(tokenizer)} tokens, vocab_size says fewer")
    if tokenizer.model_max_length > config.max_position_embeddings:
        longest = tokenizer.model_max_length
        raise ValueError(f"its tokenizer makes prompts of {longest} tokens: too many to encode")
