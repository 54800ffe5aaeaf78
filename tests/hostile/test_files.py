"""Files and folders that are there whole or not at all, locks, leftovers, signals and streams."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stepdistill import cli, files
from stepdistill.data import shards
from stepdistill.files import (
    PARTIAL,
    Taken,
    held,
    recover_folder,
    replace_folder,
    save_whole,
    shared,
    sweep,
    sweep_for,
    whole_lines,
    write_whole,
)
from stepdistill.runs.config import read
from stepdistill.runs.folder import RunFolder
from stepdistill.runs.loop import deferred_stop
from stepdistill.schema import ConfigError


class Killed(BaseException):
    """Nothing runs after it: what would clean up is left out as well."""


@contextmanager
def killed_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let nothing be renamed or deleted from a call on, counted from 0; what was done before."""
    done: list[str] = []

    def dying(name: str, whole):
        def replaced(*arguments: object, **settings: object) -> object:
            if len(done) >= call:
                raise Killed
            done.append(name)
            return whole(*arguments, **settings)

        return replaced

    with monkeypatch.context() as patch:
        for owner, name in ((os, "replace"), (files, "remove"), (files, "sync")):
            patch.setattr(owner, name, dying(name, getattr(owner, name)))
        yield done


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "a").write_text(text)
    (path / "b").write_text(text)
    return path


def read_folder(path: Path) -> set[str]:
    """What the two files of a whole folder say."""
    assert sorted(p.name for p in path.iterdir()) == ["a", "b"]
    return {p.read_text() for p in path.iterdir()}


def test_one_of_two_folders_is_always_whole(tmp_path, monkeypatch):
    for call in range(5):
        place = tmp_path / str(call)
        place.mkdir()
        out, made = folder_of(place / "out", "old"), folder_of(place / "new", "new")
        with killed_at(call, monkeypatch) as done:
            try:
                replace_folder(made, out)
            except Killed:
                pass
        recover_folder(out)
        assert read_folder(out) == ({"new"} if len(done) > 1 else {"old"})
        assert {p.name for p in place.iterdir()} <= {"out", "new"}
    assert done == ["replace", "replace", "remove"]  # the last one was not killed


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_whole(file, "old")
    for call in range(3):
        with killed_at(call, monkeypatch):
            try:
                write_whole(file, "new")
            except Killed:
                assert file.read_text() == "old"
    assert file.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_disk_that_fills_in_the_midst_leaves_the_old_file_alone(tmp_path, monkeypatch):
    def half(path: Path, text: str, **_: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a", "old words")
    save_whole(tmp_path / "b", {"x": torch.zeros(2)})
    before = (tmp_path / "b").read_bytes()
    monkeypatch.setattr(Path, "write_text", half)
    monkeypatch.setattr(files, "save_file", lambda tensors, path: half(path, "x" * 99))
    for write in (
        lambda: write_whole(tmp_path / "a", "new words"),
        lambda: save_whole(tmp_path / "b", {"x": torch.ones(2)}),
    ):
        with pytest.raises(OSError, match="No space"):
            write()
    assert (tmp_path / "a").read_bytes() == b"old words"
    assert (tmp_path / "b").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_leftovers_go_and_nothing_else(tmp_path):
    for name in (f".x.json.abcdefgh{PARTIAL}", f".run.abcdefgh{PARTIAL}", f".run{PARTIAL}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    others = (f".run.x.abcdefgh{PARTIAL}", ".hidden", "x.partial", f".run.abc{PARTIAL}")
    for name in others:
        (tmp_path / name).write_text("x")
    sweep_for(tmp_path / "run")
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {f".x.json.abcdefgh{PARTIAL}", *others}
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {".hidden", "x.partial"}


def test_lines_with_bytes_that_are_no_text_are_lines(tmp_path):
    (tmp_path / "a").write_bytes(b"one\n\xff\xfe\nthree")
    assert [len(line) for line in whole_lines(tmp_path / "a")] == [4, 3]


# Locks.


def test_one_holds_a_lock_and_others_learn_who(tmp_path):
    lock = tmp_path / ".lock"
    with held(lock):
        with pytest.raises(Taken, match=f"process {os.getpid()} on ") as raised, held(lock):
            pass
        assert str(raised.value).isprintable()
    assert not lock.exists()
    lock.write_text("process 1 on a machine that was switched off")
    with held(lock), pytest.raises(Taken, match=f"process {os.getpid()} on "), held(lock):
        pass


def test_a_lock_is_let_go_when_its_process_is_killed(tmp_path):
    lock = tmp_path / ".lock"
    script = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('process 7 on mars', file=file, flush=True)\nprint(flush=True)\nsys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], **pipes) as holder:
        holder.stdout.readline()
        with pytest.raises(Taken, match="process 7 on mars"), held(lock):
            pass
        holder.kill()
        holder.wait()
        with held(lock):
            pass


def test_a_lock_that_is_a_link_writes_nowhere_else(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), held(tmp_path / ".lock"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_file_system_without_locks_does_without(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with held(tmp_path / ".lock"), shared(tmp_path):
        pass


def test_a_run_folder_belongs_to_one_at_a_time(tmp_path):
    run, folder = read("smoke"), RunFolder(tmp_path / "smoke")
    with folder.held(run):
        leftovers = [folder.path / f".a{PARTIAL}", folder.checkpoints / ".000003.dropped"]
        for leftover in leftovers:
            leftover.mkdir(parents=True)
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on .* is at work there"):
            with folder.held(run):
                pass
        assert all(leftover.exists() for leftover in leftovers)
        folder.tidy()
        assert all(leftover.exists() for leftover in leftovers)
    with folder.held(run):
        assert not any(leftover.exists() for leftover in leftovers)


def test_a_cache_that_others_build_keeps_what_they_write(tmp_path):
    leftover = tmp_path / f".00000.safetensors.abcdefgh{PARTIAL}"
    leftover.mkdir()
    with shared(tmp_path):
        assert not leftover.exists()
        leftover.mkdir()
        with shared(tmp_path):
            assert leftover.exists()
    assert shards.shared is shared


# Signals and streams.


@pytest.fixture
def hangup() -> Iterator[Callable[[signal.Handlers], object]]:
    """Sets what a closed terminal does, which tests may have inherited from whoever began them."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_stops_as_a_signal_does_unless_nobody_listens(hangup):
    hangup(signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), deferred_stop() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert asked.is_set()
    hangup(signal.SIG_IGN)  # as nohup does
    with deferred_stop() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert not asked.is_set()


@pytest.mark.parametrize("gone", ["a reader", "room"])
def test_what_nobody_reads_stops_nothing(monkeypatch, gone):
    if gone == "room":
        stream = open("/dev/full", "w")
    else:
        end, other = os.pipe()
        os.close(end)
        stream = os.fdopen(other, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    console = cli.PlainConsole(file=cli.Unread("stdout"))
    for _ in range(3):
        console.print("words")
    stream.close()  # what was buffered has gone the same way


def test_commands_work_without_streams(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "argv", ["stepdistill", "plan", str(tmp_path / "none.yaml")])
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("console", "errors"):  # `main` gives them streams, which others must not keep
        monkeypatch.setattr(cli, name, cli.PlainConsole())
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 2


@pytest.mark.full(shard="attack")
@pytest.mark.parametrize("streams", [">&- 2>&-", "2>&-", ">/dev/full 2>/dev/full", "| true"])
def test_a_command_without_readers_ends_as_with_them(tmp_path, streams):
    shell = f"'{sys.executable}' -m stepdistill run nothing {streams}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2 and not re.search("Traceback|Exception", ended.stderr)
