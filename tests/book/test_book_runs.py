"""What the prose claims is executed: every shipped config, the README, a method from outside.

Runs are cut short (a few updates, few images); nothing else is changed.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stepdistill
from stepdistill import cli
from stepdistill.resources import shipped_names
from stepdistill.runs import config
from stepdistill.runs.config import RunConfig

pytestmark = pytest.mark.xdist_group("caller")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = shipped_names("configs", ".yaml")
README = (ROOT / "README.md").read_text()
read = config.read


def short(run: RunConfig) -> RunConfig:
    """The same run with two updates a stage, few images and few cached trajectories."""
    stages = [replace(s, training=replace(s.training, updates=2, batch=8)) for s in run.stages]
    cache = run.cache and replace(run.cache, samples=12, steps=3, shard=8)
    evaluation = replace(run.evaluation, n=20, blocks=2)
    return replace(run, stages=stages, cache=cache, evaluation=evaluation)


def read_short(source: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    return short(read(source, overrides))


def test_there_is_a_demo():
    assert "demo" in CONFIGS


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs(name: str, tmp_path: Path, caller, monkeypatch):
    monkeypatch.setattr("stepdistill.export.export.call_plainly", caller)
    run = read_short(name)
    assert run.name == name
    result = stepdistill.distill(run, tmp_path)
    scored = {row.steps for row in result.rows if row.model == "student"}
    assert scored == set(run.evaluation.steps)
    assert result.difference <= 1e-5
    for made in ("results.json", "report.md", "report.html", "student/model_index.json"):
        assert (tmp_path / name / made).stat().st_size > 0, made


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks of a Markdown text, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)


def commands(content: str) -> list[list[str]]:
    """Arguments of the `stepdistill` command lines in a shell block, without their comments."""
    lines = [line.partition(" #")[0].removeprefix("$ ").split() for line in content.splitlines()]
    names = ("stepdistill", ".venv/bin/stepdistill")
    return [words[1:] for words in lines if words and words[0] in names]


def execute(text: str, folder: Path) -> int:
    """Execute a document's blocks in order, in one folder and one namespace; how many did run.

    Python blocks are run, `stepdistill` lines of shell blocks too. A block of any language that
    opens with "# name.ext" is first written to that file.
    """
    done, namespace = 0, {"__name__": "readme"}
    for language, content in blocks(text):
        if file := re.match(r"# ([\w-]+\.\w+)$", content, re.M):
            (folder / file[1]).write_text(content)
        if language == "python":
            exec(compile(content, "README.md", "exec"), namespace)
        for arguments in commands(content) if language in ("sh", "bash", "console") else []:
            answer = CliRunner().invoke(cli.app, arguments)
            assert answer.exit_code == 0, f"stepdistill {' '.join(arguments)}: {answer.output}"
            done += 1
        done += language == "python"
    return done


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder in which every config is read short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in (config, stepdistill):
        monkeypatch.setattr(module, "read", read_short)
    return tmp_path


def test_the_readme_does_what_it_says(elsewhere: Path):
    assert execute(README, elsewhere) > 0


@pytest.mark.parametrize(
    "lie",
    [
        "```python\nimport stepdistill\nstepdistill.no_such_thing\n```\n",
        "```sh\nstepdistill no-such-command  # why not\n```\n",
        "```sh\nstepdistill run no-such-config\n```\n",
    ],
)
def test_a_lie_in_the_readme_is_seen(elsewhere: Path, lie: str):
    with pytest.raises((AssertionError, AttributeError)):
        execute(lie, elsewhere)


TOY = '''
"""A toy: the student's x̂₀ at one fixed time moves to the guided teacher's."""

from dataclasses import dataclass

import torch

from stepdistill.method import Loss, Method, Passes, Turn


@dataclass(frozen=True)
class Toy(Method):
    paper = "none"
    t: float = 0.5

    def turns(self):
        return (Turn("student", self.loss),)

    def loss(self, p, batch):
        t = torch.full((len(batch.x0),), self.t, dtype=torch.float64)
        x_t = p.student.process.add_noise(batch.x0, batch.noise(), t)
        with torch.no_grad():
            goal = p.teacher(x_t, t, batch.cond).x0
        loss = (p.student(x_t, t, batch.cond).x0 - goal).square().mean()
        return Loss({"toy": loss})

    def passes(self, sampler):
        return Passes(trained=1, frozen=0, teacher=1)
'''
TOY_RUN = """
name: toy
teacher: digits
guidance: 3
stages:
  - method: my_module
    settings: {t: 0.7}
    training: {updates: 40, batch: 64, optimiser: {lr: 0.001, warmup: 0}}
sampler: {steps: [1]}
log_every: 5
"""


def test_a_method_outside_the_package_trains(tmp_path: Path):
    """By the command as installed: a script in another folder, run beside my_module.py."""
    (tmp_path / "my_module.py").write_text(TOY)
    (tmp_path / "toy.yaml").write_text(TOY_RUN)
    script = tmp_path / "bin" / "stepdistill"
    script.parent.mkdir()
    script.write_text("from stepdistill.cli import main\nmain()\n")
    done = subprocess.run(
        [sys.executable, script, "train", "toy.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(row) for row in (tmp_path / "runs/toy/log.jsonl").read_text().splitlines()]
    assert rows[-1]["toy"] < 0.7 * rows[0]["toy"]
