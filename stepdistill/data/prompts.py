"""Prompts in a file: one a line, or a column of a table; and what they are grouped by, if anything.

NAME.txt                     a line each; empty lines are left out
NAME.csv, .jsonl, .parquet   the column prompt, text or caption, and category, tag or style
NAME.json                    what benchmarks are given out as, see `read_json`
DIR                          HPSv2's benchmark: anime.json, concept-art.json, paintings.json and
                             photo.json, each a list of its style's; others are left aside
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import read_text
from ..schema import ConfigError, shown

COLUMNS = ("prompt", "text", "caption")
CATEGORIES = ("category", "tag", "style")
STYLES = ("anime", "concept-art", "paintings", "photo")  # HPSv2's (arXiv:2306.09341)
SUFFIXES = (".txt", ".csv", ".jsonl", ".json", ".parquet")
LONGEST, LARGEST = 10_000, 2**30  # characters of a prompt, bytes of a file


class Prompt(NamedTuple):
    """One, and its category, None without."""

    text: str
    category: str | None = None


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, in order, as they are. Raises ConfigError where it holds none."""
    return [prompt.text for prompt in prompts_of(path)]


def is_prompt(text: Any) -> bool:
    """Whether it is a text that is not too long."""
    return isinstance(text, str) and len(text) <= LONGEST


def categories_of(prompts: Iterable[Prompt]) -> dict[str, tuple[str, ...]]:
    """The categories of each text that has one; the same text may stand in several."""
    found: dict[str, dict[str, None]] = {}
    for prompt in prompts:
        if prompt.category is not None:
            found.setdefault(prompt.text, {})[prompt.category] = None
    return {text: tuple(names) for text, names in found.items()}


def prompts_of(path: Path) -> list[Prompt]:
    """Those of a file, or of HPSv2's folder. Raises ConfigError where there are none, and for a
    folder without a file of each style."""
    if path.is_dir():
        return [prompt for style in STYLES for prompt in styled(path, style)]
    found = checked(path)
    if not found:
        raise ConfigError(f"{path}: holds no prompts")
    return found


def styled(folder: Path, style: str) -> list[Prompt]:
    """Those of one of HPSv2's styles. Raises ConfigError where they are not there."""
    file = folder / f"{style}.json"
    if not file.is_file():
        wanted = ", ".join(f"{each}.json" for each in STYLES)
        raise ConfigError(f"{folder}: has no {file.name}: of folders, HPSv2's are read: {wanted}")
    return [prompt._replace(category=style) for prompt in prompts_of(file)]


def checked(path: Path) -> list[Prompt]:
    """Those of a file. Raises ConfigError for what is no file of prompts, or no prompt."""
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ConfigError(f"{path}: prompts lie in {', '.join(SUFFIXES)} files, not in this one")
    try:
        found = read_table(path) if kind == ".parquet" else read_lines(path, kind)
    except (OSError, ValueError, pa.ArrowException, csv.Error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: {' '.join(str(reason).split())}") from error
    for number, (text, _) in enumerate(found, 1):
        if not isinstance(text, str):
            raise ConfigError(f"{path}: prompt {number} is {shown(text)}, not a text")
        if len(text) > LONGEST:
            raise ConfigError(f"{path}: prompt {number} has more than {LONGEST:,} characters")
    return found


def read_lines(path: Path, kind: str) -> list[Prompt]:
    """Those of a text file. Raises ValueError for what is none of its kind."""
    text = read_text(path, LARGEST).removeprefix("\ufeff")
    if kind == ".txt":
        return [Prompt(line.strip("\r")) for line in text.split("\n") if line.strip()]
    if kind == ".csv":
        table = csv.DictReader(io.StringIO(text), strict=True)
        return columns(table.fieldnames or [], list(table))
    if kind == ".json":
        return read_json(json.loads(text))
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    return of_rows(rows)


def read_json(found: Any) -> list[Prompt]:
    """Those of a list of texts, or of mappings as lines of .jsonl are; and of mappings

    {"images": […], "annotations": […]}             COCO's captions: the first of every image
    {"ID": {"prompt": …, "category": …}, …}         MJHQ-30K's meta_data.json
    {"STYLE": ["…", …], …}                          HPSv2's, all styles in one

    Raises ValueError for anything else."""
    if isinstance(found, list):
        if all(isinstance(each, dict) for each in found):
            return of_rows(found)
        return [Prompt(each) for each in found]
    if isinstance(found, dict) and "annotations" in found:
        return first_captions(found)
    values = list(found.values()) if isinstance(found, dict) else [None]
    if all(isinstance(value, dict) for value in values):
        return of_rows(values)
    if all(isinstance(value, list) for value in values):
        return [Prompt(text, style) for style, texts in found.items() for text in texts]
    raise ValueError("neither a list of prompts nor COCO's captions, MJHQ-30K's or HPSv2's file")


def first_captions(found: Mapping[str, Any]) -> list[Prompt]:
    """Of each image the annotation of the smallest number, images in their order."""
    try:
        rows = sorted(found["annotations"], key=lambda row: row["id"], reverse=True)
        first = {row["image_id"]: row["caption"] for row in rows}
        return [Prompt(first[image["id"]]) for image in found["images"] if image["id"] in first]
    except (LookupError, TypeError) as error:
        raise ValueError("annotations: not such as COCO's captions have") from error


def of_rows(rows: list) -> list[Prompt]:
    """Those of mappings. Raises ValueError for other things."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be a mapping")
    return columns(list(rows[0]) if rows else COLUMNS, rows)


def read_table(path: Path) -> list[Prompt]:
    """Those of a parquet file. Raises ValueError where no column holds any."""
    names = pq.read_schema(path).names
    wanted = [column_of(names), *[name for name in CATEGORIES if name in names][:1]]
    return columns(names, pq.read_table(path, columns=wanted).to_pylist())


def columns(names: Sequence[str], rows: list[dict]) -> list[Prompt]:
    """Those of a table with columns of these names."""
    column = column_of(names)
    group = next((name for name in CATEGORIES if name in names), "")
    return [Prompt(row.get(column), name_in(row.get(group))) for row in rows]


def name_in(cell: Any) -> str | None:
    """A cell as a category; None for what is no name."""
    return cell if isinstance(cell, str) and cell and cell.isprintable() else None


def column_in(names: Iterable[str]) -> str:
    """The one of COLUMNS that is there; where none is, the first."""
    return next((column for column in COLUMNS if column in names), COLUMNS[0])


def column_of(names: Sequence[str]) -> str:
    """The column that holds the prompts. Raises ValueError where none does."""
    found = column_in(names)
    if found not in names:
        listed = ", ".join(map(str, names)) or "none"
        raise ValueError(f"no column {', '.join(COLUMNS)}; there are: {shown(listed)}")
    return found
