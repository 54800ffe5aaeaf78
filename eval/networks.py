"""Which network the embedded teacher should be: equal wall time, scored at 4 and 32 Euler steps.

    python eval/networks.py SECONDS eval/results/teacher-networks.md

Every candidate is trained from scratch by the method `diffusion` for SECONDS on this machine, then
scored like every other model (n = 3 × 1,000). Run on an idle machine.
"""

import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor

from stepdistill.conditions import Cond
from stepdistill.data.loader import InMemory, Loader
from stepdistill.data.sources import digits
from stepdistill.denoiser import Denoiser, Weight
from stepdistill.evaluation.evaluate import evaluate
from stepdistill.evaluation.suites.digits import KIND
from stepdistill.jobs.samplers import of_student
from stepdistill.jobs.suites import load
from stepdistill.method import Players
from stepdistill.methods.diffusion import Diffusion
from stepdistill.networks.views import load_own
from stepdistill.process import RectifiedFlow
from stepdistill.solver import Sampler
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.trainer import Optimiser, Trainer, Training


def unet(channels: tuple[int, ...], attention: bool) -> UNet2DModel:
    """A UNet with one layer per block on 8×8 pictures."""
    kind = "Attn" if attention else ""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", f"{kind}DownBlock2D"),
        up_block_types=(f"{kind}UpBlock2D", "UpBlock2D"),
        add_attention=attention,
        norm_num_groups=8,
        num_class_embeds=11,
    )


def dit(width: int, depth: int) -> DiTTransformer2DModel:
    """A diffusion transformer on 2×2 patches: 16 tokens."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=width // 4,
        in_channels=1,
        out_channels=1,
        num_layers=depth,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )


CANDIDATES = {
    "UNet 32, 32": lambda: unet((32, 32), attention=False),
    "UNet 32, 64, attention": lambda: unet((32, 64), attention=True),
    "UNet 64, 64": lambda: unet((64, 64), attention=False),
    "DiT 64 × 6": lambda: dit(64, 6),
}


def call(net: torch.nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
    """Both kinds' calling convention."""
    return net(x, timestep=t, class_labels=cond["label"], return_dict=False)[0]


def trained(net: torch.nn.Module, seconds: float) -> tuple[Denoiser, int]:
    """The averaged denoiser after `seconds` of training, and its updates."""
    images, labels = digits.load()
    denoiser = Denoiser(net.eval(), RectifiedFlow(), "flow", call, time=lambda t: 1000 * t)
    training = Training(
        updates=10**6, batch=128, ema=0.998, optimiser=Optimiser(lr=2e-3, warmup=100)
    )
    data = Loader(InMemory(images, labels), digits_teacher(), dropout=0.1)
    trainer = Trainer(Diffusion(), Players(denoiser), data, training, Accelerator(cpu=True))
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        trainer.step()
    load_own(net, trainer.averaged())
    return denoiser, trainer.update


def digits_teacher() -> Teacher:
    """Of which the candidates have labels and pixels, and no more."""
    return Teacher.from_pipeline(load_pipeline("digits"))


def row(name: str, seconds: float) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    denoiser, updates = trained(CANDIDATES[name](), seconds)
    euler = Sampler((), gamma=0.0)

    field = [of_student("student", denoiser, euler, n, digits_teacher()) for n in (4, 32)]
    four, many, _ = evaluate(field, load("digits", KIND), 1000, 3, seed=7)
    distances = f"{four.value('frechet'):.3f} | {many.value('frechet'):.3f}"
    scores = f"{distances} | {many.value('frechet_random'):.4f}"
    size = sum(p.numel() for p in denoiser.net.parameters())
    speed = 1000 * many.seconds
    return f"| {name} | {size:,} | {updates} | {scores} | {speed:.2f} |"


def main(seconds: float, out: Path) -> None:
    head = [
        "# Candidates for the embedded teacher\n",
        f"`python eval/networks.py {seconds:g} {out}`: each trained for {seconds:g} s on 2 cores, "
        "n = 3 × 1,000.\n",
        "| network | parameters | updates | Fréchet, 4 steps | Fréchet, 32 steps "
        "| random-conv, 32 steps | ms per image, 32 steps |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = []
    for name in CANDIDATES:
        rows.append(row(name, seconds))
        out.write_text("\n".join(head + rows) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
