"""Every shipped config can be trained, and its student exported: a rehearsal of each."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from rehearse import rehearse, short

from stepdistill.export import export as exporting
from stepdistill.export.export import export
from stepdistill.resources import shipped_names
from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages

pytestmark = [pytest.mark.xdist_group("caller"), pytest.mark.usefixtures("warm")]

CONFIGS = shipped_names("configs", ".yaml")


def test_there_is_a_demo():
    assert "demo" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_and_exports(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(exporting, "CHECKED", 2)
    run = read(name)
    assert run.name == name
    trained = rehearse(run, tmp_path)
    assert trained.stage == len(run.stages) - 1 and trained.update >= 1 and trained.skipped == 0
    assert export(trained, tmp_path / "student") <= exporting.TOLERANCE
    assert (tmp_path / "student" / "model_index.json").stat().st_size > 0


def test_a_wide_difference_stays_inside_a_table(tmp_path: Path):
    """A table ends before TrigFlow does, and its network is never asked beyond."""
    run = short(read("digits-scm", ("teacher=digits-vp",)), batch=32)
    trainer = Stages.of(run, tmp_path, Accelerator(cpu=True)).trainer
    assert not trainer.step().skipped
