"""Reading a run: what fits, and one clear line for everything that does not."""

import struct
from copy import deepcopy
from dataclasses import replace
from random import Random

import pytest
from omegaconf import OmegaConf

from stepdistill.methods.consistency import Consistency
from stepdistill.resources import shipped, shipped_names
from stepdistill.runs.config import RunConfig, read, text_of
from stepdistill.runs.yaml import load_values, written
from stepdistill.schema import ConfigError, fit
from stepdistill.times import Grid

NAMES = shipped_names("configs", ".yaml")
SETTINGS = "{steps: 16, solver: heun, huber: 0.03, grid: {name: uniform, shift: 1.0, rho: 7.0}}"


def message(source: str, *overrides: str) -> str:
    """What reading a bad run says: always one short line."""
    with pytest.raises(ConfigError) as caught:
        read(source, overrides)
    said = str(caught.value)
    assert "\n" not in said and len(said.replace(source, "")) < 300, said
    return said


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_is_named_like_its_file_and_survives_a_round_trip(name, tmp_path):
    run = read(name)
    assert run.name == name
    (tmp_path / "again.yaml").write_text(text_of(run))
    assert read(str(tmp_path / "again.yaml")) == run
    assert read(str(shipped("configs") / f"{name}.yaml")) == run


def test_there_are_shipped_configs():
    assert {"demo", "digits-consistency", "digits-teacher", "digits-teacher-vp"} <= set(NAMES)


ODD = ["1e5", "no", "null", "2026-01-01", "[a]", "#1", "é✓", "007", "${seed}", "${", "???"]


@pytest.mark.parametrize("name", ODD)
def test_any_name_survives_a_round_trip(name, tmp_path):
    run = replace(read("smoke"), name=name)
    (tmp_path / "again.yaml").write_text(text_of(run))
    assert read(str(tmp_path / "again.yaml")) == run


def test_any_values_survive_a_round_trip(tmp_path):
    rng, file = Random(0), tmp_path / "values.yaml"
    for _ in range(100):
        text = "".join(rng.choices(["\\", "${", "?", "???", "}", "é", "1", "e", ": ", "'"], k=4))
        number = struct.unpack("d", rng.randbytes(8))[0]
        values = {"a": text, "b": [number, -number, 5e-324, 10**18, None, True, {"c": [text, []]}]}
        file.write_text(written(values), encoding="utf-8")
        assert repr(load_values(file)) == repr(values)


def test_one_key_can_refer_to_another(tmp_path):
    file = tmp_path / "refers.yaml"
    file.write_text(text_of(read("smoke")).replace("name: smoke", "name: seed-${seed}"))
    run = read(str(file), ("seed=7", "evaluation.seed=${seed}"))
    assert (run.name, run.evaluation.seed) == ("seed-7", 7)
    assert "name: seed-7\n" in text_of(run)
    assert f"{file}: name: Interpolation key 'sead' not found" == message(str(file), "name=${sead}")
    assert "Recursive interpolation" in message(str(file), "seed=${seed}")
    assert "Missing mandatory value: seed" in message(str(file), "seed=???")


def test_settings_reach_the_method():
    settings = "{steps: 7, solver: ddim, grid: {name: karras, rho: 5}}"
    overrides = (f"stages.0.settings={settings}", "stages.0.training.optimiser.lr=3e-4")
    method = read("demo", overrides).stages[0]
    assert method.build() == Consistency(7, Grid("karras", rho=5.0), "ddim")
    assert method.training.optimiser.lr == 3e-4


def whole() -> dict:
    """A run with every key written out."""
    text = text_of(read("demo", (f"stages.0.settings={SETTINGS}",)))
    return OmegaConf.to_container(OmegaConf.create(text))


def keys(values: object, path: str = "") -> list[tuple[str, object]]:
    """(dotted key, value) of everything below."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    found = []
    for name, value in inner:
        key = f"{path}.{name}" if path else str(name)
        found.append((key, value))
        found += keys(value, key) if isinstance(value, dict | list) else []
    return found


WHOLE = whole()
LEAVES = [(k, v) for k, v in keys(WHOLE) if not isinstance(v, dict)]
WRONG = {
    int: ["many", "'3'", 1.5, "true", "null", "[1]", "{a: 1}", -1, 10**30, ".nan"],
    float: ["many", "'3'", "true", "null", "[1]", "{a: 1}", -1, "-1e300", 10**400, ".nan", ".inf"],
    bool: ["maybe", 1, "null", "[]", "'true'"],
    str: [5, "[]", "{}", "''", '"a\\nb"', "true", ".5"],
    list: [5, "text", "null", "[[]]", "[null]"],
}


def test_the_run_with_every_key_has_settings_of_every_type():
    assert {type(v) for _, v in LEAVES} >= {*WRONG, type(None)}
    assert len([v for _, v in LEAVES if type(v) in (int, float)]) >= 40


def shares() -> dict[str, list]:
    """Wrong values by key: all of each type, dealt out to the keys that have a value of it."""
    by_type: dict[type, list[str]] = {}
    for key, value in LEAVES:
        by_type.setdefault(type(value), []).append(key)
    dealt = {}
    for kind, found in by_type.items():
        wrong = WRONG.get(kind, ["5", "[]"])
        for i, key in enumerate(found):
            dealt[key] = wrong[i :: len(found)] or [wrong[i % len(wrong)]]
    return dealt


DEALT = shares()


def test_every_wrong_value_is_tried_at_some_key_and_every_key_is_tried():
    tried = {repr(wrong) for dealt in DEALT.values() for wrong in dealt}
    assert tried >= {repr(wrong) for values in WRONG.values() for wrong in values}
    assert all(DEALT[key] for key, _ in LEAVES)


@pytest.mark.parametrize("key", DEALT)
def test_values_of_a_wrong_type_or_out_of_range_are_named_by_their_key(key, every_key):
    for wrong in DEALT[key]:
        said = message(every_key, f"{key}={wrong}").removeprefix(f"{every_key}: {key}")
        assert said.startswith((": ", ".0: ")), wrong


@pytest.mark.full(shard="fuzz")
@pytest.mark.parametrize("key, value", LEAVES)
def test_every_wrong_value_at_every_key_is_named(key, value, every_key):
    for wrong in WRONG.get(type(value), ["5", "[]"]):
        said = message(every_key, f"{key}={wrong}").removeprefix(f"{every_key}: {key}")
        assert said.startswith((": ", ".0: ")), wrong


WRITTEN = written(WHOLE)


@pytest.fixture
def every_key(tmp_path):
    """A file that holds the run with every key."""
    file = tmp_path / "every.yaml"
    file.write_text(WRITTEN)
    return str(file)


MAPPED = [key for key, _ in keys(WHOLE) if not key.rpartition(".")[2].isdecimal()]


@pytest.mark.parametrize("key", MAPPED)
def test_a_misspelt_key_is_named_in_full_with_what_was_meant(key, tmp_path):
    *path, name = key.split(".")
    values = deepcopy(WHOLE)
    place = values
    for part in path:
        place = place[int(part) if part.isdecimal() else part]
    misspelt = name[0] + name[2:] if len(name) > 3 else name + "_x"
    place[misspelt] = place.pop(name)
    file = tmp_path / "bad.yaml"
    file.write_text(written(values))
    said = message(str(file))
    assert f"{file}: {'.'.join([*path, misspelt])}: unknown key" in said
    if len(name) > 3:
        assert said.endswith(f"did you mean '{name}'?")


CONTRADICTIONS = {
    "network={unet: {}}": "teacher, network",
    "teacher=null": "teacher, network",
    "name=a/b": "name: 'a/b'",
    "name=..": "name: '..'",
    "stages=[]": "stages: ",
    "evaluation.steps=[3]": "evaluation.steps: ",
    "evaluation.steps=[]": "evaluation.steps: ",
    "evaluation.steps=[1,1]": "evaluation.steps: ",
    "sampler.steps=[2,1,2]": "sampler.steps: ",
    "sampler.steps=[0]": "sampler.steps.0: must be at least 1",
    "evaluation.n=10": "evaluation.n: must be at least 20, got 10",
    "evaluation.blocks=1": "evaluation.blocks: must be at least 2",
    "data.source=folder": "data.settings.path: missing",
    "data.settings.path=x": "data.settings.path: unknown key",
    "data.name=folder": "data.name: is called 'source' now",
    "data.path=x": "data.path: is called 'settings.path' now",
    "data.dropout=1.0": "data.dropout: must be below 1, got 1.0",
    "precision=fp61": "precision: 'fp61' is none of fp32, bf16",
    "trackers=[tensorbord]": "trackers.0: 'tensorbord' is none of",
    "stages.0.method=consistancy": "did you mean 'consistency'?",
    "stages.0.method=5": "stages.0.method: needs a text",
    "stages.0.method=..": "stages.0.method: ",
    "stages.0.method=stepdistill.times": "stages.0.method: ",
    "stages.0.settings.solver=dpmpp": "stages.0.settings.solver: 'dpmpp' is none of",
    "stages.0.settings.solver=dim": "did you mean 'ddim'?",
    "stages.0.settings.distance=lpips": "stages.0.settings: distance 'lpips' ",
    "stages.0.settings.grid.name=unifrm": "stages.0.settings.grid.name: 'unifrm'",
    "stages.0.settings.grid.shift=1e9": "stages.0.settings.grid.shift: must be at most 100",
    "stages.0.settings.stepz=3": "stages.0.settings.stepz: unknown key; did you mean 'steps'?",
    "stages.0.training.ema=1.0": "stages.0.training.ema: must be below 1",
    "stages.0.training.optimiser.lr=0": "stages.0.training.optimiser.lr: must be above 0",
    "stages.0.training.optimiser.betas=[0.9]": "stages.0.training.optimiser.betas: needs 2",
    "stages.0.training.optimiser.betas=[0.9,x]": "stages.0.training.optimiser.betas.1: needs",
}


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_settings_out_of_range_or_at_odds_are_named(override, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where lpips misses its weights
    assert CONTRADICTIONS[override] in message("demo", override)


NETWORK = {
    "network.unet.sample_sise=8": "network.unet.sample_sise: unknown key; did you mean 'sample_s",
    "network.unet.layers_per_block=1e3": "network.unet.layers_per_block",
    "network.unet.layers_per_block=1000": "network.unet.layers_per_block: must be at most 64",
    "network.unet.num_class_embeds=1": "network.unet.num_class_embeds: must be at least 2",
    "network.unet.dropout=1.0": "network.unet.dropout: must be below 1, got 1.0",
    "network.unet.norm_eps=.nan": "network.unet.norm_eps: ",
    "network.scheduler=DDIMSheduler": "did you mean 'DDIMScheduler'?",
    "network.scheduler=UNet2DModel": "network.scheduler: 'UNet2DModel' is not a scheduler",
    "network.scheduler_config.num_train_timesteps=1": "num_train_timesteps: must be at least 2",
    "network.scheduler_config.shfit=1": "network.scheduler_config.shfit: unknown key; did you mean",
    "guidance=2": "guidance: 2 guides a teacher",
    "stages.0.method=consistency": "stages.0.method: needs a teacher",
    "stages.0.settings.time={low: 0.7, high: 0.2}": "stages.0.settings.time: low must not lie",
    "stages.0.settings.time.low=2": "stages.0.settings.time.low: must be at most 1",
}


@pytest.mark.parametrize("override", NETWORK)
def test_settings_of_a_new_network_are_checked_before_it_is_made(override):
    assert NETWORK[override] in message("digits-teacher", override)


FILES = {
    "": "is empty",
    "- 1\n- 2\n": "needs keys",
    "5": "type: int",
    "text": "text: unknown key",
    "a: [1\n": "line 2",
    "name: {\n": "line 2",
    "name: x\n\tseed: 1\n": "line 2",
    "seed: 1\nname: x\nseed: 2\n": "line 3, column 1: not valid YAML: found duplicate key seed",
    "stages:\n- training: {batch: 1, batch: 2}\n": "duplicate key batch",
    "a: !!python/object/apply:os.getcwd []": "could not determine a constructor",
    "seed: !!int x": "invalid literal for int() with base 10: 'x'",
    "name: no": "name: needs a text, got False: write it in quotes",
    "a: &a [*a]": "line 1, column 4: not valid YAML: YAML recursive aliases are not supported",
    "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n": "exceeds",
    "a: [1]\nb: [" + "'${a}', " * 20 + "]": "more than 12 references",
    "[" * 500 + "]" * 500: "nested too deeply",
    "[" * 30_000 + "]" * 30_000: "nested too deeply",
    "? " * 30_000: "nested too deeply",
    "- " * 30_000: "nested too deeply",
    "? [1]\n: 2": "not valid YAML",
    "1: 2": "1: keys are plain words",
    "name: x\n---\nname: y\n": "another document",
}


@pytest.mark.parametrize("text", FILES, ids=lambda text: repr(text[:20]))
def test_files_that_are_no_configuration(text, tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    said = message(str(file))
    assert said.startswith(f"{file}: ") and FILES[text] in said


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0", b"\xff\xfea\0", b"name: \xe9", b"\0"])
def test_files_that_are_no_text(content, tmp_path):
    (tmp_path / "odd.yaml").write_bytes(content)
    assert "odd.yaml: not" in message(str(tmp_path / "odd.yaml"))


def test_a_large_file_is_not_read(tmp_path):
    (tmp_path / "large.yaml").write_text("# " + "x" * 2**20)
    assert "large.yaml: larger than" in message(str(tmp_path / "large.yaml"))


OVERRIDES = {
    "seed": "write key=value",
    "=3": "write key=value",
    "a..b=1": "write key=value",
    ".a=1": "write key=value",
    "stages.7.x=1": "override 'stages.7.x=1': stages[7]: list index out of range",
    "stages.-9.x=1": "override 'stages.-9.x=1': ",
    "stages.x.y=1": "override 'stages.x.y=1': Index 'x' (str) is not an int",
    "stages.²=1": "override 'stages.²=1': invalid literal for int()",
    "stages={a: 1}": "stages: Cannot merge incompatible container types",
    "stages.0.method.x=1": "stages.0.method: needs a text, got {'x': 1}",
    "[=1": "override '[=1': ",
    f"seed={'[' * 30_000}": "nested too deeply",
    "seed=[1": "not valid YAML",
    "stages.0.training.upates=3": "stages.0.training.upates: unknown key; did you mean 'updates'?",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_that_lead_nowhere(override):
    assert OVERRIDES[override] in message("demo", override)


def test_overrides_merge_mappings_and_replace_the_rest():
    run = read("demo", ("evaluation={n: 40, blocks: 2}", "stages.0.training.optimiser={lr: 1e-3}"))
    plain = read("demo")
    assert run.evaluation == replace(plain.evaluation, n=40, blocks=2)
    assert run.stages == plain.stages
    assert read("demo", ("sampler.steps=[1, 2]",)).sampler.steps == (1, 2)


def test_missing_files():
    assert "digits-consistency-vp" in message("no-such-config")  # the shipped names are listed
    assert "did you mean 'demo'?" in message("dem")
    assert "no such file" in message("x" * 5000)
    assert "no such file" in message("")


def test_defaults_are_a_valid_structure():
    assert fit(RunConfig, {}) == RunConfig()


OUTSIDE = {
    "raise OSError('disk')": "OSError: disk",
    "def f(:": "SyntaxError",
    "import no_such_package": "no_such_package",
    "x = 1": "defines 0 classes of kind method",
    "from stepdistill.method import Method\nclass A(Method): pass": "dataclass",
    "from dataclasses import dataclass\nfrom stepdistill.method import Method\n"
    "@dataclass(frozen=True)\nclass A(Method):\n  x: int": "stages.0.settings.x: missing",
    "from dataclasses import dataclass\nfrom stepdistill.method import Method\n"
    "@dataclass(frozen=True)\nclass A(Method):\n  x: int = 1": "abstract",
    "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    "from stepdistill.method import Method\n"
    "@dataclass(frozen=True)\nclass A(Method):\n  x: Nowhere = 1": "Nowhere",
}


@pytest.mark.parametrize("n, source", list(enumerate(OUTSIDE)))
def test_a_method_of_one_s_own_that_cannot_be_used(n, source, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"own_method_{n}.py").write_text(source)
    override = f"stages.0={{method: own_method_{n}, settings: {{}}}}"
    said = message("digits-teacher", "stages=[{}]", override)
    assert "stages.0" in said and OUTSIDE[source] in said


NARROW = """
from dataclasses import dataclass
from typing import Annotated, Literal
from stepdistill.method import Method
from stepdistill.schema import Count, Range

@dataclass(frozen=True)
class Narrow(Method):
    ratio: Count = 5
    r1: Annotated[float, Range(0, 100)] = 0.0
    gan_loss: Literal["softplus", "hinge"] = "softplus"
    free: int = 0
    weights: tuple[float, ...] | None = None

    def turns(self): ...
    def passes(self): ...
"""


@pytest.mark.parametrize(
    "settings, words",
    [
        ("{ratio: 0}", "ratio: must be at least 1, got 0"),
        ("{r1: 101}", "r1: must be at most 100, got 101.0"),
        ("{gan_loss: hing}", "gan_loss: 'hing' is none of softplus, hinge; did you mean 'hinge'?"),
        ("{free: 1.5}", "free: needs a whole number"),
        (f"{{free: {10**30}}}", "free: needs a finite number of usual size"),
        ("{weights: [1, .nan]}", "weights.1: needs a finite number"),
        ("{weights: 1}", "weights: needs a list"),
    ],
)
def test_a_method_of_one_s_own_narrows_its_settings(settings, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "narrow_method.py").write_text(NARROW)
    said = message("smoke", f"stages=[{{method: narrow_method, settings: {settings}}}]")
    assert f"smoke.yaml: stages.0.settings.{words}" in said
    fine = "{ratio: 2, r1: 100, gan_loss: hinge, free: -3, weights: [1, 2.5]}"
    run = read("smoke", (f"stages=[{{method: narrow_method, settings: {fine}}}]",))
    built = run.stages[0].build()
    assert (built.ratio, built.r1, built.gan_loss, built.free) == (2, 100.0, "hinge", -3)
    assert built.weights == (1.0, 2.5) and type(built.r1) is float
