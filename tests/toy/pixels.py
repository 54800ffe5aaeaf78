"""Tiny pixel pipelines as diffusers saves them, every parameter drawn afresh, and their loop."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher


def unet(
    size: int | tuple[int, int] = 8,
    channels: int = 3,
    out: int | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> UNet2DModel:
    """A network with attention whose outputs are of unit size."""
    net = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out or channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=classes,
    )
    return redrawn(net, seed).eval().requires_grad_(False)


def redrawn(net: UNet2DModel, seed: int) -> UNet2DModel:
    """The network with other numbers in every parameter, none of them zero as at birth."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            scale = 0.8 * p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
            one = "norm" in name and name.endswith("weight")
            p.copy_(scale * torch.randn(p.shape, generator=generator) + one)
    return net


def ddpm(net: UNet2DModel, **config) -> DDPMPipeline:
    return DDPMPipeline(net, DDPMScheduler(**config))


def ddim(net: UNet2DModel, **config) -> DDIMPipeline:
    return DDIMPipeline(net, DDIMScheduler(**config))


def flow(net: UNet2DModel, **config) -> DDPMPipeline:
    return DDPMPipeline(net, FlowMatchEulerDiscreteScheduler(**config))


ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "ddpm": lambda: ddpm(unet(32), clip_sample=False),
    "ddim, not square": lambda: ddim(unet((16, 24)), clip_sample=False, steps_offset=1),
    "flow, labels": lambda: flow(unet(classes=4), shift=3.0),
    "labels, clipped": lambda: ddpm(unet(channels=1, classes=4), beta_schedule="scaled_linear"),
    "learned variance": lambda: ddpm(unet(out=6), variance_type="learned_range"),
    "v at zero SNR": lambda: ddim(unet(channels=1), **ZERO_SNR),
    "x0, four channels": lambda: ddim(
        unet(channels=4), prediction_type="sample", timestep_spacing="linspace"
    ),
    "two channels, no end": lambda: ddim(unet(channels=2), set_alpha_to_one=False),
    "cosine, clipped": lambda: ddim(unet(), **COSINE),
    "sigmoid, 500 timesteps": lambda: ddpm(
        unet(channels=1), beta_schedule="sigmoid", num_train_timesteps=500, clip_sample_range=2.0
    ),
}


def saved(pipeline: DiffusionPipeline, folder: Path, w: float = 1.0) -> Teacher:
    """The pipeline as a teacher, from where diffusers saved it."""
    pipeline.save_pretrained(folder)
    return Teacher.from_pipeline(load_pipeline(str(folder)), w)


def walked(pipeline: DiffusionPipeline, x: Tensor, n: int, labels: Tensor | None) -> Tensor:
    """What diffusers' deterministic scheduler makes of x in n steps, in the precision of x.

    Of a table in float64, for in float32 the last digits of 1/α decide the fifth of a clipped x̂₀.
    """
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        table = {"trained_betas": scheduler.betas.tolist(), "rescale_betas_zero_snr": False}
        scheduler = DDIMScheduler.from_config(scheduler.config, **table)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(x)
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(x)
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        x = scheduler.step(called(pipeline.unet, x, t, labels), t, x).prev_sample
    return x


def called(net: UNet2DModel, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The prediction, as diffusers' pipelines and steps take it from the network."""
    return net(x, t, class_labels=labels).sample[:, : x.shape[1]]
