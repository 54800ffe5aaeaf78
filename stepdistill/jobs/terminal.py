"""What the command line prints, and where: a plain console, results as a table, lost streams."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from ..evaluation.report.table import milliseconds, score_names, value_text
from ..evaluation.rows import Row
from ..schema import printable


class PlainConsole(Console):
    """Prints users' own names: nothing in them is markup, and nothing a terminal would obey."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=printable(part.text))


def table(rows: Sequence[Row]) -> Table:
    """The result table in the terminal; intervals are in the report."""
    names, time = score_names(rows), milliseconds(rows)
    listing = Table("model", "steps", "NFE", *names, "ms/image", box=SIMPLE_HEAD, padding=0)
    for row in rows:
        listing.add_row(
            f"{row.model} {row.source}".strip(),
            str(row.steps),
            str(row.nfe),
            *(value_text(row.scores.get(name)) for name in names),
            time(row),
        )
    return listing


class Unread(io.TextIOBase):
    """The stream that `sys` has under a name, swallowing what it cannot write, then and later."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def stream(self) -> TextIO:
        return getattr(sys, self.name)

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())  # what is buffered goes there at the end
            os.close(null)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""
