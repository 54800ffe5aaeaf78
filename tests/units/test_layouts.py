"""Layouts of images for other people's scorers."""

import json
from pathlib import Path

import pytest

from stepdistill.jobs.layouts import lay_out
from stepdistill.schema import ConfigError

PROMPTS = ["two cats", "a dog", "two cats", "a dog"]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        file.write_text(str(i))
    return files


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_genevals_metadata_are_the_lines_of_the_prompts_in_their_order(images, tmp_path):
    rows = [
        {"tag": "single", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
        {"tag": "counting", "prompt": "two cats"},
    ]
    source = tmp_path / "prompts.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    lay_out("geneval", images, PROMPTS, tmp_path / "out", source)
    found = contents(tmp_path / "out")
    for number, (row, which) in enumerate(zip(rows, ("13", "02"))):
        assert json.loads(found.pop(f"{number:05d}/metadata.jsonl")) == row
        for k, content in enumerate(which):
            assert found.pop(f"{number:05d}/samples/{k:04d}.png") == content
    assert not found


def test_compbenchs_names_are_prompts(images, tmp_path):
    lay_out("compbench", images, PROMPTS, tmp_path / "out", tmp_path / "prompts.txt")
    found = contents(tmp_path / "out")
    assert found == {
        "samples/two cats_000000.png": "0",
        "samples/two cats_000001.png": "2",
        "samples/a dog_000002.png": "1",
        "samples/a dog_000003.png": "3",
    }


def test_what_cannot_be_laid_out_is_one_line(images, tmp_path):
    source = tmp_path / "prompts.txt"
    source.write_text("a/b\n")
    with pytest.raises(ConfigError, match="cannot by 'a/b'"):
        lay_out("compbench", images, ["a/b"] * 4, tmp_path / "out", source)
    assert not (tmp_path / "out").exists()
    for _ in range(2):  # the same again is no other
        lay_out("geneval", images, ["a/b"] * 4, tmp_path / "out", source)
    with pytest.raises(ConfigError, match="out: exists, with other images"):
        lay_out("geneval", images[::-1], ["a/b"] * 4, tmp_path / "out", source)


def test_a_table_of_prompts_is_read_as_prompts_are(images, tmp_path):
    source = tmp_path / "prompts.csv"
    source.write_text('prompt,style\n"a dog",photo\n"two cats",photo\n')
    lay_out("geneval", images, PROMPTS, tmp_path / "out", source)
    found = contents(tmp_path / "out")
    rows = [json.loads(found[f"{n:05d}/metadata.jsonl"]) for n in range(2)]
    assert rows == [{"prompt": "a dog"}, {"prompt": "two cats"}]
