"""What the prose claims is executed: the README, and a method from outside.

Two of the README's runs are run, cut short (a few updates, few images), and their commands. Of all
other commands the arguments are read, each config among them is rehearsed, and each run's folder is
one that an earlier command makes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from readme import Reader, followed
from rehearse import short

import stepdistill
from stepdistill.cli import UsageError
from stepdistill.runs import config
from stepdistill.schema import ConfigError

pytestmark = pytest.mark.xdist_group("caller")

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
read = config.read


# Two runs, and all that takes no time.
REAL = {("run", "smoke"), ("run", "my_run.yaml"), ("methods",), ("doctor", "runs/smoke/student")}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm) -> Path:
    """An empty working folder in which every config is read short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in (config, stepdistill):
        monkeypatch.setattr(module, "read", lambda *given: short(read(*given)))
    return tmp_path


def test_the_readme_does_what_it_says(elsewhere: Path):
    own = followed(README, "own images")  # by itself, see tests/jobs/test_own_images.py
    done = Reader(elsewhere, REAL).follow(README.replace(own, ""))
    assert done["real"] == len(REAL) and done["python"] >= 3 and done["rehearsed"] >= 5


@pytest.mark.parametrize(
    "lie",
    [
        "```python\nimport stepdistill\nstepdistill.no_such_thing\n```\n",
        "```sh\nstepdistill no-such-command  # why not\n```\n",
        "```sh\nstepdistill run no-such-config\n```\n",
        "```sh\nstepdistill plan smoke stages.0.settings.steps=-1\n```\n",
        "```sh\nstepdistill sample runs/never-made out.png\n```\n",
        "```sh\nstepdistill compare smoke --no-such-option\n```\n",
    ],
)
def test_a_lie_in_the_readme_is_seen(elsewhere: Path, lie: str):
    with pytest.raises((AssertionError, LookupError, AttributeError, ConfigError, UsageError)):
        Reader(elsewhere).follow(lie)


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
