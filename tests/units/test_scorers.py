"""Scorers that users bring: a function of a module, and a program of its own."""

import sys
from pathlib import Path

import pytest
import torch
from cases import normal

from stepdistill.evaluation.metric import Made
from stepdistill.evaluation.metrics.command import Command
from stepdistill.evaluation.metrics.scorer import Scorer
from stepdistill.evaluation.reference import Reference

REFERENCE = Reference(size=(3, 4, 5))
IMAGES = normal(3, 6, 3, 4, 5).tanh().float()
PROMPTS = ["a", "bb", "ccc", "a", "", "é\n"]


def made(rows: slice, asked=PROMPTS) -> Made:
    return Made(IMAGES[rows], None if asked is None else asked[rows], None, REFERENCE)


def seen(metric, *parts: slice, asked=PROMPTS):
    metric.open(REFERENCE)
    metric = metric.fresh()
    for rows in parts:
        metric.update(made(rows, asked))
    return metric


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module that can be imported by the name that is given back."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_function_sees_images_in_unit_range_and_prompts(module):
    name = module(
        "brightness_7",
        "def score(images, prompts):\n"
        "    assert images.min() >= 0 and images.max() <= 1\n"
        "    return images.mean((1, 2, 3)) + images.new_tensor([len(p) for p in prompts])\n",
    )
    wanted = float((IMAGES / 2 + 0.5).mean((1, 2, 3)).double().mean()) + 9 / 6
    whole = seen(Scorer(module=name), slice(0, 2), slice(2, 6))
    assert whole.compute() == [pytest.approx(wanted, rel=1e-6)]
    merged = seen(Scorer(module=name), slice(0, 2))
    merged.merge(seen(Scorer(module=name), slice(2, 6)))
    assert merged.compute() == whole.compute()
    assert not whole.lower_is_better and Scorer(module=name, larger=False).lower_is_better


@pytest.mark.parametrize("returned", ["None", "images.mean()", "images[:, 0, 0, 0] / 0"])
def test_a_function_that_gives_no_numbers_is_one_line(module, returned):
    name = module(
        f"wrong_{abs(hash(returned))}", f"def score(images, prompts): return {returned}\n"
    )
    with pytest.raises(ValueError, match="needs a finite number for each image"):
        seen(Scorer(module=name), slice(0, 2))


def test_a_module_without_a_scorer_is_found_before_any_image_is_made(module):
    for name in ("", "no_such_module_7", module("empty_7", "")):
        with pytest.raises(ValueError, match="no function score"):
            Scorer(module=name).open(REFERENCE)


PROGRAM = """
import json, sys
from PIL import Image
rows = json.load(sys.stdin)
scores = []
for row in rows:
    pixels = list(Image.open(row["file"]).getdata())
    scores.append(sum(map(sum, pixels)) / len(pixels) / 3 + len(row["prompt"]))
print(json.dumps(scores))
"""


def program(text: str, **settings) -> Command:
    return Command(command=(sys.executable, "-c", text), **settings)


def test_a_program_reads_files_and_prompts():
    eight = ((IMAGES + 1) * 127.5).round().double()
    wanted = float(eight.mean()) + 9 / 6
    whole = seen(program(PROGRAM), slice(0, 2), slice(2, 6))
    folder = Path(whole.folder.name)
    assert whole.compute() == [pytest.approx(wanted, rel=1e-9)]
    merged = seen(program(PROGRAM), slice(0, 2))
    merged.merge(seen(program(PROGRAM), slice(2, 6)))
    assert merged.compute() == [pytest.approx(wanted, rel=1e-9)]
    del whole, merged
    assert not folder.exists()


def test_labels_and_nothing_reach_a_program():
    text = "import json, sys\nprint([row['prompt'] or 0 for row in json.load(sys.stdin)])"
    assert seen(program(text), slice(0, 4), asked=torch.arange(6)).compute() == [1.5]
    assert seen(program(text), slice(0, 4), asked=None).compute() == [0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise SystemExit('no weights')", "exit code 1: no weights"),
        ("print('[1]')", "prints no list of 2 numbers"),
        ("print('nothing')", "prints no list of 2 numbers"),
        ("print('[1, null]')", "prints no list of 2 numbers"),
        ("import time; time.sleep(60)", "not done after 0.2 s"),
    ],
)
def test_a_program_that_fails_is_one_line(text, words):
    with pytest.raises(ValueError, match=words):
        seen(program(text, limit=0.2 if "sleep" in text else 60), slice(0, 2)).compute()


def test_a_program_that_is_none_is_found_before_any_image_is_made():
    for command in ((), ("no-such-program-7",)):
        with pytest.raises(ValueError, match="no such program"):
            Command(command=command).open(REFERENCE)
