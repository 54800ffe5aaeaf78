"""Trains the adversarial cycle, f-distill and dropout, and writes their states:
python parallel_worker.py < JOBS.json

A job is [OUT, numbers of accumulated micro-batches, environment], with torch.distributed's
variables if it is a rank; each number makes one file OUT-N. All jobs train at once, in forks of
this process, which has imported everything and trains nothing itself. It fails if one of them does.
"""

import json
import os
import sys
import traceback
from copy import deepcopy
from dataclasses import replace

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from toys import AdversarialCycle, tiny_images, tiny_players

from stepdistill.method import Method, Players
from stepdistill.methods.consistency_training import ConsistencyTraining
from stepdistill.methods.f_distill import FDistill
from stepdistill.training.trainer import Optimiser, Trainer, Training

METHODS = {
    "cycle": AdversarialCycle(),
    "f_distill": FDistill(ratio=2, bins=2, memory=0.5),
    "dropout": ConsistencyTraining(),
}
TURNS = 6
RESUMED = 4  # after a student's turn: its sample is carried over the interruption


def main(out: str, accumulations: list[int]) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for accumulation in accumulations:
        tensors = {
            f"{name}/{key}": tensor
            for name, method in METHODS.items()
            for key, tensor in trained(accelerator, accumulation, name, method).items()
        }
        if accelerator.is_main_process:
            save_file(tensors, f"{out}-{accumulation}")
    accelerator.end_training()


def players_of(name: str) -> Players:
    """The players of a method; "dropout" has a student with some, and an average of it."""
    players = tiny_players()
    if name == "dropout":
        for part in players.student.net.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.3
        target = replace(players.student, net=deepcopy(players.student.net))
        return replace(players, critic=None, target=target)
    return players


def trained(
    accelerator: Accelerator, accumulation: int, name: str, method: Method
) -> dict[str, torch.Tensor]:
    training = Training(
        updates=100,
        batch=4,
        accumulation=accumulation,
        optimiser=Optimiser(lr=1e-3, clip=0.5),
        critic_optimiser=Optimiser(lr=1e-3),
    )

    def fresh() -> Trainer:
        return Trainer(method, players_of(name), tiny_images(), training, accelerator, (5,))

    first, trainer = fresh(), fresh()
    norms = [first.step().gradient_norm for _ in range(RESUMED)]
    trainer.restore(first.state())
    norms += [trainer.step().gradient_norm for _ in range(TURNS - RESUMED)]
    tensors = {k: v for k, v in trainer.state().tensors.items() if not k.startswith("carry")}
    tensors["norms"] = torch.tensor(norms, dtype=torch.float64)
    return {k: v.contiguous().clone() for k, v in tensors.items()}


def start(out: str, accumulations: list[int], environment: dict[str, str]) -> int:
    """The process that does a job."""
    if (child := os.fork()) > 0:
        return child
    os.environ.update(environment)
    try:
        main(out, accumulations)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    children = [start(*job) for job in json.load(sys.stdin)]
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
