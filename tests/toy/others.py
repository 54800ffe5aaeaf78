"""Tiny pipelines that other people's tools would save, complete with words."""

import diffusers as d
import torch
from pixels import ddpm, redrawn, unet
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from twins import conditioned, labelled

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
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return CLIPTextModel(config).eval()


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
