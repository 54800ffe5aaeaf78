"""Whole jobs from Python, cut short: a table teacher, and adapters through five stages.

`smoke` is the job of test_cli, two runs in one table that of test_compare.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rehearse import short
from safetensors.torch import load_file

import stepdistill
from stepdistill.export.export import TOLERANCE
from stepdistill.resources import PACKAGE
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError

pytestmark = [pytest.mark.xdist_group("caller"), pytest.mark.usefixtures("warm")]


@pytest.mark.parametrize("name", ["digits-dmd2-vp", "digits-tscd", "digits-agd"])
def test_a_whole_job(name: str, tmp_path: Path):
    run = short(stepdistill.read(name))
    result = stepdistill.distill(run, tmp_path)
    scored = {row.steps for row in result.rows if row.model == "student"}
    assert scored == set(run.evaluation.steps)
    assert result.difference <= TOLERANCE
    for made in ("results.json", "report.md", "report.html", "student/model_index.json"):
        assert (tmp_path / name / made).stat().st_size > 0, made


def shorter(run, updates, **changes):
    """A run of one stage, trained for so many updates at one rate."""
    (stage,) = short(run).stages
    steady = replace(stage.training.optimiser, schedule="constant")
    training = replace(stage.training, updates=updates, optimiser=steady)
    return replace(short(run), stages=[replace(stage, training=training)], **changes)


def test_a_finished_run_goes_on_as_the_longer_one(tmp_path: Path):
    """Bit for bit, for its rate does not fall; asked for, and no other change."""
    smoke = stepdistill.read("smoke")
    run, longer = shorter(smoke, 2), shorter(smoke, 4)
    stepdistill.distill(run, tmp_path / "a")
    first = weights(tmp_path / "a" / run.name)
    with pytest.raises(ConfigError, match=r"updates: 2 there, 4 here: --extend goes on with it"):
        stepdistill.distill(longer, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"updates: 2 there, 1 here: choose another name"):
        stepdistill.distill(shorter(smoke, 1), tmp_path / "a", extend=True)
    with pytest.raises(ConfigError, match=r"seed: 0 there, 7 here: choose another name"):
        stepdistill.distill(replace(longer, seed=7), tmp_path / "a", extend=True)
    assert equal(first, weights(tmp_path / "a" / run.name))

    went_on = stepdistill.distill(longer, tmp_path / "a", extend=True)
    whole = stepdistill.distill(longer, tmp_path / "b")
    assert equal(weights(went_on.folder), weights(whole.folder))
    assert not equal(first, weights(whole.folder))
    assert [row.scores for row in went_on.rows] == [row.scores for row in whole.rows]
    assert stepdistill.distill(longer, tmp_path / "a", extend=True).seconds == went_on.seconds


def test_a_run_begins_from_an_earlier_student(tmp_path: Path):
    smoke = stepdistill.read("smoke")
    earlier = stepdistill.distill(shorter(smoke, 2), tmp_path)
    again = shorter(smoke, 1, name="again", student=str(earlier.folder))
    began = Stages.of(again, tmp_path / "again", Accelerator(cpu=True))
    assert equal(began.trainer.averaged(), weights(earlier.folder))
    by_folder = replace(again, student=str(earlier.student))
    one, other = (
        stepdistill.distill(run, tmp_path / n) for run, n in ((again, "x"), (by_folder, "y"))
    )
    assert equal(weights(one.folder), weights(other.folder))
    assert not equal(weights(one.folder), weights(earlier.folder))
    others = (tmp_path / "none", "model_index.json"), (PACKAGE / "assets/digits-vp", "student: ")
    for student, words in others:
        with pytest.raises(ConfigError, match=words):
            stepdistill.distill(replace(again, student=str(student)), tmp_path / "z")
    assert not (tmp_path / "z").exists()


def weights(folder: Path):
    return load_file(folder / "student" / "unet" / "diffusion_pytorch_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
