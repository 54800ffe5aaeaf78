"""Persistent memory of DMD2 with full copies and with adapters, measured and as `plan` predicts it.

    python eval/memory.py > eval/results/memory.md

Weights, gradients, optimiser states and averages of all roles after one cycle of training, as the
sum of their distinct storages; float32, Adam, rank 16, a UNet of more than 50 million parameters
with random weights.
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
DMD2 = "{method: dmd2, settings: {ratio: 1}, training: {updates: 1, batch: 2}}"
SHARING = {"full copies": (), "adapters, rank 16": ("adapters.rank=16",)}


@dataclass(frozen=True)
class Memory:
    """Bytes. base: the teacher's weights. measured: all roles. planned: what `plan` says."""

    base: int
    measured: int
    planned: int


def measure(overrides: tuple[str, ...]) -> Memory:
    """One cycle of DMD2 on a new large network."""
    with tempfile.TemporaryDirectory() as folder:
        disable_progress_bar()
        new_pipeline(UNET, "FlowMatchEulerDiscreteScheduler", {}, 0).save_pretrained(folder)
        shape = (f"stages=[{DMD2}]", "sampler.steps=[1]", "evaluation.steps=[1]")
        run = read("smoke", (f"teacher={folder}", *shape, *overrides))
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
    print("| roles | teacher's weights | all roles | of the teacher's weights | `plan` says |")
    print("|---|---:|---:|---:|---:|")
    for name, overrides in SHARING.items():
        seen = measure(overrides)
        sizes = [f"{value / 2**20:.0f} MiB" for value in (seen.base, seen.measured)]
        planned = f"{seen.planned / 2**20:.0f} MiB"
        print(f"| {name} | {' | '.join(sizes)} | {seen.measured / seen.base:.2f}× | {planned} |")


if __name__ == "__main__":
    main()
