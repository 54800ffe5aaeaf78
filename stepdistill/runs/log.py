"""`log.jsonl`: one row per player and `log_every` turns, means since the last row.

Steps that were skipped are left out. Rows are on disk before the checkpoint that counts them, and
means under way are part of it: the log of a run that was stopped, however it was, is that of one
that was not.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import LARGE, DiskError, regular, sync, unwritten
from ..schema import ConfigError
from ..training.health.monitor import NORM, PLACE, Findings
from ..training.trainer import StepLog
from .costs import stage_costs
from .progress import Snapshot
from .stages import Stages

ALARM = ("alarm", "begins", "text")  # of a row that is one


@dataclass
class RunningMeans:
    """Means of a player's logged numbers, summed where they were computed and read when taken."""

    count: int = 0
    sums: dict[str, Any] = field(default_factory=dict)

    def add(self, step: StepLog) -> None:
        self.count += 1
        parts = {k: v for k, v in step.parts.items() if not k.startswith(NORM)}  # only at probes
        numbers = {**parts, "gradient_norm": step.gradient_norm, "lr": step.lr}
        for name, value in numbers.items():
            exact = value.double() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + exact

    def take(self) -> dict[str, float]:
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def state(self) -> dict[str, Any]:
        """What it is made from again."""
        return {"count": self.count, "sums": {k: float(v) for k, v in self.sums.items()}}


class Log:
    """The rows of log.jsonl, and the means that are not yet one; only the main process writes.

    Opened, it holds what was logged up to the stages' place, and its clock goes on from there."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.costs = stages, stage_costs(stages.setup)
        main = stages.setup.accelerator.is_main_process
        self.path = stages.folder.log if main else Path(os.devnull)
        self.means = {player: RunningMeans(**saved) for player, saved in stages.pending.items()}
        self.losses: dict[str, dict[str, float]] = {}  # as last written, by player
        if main:
            require_log(self.path)
        truncate(self.path, stages.stage, stages.trainer.turn)
        self.started = time.perf_counter() - seconds_of(self.path)

    def add(self, step: StepLog) -> None:
        means = self.means.setdefault(step.player, RunningMeans())
        if not step.skipped:
            means.add(step)

    def pending(self) -> dict[str, dict]:
        """What a checkpoint keeps of the means."""
        return {player: means.state() for player, means in self.means.items()}

    def write(self) -> None:
        """A row for every player that had turns since the last rows, and to the trackers.

        Raises DiskError if the disk is full."""
        rows = []
        for player in sorted(self.means):
            numbers = self.means.pop(player).take()
            rows.append({"player": player} | numbers)
            self.track(player, numbers)
            losses = {k: v for k, v in numbers.items() if k not in ("gradient_norm", "lr")}
            self.losses[player] = losses or self.losses.get(player, {})
        self.append(rows)

    def probed(self, found: Findings) -> None:
        """What a probe of health saw, to the log and to the trackers."""
        self.track("health", found.values)
        self.append(found.rows())

    def track(self, player: str, numbers: dict[str, float]) -> None:
        """Numbers to the trackers."""
        tagged = {f"{player}/{name}": value for name, value in numbers.items()}
        self.stages.setup.accelerator.log(tagged, step=self.position())

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Rows to the log, with their place in the run. Raises DiskError if the disk is full."""
        trainer = self.stages.trainer
        where = {"stage": self.stages.stage, "turn": trainer.turn, "update": trainer.update}
        seconds = round(time.perf_counter() - self.started, 3)
        where |= {"skipped": trainer.skipped, "seconds": seconds}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(where | row) + "\n" for row in rows))
        except OSError as error:
            raise DiskError(unwritten(self.path, error)) from error

    def position(self) -> int:
        """The number of the run's present turn, over all stages."""
        before = sum(cost.turns for cost in self.costs[: self.stages.stage])
        return before + self.stages.trainer.turn

    def snapshot(self) -> Snapshot:
        """Where the run is."""
        trainer, stage, count = self.stages.trainer, self.stages.stage, len(self.costs)
        method = self.stages.settings.method
        work = [cost.training.updates * cost.work for cost in self.costs]
        return Snapshot(
            stage=method if count == 1 else f"{method} ({stage + 1} of {count})",
            update=trainer.update,
            updates=trainer.training.updates,
            done=sum(work[:stage]) + trainer.update * self.costs[stage].work,
            total=sum(work),
            losses=dict(self.losses),
            skipped=trainer.skipped,
        )

    def sync(self) -> None:
        """Flush the rows to the disk."""
        if self.path.is_file():
            sync(self.path)


def require_log(path: Path) -> None:
    """Raise ConfigError for what lies there and is no log: pipes and devices wait for ever."""
    try:
        if os.path.lexists(path):
            regular(path, LARGE)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: delete it, and run again") from error


def truncate(log: Path, stage: int, turn: int) -> None:
    """Drop rows logged after the checkpoint that training goes on from, and torn ones."""
    if not log.is_file():
        return
    place = end = 0
    with regular(log, LARGE).open("rb") as file:
        for line in file:
            place += len(line)
            row = row_of(line)
            if row is not None and (row["stage"], row["turn"]) > (stage, turn):
                break
            end = end if row is None else place
    os.truncate(log, end)  # cut, not written anew: that could itself be cut short


def log_rows(log: Path) -> Iterator[dict]:
    """The rows of a log, without what a crash or an accident left unreadable."""
    with regular(log, LARGE).open("rb") as file:
        yield from (row for line in file if (row := row_of(line)) is not None)


def seconds_of(log: Path) -> float:
    """Seconds of training in a log, caches not included; 0 if there is none.

    Where its clock starts anew, as it did in older logs, the parts are added."""
    logged = [row.get("seconds", 0.0) for row in log_rows(log)] if log.is_file() else []
    return sum(now for now, after in pairwise([*logged, 0.0]) if after < now)


def row_of(line: bytes) -> dict | None:
    """A row from its line, None if it is torn or something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if is_row(row) and line.endswith(b"\n") else None


def is_row(row: Any) -> bool:
    """Whether it has the types of a row; an alarm's values are texts."""
    if not isinstance(row, dict) or not {"stage", "turn", "update", "player"} <= row.keys():
        return False
    numbers = {name: value for name, value in row.items() if name not in ("player", *ALARM)}
    placed = all(type(row[name]) is int and row[name] >= 0 for name in ("stage", "turn", "update"))
    told = isinstance(row["player"], str)
    if "alarm" in row:
        told &= [type(row.get(name)) for name in ALARM] == [str, bool, str]
    return placed and told and all(map(is_number, numbers.values()))


def is_number(value: Any) -> bool:
    """Whether it is a number; true and false are none."""
    return type(value) in (int, float)


def curves(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Every logged number of a run as (student update, value), updates counted over stages."""
    found: dict[str, list[tuple[float, float]]] = {}
    offset, last_stage, last_update = 0, 0, 0
    for row in log_rows(log):
        if row["stage"] != last_stage:
            offset, last_stage = offset + last_update, row["stage"]
        last_update = row["update"]
        if "alarm" in row:
            continue
        for name in row.keys() - set(PLACE):
            key = f"{row['player']}: {name}"
            found.setdefault(key, []).append((offset + row["update"], row[name]))
    return found
