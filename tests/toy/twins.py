"""Tiny pipelines of the families that people distil, as diffusers alone saves them.

Weights are whatever the classes begin with: who looks at schedules runs no network. Text encoders
and tokenizers are left out, as in folders whose embeddings are computed elsewhere.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d

LATENT = {
    "block_out_channels": (2, 2, 2, 2),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "sample_size": 16,
}
SD_TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_TEXTS = NO_TEXT | {"text_encoder_2": None, "tokenizer_2": None}


def vae(**more: Any) -> d.AutoencoderKL:
    return d.AutoencoderKL(**{**LATENT, "latent_channels": 4, **more})


def conditioned(**more: Any) -> d.UNet2DConditionModel:
    plain = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
    }
    return d.UNet2DConditionModel(**{**plain, **more})


def sd15(**more: Any) -> d.DiffusionPipeline:
    leading = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    return d.StableDiffusionPipeline(
        vae=vae(),
        unet=conditioned(**more),
        scheduler=d.PNDMScheduler(**SD_TABLE, **leading),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **NO_TEXT,
    )


def sd21() -> d.DiffusionPipeline:
    pipe = sd15()
    settings = {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1}
    pipe.scheduler = d.DDIMScheduler(**SD_TABLE, **settings, set_alpha_to_one=False)
    return pipe


def sdxl() -> d.DiffusionPipeline:
    more = {
        "attention_head_dim": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
        "transformer_layers_per_block": (1, 2),
    }
    scheduler = d.EulerDiscreteScheduler(**SD_TABLE, timestep_spacing="leading", steps_offset=1)
    return d.StableDiffusionXLPipeline(
        vae=vae(), unet=conditioned(**more), scheduler=scheduler, add_watermarker=False, **NO_TEXTS
    )


def labelled() -> d.DiTTransformer2DModel:
    return d.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )


def dit() -> d.DiffusionPipeline:
    return d.DiTPipeline(
        transformer=labelled(), vae=vae(), scheduler=d.DDIMScheduler(clip_sample=False)
    )


def joint(**changes: object) -> d.SD3Transformer2DModel:
    """A tiny network of Stable Diffusion 3."""
    usual = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 16,
    }
    return d.SD3Transformer2DModel(**usual | changes)


def sd3() -> d.DiffusionPipeline:
    return d.StableDiffusion3Pipeline(
        transformer=joint(),
        vae=vae(shift_factor=0.06),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder_3=None,
        tokenizer_3=None,
        **NO_TEXTS,
    )


def flux(guidance: bool = True) -> d.DiffusionPipeline:
    net = d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}
    scheduler = d.FlowMatchEulerDiscreteScheduler(**dynamic)
    return d.FluxPipeline(
        transformer=net, vae=vae(shift_factor=0.1), scheduler=scheduler, **NO_TEXTS
    )


def wan() -> d.DiffusionPipeline:
    net = d.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    coder = d.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1] * 4,
        latents_std=[1.2] * 4,
    )
    scheduler = d.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return d.WanPipeline(transformer=net, vae=coder, scheduler=scheduler, **NO_TEXT)


def zimage() -> d.DiffusionPipeline:
    net = d.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return d.ZImagePipeline(
        transformer=net, vae=vae(shift_factor=0.1), scheduler=scheduler, **NO_TEXT
    )


def sana() -> d.DiffusionPipeline:
    net = d.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=32,
    )
    coder = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 6,
        decoder_block_types=("ResBlock",) * 6,
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return d.SanaPipeline(transformer=net, vae=coder, scheduler=scheduler, **NO_TEXT)


def ddpm() -> d.DiffusionPipeline:
    net = d.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    return d.DDPMPipeline(unet=net, scheduler=d.DDPMScheduler())


TWINS: dict[str, Callable[[], d.DiffusionPipeline]] = {
    make.__name__: make for make in (sd15, sd21, sdxl, dit, sd3, flux, wan, zimage, sana, ddpm)
}
TWINS["schnell"] = lambda: flux(guidance=False)


def edit(file: Path, **values: Any) -> None:
    """Set entries of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2))


def reschedule(folder: Path, scheduler: d.SchedulerMixin) -> None:
    """Put another scheduler into a folder, as `pipe.scheduler = …` and saving does."""
    scheduler.save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])


def student_card(folder: Path, call: str, base: str = "someone/base") -> None:
    """A model card as makers write them: a header, and a call in Python."""
    head = f"---\nlibrary_name: diffusers\nbase_model: {base}\n---\n# A student\n"
    (folder / "README.md").write_text(f"{head}\n```python\nimage = pipe(prompt, {call})\n```\n")
