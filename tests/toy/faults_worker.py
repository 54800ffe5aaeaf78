"""Trains in children that meet accidents: python faults_worker.py, requests on stdin.

A request is a JSON line {"do": name of a function of REQUESTS, its arguments …}, answered by one.
Everything is imported once; every training is a fork of this process, which trains nothing itself
and so has no thread that a fork would lose. It ends with its stdin, and no child outlives LIMIT.
"""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors.torch import load_file

from stepdistill.export import check_call
from stepdistill.export import export as exporting
from stepdistill.export.export import ExportError
from stepdistill.files import DiskError
from stepdistill.jobs import distill as job_of_a_run
from stepdistill.runs.config import RunConfig, read
from stepdistill.runs.log import Log
from stepdistill.runs.loop import train
from stepdistill.runs.settings import Stage
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.training import checkpoint
from stepdistill.training.players import Adapters
from stepdistill.training.trainer import Optimiser, Trainer, Training

# Exit codes of a child: an error, Ctrl-C, no room on the disk, another one is at work.
FAILED, STOPPED, FULL, REFUSED = 1, 3, 4, 5
LIMIT = 300  # seconds


OPTIMISER = Optimiser(lr=1e-3, schedule="cosine", warmup=2)
SMOKE = read("smoke")
FIRST = SMOKE.stages[0]
GAN = {"ratio": 2, "gan": 0.05, "gan_critic": 0.1}
SECOND = Stage("dmd2", GAN, replace(FIRST.training, updates=3, batch=4))


def cycles(accumulation: int) -> RunConfig:
    """Every checkpoint lies inside a cycle and between rows of the log."""
    training = Training(updates=4, batch=4, accumulation=accumulation, optimiser=OPTIMISER)
    stages = [Stage("unsteady", GAN, training)] * 2
    return replace(SMOKE, stages=stages, save_every=1, log_every=4)


# The runs to interrupt.
SCENARIOS: dict[str, RunConfig] = {
    "cycles": cycles(2),
    "cycles, accumulated": cycles(4),
    "stages": replace(SMOKE, stages=[FIRST, FIRST], save_every=2, log_every=3),
    "dmd2": replace(SMOKE, stages=[FIRST, SECOND], save_every=2, log_every=2),
    "adapters": replace(
        SMOKE, stages=[FIRST, SECOND], save_every=2, log_every=2, adapters=Adapters(rank=4)
    ),
}


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Leave the first half of a file of tensors."""
    data = b"".join(v.flatten().view(torch.uint8).numpy().tobytes() for v in tensors.values())
    path.write_bytes(data[: len(data) // 2])
    die()


def delete_half(path: Path, **_: object) -> None:
    """Leave one file of a folder."""
    for file in sorted(path.iterdir())[1:]:
        file.unlink()
    die()


def tear_row(log: Log) -> None:
    """Leave the beginning of the log's last row."""
    os.truncate(log.path, log.path.stat().st_size - 20)
    die()


def fill(trainer: Trainer) -> None:
    """Leave room for half a checkpoint in a small file system."""
    size = sum(v.numel() * v.element_size() for v in trainer.state().tensors.values())
    free = shutil.disk_usage(".").free
    Path("ballast").write_bytes(bytes(free - size // 2))


def limit(_trainer: Trainer) -> None:
    """Let no file grow beyond a few pages, which the kernel answers much like a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))


def press(*signals: int) -> Callable[..., None]:
    return lambda *_: [signal.raise_signal(s) for s in signals]


@dataclass(frozen=True)
class Accident:
    """What happens instead of, or `after`, one call of owner.name."""

    owner: object
    name: str
    happen: Callable[..., None]
    after: bool = False

    def prepare(self, call: int) -> None:
        """Let it happen at a call, counted from 1."""
        whole, calls = getattr(self.owner, self.name), iter(range(1, 1 << 30))

        def replaced(*args: object, **kwargs: object) -> object:
            now = next(calls) == call
            if now and not self.after:
                self.happen(*args)
            value = whole(*args, **kwargs)
            if now and self.after:
                self.happen(*args)
            return value

        setattr(self.owner, self.name, replaced)


ACCIDENTS = {
    "turn": Accident(Trainer, "step", die),
    "half a file": Accident(checkpoint, "save_file", write_half),
    "flush": Accident(os, "fsync", die),
    "rename": Accident(os, "replace", die),
    "renamed": Accident(os, "replace", die, after=True),
    "half deleted": Accident(shutil, "rmtree", delete_half),
    "half a row": Accident(Log, "write", tear_row, after=True),
    "cutting the log": Accident(os, "truncate", die),
    "exported": Accident(job_of_a_run, "export", die, after=True),
    "scored": Accident(job_of_a_run, "score", die, after=True),
    "described": Accident(job_of_a_run, "describe", die),
    "full": Accident(Trainer, "step", fill),
    "limit": Accident(Trainer, "step", limit),
    "ctrl-c": Accident(Trainer, "step", press(signal.SIGINT)),
    "echoed ctrl-c": Accident(Trainer, "step", press(signal.SIGINT, signal.SIGINT)),
    "sigterm": Accident(Trainer, "step", press(signal.SIGTERM)),
}


def child(scenario: str, folder: Path, accident: list | None) -> int:
    """Train a scenario in its folder to the end, with an accident ["name", call] on the way."""
    session = Stages.of(SCENARIOS[scenario], folder, Accelerator(cpu=True))
    warnings = session.restore()
    os.chdir(folder)
    if accident:
        name, call = accident
        ACCIDENTS[name].prepare(call)
    code, message = 0, ""
    try:
        train(session, lambda _: None)
    except KeyboardInterrupt:
        code = STOPPED
    except DiskError as error:
        code, message = FULL, str(error)
    told = {"message": message, "warnings": warnings, "weights": weights(session.trainer)}
    told |= {"stage": session.stage, "turn": session.trainer.turn}
    rank = session.setup.accelerator.process_index
    folder.with_name(f"{folder.name}.{rank}.json").write_text(json.dumps(told))
    session.setup.accelerator.end_training()
    return code


def weights(trainer: Trainer) -> str:
    """A digest of every player's."""
    tensors = (p.detach() for moved in trainer.moved.values() for p in moved)
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in tensors)).hexdigest()


# The whole job, as cheap as it can be.
SMALL = replace(
    SMOKE,
    name="small",
    stages=[replace(FIRST, training=replace(FIRST.training, updates=3))],
    evaluation=replace(SMOKE.evaluation, n=20, teacher_steps=(1,)),
    save_every=1,
)
WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}


def is_write(event: str, arguments: tuple) -> bool:
    """Whether an audited event changes what lies on the disk."""
    if event != "open":
        return event in WRITES
    _, mode, flags = arguments
    asked = flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else 0
    return bool(asked) or (isinstance(mode, str) and bool({*"wax+"} & {*mode}))


class Disk:
    """Counts what this process writes below a folder, and lets something happen from one of them
    on."""

    def __init__(self, folder: Path, happen: Callable[[], None], call: int) -> None:
        self.folder, self.happen, self.call = str(folder), happen, call
        self.count, self.process = 0, os.getpid()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if is_write(event, arguments) and os.getpid() == self.process:
            if place_of(event, arguments).startswith(self.folder):
                self.count += 1
                if self.count >= self.call:
                    self.happen()


def place_of(event: str, arguments: tuple) -> str:
    """The path of what is written; deleting names a file within an open folder."""
    path = arguments[0]
    if isinstance(path, int):
        return ""
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(path))
    return os.path.abspath(os.fsdecode(path))


def no_room() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def little_room() -> None:
    """From now on no file grows beyond a page, as if the disk were full in the midst of it."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))


HAPPENINGS = {"die": die, "no room": no_room, "little room": little_room, "nothing": lambda: None}


def plain_call(request: dict) -> dict[str, torch.Tensor]:
    """`export.call_plainly` by a fork, which has imported everything."""
    with tempfile.TemporaryDirectory(dir=Path(request["folder"]).parent) as scratch:
        answer = Path(scratch) / "answer"
        (code,) = codes([fork({}, lambda: check_call.main(request, answer) or 0)])
        if code:
            raise ExportError("the exported pipeline does not run")
        return load_file(answer)


def small_job(runs: Path, happening: str, call: int) -> int:
    """The whole job of SMALL below `runs`; what happens from a write on that is counted from 1."""
    disk = Disk(runs, HAPPENINGS[happening], call)
    exporting.call_plainly = plain_call
    code, message = 0, ""
    try:
        job_of_a_run.distill(SMALL, runs)
    except DiskError as error:
        code, message = FULL, str(error)
    except ConfigError as error:
        code, message = REFUSED, str(error)
    except (OSError, ExportError) as error:  # the plain call fills the disk, too
        code, message = FAILED, str(error)
    told = {"message": message, "writes": disk.count}
    disk.call = sys.maxsize
    resource.setrlimit(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[1:] * 2)
    runs.with_name(f"{runs.name}.{os.getpid()}.json").write_text(json.dumps(told))
    return code


def small_jobs(
    runs: str, happening: str = "nothing", call: int = 1, gaps: tuple = (), kill: float = 0
) -> dict:
    """As many jobs in one folder as there are gaps and one, each so many seconds after the last.

    kill: seconds after which all are killed, 0 for never."""
    start, pids = time.perf_counter(), []
    for gap in (0, *gaps):
        time.sleep(gap)
        pids.append(fork({}, small_job, Path(runs), happening, call))
    if kill:
        time.sleep(kill)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    found, told = codes(pids), []
    for pid in pids:
        file = Path(f"{runs}.{pid}.json")
        told.append(json.loads(file.read_text()) if file.is_file() else {})
        file.unlink(missing_ok=True)
    return {"codes": found, "told": told, "seconds": time.perf_counter() - start}


def job(runs: Path, accident: list | None) -> int:
    """The whole job of the smoke run, its accident after training."""
    if accident:
        name, call = accident
        ACCIDENTS[name].prepare(call)
    job_of_a_run.distill(SMOKE, runs)
    return 0


def wait(seconds: float, patience: float) -> int:
    """Let the main process be busy for longer than a process group has patience."""
    kwargs = InitProcessGroupKwargs(timeout=timedelta(seconds=patience))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[kwargs])
    start = time.perf_counter()
    with job_of_a_run.waited_for(accelerator):
        time.sleep(seconds if accelerator.is_main_process else 0)
    return int(time.perf_counter() - start < seconds)


def fork(rank: dict[str, str], work: Callable[..., int], *arguments: object) -> int:
    """The process id of a child that does its work and exits with its value."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        signal.alarm(LIMIT)
        os.environ |= rank
        code = work(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ranks(count: int) -> list[dict[str, str]]:
    """The environments of processes that train together."""
    if count == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(count)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def codes(pids: list[int]) -> list[int]:
    """What became of the children, once all have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run(
    scenario: str, folder: str, accidents: list[list | None], seconds: float | None = None
) -> dict:
    """Train on as many processes as there are accidents, or kill −9 them after `seconds`."""
    Path(folder).mkdir(exist_ok=True)
    start = time.perf_counter()
    pids = [
        fork(rank, child, scenario, Path(folder), accident)
        for rank, accident in zip(ranks(len(accidents)), accidents)
    ]
    if seconds is not None:
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    return {"codes": codes(pids), "seconds": time.perf_counter() - start}


def whole_job(runs: str, accident: list | None, processes: int = 1) -> dict:
    pids = [fork(rank, job, Path(runs), accident) for rank in ranks(processes)]
    return {"codes": codes(pids)}


def outlast(seconds: float, patience: float) -> dict:
    return {"codes": codes([fork(rank, wait, seconds, patience) for rank in ranks(2)])}


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def mount(folder: str, size: str) -> dict:
    """Put a small file system of its own on a folder, where that is permitted."""
    Path(folder).mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    return {"mounted": subprocess.run(command, capture_output=True).returncode == 0}


def copy(folder: str, to: str) -> dict:
    """Copy a folder to where a test can see it."""
    shutil.copytree(folder, to)
    return {}


def remove(file: str) -> dict:
    Path(file).unlink()
    return {}


REQUESTS = {f.__name__: f for f in (run, whole_job, small_jobs, outlast, mount, copy, remove)}


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(REQUESTS[request.pop("do")](**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
