"""Checkpoints: what is written is read, damage is noticed, no moment leaves nothing to go on from.

test_faults.py kills real runs; here every single operation of one `save` fails or is the
last one before the end.
"""

import errno
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from stepdistill import files
from stepdistill.files import DiskError
from stepdistill.runs.config import read as read_config
from stepdistill.runs.loop import train
from stepdistill.runs.stages import Stages
from stepdistill.training import checkpoint
from stepdistill.training.checkpoint import (
    CheckpointError,
    State,
    best,
    finished,
    latest,
    read_state,
)
from stepdistill.training.checkpoint import save as save_checkpoint

FILES = ("state.safetensors", "state.json", "SHA256SUMS")


def state(k: int) -> State:
    """A state unlike that of any other number."""
    tensors = {f"net/{i}": torch.full((50,), float(k + i)) for i in range(3)}
    return State(tensors, {"turn": k, "mean": k / 7})


def same(a: State, b: State) -> bool:
    equal = a.tensors.keys() == b.tensors.keys() and a.numbers == b.numbers
    return equal and all(torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors)


def test_what_is_written_is_read(tmp_path):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=g)
    tensors = {
        "strided": weight.T,
        "shared/a": weight[:2],
        "shared/b": weight,
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "half": weight.to(torch.bfloat16),
        "integer": torch.tensor([2**62 + 1]),
        "mask": weight > 0,
        "not finite": torch.tensor([math.nan, math.inf, -0.0]),
        "graph": torch.ones(2, requires_grad=True) * 2,
    }
    numbers = {"turn": 3, "pending": {"ü": [0.1 + 0.2, 1e-320]}, "name": "α → β", "none": None}
    found = read_state(save_checkpoint(tmp_path, 7, State(tensors, numbers)))
    assert found.numbers == numbers
    assert found.tensors.keys() == tensors.keys()
    for name, wanted in tensors.items():
        got = found.tensors[name]
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        torch.testing.assert_close(got, wanted.detach(), rtol=0, atol=0, equal_nan=True)


def test_a_state_that_was_read_does_not_hold_its_file(tmp_path):
    # A mapped file keeps its room on the disk, and on some file systems cannot be deleted.
    path = save_checkpoint(tmp_path, 1, state(1))
    held, maps = read_state(path), Path("/proc/self/maps")
    assert same(held, state(1)) and (not maps.exists() or str(path) not in maps.read_text())


def flip(file: Path, where: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte": lambda file: flip(file, 0),
    "middle byte": lambda file: flip(file, 0.5),
    "last byte": lambda file: flip(file, 1),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "not text": lambda file: file.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_one_before_is_used(tmp_path, name, damage):
    save_checkpoint(tmp_path, 1, state(1))
    bad = save_checkpoint(tmp_path, 2, state(2))
    DAMAGES[damage](bad / name)
    found, warnings = latest(tmp_path)
    assert same(found, state(1))
    assert len(warnings) == 1 and str(bad) in warnings[0] and "\n" not in warnings[0]
    with pytest.raises(CheckpointError, match="000002"):
        read_state(bad)


def test_every_number_is_under_the_checksum(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    file = save_checkpoint(tmp_path, 2, state(2), score=0.5) / "state.json"
    text = file.read_text()
    digits = [i for i, c in enumerate(text) if c.isdigit()]
    assert len(digits) > 10
    for i in digits:
        file.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        assert same(latest(tmp_path)[0], state(1)) and best(tmp_path) is None
    file.write_text(text)
    assert same(latest(tmp_path)[0], state(2)) and best(tmp_path) == file.parent


def test_the_system_s_own_tool_reads_the_sums(tmp_path):
    folder = save_checkpoint(tmp_path, 1, state(1))
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 0
    flip(folder / "state.safetensors", 0.9)
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


def test_an_empty_folder_and_a_stranger_are_no_checkpoints(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    (tmp_path / "000002").mkdir()
    shutil.copytree(tmp_path / "000001", tmp_path / "000003.bak")
    (tmp_path / "000004").write_text("a file")
    found, warnings = latest(tmp_path)
    assert same(found, state(1)) and len(warnings) == 1 and "missing" in warnings[0]


def test_where_none_can_be_read_the_user_learns_what_to_do(tmp_path):
    assert latest(tmp_path / "nowhere") == (None, [])
    for k in (1, 2):
        flip(save_checkpoint(tmp_path, k, state(k)) / "state.json", 0.5)
    with pytest.raises(CheckpointError) as raised:
        latest(tmp_path)
    message = str(raised.value)
    assert "000001" in message and "000002" in message and "\n" not in message
    assert f"delete {tmp_path} to start again" in message


# What one `save` does to the file system, in the names it uses.
OPERATIONS = (
    (Path, "mkdir"),
    (Path, "write_text"),
    (checkpoint, "save_file"),
    (shutil, "copymode"),
    (os, "fsync"),
    (os, "replace"),
    (shutil, "rmtree"),
)


@contextmanager
def observed(happen: Callable[[str, tuple], None]) -> Iterator[None]:
    """Calls happen(name, arguments) before each operation."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in OPERATIONS:
            whole = getattr(owner, name)

            def seen(*args, whole=whole, name=name, **kwargs):
                happen(name, args)
                return whole(*args, **kwargs)

            patch.setattr(owner, name, seen)
        yield


def operations(folder: Path) -> list[str]:
    """The operations of a save that replaces a checkpoint and drops others."""
    seen: list[str] = []
    prepare(folder)
    with observed(lambda name, _: seen.append(name)):
        save_checkpoint(folder, 4, state(4))
    return seen


def prepare(folder: Path) -> None:
    """Three checkpoints of which the third is damaged, one to be replaced, and old leftovers."""
    for k in (2, 3, 4):
        save_checkpoint(folder, k, state(k), keep=3)
    flip(folder / "000004" / "state.json", 0.5)
    (folder / ".000009.partial").mkdir()


class PowerCut(BaseException):
    """Nothing runs after it."""


def failing_at(count: int, error: BaseException) -> Callable[[str, tuple], None]:
    """Raises from operation `count` on: a full disk stays full, a dead process dead."""
    left = iter(range(count))

    def happen(name: str, args: tuple) -> None:
        dead = isinstance(error, PowerCut)
        if next(left, None) is None and (dead or name != "rmtree"):
            if name == "save_file":
                Path(args[1]).write_bytes(b"half a file")
            if name == "rmtree" and args[0].is_dir():
                for file in sorted(args[0].iterdir())[1:]:
                    file.unlink()
            raise error

    return happen


def test_death_at_any_operation_leaves_a_whole_checkpoint(tmp_path):
    seen = operations(tmp_path / "whole")
    assert {name for _, name in OPERATIONS} <= set(seen) and len(seen) > 12
    for count in range(len(seen)):
        folder = tmp_path / str(count)
        prepare(folder)
        with pytest.raises(PowerCut), observed(failing_at(count, PowerCut())):
            save_checkpoint(folder, 4, state(4))
        found, warnings = latest(folder)
        assert same(found, state(3)) or (same(found, state(4)) and not warnings), seen[count]
        for path in finished(folder):
            assert path.name == "000004" or read_state(path)  # none of the others is half deleted
        save_checkpoint(folder, 4, state(4))
        assert same(latest(folder)[0], state(4)) and len(finished(folder)) == 2
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_at_any_operation(tmp_path, number):
    seen = operations(tmp_path / "whole")
    failed = 0
    for count in range(len(seen)):
        folder = tmp_path / str(count)
        prepare(folder)
        with observed(failing_at(count, OSError(number, os.strerror(number)))):
            try:
                save_checkpoint(folder, 4, state(4))
            except DiskError as error:
                failed, message = failed + 1, str(error)
                assert str(folder / "000004") in message and os.strerror(number) in message
                assert "needs 0.0 MB" in message and "MB are free" in message
                assert ("make room" in message) == (number != errno.EIO)
        assert same(latest(folder)[0], state(3)) or same(latest(folder)[0], state(4))
        assert not (folder / ".000004.partial").exists(), seen[count]
        save_checkpoint(folder, 4, state(4))
        assert same(latest(folder)[0], state(4)) and not list(folder.glob(".*"))
    assert failed >= 9


def test_nothing_is_renamed_or_deleted_before_it_is_on_the_disk(tmp_path):
    """A machine that loses power keeps what was flushed since it was last written, no more."""
    flushed: dict[int, int] = {}  # inode → when it was flushed, in changes of the file system
    events: list[str] = []

    def changed(path: Path) -> int:
        return path.stat().st_mtime_ns

    def happen(name: str, args: tuple) -> None:
        if name == "fsync":
            inode = os.fstat(args[0])
            flushed[inode.st_ino] = inode.st_mtime_ns
            events.append("flush folder" if inode.st_ino == tmp_path.stat().st_ino else "flush")
        elif name == "replace" and args[0].name.endswith(".partial"):
            for path in (args[0], *args[0].iterdir()):
                assert flushed.get(path.stat().st_ino) == changed(path), path.name
            events.append("publish")
        elif name == "replace":
            events.append("drop")

    for k in (1, 2):
        save_checkpoint(tmp_path, k, state(k))
    with observed(happen):
        save_checkpoint(tmp_path, 3, state(3))
    after = events[events.index("publish") :]
    assert after.index("flush folder") < after.index("drop")
    assert "drop" not in events[: events.index("publish")]


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = torch.rand(30, generator=torch.Generator().manual_seed(3)).tolist()
    scores = [math.nan, -math.inf, *(None if s < 0.15 else s for s in scores), math.nan]
    finite: dict[int, float] = {}
    for k, score in enumerate(scores, 1):
        save_checkpoint(tmp_path, k, state(k), keep=3, score=score)
        finite |= {k: score} if score is not None and math.isfinite(score) else {}
        lowest = min(finite, key=finite.get) if finite else None
        wanted = {k, k - 1, k - 2, lowest} & set(range(1, k + 1))
        assert {int(p.name) for p in finished(tmp_path)} == wanted
        assert best(tmp_path) == (None if lowest is None else tmp_path / f"{lowest:06d}")
    assert len(finished(tmp_path)) == 4 and same(read_state(best(tmp_path)), state(lowest))
    with pytest.raises(ValueError, match="keep"):
        save_checkpoint(tmp_path, 99, state(99), keep=0)


def test_a_run_that_went_back_does_not_meet_its_old_future(tmp_path):
    for k in (10, 20, 30):
        save_checkpoint(tmp_path, k, state(k), keep=3, score=float(-k))
    save_checkpoint(tmp_path, 15, state(15), keep=3)
    assert [int(p.name) for p in finished(tmp_path)] == [10, 15]
    assert same(latest(tmp_path)[0], state(15))


DMD2 = "stages=[{method: dmd2, settings: {ratio: 1}, training: {updates: 2, batch: 4}}]"
# Two moments of whatever moves, the average of the student, the target; (student's, critic's).
HELD = {
    "copies": ((), {"student": 1 + 2 + 1 + 1}),
    "dmd2": ((DMD2,), {"student": 1 + 2 + 1, "critic": 1 + 2}),
    "adapters": ((DMD2, "adapters={rank: 4}"), {"student": 1 + 2 + 1, "critic": 1 + 2}),
}


@pytest.mark.parametrize("overrides, held", HELD.values(), ids=HELD)
def test_the_teacher_is_never_inside(tmp_path, overrides, held):
    run = replace(read_config("smoke", overrides), save_every=1)
    session = Stages.of(run, tmp_path, Accelerator(cpu=True))
    teacher = session.teacher.denoiser.net
    mark, base = 1234.5, [p for n, p in teacher.named_parameters() if ".lora_" not in n]
    with torch.no_grad():
        for p in base:
            p.fill_(mark)
    saved = session.trainer.state()
    assert base and saved.tensors
    assert not any((v == mark).any() for v in saved.tensors.values())
    # The file holds what the players need, and what the optimisers count in one number a tensor.
    train(Stages.of(run, tmp_path, Accelerator(cpu=True)), lambda _: None)
    *_, path = finished(tmp_path / "checkpoints")
    moved = {role: session.trainer.moved[role] for role in held}
    numbers = sum(held[role] * sum(p.numel() for p in moved[role]) for role in held)
    numbers += sum(len(parameters) for parameters in moved.values())
    found = {k: v for k, v in read_state(path).tensors.items() if not k.startswith("carry")}
    assert sum(v.numel() for v in found.values()) == numbers
    carried = sum(v.nbytes for k, v in read_state(path).tensors.items() if k not in found)
    assert (path / "state.safetensors").stat().st_size < (4 * numbers + carried) * 1.05 + 30_000


def test_small_files_are_whole_or_not_there(tmp_path, monkeypatch):
    file = tmp_path / "costs.json"
    files.write_whole(file, json.dumps([1]))

    def cut(path: Path, text: str, **_: str) -> None:
        path.open("w").write(text[: len(text) // 2])
        raise PowerCut

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(PowerCut):
        files.write_whole(file, json.dumps([1, 2, 3]))
    assert json.loads(file.read_text()) == [1]
