"""What the labels 0, 1, … of a run's data are called, shown when training begins and kept with it.

A student learns labels by number; were they counted otherwise after a stop, because a folder has
come or gone, it would learn them anew without a word.
"""

import json
from itertools import zip_longest
from pathlib import Path

from ..files import read_text, write_whole
from ..schema import ConfigError, shown


def keep(file: Path, names: tuple[str, ...]) -> None:
    """Write the names, or see that they are what they were; without names there is no file.

    Raises ConfigError for other names than before, and for a damaged file."""
    if not file.is_file():
        if names:
            write_whole(file, json.dumps(names, ensure_ascii=False, indent=1) + "\n")
        return
    try:
        before = list(json.loads(read_text(file)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file}: damaged ({error}): delete it, run again") from error
    for label, (was, now) in enumerate(zip_longest(before, names)):
        if was != now:
            raise ConfigError(
                f"{file}: label {label} was {shown(was)} and is {shown(now)} in the data: put them "
                "back, or choose another name for the run"
            )


def listed(names: tuple[str, ...], most: int = 20) -> str:
    """Labels and names on one line; of many the first and the last."""
    pairs = [f"{label} {name}" for label, name in enumerate(names)]
    return ", ".join(pairs if len(pairs) <= most else [*pairs[: most - 2], "…", pairs[-1]])
