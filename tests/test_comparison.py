"""`stepdistill compare`: what runs cost, and their students and one teacher in one table."""

import json

import pytest
from rich.console import Console

from stepdistill.comparison import compare, seconds_of
from stepdistill.config import ConfigError, read
from stepdistill.evaluation.report import read_results

SMALL = """
name: {name}
teacher: digits
stages:
  - method: {method}
    settings: {settings}
    training: {{updates: {updates}, batch: 4, accumulation: 2}}
sampler: {{steps: [1]}}
evaluation: {{n: 20, blocks: 2, steps: [1], teacher_steps: [1, 2]}}
health: {{every: 0}}
"""
QUIET = Console(quiet=True)


@pytest.fixture
def configs(tmp_path):
    first = {"name": "one", "method": "consistency", "settings": "{steps: 4}", "updates": 3}
    second = {"name": "two", "method": "dmd2", "settings": "{ratio: 1}", "updates": 2}
    files = []
    for values in (first, second):
        file = tmp_path / f"{values['name']}.yaml"
        file.write_text(SMALL.format(**values))
        files.append(str(file))
    return [read(file) for file in files]


def test_configs_are_trained_and_scored_in_one_table(configs, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "comparison"
    rows = compare(configs, runs, out, (20, 2), QUIET)
    found = {(row.model, row.steps, row.source.rpartition("/")[2]) for row in rows}
    assert {("student", 1, "one"), ("student", 1, "two")} <= found
    assert sum(row.model == "teacher" for row in rows) == 2  # once each, for both students
    assert read_results(out / "results.json") == rows
    text = (out / "report.md").read_text()
    # One update is a loss on each of two micro-batches; Heun asks the teacher twice.
    assert "3 student updates, 12 passes of student and critic, 12 of the teacher" in text
    assert "2 student updates, 16 passes of student and critic, 4 of the teacher" in text

    log = (runs / "one" / "log.jsonl").read_bytes()
    again = compare(configs, runs, out, (20, 2), QUIET)
    assert (runs / "one" / "log.jsonl").read_bytes() == log  # not trained again
    assert [row.frechet for row in again] == [row.frechet for row in rows]


def test_a_run_is_compared_once(configs, tmp_path):
    with pytest.raises(ConfigError, match="names one run twice"):
        compare([configs[0]] * 2, tmp_path / "runs", tmp_path / "out", (20, 2), QUIET)
    assert not (tmp_path / "runs").exists()


def test_seconds_are_added_over_the_times_a_run_was_taken_up(tmp_path):
    log = tmp_path / "log.jsonl"
    place = {"stage": 0, "turn": 1, "update": 1, "player": "student"}
    rows = [place | {"seconds": s} for s in (1.0, 4.0, 0.5, 2.0, 2.0)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds_of(log) == pytest.approx(4 + 2)
