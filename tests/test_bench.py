"""Step cost: one student update against its network passes counted by formula, in one process.

    consistency    student forward+backward, target forward, teacher × guidance (1|2) × solver (1|2)

The median over repeats of update and passes in turn, so that a drift of the clock hits both sides.
Run on an idle machine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from accelerate import Accelerator

from stepdistill.averages import trainable
from stepdistill.config import read
from stepdistill.session import Session

LIMIT = 1.08
REPEATS = 40
CASES = {
    "heun": (),
    "ddim": ("stages.0.settings.solver=ddim",),
    "heun, guided": ("guidance=2",),
    "target: self": ("stages.0.training.target=0",),
}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def formula(session: Session) -> tuple[Callable[[], None], Callable[[], None]]:
    """(one trained pass, one frozen pass) of the student's network at the run's batch size."""
    net = session.trainer.players.student.net
    size = session.run.stages[0].training.batch
    x, t = torch.randn(size, *session.teacher.event), torch.rand(size) * 1000
    labels = session.teacher.labels(size)

    def trained() -> None:
        net(x, t, class_labels=labels).sample.square().mean().backward()
        for p in net.parameters():
            p.grad = None

    def frozen() -> None:
        with torch.no_grad():
            net(x, t, class_labels=labels)

    return trained, frozen


@pytest.mark.bench
@pytest.mark.parametrize("case", CASES)
def test_an_update_costs_its_passes(case, figure):
    torch.set_num_threads(2)
    run = read("demo", CASES[case])
    session = Session(run, Path("."), Accelerator(cpu=True))
    trained, frozen = formula(session)
    passes = session.trainer.method.passes(run.sampler)
    forwards = passes.frozen + passes.teacher * session.teacher.nfe
    for p in trainable(session.trainer.players.student.net):
        p.requires_grad_(True)
    for warm in (session.trainer.step, trained, frozen):
        warm()
    update, counted = [], []
    for _ in range(REPEATS):
        update.append(seconds(session.trainer.step))
        counted.append(seconds(trained) + sum(seconds(frozen) for _ in range(forwards)))
    ratio = median(u / c for u, c in zip(update, counted))
    figure(f"update / passes, {case}", ratio)
    figure(f"update, {case}", median(update) * 1000, "ms")
    assert ratio <= LIMIT
