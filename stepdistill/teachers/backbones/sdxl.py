"""Stable Diffusion XL: `UNet2DConditionModel` on a VAE's latents, asked by prompts.

Two text encoders give the tokens; the second gives a vector of the whole prompt, too. A network is
also told the size of the picture: (height, width, 0, 0, height, width), as nothing was cropped. The
empty condition is zeros where the pipeline's own is (`force_zeros_for_empty_prompt`), else "".
"""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ...conditions import Cond
from ...denoiser import Weight
from ...schema import shown
from ..backbone import Asked
from ..codec import Size
from ..conditioned import Conditioned


class SDXL(Conditioned):
    """`unet` of class UNet2DConditionModel, with two text encoders."""

    pipelines = ("StableDiffusionXLPipeline",)
    added = "text_time"

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        super().__init__(pipeline)
        if pipeline.text_encoder is None or pipeline.tokenizer is None:
            raise ValueError("StableDiffusionXLPipeline: a refiner, with one text encoder")
        width = self.net.config.addition_time_embed_dim
        expected = pipeline.text_encoder_2.config.projection_dim + 6 * width
        found = self.net.config.projection_class_embeddings_input_dim
        if found != expected:
            raise ValueError(
                f"projection_class_embeddings_input_dim {shown(found)}: needs {expected}, a pooled "
                "prompt and six numbers"
            )

    def call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
        return net(
            x,
            t,
            encoder_hidden_states=cond["text"],
            timestep_cond=self.guidance_of(net, x, w),
            added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": cond["sizes"]},
            return_dict=False,
        )[0]

    @torch.no_grad()
    def encode(self, asked: Asked, size: Size) -> Cond:
        device = next(self.pipeline.text_encoder.parameters()).device
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(asked), device=device, do_classifier_free_guidance=False
        )
        sizes = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=device)
        return {"text": text, "pooled": pooled, "sizes": sizes.repeat(len(text), 1)}

    def null(self, size: Size) -> Cond:
        found = dict(self.encode([""], size))
        if self.pipeline.config.force_zeros_for_empty_prompt:
            found |= {name: torch.zeros_like(found[name]) for name in ("text", "pooled")}
        return found
