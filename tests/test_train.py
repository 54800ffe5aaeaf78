"""A run's folder through interruptions: what is logged, saved and continued."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from stepdistill.config import Run, read
from stepdistill.session import Session
from stepdistill.train import curves, train

STAGE = read("smoke").stages[0]


def two_stages() -> Run:
    """Two consistency stages of five updates each, a checkpoint every second update."""
    return replace(read("smoke"), name="two", stages=[STAGE, STAGE], save_every=2)


def session(folder: Path) -> Session:
    made = Session(two_stages(), folder, Accelerator(cpu=True))
    made.restore()
    return made


def train_whole(folder: Path) -> Session:
    folder.mkdir()
    made = session(folder)
    train(made, lambda *_: None)
    return made


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize("stop", [(0, 3), (0, 5), (1, 1), (1, 4)])  # (stage, update)
def test_ctrl_c_and_the_same_command_give_the_uninterrupted_run(tmp_path, stop):
    whole = train_whole(tmp_path / "whole")
    folder = tmp_path / "cut"
    folder.mkdir()
    first = session(folder)

    def press(update: int, total: int, losses: dict[str, float]) -> None:
        if (first.stage, update) == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(first, press)
    assert (first.stage, first.trainer.update) == stop
    second = session(folder)
    train(second, lambda *_: None)
    mine, wanted = second.trainer.state(), whole.trainer.state()
    assert mine.numbers == wanted.numbers and mine.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(mine.tensors[k], wanted.tensors[k]) for k in wanted.tensors)
    assert log(folder) == log(tmp_path / "whole")


def test_a_stage_starts_from_the_average_of_the_one_before(tmp_path):
    made = session(tmp_path)
    while not made.trainer.done:
        made.trainer.step()
    averaged = [m.clone() for m in made.trainer.average.averaged]
    made.next_stage()
    for parameter, mean in zip(made.trainer.players.student.net.parameters(), averaged):
        assert torch.equal(parameter, mean)
    assert made.trainer.update == 0 and not made.finished


def test_rows_logged_after_the_last_checkpoint_are_dropped(tmp_path):
    train_whole(tmp_path / "whole")
    rows = log(tmp_path / "whole")
    file = tmp_path / "whole" / "log.jsonl"
    with file.open("a") as f:
        f.write(json.dumps(rows[-1] | {"turn": 99, "seconds": 1}) + "\n" + '{"stage": 1, "tu')
    train(session(tmp_path / "whole"), lambda *_: None)
    assert log(tmp_path / "whole") == rows


def test_curves_count_updates_over_stages(tmp_path):
    train_whole(tmp_path / "whole")
    points = curves(tmp_path / "whole" / "log.jsonl")["student: consistency"]
    assert [update for update, _ in points] == list(range(1, 11))
