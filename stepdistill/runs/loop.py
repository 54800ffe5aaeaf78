"""Training the stages of a run: progress, log, checkpoints, and a safe way to stop.

Ctrl-C, SIGTERM and a terminal that is closed let the step in hand finish and save a checkpoint; the
same command goes on from there.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Protocol

import torch
from accelerate import Accelerator

from ..schema import ConfigError
from ..training.checkpoint import DISTANCE, State, fitting, save
from ..training.finite import broken
from ..training.health.monitor import Monitor
from ..training.trainer import StepLog, TrainingFailed
from .log import Log
from .progress import Snapshot
from .stages import Stages


class Looker(Protocol):
    """Who looks at the student of some stages while it is trained."""

    def look(self, position: int) -> None:
        """After every turn; position: of the turn in the run."""
        ...

    def score(self) -> float | None:
        """Of the student as it is, by the run's metric, lower is better; None for no opinion."""
        ...


Observer = Callable[[Snapshot], None]
Warn = Callable[[str], None]
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Whoever launches us, `make` or accelerate, passes a stop on to who has had it already; so a second
# one is another wish to stop only after so many seconds.
ECHO = 2.0


def train(
    stages: Stages,
    observe: Observer,
    warn: Warn = lambda line: None,
    looker: Looker | None = None,
) -> None:
    """Train every stage to its end, from wherever the folder's checkpoints stopped.

    warn: shows the user a line. Raises TrainingFailed if training cannot go on, or an alarm of its
    health is to stop it, DiskError if its log or state cannot be written, KeyboardInterrupt after
    saving, and ConfigError on another number of processes than it began on.
    """
    require_processes(stages)
    log = Log(stages)
    train_stage(stages, log, observe, warn, looker)
    while not stages.finished:
        skipped = stages.trainer.skipped
        stages.next_stage()
        stages.trainer.skipped = skipped  # counted over the whole run
        log.losses.clear()
        train_stage(stages, log, observe, warn, looker)


def require_processes(stages: Stages) -> None:
    """Raise ConfigError for a run that began on more processes, or fewer, than there are."""
    trainer, now = stages.trainer, stages.setup.accelerator.num_processes
    if trainer.processes == now or stages.finished:
        return
    asked, began = trainer.training, trainer.processes
    raise ConfigError(
        f"{stages.folder.path}: began on {began} processes, this is {now}: a turn would have "
        f"{now * asked.accumulation * asked.batch} samples, not "
        f"{began * asked.accumulation * asked.batch}, and other data and random numbers: go on "
        f"with {began}, or train it anew under another name"
    )


def train_stage(
    stages: Stages, log: Log, observe: Observer, warn: Warn, looker: Looker | None
) -> None:
    """Train the present stage to its end, or until it is stopped; then its state lies on disk."""
    trainer, run, accelerator = stages.trainer, stages.setup.run, stages.setup.accelerator
    monitor = Monitor(run.health, trainer, stages.setup.teacher)
    with fitting(stages.folder.checkpoints):
        monitor.begin(stages.health)
    saved, periods = trainer.turn, trainer.update // run.save_every
    with deferred_stop() as asked:
        observe(log.snapshot())
        while not (trainer.done or monitor.stopped or agreed(asked, accelerator)):
            step = trainer.step(compare_terms=monitor.due)
            log.add(step)
            watch(monitor, step, log, warn)
            if looker is not None:
                looker.look(log.position())
            if trainer.done or trainer.turn % run.log_every == 0:
                log.write()
                observe(log.snapshot())
            if trainer.update // run.save_every > periods:  # not counted from where it resumed
                saved, periods = trainer.turn, trainer.update // run.save_every
                checkpoint(stages, log, monitor, looker)
        if trainer.turn > saved:
            checkpoint(stages, log, monitor, looker)
        if agreed(asked, accelerator):
            raise KeyboardInterrupt
    if monitor.stopped:
        raise TrainingFailed(f"stopped at update {trainer.update} (health.stop): {monitor.stopped}")


def watch(monitor: Monitor, step: StepLog, log: Log, warn: Warn) -> None:
    """Let the monitor see a turn; log what it finds, and warn the user of its alarms."""
    findings = monitor.watch(step)
    if findings is not None:
        log.probed(findings)
        for alarm in findings.alarms:
            warn(f"update {step.update}: {alarm.text}")


@contextmanager
def deferred_stop() -> Iterator[Event]:
    """A signal of STOPS sets an event instead of breaking a step in two; a second one, after ECHO,
    acts at once.

    One that is ignored already, as under nohup, stays so. Raises KeyboardInterrupt at the end if a
    stop was asked for and nothing came of it."""
    asked, since = Event(), 0.0
    if current_thread() is not main_thread():
        yield asked
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal since
        if not asked.is_set():
            since = time.monotonic()
            asked.set()
        elif time.monotonic() - since >= ECHO:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    heeded = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
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


def checkpoint(
    stages: Stages, log: Log, monitor: Monitor, looker: Looker | None = None
) -> None:
    """Write the stage's state; every process calls this, the main one writes.

    Raises TrainingFailed for a state that is not finite: the checkpoints stay as they are."""
    trainer, setup = stages.trainer, stages.setup
    state = trainer.state()
    part = broken(state, setup.accelerator)
    if part is not None:
        raise TrainingFailed(
            f"update {trainer.update}: {part} hold a NaN or an infinity: nothing was saved, and "
            "the same command goes on from the checkpoint before; if it comes again, train anew "
            "at a lower learning rate"
        )
    by = setup.run.validation.metric
    asked = by is not None and looker is not None
    score = looker.score() if asked else monitor.distance()  # by every process, so that none waits
    if not setup.accelerator.is_main_process:
        return
    log.sync()
    numbers = {**state.numbers, "stage": stages.stage, "update": trainer.update}
    numbers |= {"pending": log.pending(), "health": monitor.state()}
    whole = State(state.tensors, numbers)
    keep = setup.run.keep
    save(stages.folder.checkpoints, log.position(), whole, keep, score, by or DISTANCE)
