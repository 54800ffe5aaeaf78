"""Stable Diffusion 1 and 2: `UNet2DConditionModel` on a VAE's latents, asked by prompts.

The condition is the last hidden state of one text encoder, every token of it, padding too; the
empty condition is that of "".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...conditions import Cond
from ...denoiser import Weight
from ..backbone import Asked
from ..codec import Size
from ..conditioned import Conditioned


class SD(Conditioned):
    """`unet` of class UNet2DConditionModel, with one text encoder."""

    pipelines = ("StableDiffusionPipeline",)

    def call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
        told = self.guidance_of(net, x, w)
        text = {"encoder_hidden_states": cond["text"], "timestep_cond": told}
        return net(x, t, **text, return_dict=False)[0]

    @torch.no_grad()
    def encode(self, asked: Asked, size: Size) -> Cond:
        device = next(self.pipeline.text_encoder.parameters()).device
        return {"text": self.pipeline.encode_prompt(list(asked), device, 1, False)[0]}

    def null(self, size: Size) -> Cond:
        return self.encode([""], size)
