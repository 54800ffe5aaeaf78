"""Persistent memory of DMD2 with full copies and with adapters, measured and as `plan` predicts it.

    python eval/memory.py > eval/results/memory.md

Weights, gradients, optimiser states and averages of all roles after one cycle of training, as the
sum of their distinct storages; float32, Adam, rank 16, U-Nets of more than 50 million parameters
with random weights, one of labels and one in the layout of Stable Diffusion.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor

from stepdistill.runs.config import read
from stepdistill.runs.costs import held
from stepdistill.runs.stages import Stages
from stepdistill.teachers.loading import new_pipeline

UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": (256, 512),
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
    "num_class_embeds": 11,
}
CONDITIONED = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (160, 320, 480),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
}
DMD2 = "{method: dmd2, settings: {ratio: 1%s}, training: {updates: 1, batch: 2}}"
STAGES = {"smoke": DMD2 % "", "shapes-tdm-lora": DMD2 % ", gan: 0, gan_critic: 0"}
# By the config that they are trained as: the network, its scheduler, and whose other parts it has.
NETWORKS = {
    "smoke": (UNET, "FlowMatchEulerDiscreteScheduler", None),
    "shapes-tdm-lora": (CONDITIONED, "DDIMScheduler", "shapes"),
}
ADAPTERS = "{rank: 16, roles: [student, critic], targets: []}"
SHARING = {"full copies": "null", "adapters, rank 16": ADAPTERS}


@dataclass(frozen=True)
class Memory:
    """Bytes. base: the teacher's weights. measured: all roles. planned: what `plan` says."""

    base: int
    measured: int
    planned: int


def measure(config: str, adapters: str) -> Memory:
    """One cycle of DMD2 on a new large network."""
    net, scheduler, parts = NETWORKS[config]
    with tempfile.TemporaryDirectory() as folder:
        disable_progress_bar()
        new_pipeline(net, scheduler, {}, 0, parts).save_pretrained(folder)
        shape = (f"stages=[{STAGES[config]}]", "sampler.steps=[1]", "evaluation.steps=[1]")
        run = read(config, (f"teacher={folder}", *shape, f"adapters={adapters}"))
        stages = Stages.of(run, Path("."), Accelerator(cpu=True))
    for _ in stages.trainer.turns:
        stages.trainer.step()
    named = stages.teacher.denoiser.net.named_parameters()
    base = sum(p.untyped_storage().nbytes() for name, p in named if ".lora_" not in name)
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in persistent(stages)}
    total = sum(storage.nbytes() for storage in kept.values())
    return Memory(base, total, sum(each.bytes for each in held(stages.trainer, stages.teacher)))


def persistent(stages: Stages) -> Iterator[Tensor]:
    """Every tensor that lives from update to update."""
    trainer = stages.trainer
    for net in (stages.teacher.denoiser.net, *trainer.nets.values()):
        for parameter in net.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
    for optimiser in trainer.optimisers.values():
        for slot in optimiser.state.values():
            yield from (value for value in slot.values() if isinstance(value, Tensor))
    yield from trainer.ema.averaged
    if trainer.target is not None:
        yield from trainer.target.averaged


def main() -> None:
    torch.manual_seed(0)
    print("# Persistent memory of DMD2\n\n`python eval/memory.py > eval/results/memory.md`\n")
    print("| network | roles | its weights | all roles | of its weights | `plan` says |")
    print("|---|---|---:|---:|---:|---:|")
    for config, kind in (("smoke", "of labels"), ("shapes-tdm-lora", "Stable Diffusion's layout")):
        for name, adapters in SHARING.items():
            seen = measure(config, adapters)
            base, total, planned = (
                f"{value / 2**20:.0f} MiB" for value in (seen.base, seen.measured, seen.planned)
            )
            share = f"{seen.measured / seen.base:.2f}×"
            print(f"| {kind} | {name} | {base} | {total} | {share} | {planned} |")


if __name__ == "__main__":
    main()
