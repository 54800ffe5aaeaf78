"""A folder of images that says what each shows:

metadata.jsonl    {"file_name": "0.png", "prompt": "…"} a line (or text, caption)
captions.txt      a line for each image, in natural order of their names
0.png, 0.txt      a file of words beside each image
00000/metadata.jsonl, 00000/samples/0000.png    GenEval's layout, one folder a prompt
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..files import SMALL, read_text
from ..schema import ConfigError, shown
from .listing import files, folders, listed
from .pictures import SUFFIXES
from .prompts import COLUMNS, LARGEST, LONGEST, is_prompt

METADATA, CAPTIONS, SAMPLES, BESIDE = "metadata.jsonl", "captions.txt", "samples", ".txt"


def captioned(folder: Path) -> tuple[list[Path], list[str] | None]:
    """The images of a folder, and what each shows, None where it does not say.

    Raises ConfigError where there are none, or its words do not fit."""
    try:
        found, prompts = pairs_of(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            str(error) if isinstance(error, ConfigError) else f"{folder}: {error}"
        ) from error
    for number, prompt in enumerate(prompts or (), 1):
        if not is_prompt(prompt):
            raise ConfigError(
                f"{folder}: prompt {number} is no text of at most {LONGEST:,} characters"
            )
    return found, prompts


def pairs_of(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Images and their prompts. Raises ValueError and OSError for what cannot be read."""
    if (folder / METADATA).is_file():
        rows = [mapping(line) for line in lines(folder / METADATA)]
        named = [inside(folder, row.get("file_name")) for row in rows]
        return existing(folder, named), [prompt_in(row) for row in rows]
    paths = [Path(entry.path) for entry in listed(folder)]
    if (folder / CAPTIONS).is_file():
        found, said = images(paths), lines(folder / CAPTIONS)
        if len(said) != len(found):
            raise ValueError(f"{CAPTIONS} has {len(said)} lines for {len(found)} images")
        return existing(folder, found), said
    if any((path / METADATA).is_file() for path in paths):
        return by_prompt(folder)
    if {path.with_suffix(BESIDE) for path in images(paths)}.intersection(paths):
        return beside(folder, paths)
    return [Path(path) for path in files(folder, SUFFIXES)], None


def images(paths: list[Path]) -> list[Path]:
    """Those that are called as images are."""
    return [path for path in paths if path.name.lower().endswith(SUFFIXES)]


def beside(folder: Path, entries: list[Path]) -> tuple[list[Path], list[str]]:
    """Images, and the words of the files that are called as they are."""
    found = images(entries)
    words = {path.with_suffix(BESIDE) for path in found}
    known = words.union(found)
    other = next((path for path in entries if path not in known), None)
    if other is not None:
        raise ValueError(f"{other.name} is no image and lies beside none of this name")
    return existing(folder, found), [said_in(path.with_suffix(BESIDE)) for path in found]


def said_in(file: Path) -> str:
    """The words of a file, on one line. Raises ValueError where there is no such file."""
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    return " ".join(read_text(file, SMALL).split())


def by_prompt(folder: Path) -> tuple[list[Path], list[str]]:
    """GenEval's layout."""
    found, prompts = [], []
    for entry in folders(folder):
        place = Path(entry.path)
        said = prompt_in(mapping(next(iter(lines(place / METADATA)), "")))
        made = files(place / SAMPLES, SUFFIXES)
        found += [Path(path) for path in made]
        prompts += [said] * len(made)
    return found, prompts


def lines(file: Path) -> list[str]:
    """Those of a file that are not empty."""
    return [line for line in read_text(file, LARGEST).split("\n") if line.strip()]


def mapping(line: str) -> dict:
    """A line of JSON. Raises ValueError for another thing."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"{METADATA}: {shown(line)} is no mapping")
    return row


def prompt_in(row: dict) -> str:
    """Raises ValueError where there is none."""
    found = next((row[name] for name in COLUMNS if name in row), None)
    if not isinstance(found, str):
        raise ValueError(f"{METADATA}: no {' , '.join(COLUMNS)} in {shown(str(row))}")
    return found


def inside(folder: Path, name: object) -> Path:
    """A file that metadata name. Raises ValueError for one outside the folder."""
    place = os.path.normpath(os.path.join(folder, name)) if isinstance(name, str) else ""
    if not Path(place).is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"{METADATA}: file_name {shown(str(name))} is no file of this folder")
    return folder / name


def existing(folder: Path, found: list[Path]) -> list[Path]:
    """The files. Raises ValueError where there are none, or one is missing."""
    if not found:
        raise ValueError("holds no images")
    for file in found:
        if not file.is_file():
            raise ValueError(f"{file.relative_to(folder)} is missing")
    return found
