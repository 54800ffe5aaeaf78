"""The autoencoder of the teacher `shapes`: 32×32 RGB pictures ↔ 4 latents at 8×8.

    python eval/shapes_vae.py runs/shapes-parts

writes runs/shapes-parts/vae, in about ten minutes on one core; what was stopped goes on. First all
of it, then the decoder alone, under the latents that are there. The loss is L1 + MSE + ½ L1 of
differences between neighbours + 10⁻³ KL for each latent.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pretrain import Plan, command_folder, train
from torch import Tensor, nn

from stepdistill.data.captions import captions
from stepdistill.data.compositions import DOUBLES, SINGLES, Scenes
from stepdistill.data.loader import stream
from stepdistill.evaluation.features.objects import Objects
from stepdistill.evaluation.following import follows, seen_in

SIDE = 32
CONFIG = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "sample_size": SIDE,
}
WHOLE = Plan(steps=1500, batch=24, lr=2e-3)
DECODER = Plan(steps=800, batch=24, lr=1e-3, fall=1.0)


def pictures(n: int, generator: torch.Generator) -> Tensor:
    """n scenes, a half of them with two objects, held out or not."""
    two = torch.rand(n, generator=generator) < 0.5
    one = torch.randint(SINGLES, (n,), generator=generator)
    pair = SINGLES + torch.randint(DOUBLES, (n,), generator=generator)
    return Scenes.numbered(torch.where(two, pair, one)).images(SIDE, generator)


def error(images: Tensor, made: Tensor) -> Tensor:
    """Of pictures made again."""
    gap = made - images
    edges = gap.diff(dim=2).abs().mean() + gap.diff(dim=3).abs().mean()
    return gap.abs().mean() + gap.square().mean() + 0.5 * edges


def main(folder: Path) -> None:
    """Train, measure and write it."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**CONFIG)

    def whole(n: int, generator: torch.Generator) -> Tensor:
        images = pictures(n, generator)
        found = vae.encode(images).latent_dist
        drawn = found.mean + found.std * torch.randn(found.mean.shape, generator=generator)
        kl = found.kl().mean() / found.mean[0].numel()
        return error(images, vae.decode(drawn).sample) + 1e-3 * kl

    def decoder(n: int, generator: torch.Generator) -> Tensor:
        images = pictures(n, generator)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
        return error(images, vae.decode(latents).sample)

    train(folder / "vae-whole", nn.ModuleList([vae]), whole, WHOLE)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    train(folder / "vae-decoder", nn.ModuleList([vae]), decoder, DECODER)
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(pictures(2000, stream(0, 10))).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    for name, first, last in (
        ("one object", 0, SINGLES),
        ("two objects", SINGLES, SINGLES + DOUBLES),
    ):
        print(
            f"{name}: {ceiling(vae, first, last):.4f} of pictures read right after the round trip"
        )


@torch.no_grad()
def ceiling(vae: AutoencoderKL, first: int, last: int, n: int = 1500) -> float:
    """The share of fresh pictures in which all attributes are read right after a round trip."""
    generator = stream(0, 11, first)
    scenes = Scenes.numbered(torch.randint(first, last, (n,), generator=generator))
    texts, images = captions(scenes, generator, said=1.0), scenes.images(SIDE, generator)
    parts = [vae.decode(vae.encode(x).latent_dist.mean).sample for x in images.split(250)]
    seen = seen_in(Objects()(torch.cat(parts).clamp(-1, 1)), texts)
    return sum(bool(follows(each, None)) for each in seen) / n


if __name__ == "__main__":
    main(command_folder())
