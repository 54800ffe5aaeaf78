"""Prompts in a file: one a line, or a column of a table.

NAME.txt                     a line each; empty lines are left out
NAME.csv, .jsonl, .parquet   the column prompt, text or caption
"""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import read_text
from ..schema import ConfigError, shown

COLUMNS = ("prompt", "text", "caption")
SUFFIXES = (".txt", ".csv", ".jsonl", ".parquet")
LONGEST, LARGEST = 10_000, 2**30  # characters of a prompt, bytes of a file


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, in order, as they are. Raises ConfigError where it holds none."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"{path}: prompts lie in {', '.join(SUFFIXES)} files, not in this one")
    try:
        found = read_table(path) if kind == ".parquet" else read_lines(path, kind)
    except (OSError, ValueError, pa.ArrowException, csv.Error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: {' '.join(str(reason).split())}") from error
    if not found:
        raise ConfigError(f"{path}: holds no prompts")
    for number, prompt in enumerate(found, 1):
        if not isinstance(prompt, str):
            raise ConfigError(f"{path}: prompt {number} is {shown(prompt)}, not a text")
        if len(prompt) > LONGEST:
            raise ConfigError(f"{path}: prompt {number} has more than {LONGEST:,} characters")
    return found


def read_lines(path: Path, kind: str) -> list:
    """Those of a text file. Raises ValueError for what is none of its kind."""
    text = read_text(path, LARGEST).removeprefix("\ufeff")
    if kind == ".txt":
        return [line.strip("\r") for line in text.split("\n") if line.strip()]
    if kind == ".csv":
        table = csv.DictReader(io.StringIO(text), strict=True)
        column = column_of(table.fieldnames or [])
        return [row[column] for row in table]
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be a mapping")
    column = column_of(rows[0] if rows else COLUMNS)
    return [row.get(column) for row in rows]


def read_table(path: Path) -> list:
    """Those of a parquet file. Raises ValueError where no column holds any."""
    column = column_of(pq.read_schema(path).names)
    return pq.read_table(path, columns=[column])[column].to_pylist()


def column_of(names) -> str:
    """The column that holds the prompts. Raises ValueError where none does."""
    found = next((column for column in COLUMNS if column in names), None)
    if found is None:
        listed = ", ".join(map(str, names)) or "none"
        raise ValueError(f"no column {', '.join(COLUMNS)}; there are: {shown(listed)}")
    return found
