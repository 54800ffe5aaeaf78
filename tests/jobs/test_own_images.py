"""The README's "Your own images": a folder of pictures becomes a teacher, a student and a report.

As written but for updates and images here; in full, and with a bar, by the shard "own-images".
"""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from readme import Reader, blocks, followed
from rehearse import short

import stepdistill
from stepdistill.evaluation.report.report import read_results
from stepdistill.runs import config

pytestmark = pytest.mark.xdist_group("caller")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = followed((ROOT / "README.md").read_text(), "own images")
REAL = {("run", "my_teacher.yaml"), ("run", "my_student.yaml")}


def test_the_example_hangs_together(tmp_path, monkeypatch, warm):
    monkeypatch.chdir(tmp_path)
    read = config.read
    for module in (config, stepdistill):
        monkeypatch.setattr(module, "read", lambda *given: short(read(*given)))
    runpy.run_path(str(ROOT / "eval" / "own_images.py"))["main"](Path("photos"), 60)
    done = Reader(tmp_path, REAL).follow(EXAMPLE)
    assert done["real"] == len(REAL)
    for name in ("my_teacher", "my_student"):
        rows = read_results(Path("runs", name, "results.json"))
        assert all(row.scores["frechet_random"].value > 0 for row in rows)
        (real,) = [row for row in rows if row.model == "real"]
        assert real.scores["kid"].error is not None
        assert "images held out of the run's data" in Path("runs", name, "report.md").read_text()


@pytest.mark.full(shard="own-images")
def test_two_steps_reach_the_teacher_in_four(tmp_path, figure):
    """By the commands as written, in a folder with nothing but 500 pictures."""
    script = [sys.executable, ROOT / "eval" / "own_images.py", "photos"]
    subprocess.run(script, cwd=tmp_path, check=True)
    for _, content in blocks(EXAMPLE):
        if name := re.match(r"# ([\w-]+\.\w+)$", content, re.M):
            (tmp_path / name[1]).write_text(content)
    for config_file in ("my_teacher.yaml", "my_student.yaml"):
        command = [sys.executable, "-m", "stepdistill", "run", config_file]
        subprocess.run(command, cwd=tmp_path, check=True)
    rows = read_results(tmp_path / "runs" / "my_student" / "results.json")
    found = {(row.model, row.steps): row.scores["frechet_random"] for row in rows}
    for (model, steps), score in found.items():
        figure(f"Fréchet (random-conv), {model}, {steps} steps", score.value)
        figure(f"its interval from, {model}, {steps} steps", score.low)
        figure(f"its interval to, {model}, {steps} steps", score.high)
    assert found["student", 2].value <= found["teacher", 4].value
