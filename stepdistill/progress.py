"""Progress people can read: a bar with the losses and the time left, or plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINES = 10  # lines of a whole task where there is no terminal


class Reporter:
    """Shows how far one task is; call it with what is done, the total, and numbers to show."""

    def __init__(self, console: Console, title: str, bar: Progress | None) -> None:
        self.console, self.title, self.bar = console, title, bar
        self.started, self.shown = time.perf_counter(), -1
        self.first: int | None = None
        self.task: TaskID | None = bar.add_task(title, total=None, numbers="") if bar else None

    def __call__(self, done: int, total: int, numbers: dict[str, float] | None = None) -> None:
        text = "  ".join(f"{k} {v:.4g}" for k, v in (numbers or {}).items())
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, numbers=text)
            return
        self.first = done if self.first is None else self.first
        if done * LINES // total > self.shown:
            self.shown = done * LINES // total
            line = f"{self.title} {done}/{total}  {self._left(done, total)}  {text}"
            self.console.print(line, soft_wrap=True)

    def _left(self, done: int, total: int) -> str:
        spent, made = time.perf_counter() - self.started, done - (self.first or 0)
        return f"{spent / made * (total - done):.0f} s left" if made else ""


@contextmanager
def progress(console: Console, title: str) -> Iterator[Reporter]:
    """A reporter of one task, live in a terminal, in lines elsewhere."""
    if not console.is_terminal:
        yield Reporter(console, title, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        yield Reporter(console, title, bar)
