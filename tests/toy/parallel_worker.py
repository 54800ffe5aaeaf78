"""Trains the adversarial cycle and writes its state: python parallel_worker.py OUT ACCUMULATION …

Started once alone, or once for every rank with torch.distributed's environment variables. Each
number of accumulated micro-batches makes one file OUT-N.
"""

import sys

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from toys import AdversarialCycle, tiny_images, tiny_players

from stepdistill.training.trainer import Optimiser, Trainer, Training

TURNS = 6
RESUMED = 4  # after a student's turn: its sample is carried over the interruption


def main(out: str, accumulations: list[int]) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for accumulation in accumulations:
        tensors = trained(accelerator, accumulation)
        if accelerator.is_main_process:
            save_file(tensors, f"{out}-{accumulation}")
    accelerator.end_training()


def trained(accelerator: Accelerator, accumulation: int) -> dict[str, torch.Tensor]:
    training = Training(
        updates=100,
        batch=4,
        accumulation=accumulation,
        optimiser=Optimiser(lr=1e-3, clip=0.5),
        critic_optimiser=Optimiser(lr=1e-3),
    )

    def fresh() -> Trainer:
        return Trainer(
            AdversarialCycle(), tiny_players(), tiny_images(), training, accelerator, (5,)
        )

    first, trainer = fresh(), fresh()
    norms = [first.step().gradient_norm for _ in range(RESUMED)]
    trainer.restore(first.state())
    norms += [trainer.step().gradient_norm for _ in range(TURNS - RESUMED)]
    tensors = {k: v for k, v in trainer.state().tensors.items() if not k.startswith("carry")}
    tensors["norms"] = torch.tensor(norms, dtype=torch.float64)
    return {k: v.contiguous().clone() for k, v in tensors.items()}


if __name__ == "__main__":
    main(sys.argv[1], [int(n) for n in sys.argv[2:]])
