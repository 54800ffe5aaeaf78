"""The loop of eval/shapes_vae.py and eval/shapes_text.py: Adam, an average, and a checkpoint that a
stopped training goes on from, bit for bit on as many threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepdistill.data.loader import stream
from stepdistill.networks.ema import EMA

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
    file = folder / "checkpoint.pt"
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        trained.load_state_dict(kept["net"])
        adam.load_state_dict(kept["adam"])
        average.averaged, average.updates, step = kept["average"], kept["step"], kept["step"]
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
            print(f"{folder.name} {step}/{plan.steps}: {mean(seen):.5f}, {spent:.0f} s", flush=True)
            seen = []
            keep(file, {"net": trained.state_dict(), "adam": adam.state_dict()}, average, step)
    with torch.no_grad():
        for parameter, mean_value in zip(parameters, average.averaged, strict=True):
            parameter.copy_(mean_value)


def keep(file: Path, states: dict, average: EMA, step: int) -> None:
    """Write a checkpoint, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(states | {"average": average.averaged, "step": step}, partial)
    os.replace(partial, file)


def mean(values: Sequence[float]) -> float:
    """Of some losses."""
    return sum(values) / len(values)


def command_folder() -> Path:
    """The folder that the command names, on one thread, as the shipped parts were trained."""
    torch.set_num_threads(1)
    return Path(sys.argv[1])
