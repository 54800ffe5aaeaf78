"""The text encoders of the teacher `shapes-flow`, as Stable Diffusion 3 has them.

    python eval/shapes_flow_text.py runs/shapes-flow-parts

writes runs/shapes-flow-parts/tokenizer, /tokenizer_2, /text_encoder, /text_encoder_2 and /vae, in
two minutes on one core. Tokenizer and VAE are those of `shapes`; the encoders, of different seeds,
are trained as its own is, where the pipeline reads them: below the last layer, and in their
projection of the whole prompt. There is no T5.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pretrain import command_folder
from shapes_text import PLAN, Read, learn, sizes
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from stepdistill.teachers.bounds import VAE
from stepdistill.teachers.folder import pipeline_folder
from stepdistill.teachers.parts import load_network, load_tokenizer


def reader(net: CLIPTextModelWithProjection) -> Read:
    """What Stable Diffusion 3 reads from an encoder."""

    def read_from(tokens: Tensor, end: Tensor, later: Tensor) -> dict[str, Tensor]:
        found, rows = net(tokens, output_hidden_states=True), torch.arange(len(tokens))
        states = found.hidden_states[-2]
        return {
            "at the end": states[rows, end],
            "in the padding": states[rows, later],
            "in the whole": found.text_embeds,
        }

    return read_from


def main(folder: Path) -> None:
    """Make, train and write them."""
    shipped = pipeline_folder("shapes")
    vae = load_network(shipped / "vae", AutoencoderKL, VAE)
    vae.register_to_config(shift_factor=0.0)  # which its pipeline adds
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    made = load_tokenizer(shipped / "tokenizer")
    for seed, number in enumerate(("", "_2")):
        torch.manual_seed(seed)
        net = CLIPTextModelWithProjection(sizes(made, layers=3))
        learn(folder / f"text{number}", made, net, reader(net), PLAN._replace(steps=1100))
        net.save_pretrained(folder / f"text_encoder{number}", safe_serialization=True)
        made.save_pretrained(folder / f"tokenizer{number}")


if __name__ == "__main__":
    main(command_folder())
