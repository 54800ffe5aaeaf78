"""Running a session's training: progress, log, checkpoints, and a safe way to stop.

`log.jsonl` has one row per player and `log_every` turns: means since the last row, or since the run
was resumed, without steps that were skipped. Ctrl-C lets the step in hand finish and saves a
checkpoint; the same command goes on from there.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, current_thread, main_thread

from .checkpoint import State, save
from .session import Session
from .trainer import StepLog, Trainer

Observer = Callable[[int, int, dict[str, float]], None]  # (update, of updates, losses)


@dataclass
class Means:
    """Means of a player's logged numbers."""

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, step: StepLog) -> None:
        self.count += 1
        numbers = {**step.parts, "gradient_norm": step.gradient_norm, "lr": step.lr}
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.sums.items()}


def train(session: Session, observe: Observer) -> None:
    """Train every stage to its end, from wherever the folder's checkpoints stopped.

    Raises TrainingFailed if training cannot go on; KeyboardInterrupt is passed on after saving.
    """
    log = session.folder / "log.jsonl" if session.accelerator.is_main_process else Path(os.devnull)
    truncate(log, session.stage, session.trainer.turn)
    while True:
        with log.open("a", encoding="utf-8", buffering=1) as file:  # whole rows, at once on disk
            train_stage(session, file.write, observe)
        if session.finished:
            return
        session.next_stage()


def train_stage(session: Session, write: Callable[[str], int], observe: Observer) -> None:
    """Train the present stage to its end, or to Ctrl-C; then its state lies on disk."""
    trainer, means = session.trainer, {}
    started, saved = time.perf_counter(), trainer.update
    with deferred_interrupt() as interrupted:
        while not (trainer.done or interrupted.is_set()):
            step = trainer.step()
            if not step.skipped:
                means.setdefault(step.player, Means()).add(step)
            if step.turn % session.run.log_every == 0:
                log_means(session, step, means, write, time.perf_counter() - started)
                observe(step.update, trainer.training.updates, dict(step.parts))
            if trainer.update >= saved + session.run.save_every:
                saved = trainer.update
                checkpoint(session, trainer)
        checkpoint(session, trainer)
    if interrupted.is_set():
        raise KeyboardInterrupt


def log_means(
    session: Session,
    step: StepLog,
    means: dict[str, "Means"],
    write: Callable[[str], int],
    seconds: float,
) -> None:
    """A row for every player that moved since the last rows, to the log and to the trackers."""
    where = {"stage": session.stage, "turn": step.turn, "update": step.update}
    where |= {"skipped": session.trainer.skipped, "seconds": round(seconds, 3)}
    for player in sorted(means):
        numbers = means.pop(player).take()
        write(json.dumps(where | {"player": player} | numbers) + "\n")
        tagged = {f"{player}/{name}": value for name, value in numbers.items()}
        session.accelerator.log(tagged, step=step.turn)


@contextmanager
def deferred_interrupt() -> Iterator[Event]:
    """Ctrl-C sets an event instead of breaking a step in two; a second one interrupts at once."""
    pressed = Event()
    if current_thread() is not main_thread():
        yield pressed
        return

    def press(_signal: int, _frame: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def checkpoint(session: Session, trainer: Trainer) -> None:
    """Write the session's state; every process calls this, the main one writes."""
    state = trainer.state()
    if not session.accelerator.is_main_process:
        return
    numbers = {**state.numbers, "stage": session.stage, "update": trainer.update}
    step = sum(s.training.updates for s in session.run.stages[: session.stage]) + trainer.update
    save(session.folder / "checkpoints", step, State(state.tensors, numbers))


def truncate(log: Path, stage: int, turn: int) -> None:
    """Drop rows logged after the checkpoint that training goes on from."""
    if not log.is_file():
        return
    kept = [row for row in rows(log) if (row["stage"], row["turn"]) <= (stage, turn)]
    log.write_text("".join(json.dumps(row) + "\n" for row in kept))


def rows(log: Path) -> Iterator[dict]:
    """The rows of a log, without what a crash or an accident left unreadable."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"stage", "turn", "update", "player"} <= row.keys():
            yield row


def curves(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Every logged number of a run as (student update, value), updates counted over stages."""
    found: dict[str, list[tuple[float, float]]] = {}
    offset, last_stage, last_update = 0, 0, 0
    for row in rows(log):
        if row["stage"] != last_stage:
            offset, last_stage = offset + last_update, row["stage"]
        last_update = row["update"]
        fixed = ("stage", "turn", "update", "player", "skipped", "seconds")
        for name in row.keys() - set(fixed):
            key = f"{row['player']}: {name}"
            found.setdefault(key, []).append((offset + row["update"], row[name]))
    return found
