"""The bands of healthy runs that reports are read against.

    python eval/bands.py runs/digits-dmd2 runs/digits-sid …

writes stepdistill/assets/bands.json from the probes of these runs: of each method and signal the
least and the most in every tenth of a stage. Runs that raised an alarm are named and left out.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from stepdistill.files import write_whole
from stepdistill.runs.config import read
from stepdistill.runs.log import log_rows
from stepdistill.training.health.monitor import probes
from stepdistill.training.health.reference import FILE, collect

DIGITS = 3  # kept of each number


def probed(folder: Path) -> Iterator[tuple[str, float, dict[str, float]]]:
    """(method, share of its stage, signals) of every probe."""
    stages = read(str(folder / "config.yaml")).stages
    for stage, update, signals in probes(log_rows(folder / "log.jsonl")):
        method, updates = stages[stage].method, stages[stage].training.updates
        yield method, update / updates, {k: float(f"{v:.{DIGITS}g}") for k, v in signals.items()}


def is_healthy(folder: Path) -> bool:
    """Whether no alarm was raised."""
    return not any("alarm" in row for row in log_rows(folder / "log.jsonl"))


def main(folders: list[Path]) -> None:
    healthy = [folder for folder in folders if is_healthy(folder)]
    print("left out:", *sorted({f.name for f in folders} - {f.name for f in healthy}))
    found = collect(probe for folder in healthy for probe in probed(folder))
    lines = [f"{json.dumps(method)}: {json.dumps(found[method])}" for method in sorted(found)]
    write_whole(FILE, "{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
