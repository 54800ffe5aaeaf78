"""Stable Diffusion 3: `SD3Transformer2DModel` on a VAE's latents, a flow asked by prompts.

Two text encoders of CLIP give tokens and a vector of the whole prompt; the place of the third, T5,
is filled with zeros, as the pipeline does without it. The empty condition is that of "". The
network's time is 1000 t.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel
from torch import Tensor, nn

from ...conditions import Cond
from ...denoiser import Weight
from ..backbone import Asked
from ..codec import Size
from ..prompted import Prompted


class SD3(Prompted):
    """`transformer` of class SD3Transformer2DModel, with two text encoders."""

    pipelines = ("StableDiffusion3Pipeline",)
    time_embedding = "time_text_embed.timestep_embedder"
    seeded = False

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        kind = type(pipeline).__name__
        if not isinstance(self.net, SD3Transformer2DModel):
            raise ValueError(f"{kind}: its network is no SD3Transformer2DModel")
        if pipeline.text_encoder_3 is not None:
            raise ValueError(f"{kind}: its third text encoder is not known: leave it out")
        self.require_parts()
        if pipeline.vae.config.shift_factor is None:  # which the pipeline adds
            raise ValueError(f"{kind}: its VAE says no shift_factor: write 0.0 in its config.json")
        config = self.net.config
        width = sum(net.config.projection_dim for net in self.encoding())
        if config.pooled_projection_dim != width:
            raise ValueError(f"pooled_projection_dim {config.pooled_projection_dim}: needs {width}")
        self.blocks = tuple(f"transformer_blocks.{i}" for i in range(config.num_layers))
        self.tap = self.blocks[(config.num_layers - 1) // 2]
        self.scale = float(pipeline.scheduler.config.num_train_timesteps)

    def call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
        return net(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def time(self, t: Tensor) -> Tensor:
        return t * self.scale

    @torch.no_grad()
    def encode(self, asked: Asked, size: Size) -> Cond:
        device, prompts = next(self.pipeline.text_encoder.parameters()).device, list(asked)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, prompts, prompts, device, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def null(self, size: Size) -> Cond:
        return self.encode([""], size)

    def taps(self) -> tuple[str, ...]:
        return self.blocks

    def features(self, output: Any, x: Tensor) -> Tensor:
        """The tokens of the picture, (b, n, d), after those of the prompt."""
        patch = self.net.config.patch_size
        return output[1].transpose(1, 2).unflatten(2, (x.shape[-2] // patch, x.shape[-1] // patch))
