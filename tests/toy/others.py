"""Tiny pipelines that other people's tools would save, complete with words."""

from pathlib import Path

import diffusers as d
import pytest
import torch
from pixels import ddpm, redrawn, unet
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from twins import SD_TABLE as TABLE
from twins import conditioned, joint, labelled
from typer.testing import CliRunner

from stepdistill.cli import app

PROMPTS = ["a red cat", "two dogs", "a very small house", "nothing at all"]
VAE = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}


def letters() -> CLIPTokenizer:
    """A real tokenizer that knows single letters."""
    known = [chr(c) for c in range(33, 127)]
    words = [*known, *(f"{c}</w>" for c in known), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=77)


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(text_config(tokenizer)).eval()


def text_config(tokenizer: CLIPTokenizer, **more: int) -> CLIPTextConfig:
    usual = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return CLIPTextConfig(**usual | more)


def stable_diffusion(seed: int = 1) -> d.StableDiffusionPipeline:
    """Of prompts, 16×16, with guidance by two passes."""
    tokenizer = letters()
    return d.StableDiffusionPipeline(
        vae=redrawn(d.AutoencoderKL(**VAE), 2),
        unet=redrawn(conditioned(), seed),
        text_encoder=text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=d.DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def finished_run(folder: Path, run: str, prompts: str, text: str) -> Path:
    """A folder with a Stable Diffusion, a file of prompts that is called so, and the run of a YAML
    in it, by the command."""
    pipeline = stable_diffusion()
    pipeline.scheduler = d.DDIMScheduler(clip_sample=False, **TABLE, steps_offset=1)
    pipeline.save_pretrained(folder / "models" / "sd")
    (folder / prompts).write_text(text)
    (folder / "words.yaml").write_text(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["run", "words.yaml"])
        assert done.exit_code == 0, done.output
    return folder


def stable_diffusion_xl(zeros: bool = True, wide: int = 16) -> d.StableDiffusionXLPipeline:
    """Of prompts, 16×16, with two text encoders; wide: the second."""
    tokenizer = letters()
    config = text_config(tokenizer, projection_dim=8, hidden_size=wide)
    second = CLIPTextModelWithProjection(config)
    return d.StableDiffusionXLPipeline(
        vae=redrawn(d.AutoencoderKL(**VAE, scaling_factor=0.13025), 2),
        unet=redrawn(
            conditioned(
                cross_attention_dim=16 + wide,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=8 + 24,
                use_linear_projection=True,
                transformer_layers_per_block=(1, 2),
                attention_head_dim=(1, 2),
            ),
            1,
        ),
        text_encoder=redrawn(text_encoder(tokenizer), 4),
        text_encoder_2=redrawn(second, 5).eval(),
        tokenizer=tokenizer,
        tokenizer_2=letters(),
        scheduler=d.EulerDiscreteScheduler(**TABLE, timestep_spacing="leading", steps_offset=1),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )


def stable_diffusion_3(shift: float = 3.0) -> d.StableDiffusion3Pipeline:
    """Of prompts, 16×16: a flow, with two text encoders of three."""
    tokenizers = letters(), letters()
    encoders = [
        redrawn(CLIPTextModelWithProjection(text_config(t, projection_dim=8)), seed).eval()
        for seed, t in enumerate(tokenizers, 4)
    ]
    blocks = {"num_layers": 3, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    net = joint(joint_attention_dim=40, pos_embed_max_size=12, **blocks)
    return d.StableDiffusion3Pipeline(
        transformer=redrawn(net, 1),
        vae=redrawn(d.AutoencoderKL(**VAE, scaling_factor=1.5, shift_factor=0.06), 2),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        text_encoder_3=None,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=None,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=shift),
    )


def dit(scheduler: d.SchedulerMixin | None = None) -> d.DiTPipeline:
    """Of labels, 16×16; it hands no generator to its scheduler."""
    return d.DiTPipeline(
        transformer=redrawn(labelled(), 3),
        vae=redrawn(d.AutoencoderKL(**VAE), 2),
        scheduler=scheduler or d.DDIMScheduler(clip_sample=False),
    )


def pixel() -> d.DDPMPipeline:
    """Of nothing, 16×16."""
    return ddpm(unet(16), clip_sample=True)


def consistency() -> d.ConsistencyModelPipeline:
    """Of five labels, 16×16, in one step or a few."""
    net = unet(16, classes=5)
    return d.ConsistencyModelPipeline(net, d.CMStochasticIterativeScheduler())
