"""A scorer with an environment of its own: any program that reads and writes JSON.

It is run once for the images of a block. Its input is a list

    [{"file": "/…/000000.png", "prompt": "a red cat"}, …]      prompt: text, label or null

and what it prints a list of as many numbers. The metric is their mean.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from ...schema import Positive
from ..collection import write
from ..metric import Made, Metric
from ..reference import Reference

WORDS = 200  # of a program's last words


@dataclass
class Command(Metric):
    """command: the program and its arguments.  limit: seconds for a block's images.  larger:
    whether a larger number is better.  needs_asked: whether it says nothing of images without a
    prompt or label."""

    about = "the mean of what a program of your own says of the images."
    command: tuple[str, ...] = ()
    limit: Positive = 3600.0
    larger: bool = True
    needs_asked: bool = False
    folder: TemporaryDirectory = field(init=False, repr=False)
    rows: list[dict[str, Any]] = field(init=False, repr=False)
    others: list[Command] = field(init=False, repr=False)  # merged, whose images go with them

    def open(self, reference: Reference) -> None:
        if not self.command or which(self.command[0]) is None:
            raise ValueError(f"command: {' '.join(self.command) or 'none'}: no such program")

    @property
    def lower_is_better(self) -> bool:
        return not self.larger

    def reset(self) -> None:
        self.folder, self.rows, self.others = TemporaryDirectory(), [], []

    def update(self, made: Made) -> None:
        asked = [None] * len(made.images) if made.asked is None else made.asked
        for image, prompt in zip(made.images, asked):
            file = Path(self.folder.name) / f"{len(self.rows):06d}.png"
            write(file, ((image + 1) * 127.5).round().byte())
            text = int(prompt) if isinstance(prompt, Tensor) else prompt
            self.rows.append({"file": str(file), "prompt": text})

    def merge(self, other: Command) -> None:
        self.rows += other.rows
        self.others.append(other)

    def compute(self) -> list[float]:
        try:
            done = subprocess.run(
                self.command,
                input=json.dumps(self.rows),
                capture_output=True,
                text=True,
                timeout=self.limit,
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{self.command[0]}: not done after {self.limit:g} s") from error
        if done.returncode != 0:
            words = " ".join(done.stderr.split())[-WORDS:]
            raise ValueError(f"{self.command[0]}: exit code {done.returncode}: {words}")
        return [fmean(self._numbers(done.stdout))]

    def _numbers(self, text: str) -> list[float]:
        try:
            found = json.loads(text)
            if len(found) == len(self.rows):
                return [float(value) for value in found]
        except (ValueError, TypeError):
            pass
        raise ValueError(f"{self.command[0]}: prints no list of {len(self.rows)} numbers")
