"""The loop of eval/shapes_vae.py and eval/shapes_text.py: Adam, an average, and a checkpoint that a
stopped training goes on from, bit for bit on as many threads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stepdistill.data.loader import stream
from stepdistill.files import save_whole
from stepdistill.networks.ema import EMA
from stepdistill.training.trainer import slots_of

EVERY = 100  # steps between checkpoints, and lines of the log


class Plan(NamedTuple):
    """steps: with a batch each. lr: constant, and falling to a hundredth over the last `fall`.
    decay: of the average of weights."""

    steps: int
    batch: int
    lr: float
    fall: float = 0.75
    decay: float = 0.995

    def rate(self, step: int) -> float:
        """Of a step, after a warm-up of 20."""
        begin = self.steps * (1 - self.fall)
        part = max(0.0, (step - begin) / (self.steps - begin))
        return self.lr * min(1.0, (step + 1) / 20) * (1 - 0.99 * part)


def train(
    folder: Path, trained: nn.ModuleList, loss: Callable[[int, torch.Generator], Tensor], plan: Plan
) -> None:
    """Train the parameters that want gradients; loss: of a batch drawn from a generator. At the end
    `trained` holds their averages, and the folder the checkpoint of the end."""
    parameters = [p for p in trained.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=plan.lr, betas=(0.9, 0.99), weight_decay=0)
    average, step = EMA([p.detach().clone() for p in parameters], plan.decay), 0
    file = folder / "checkpoint.safetensors"
    if file.is_file():
        step = restore(load_file(file), trained, adam, average)
    start, seen = time.perf_counter(), []
    while step < plan.steps:
        adam.param_groups[0]["lr"] = plan.rate(step)
        value = loss(plan.batch, stream(0, 9, step))
        adam.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        average.update(parameters)
        step += 1
        seen.append(value.item())
        if step % EVERY == 0 or step == plan.steps:
            spent = time.perf_counter() - start
            done = f"{folder.name} {step}/{plan.steps}"
            print(f"{done}: {fmean(seen):.5f}, {spent:.0f} s", flush=True)
            seen = []
            folder.mkdir(parents=True, exist_ok=True)
            save_whole(file, state(trained, adam, average))
    with torch.no_grad():
        for parameter, mean in zip(parameters, average.averaged, strict=True):
            parameter.copy_(mean)


def state(trained: nn.Module, adam: torch.optim.Optimizer, average: EMA) -> dict[str, Tensor]:
    """All that a training goes on from."""
    tensors = {f"net/{name}": value for name, value in trained.state_dict().items()}
    for i, slot in adam.state_dict()["state"].items():
        tensors |= {f"adam/{i}/{name}": value for name, value in slot.items()}
    tensors |= {f"average/{i}": mean for i, mean in enumerate(average.averaged)}
    return tensors | {"step": torch.tensor(average.updates)}


def restore(
    tensors: dict[str, Tensor], trained: nn.Module, adam: torch.optim.Optimizer, average: EMA
) -> int:
    """Go on from a state; the steps that are done."""
    trained.load_state_dict({name: tensors[f"net/{name}"] for name in trained.state_dict()})
    slots = slots_of({k: v for k, v in tensors.items() if k.startswith("adam/")})
    adam.load_state_dict(adam.state_dict() | {"state": slots})
    average.averaged = [tensors[f"average/{i}"] for i in range(len(average.averaged))]
    average.updates = int(tensors["step"])
    return average.updates


def command_folder() -> Path:
    """The folder that the command names, on one thread, as the shipped parts were trained."""
    torch.set_num_threads(1)
    return Path(sys.argv[1])
