"""Reading a run: what fits, and one clear line for everything that does not."""

import pytest
from omegaconf import OmegaConf

from stepdistill.config import ConfigError, Run, read, structured, text_of
from stepdistill.methods.consistency import Consistency
from stepdistill.shipped import shipped, shipped_names
from stepdistill.times import Grid

NAMES = shipped_names("configs", ".yaml")
GOOD = "name: x\nteacher: digits\nstages:\n  - method: consistency\n"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_is_named_like_its_file_and_survives_a_round_trip(name, tmp_path):
    run = read(name)
    assert run.name == name
    (tmp_path / "again.yaml").write_text(text_of(run))
    assert read(str(tmp_path / "again.yaml")) == run
    assert read(str(shipped("configs") / f"{name}.yaml")) == run


def test_there_are_shipped_configs():
    assert {"demo", "digits-consistency", "digits-teacher", "digits-teacher-vp"} <= set(NAMES)


def test_settings_reach_the_method(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + "    settings: {steps: 7, solver: ddim, grid: {name: karras, rho: 5}}\n")
    method = read(str(file), ("stages.0.training.optimiser.lr=3e-4",)).stages[0]
    assert method.build() == Consistency(7, Grid("karras", rho=5.0), "ddim")
    assert method.training.optimiser.lr == 3e-4


BAD = {
    "unknown key": ("stagez: []", "'stagez'"),
    "suggestion": ("guidanse: 2", "guidance"),
    "wrong type": ("seed: many", "seed"),
    "negative seed": ("seed: -1", "seed"),
    "unknown choice": ("precision: fp8", "precision"),
    "two sources": ("network: {unet: {}}", "teacher, network"),
    "folder name": ("name: a/b", "name"),
    "blocks": ("evaluation: {blocks: 1}", "evaluation.blocks"),
    "steps not offered": ("evaluation: {steps: [3]}", "evaluation.steps"),
    "zero steps": ("sampler: {steps: [0]}", "sampler.steps"),
    "dropout": ("data: {dropout: 1.0}", "data.dropout"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys_and_values_are_named(case, tmp_path):
    text, named = BAD[case]
    file = tmp_path / "bad.yaml"
    both = OmegaConf.merge(OmegaConf.create(GOOD), OmegaConf.create(text))
    file.write_text(OmegaConf.to_yaml(both))
    with pytest.raises(ConfigError) as caught:
        read(str(file))
    message = str(caught.value)
    assert named in message and "\n" not in message and len(message) < 300


STAGES = {
    "unknown setting": ("settings.stepz=3", "steps"),
    "wrong setting": ("settings.steps=few", "steps"),
    "refused setting": ("settings.solver=dpmpp", "dpmpp"),
    "unknown method": ("method=consistancy", "consistancy"),
    "updates": ("training.updates=0", "training.updates"),
    "lr": ("training.optimiser.lr=0", "optimiser.lr"),
    "average": ("training.average=1.0", "training.average"),
    "betas": ("training.optimiser.betas=[0.9]", "bet"),
    "unknown training key": ("training.upd=3", "upd"),
}


@pytest.mark.parametrize("case", STAGES)
def test_bad_stages_are_named(case):
    override, named = STAGES[case]
    with pytest.raises(ConfigError) as caught:
        read("demo", (f"stages.0.{override}",))
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "a: [1\n", "name: {\n", "5"])
def test_files_that_are_no_mapping(text, tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="odd.yaml"):
        read(str(file))


def test_missing_files_and_overrides_without_a_value():
    with pytest.raises(ConfigError, match="demo"):  # the shipped names are listed
        read("no-such-config")
    with pytest.raises(ConfigError, match="key=value"):
        read("demo", ("seed",))


def test_defaults_are_a_valid_structure():
    assert structured(Run, {}) == Run()
