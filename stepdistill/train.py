"""Running a session's training: progress, log, checkpoints, and a safe way to stop.

`log.jsonl` has one row per player and `log_every` turns: means since the last row, without steps
that were skipped. Ctrl-C and SIGTERM let the step in hand finish and save a checkpoint; the same
command goes on from there. Rows are on disk before the checkpoint that counts them, and means
under way are part of it: the log of a run that was stopped, however it was, is that of one that
was not.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from .checkpoint import DiskError, State, save, sync, unwritten
from .health import NORM, PLACE, Findings, Monitor
from .progress import Moment
from .session import Session, nfe_of
from .trainer import StepLog, TrainingFailed

Observer = Callable[[Moment], None]
Tell = Callable[[str], None]
STOPS = (signal.SIGINT, signal.SIGTERM)
# Launchers pass a Ctrl-C on to processes that have had it from the terminal already.
ECHO = 2.0  # seconds


@dataclass
class Means:
    """Means of a player's logged numbers."""

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, step: StepLog) -> None:
        self.count += 1
        parts = {k: v for k, v in step.parts.items() if not k.startswith(NORM)}  # only at probes
        numbers = {**parts, "gradient_norm": step.gradient_norm, "lr": step.lr}
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.sums.items()}


@dataclass(frozen=True)
class Course:
    """A run's stages in numbers.

    costs: network passes of one student update, a forward as 1. turns: as many as the stage has,
    or more, so that `position` grows over stages whatever the order of their players.
    """

    costs: list[float]
    turns: list[int]

    @classmethod
    def of(cls, session: Session) -> "Course":
        run, methods = session.run, session.methods
        passes = [method.passes(run.sampler) for method in methods]
        cycles = [len(method.turns()) for method in methods]
        nfes = [nfe_of(run, i, m, session.teacher) for i, m in enumerate(methods)]
        return cls(
            [counted.work(nfe) for counted, nfe in zip(passes, nfes)],
            [n * stage.training.updates for n, stage in zip(cycles, run.stages)],
        )

    def position(self, session: Session) -> int:
        """The number of a run's present turn, over all stages."""
        return sum(self.turns[: session.stage]) + session.trainer.turn

    def moment(self, session: Session, losses: dict[str, dict[str, float]]) -> Moment:
        """Where the run is."""
        trainer, stage, stages = session.trainer, session.stage, len(self.costs)
        method = session.stage_settings.method
        work = [s.training.updates * cost for s, cost in zip(session.run.stages, self.costs)]
        return Moment(
            stage=method if stages == 1 else f"{method} ({stage + 1} of {stages})",
            update=trainer.update,
            updates=trainer.training.updates,
            done=sum(work[:stage]) + trainer.update * self.costs[stage],
            total=sum(work),
            losses=dict(losses),
            skipped=trainer.skipped,
        )


class Log:
    """The rows of log.jsonl, and the means that are not yet one; only the main process writes.

    Opened, it holds what was logged up to the session's place, and its clock goes on from there."""

    def __init__(self, session: Session) -> None:
        self.course = Course.of(session)
        main = session.accelerator.is_main_process
        self.path = session.folder / "log.jsonl" if main else Path(os.devnull)
        self.means = {player: Means(**saved) for player, saved in session.pending.items()}
        self.losses: dict[str, dict[str, float]] = {}  # as last written, by player
        truncate(self.path, session.stage, session.trainer.turn)
        self.started = time.perf_counter() - seconds_of(self.path)

    def add(self, step: StepLog) -> None:
        means = self.means.setdefault(step.player, Means())
        if not step.skipped:
            means.add(step)

    def pending(self) -> dict[str, dict]:
        """What a checkpoint keeps of the means."""
        return {player: asdict(means) for player, means in self.means.items()}

    def write(self, session: Session) -> None:
        """A row for every player that had turns since the last rows, and to the trackers.

        Raises DiskError if the disk is full."""
        rows = []
        for player in sorted(self.means):
            numbers = self.means.pop(player).take()
            rows.append({"player": player} | numbers)
            self.track(session, player, numbers)
            losses = {k: v for k, v in numbers.items() if k not in ("gradient_norm", "lr")}
            self.losses[player] = losses or self.losses.get(player, {})
        self.append(session, rows)

    def probed(self, session: Session, found: Findings) -> None:
        """What a probe of health saw, to the log and to the trackers."""
        self.track(session, "health", found.values)
        self.append(session, found.rows())

    def track(self, session: Session, player: str, numbers: dict[str, float]) -> None:
        """Numbers to the trackers."""
        tagged = {f"{player}/{name}": value for name, value in numbers.items()}
        session.accelerator.log(tagged, step=self.course.position(session))

    def append(self, session: Session, rows: list[dict[str, Any]]) -> None:
        """Rows to the log, with their place in the run. Raises DiskError if the disk is full."""
        trainer = session.trainer
        where = {"stage": session.stage, "turn": trainer.turn, "update": trainer.update}
        seconds = round(time.perf_counter() - self.started, 3)
        where |= {"skipped": trainer.skipped, "seconds": seconds}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(where | row) + "\n" for row in rows))
        except OSError as error:
            raise DiskError(unwritten(self.path, error)) from error

    def sync(self) -> None:
        """Flush the rows to the disk."""
        if self.path.is_file():
            sync(self.path)


def train(session: Session, observe: Observer, tell: Tell = lambda line: None) -> None:
    """Train every stage to its end, from wherever the folder's checkpoints stopped.

    tell: shows the user a line. Raises TrainingFailed if training cannot go on, or an alarm of its
    health is to stop it, DiskError if its log or state cannot be written, and KeyboardInterrupt
    after saving.
    """
    log = Log(session)
    train_stage(session, log, observe, tell)
    while not session.finished:
        skipped = session.trainer.skipped
        session.next_stage()
        session.trainer.skipped = skipped  # counted over the whole run
        log.losses.clear()
        train_stage(session, log, observe, tell)


def train_stage(session: Session, log: Log, observe: Observer, tell: Tell) -> None:
    """Train the present stage to its end, or until it is stopped; then its state lies on disk."""
    trainer, run, accelerator = session.trainer, session.run, session.accelerator
    monitor = Monitor(run.health, trainer, session.teacher)
    monitor.begin(session.health)
    saved, periods = trainer.turn, trainer.update // run.save_every
    with deferred_stop(ECHO if accelerator.num_processes > 1 else 0) as asked:
        observe(log.course.moment(session, log.losses))
        while not (trainer.done or monitor.stopped or agreed(asked, accelerator)):
            step = trainer.step(compare_terms=monitor.due)
            log.add(step)
            watch(session, monitor, step, log, tell)
            if trainer.done or trainer.turn % run.log_every == 0:
                log.write(session)
                observe(log.course.moment(session, log.losses))
            if trainer.update // run.save_every > periods:  # not counted from where it resumed
                saved, periods = trainer.turn, trainer.update // run.save_every
                checkpoint(session, log, monitor)
        if trainer.turn > saved:
            checkpoint(session, log, monitor)
        if agreed(asked, accelerator):
            raise KeyboardInterrupt
    if monitor.stopped:
        raise TrainingFailed(f"stopped at update {trainer.update} (health.stop): {monitor.stopped}")


def watch(session: Session, monitor: Monitor, step: StepLog, log: Log, tell: Tell) -> None:
    """Let the monitor see a turn; log what it finds, and tell the user of its alarms."""
    findings = monitor.watch(step)
    if findings is not None:
        log.probed(session, findings)
        for alarm in findings.alarms:
            tell(f"update {step.update}: {alarm.text}")


@contextmanager
def deferred_stop(echo: float) -> Iterator[Event]:
    """Ctrl-C or SIGTERM sets an event instead of breaking a step in two; a second one acts at once.

    echo: seconds in which a second one is taken for the first. Raises KeyboardInterrupt at the end
    if a stop was asked for and nothing came of it."""
    asked, since = Event(), 0.0
    if current_thread() is not main_thread():
        yield asked
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal since
        if not asked.is_set():
            since = time.monotonic()
            asked.set()
        elif time.monotonic() - since >= echo:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, ask) for number in STOPS}
    try:
        yield asked
    finally:
        restore()
    if asked.is_set():
        raise KeyboardInterrupt


def agreed(asked: Event, accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop; all of them learn it at the same turn."""
    if accelerator.num_processes == 1:
        return asked.is_set()
    flag = torch.tensor(float(asked.is_set()), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def checkpoint(session: Session, log: Log, monitor: Monitor) -> None:
    """Write the session's state; every process calls this, the main one writes."""
    trainer = session.trainer
    state, score = trainer.state(), monitor.distance()
    if not session.accelerator.is_main_process:
        return
    log.sync()
    numbers = {**state.numbers, "stage": session.stage, "update": trainer.update}
    numbers |= {"pending": log.pending(), "health": monitor.state()}
    step, folder = log.course.position(session), session.folder / "checkpoints"
    save(folder, step, State(state.tensors, numbers), session.run.keep, score)


def truncate(log: Path, stage: int, turn: int) -> None:
    """Drop rows logged after the checkpoint that training goes on from, and torn ones."""
    if not log.is_file():
        return
    place = end = 0
    with log.open("rb") as file:
        for line in file:
            place += len(line)
            row = row_of(line)
            if row is not None and (row["stage"], row["turn"]) > (stage, turn):
                break
            end = end if row is None else place
    os.truncate(log, end)  # cut, not written anew: that could itself be cut short


def rows(log: Path) -> Iterator[dict]:
    """The rows of a log, without what a crash or an accident left unreadable."""
    with log.open("rb") as file:
        yield from (row for line in file if (row := row_of(line)) is not None)


def seconds_of(log: Path) -> float:
    """Seconds of training in a log, caches not included; 0 if there is none.

    Where its clock starts anew, as it did in older logs, the parts are added."""
    logged = [row["seconds"] for row in rows(log)] if log.is_file() else []
    return sum(now for now, after in pairwise([*logged, 0.0]) if after < now)


def row_of(line: bytes) -> dict | None:
    """A row from its line, None if it is torn or something else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    named = isinstance(row, dict) and {"stage", "turn", "update", "player"} <= row.keys()
    return row if named and line.endswith(b"\n") else None


def curves(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Every logged number of a run as (student update, value), updates counted over stages."""
    found: dict[str, list[tuple[float, float]]] = {}
    offset, last_stage, last_update = 0, 0, 0
    for row in rows(log):
        if row["stage"] != last_stage:
            offset, last_stage = offset + last_update, row["stage"]
        last_update = row["update"]
        if "alarm" in row:
            continue
        for name in row.keys() - set(PLACE):
            key = f"{row['player']}: {name}"
            found.setdefault(key, []).append((offset + row["update"], row[name]))
    return found
