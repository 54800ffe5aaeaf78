"""Progress people can read: one bar with the losses and the time left, or plain lines in a log.

A run's work is counted in network passes, so that stages with dearer updates take their share of
the bar and of the time left.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINES = 10  # lines of a whole task where there is no terminal
RECENT = 100  # calls whose pace is that of the rest


@dataclass(frozen=True)
class Snapshot:
    """Where training is.

    stage: its name. update, updates: of the stage, done and in all. done, total: of the run, in
    network passes. losses: the last means of every player that moved. skipped: steps of the run
    that were not finite.
    """

    stage: str
    update: int
    updates: int
    done: float
    total: float
    losses: dict[str, dict[str, float]]
    skipped: int

    def __str__(self) -> str:
        losses = (
            " ".join([player, *(f"{name} {value:.4g}" for name, value in means.items())])
            for player, means in self.losses.items()
        )
        skipped = [f"{self.skipped} steps skipped"] if self.skipped else []
        return "  ".join([f"{self.stage} {self.update}/{self.updates}", *losses, *skipped])


class Reporter:
    """Shows how far one task is: call it with what is done, the total, and a text to show."""

    def __init__(self, console: Console, title: str, bar: Progress | None) -> None:
        self.console, self.title, self.bar = console, title, bar
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self.task: TaskID | None = None
        self.lines = -1

    def __call__(self, done: float, total: float, text: str = "") -> None:
        self.recent.append((time.perf_counter(), done))
        left = self.left(total - done)
        if self.bar is None:
            self._line(done / total, text, left)
            return
        if self.task is None:
            self.task = self.bar.add_task(self.title, total=None, text="", left="")
        self.bar.update(self.task, completed=done, total=total, text=text, left=left)

    def left(self, todo: float) -> str:
        """The time that `todo` takes at the recent pace, empty where there is none yet.

        What an earlier process did of the task is no pace: the first call starts the clock."""
        (then, before), (now, done) = self.recent[0], self.recent[-1]
        if done == before:
            return ""
        return f"{duration((now - then) / (done - before) * todo)} left"

    def _line(self, share: float, text: str, left: str) -> None:
        if int(share * LINES) <= self.lines:
            return
        self.lines = int(share * LINES)
        parts = (f"{self.title} {100 * share:.0f} %", text, left)
        line = "  ".join(part for part in parts if part)
        self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def duration(seconds: float) -> str:
    """Rounded for people: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress(console: Console, title: str) -> Iterator[Reporter]:
    """A reporter of one task, live in a terminal, in lines elsewhere."""
    if not console.is_terminal:
        yield Reporter(console, title, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:.0f} %"),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        yield Reporter(console, title, bar)
