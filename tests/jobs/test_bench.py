"""Step cost: one student update against its network passes counted by formula, in one process.

    consistency    student forward+backward, target forward, teacher × guidance (1|2) × solver (1|2)
    dmd2           student turn: (k − 1) student forward, student forward+backward, teacher × (1|2),
                   critic forward (+ backward with GAN); critic turn: k student forward (none if
                   carried), critic forward+backward (twice with GAN: our one pass both denoises
                   and judges), k the step drawn

The median over repeats of update and passes in turn, so that a drift of the clock hits both sides.
Run on an idle machine.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import fmean, median

import pytest
import torch
from accelerate import Accelerator

from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages

LIMIT = 1.08
SECONDS = 15  # of repeats
CASES = {
    "consistency, heun": (),
    "consistency, ddim": ("stages.0.settings.solver=ddim",),
    "consistency, heun, guided": ("guidance=2",),
    "consistency, target: self": ("stages.0.training.target_ema=0",),
    "dmd2": ("stages.1.settings={}",),
    "dmd2, no GAN": ("stages.1.settings={gan: 0, gan_critic: 0}",),
    "dmd2, guided": ("stages.1.settings={}", "guidance=2"),
    "dmd2, 1 to 4 steps": ("stages.1.settings={}", "sampler.steps=[4]", "evaluation.steps=[4]"),
}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def formula(session: Stages) -> tuple[Callable[[], None], Callable[[], None]]:
    """(one trained pass, one frozen pass) of the student's network at the run's batch size."""
    net = deepcopy(session.trainer.players.student.net).requires_grad_(True)
    size = session.setup.run.stages[0].training.batch
    x, t = torch.randn(size, *session.teacher.event), torch.rand(size) * 1000
    cond = session.teacher.some(size)

    def trained() -> None:
        net(x, t, class_labels=cond["label"]).sample.square().mean().backward()
        for p in net.parameters():
            p.grad = None

    def frozen() -> None:
        with torch.no_grad():
            net(x, t, class_labels=cond["label"])

    return trained, frozen


def session(case: str) -> Stages:
    """The demo's stage of the case's method, at its first update."""
    made = Stages.of(read("demo", CASES[case]), Path("."), Accelerator(cpu=True))
    if case.startswith("dmd2"):
        made.next_stage()
    return made


def drawn(case: str) -> bool:
    """Whether chance decides what an update costs, so that only the mean is known."""
    return "1 to 4 steps" in case


@pytest.mark.bench
@pytest.mark.parametrize("case", CASES)
def test_an_update_costs_its_passes(case, figure):
    torch.set_num_threads(2)
    made = session(case)
    trained, frozen = formula(made)
    passes = made.trainer.method.passes(made.setup.run.sampler)
    forwards = passes.frozen + passes.teacher * made.teacher.nfe

    def update() -> None:
        for _ in made.trainer.turns:
            made.trainer.step()

    for warm in (update, trained, frozen):
        warm()
    taken, ratios, stop = [], [], time.perf_counter() + SECONDS
    while time.perf_counter() < stop:
        taken.append(seconds(update))
        passed = passes.trained * seconds(trained) + forwards * seconds(frozen)
        ratios.append(taken[-1] / passed)
    ratio = (fmean if drawn(case) else median)(ratios)
    figure(f"update / passes, {case}", ratio)
    figure(f"update, {case}", median(taken) * 1000, "ms")
    assert ratio <= LIMIT
