"""Fuzzing: whatever is wrong with an input, one line says what, and nothing is left behind."""

import hashlib
import logging
import os
import shutil
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from fuzz import FAMILIES, FOLDERS, Case, Stock, case
from typer.testing import CliRunner

from stepdistill import cli
from stepdistill.export import export
from stepdistill.export.export import pipeline_for
from stepdistill.jobs import samplers as contenders
from stepdistill.runs.stages import reopen
from stepdistill.training.trainer import Trainer

FIRST, ALL, FOREIGN = 50, 300, 200
REFUSED = 0.85  # at least; the others happen to be good input


class Accepted(BaseException):
    """The input passed every check, and the work would begin."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    from accelerate import Accelerator

    folder = tmp_path_factory.mktemp("stock")
    made = CliRunner().invoke(cli.app, ["train", "smoke", "--runs", str(folder)])
    assert made.exit_code == 0, made.output
    session = reopen(folder / "smoke", Accelerator())
    pipeline = pipeline_for(session.teacher, session.student, session.run.sampler)
    pipeline.save_pretrained(folder / "student")
    return Stock(folder / "smoke", folder / "student")


@pytest.fixture
def cut_short(monkeypatch):
    """Everything after the checks stops at once."""

    def accept(*arguments, **settings):
        raise Accepted

    monkeypatch.setattr(Trainer, "step", accept)
    real = contenders.sampled
    monkeypatch.setattr(contenders, "sampled", lambda *given: real(*given[:-1], accept))
    monkeypatch.setattr(export, "pipeline_for", accept)


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder, and a digest of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "a link"
        if path.is_symlink()
        else "a folder"
        for path in folder.rglob("*")
    }


def fault_of(tried: Case, folder: Path, capfd: pytest.CaptureFixture) -> tuple[bool, str]:
    """Whether a case was refused, and what was wrong with the way it was, if anything."""
    words = tried.prepare(folder)
    before = tree(folder)
    capfd.readouterr()
    try:
        answer = CliRunner().invoke(cli.app, list(tried.arguments))
    except Accepted:
        return False, ""
    around = capfd.readouterr().err
    said = answer.stderr
    if answer.exit_code == 0 and not said:
        return False, ""
    faults = {
        f"exit code {answer.exit_code}": answer.exit_code != 2,
        "not one line": said.count("\n") != 1 or not said.startswith("error: "),
        "a traceback": not isinstance(answer.exception, SystemExit),
        "too long": len(said) > 301,
        "not printable": not said[:-1].isprintable(),
        f"none of {words}": not any(word in said for word in words),
        f"another line: {around[:200]}": bool(around),
        "output": bool(answer.stdout),
        "files": tree(folder) != before,
    }
    found = [fault for fault, seen in faults.items() if seen]
    return True, f"{'; '.join(found)}: {said}{answer.exception!r}" if found else ""


def fuzz(
    numbers: range, stock: Stock, folder: Path, monkeypatch, capfd, families=FAMILIES
) -> float:
    """The share of cases that were refused; fails if one was refused badly."""
    bad, refused = [], 0
    for number in numbers:
        tried, place = case(number, stock, families), folder / str(number)
        (place / "scratch").mkdir(parents=True)
        with monkeypatch.context() as here:
            here.chdir(place)
            here.setattr(tempfile, "tempdir", str(place / "scratch"))
            was_refused, fault = fault_of(tried, place, capfd)
        refused += was_refused
        if fault:
            bad.append(f"{number} {tried.name} {tried.arguments}: {fault}")
        shutil.rmtree(place)
    assert not bad, "\n".join(bad)
    return refused / len(numbers)


def test_bad_input_is_refused_by_one_line(stock, cut_short, tmp_path, monkeypatch, capfd):
    assert fuzz(range(FIRST), stock, tmp_path, monkeypatch, capfd) >= REFUSED


def test_a_case_is_its_number(stock, tmp_path):
    for number in range(2 * len(FAMILIES)):
        made = []
        for place in ("first", "second"):
            tried, folder = case(number, stock), tmp_path / place / str(number)
            folder.mkdir(parents=True)
            words = tried.prepare(folder)
            made.append((tried.name, tried.arguments, words, tree(folder)))
        assert made[0] == made[1]


def littering(message: str, code: int) -> None:
    Path("left-behind").touch()
    sound(message, code)


def louder(message: str, code: int) -> None:
    logging.getLogger("some.library").error("more lines")
    os.write(2, b"more")
    sound(message, code)


sound = cli.fail
SABOTAGE = {
    "exit code 1": ("fail", lambda message, code: sound(message, 1)),
    "none of": ("fail", lambda message, code: sound("something is wrong", code)),
    "not one line": ("fail", lambda message, code: [cli.errors.print("well"), sound(message, 2)]),
    "files": ("fail", littering),
    "another line": ("fail", louder),
    "a traceback": ("guarded", lambda debug: nullcontext()),
}


@pytest.mark.parametrize("fault", SABOTAGE)
def test_an_input_that_is_refused_badly_is_seen(
    fault, stock, cut_short, tmp_path, monkeypatch, capfd
):
    name, broken = SABOTAGE[fault]
    monkeypatch.setattr(cli, name, broken)
    with pytest.raises(AssertionError, match=fault):
        fuzz(range(2), stock, tmp_path, monkeypatch, capfd)


@pytest.mark.full(shard="fuzz")
def test_300_bad_inputs_are_refused_by_one_line(
    stock, cut_short, tmp_path, monkeypatch, capfd, figure
):
    share = fuzz(range(ALL), stock, tmp_path, monkeypatch, capfd)
    figure("share of inputs refused", share)
    assert share >= REFUSED


@pytest.mark.full(shard="attack")
def test_200_foreign_folders_run_no_code_and_unpickle_nothing(
    stock, cut_short, tmp_path, monkeypatch, capfd, figure
):
    """Their code would leave a file, which `fuzz` sees."""
    unpickled = []

    def hear(event: str, arguments: tuple) -> None:
        if event == "pickle.find_class":
            unpickled.append(arguments)

    def load(*arguments: object, **_: object) -> None:
        unpickled.append(arguments)

    sys.addaudithook(hear)
    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    share = fuzz(range(FOREIGN), stock, tmp_path, monkeypatch, capfd, FOLDERS)
    figure("foreign folders", FOREIGN)
    figure("share of these refused", share)
    assert share >= REFUSED and unpickled == []
