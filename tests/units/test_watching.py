"""What watching a run costs: network passes counted at tiny networks, beside what is planned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from diffusers import UNet2DModel

from stepdistill.networks.views import bare
from stepdistill.resources import shipped_names
from stepdistill.runs import setup
from stepdistill.runs.config import read
from stepdistill.runs.plan import walk
from stepdistill.runs.stages import Stages
from stepdistill.training.health.monitor import Monitor

TINY = {"block_out_channels": [8, 8], "norm_num_groups": 4}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped teachers, with networks of a few thousand parameters."""
    load = setup.load_pipeline

    def small(source: str):
        pipeline = load(source)
        config = dict(pipeline.unet.config) | TINY
        pipeline.register_modules(unet=UNet2DModel.from_config(config).eval())
        return pipeline

    monkeypatch.setattr(setup, "load_pipeline", small)


class Rows:
    """Counts samples through networks: forward as one, backward as two."""

    def __init__(self, stages: Stages) -> None:
        self.count, players = 0, stages.trainer.players
        denoisers = [stages.teacher.denoiser, players.student, players.target]
        denoisers += [mover.denoiser for mover in (players.critic, players.discriminator) if mover]
        for net in {bare(denoiser.net) for denoiser in denoisers if denoiser}:
            net.conv_in.register_forward_hook(lambda m, x, y: self.add(len(y)))
            net.conv_in.register_full_backward_hook(lambda m, x, y: self.add(2 * len(y[0])))

    def add(self, rows: int) -> None:
        self.count += rows

    def of(self, *actions: Callable) -> int:
        """What these actions cost."""
        before = self.count
        for action in actions:
            action()
        return self.count - before


def share_of_watching(stages: Stages, batch: int) -> float:
    """What the monitor of a stage adds to its training, both counted in samples."""
    trainer, few = stages.trainer, stages.trainer.training.batch
    rows, monitor = Rows(stages), Monitor(stages.setup.run.health, trainer, stages.teacher)
    monitor.plan = plan_at(monitor, batch)
    cycle = rows.of(*[trainer.step] * len(trainer.turns))
    turn = rows.of(trainer.step)
    rows.of(*[trainer.step] * (len(trainer.turns) - 1))
    # Where chance decides what an update costs, the one compared may be the cheaper.
    compared = max(rows.of(lambda: trainer.step(compare_terms=True)) - turn, 0)
    once = rows.of(lambda: monitor.reference)
    probe = rows.of(monitor.against_teacher)
    fewest, guided = min(stages.setup.run.sampler.steps, default=1), monitor.teacher.w != 1
    every, samples, steps = monitor.plan
    assert probe == samples * fewest
    # Guided samples, and then the plain ones beside them.
    assert once == steps * samples * (monitor.teacher.nfe + guided)
    updates = trainer.training.updates
    later = updates // every * (probe + compared * batch / few)
    return (once + probe + later) / (updates * cycle * batch / few)


def plan_at(monitor: Monitor, batch: int):
    """What is watched at the batch of the config, not at the one counted with."""
    kept = monitor.trainer.training
    monitor.trainer.training = replace(kept, batch=batch)
    try:
        return monitor.plan
    finally:
        monitor.trainer.training = kept


def is_watched(name: str) -> bool:
    """Whether a shipped config's stages are compared with a teacher, and trained for long.

    And can be counted: the first layer of a frozen network sees no backward."""
    methods = [stage.build() for stage in read(name).stages]
    taught = all("teacher" in m.needs.players and "adapters" not in m.needs.inputs for m in methods)
    return taught and name != "smoke"


# One config of each sequence of methods, on digits.
DISTILLED = {
    tuple(stage.method for stage in read(name).stages): name
    for name in shipped_names("configs", ".yaml")
    if name.startswith("digits-") and is_watched(name)
}.values()


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", DISTILLED)
def test_watching_costs_at_most_three_hundredths_of_training(name, tiny, tmp_path: Path, figure):
    run = read(name)
    stages = [replace(s, training=replace(s.training, batch=64)) for s in run.stages]
    made = Stages.of(replace(run, stages=stages), tmp_path, Accelerator(cpu=True))
    made.rehearse_cache()
    for _ in walk(made):
        share = share_of_watching(made, run.stages[made.stage].training.batch)
        figure(f"share of {made.settings.method}, stage {made.stage + 1}", share)
        assert 0 < share <= 0.03
