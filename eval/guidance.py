"""How well a student told its guidance does in one pass what guidance does in two.

    python eval/guidance.py runs/digits-agd runs/digits-guidance > eval/results/guidance.md

From the same noise and labels, 32 Euler steps each: the root mean square distance of end points to
the guided teacher's, divided by the unguided teacher's distance to them. 0 is guidance itself, 1 is
none of it.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from stepdistill.data.loader import stream
from stepdistill.denoiser import AnyDenoiser
from stepdistill.networks.views import trainable
from stepdistill.runs.stages import TrainedRun, reopen
from stepdistill.teachers.teacher import teacher_sampler

GUIDANCES = (1.5, 3.0, 5.0)
IMAGES, STEPS, SEED = 500, 32, 77


@torch.no_grad()
def ends(session: TrainedRun, denoiser: AnyDenoiser) -> Tensor:
    """Where the same noise ends, (IMAGES, *event)."""
    noise = torch.randn(IMAGES, *session.teacher.event, generator=stream(SEED))
    cond, sampler = session.teacher.some(IMAGES), teacher_sampler(session.teacher)
    return sampler.draw(denoiser, noise, STEPS, cond, None)


def ratio(session: TrainedRun, w: float) -> float:
    """RMSE to the guided ends, in units of the unguided teacher's."""
    teacher = session.teacher
    plain = ends(session, teacher.denoiser)
    guided = ends(session, replace(teacher.guided, w=w))
    told = ends(session, replace(session.student, w=w))
    return float((told - guided).square().mean().sqrt() / (plain - guided).square().mean().sqrt())


def share(session: TrainedRun) -> float:
    """Trained parameters, of the teacher's."""
    moved = sum(p.numel() for p in trainable(session.student.net))
    return moved / sum(p.numel() for p in session.teacher.pipeline.unet.parameters())


def main(folders: list[Path]) -> None:
    print("# Guidance in one pass\n\n```text\n" + __doc__ + "```\n")
    print(f"| run | trained | {' | '.join(f'w = {w:g}' for w in GUIDANCES)} |")
    print("|---|---:|" + "---:|" * len(GUIDANCES))
    for folder in folders:
        session = reopen(folder, Accelerator(cpu=True))
        cells = [f"{ratio(session, w):.3f}" for w in GUIDANCES]
        print(f"| `{folder.name}` | {100 * share(session):.1f} % | {' | '.join(cells)} |")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
