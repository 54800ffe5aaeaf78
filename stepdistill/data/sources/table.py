"""Pictures listed in a table: a CSV file with a header, or JSON lines.

    image,label                  {"image": "a/1.png", "label": "cat", "text": "a cat"}
    a/1.png,cat                  {"image": "a/2.png", "label": "dog", "text": "two dogs"}

Paths begin at the folder of the table. That each file exists is looked at before anything is read.
"""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...schema import ConfigError, shown
from ..images import InColumns
from ..prompts import column_in
from ..stored import Files, Label

Line = tuple[int, dict[str, Any]]  # its number, and its values by column


@dataclass(frozen=True)
class Table(InColumns):
    """The settings of `InColumns`; path: a .csv or .jsonl file."""

    def find(self, classes: int | None, captioned: bool = False) -> Files:
        root = os.path.dirname(self.path)
        paths: list[str] = []
        labels: list[Label] = []
        captions: list[str] = []
        for number, line in lines(self.path):
            where = f"{self.path}: line {number}"
            path = os.path.join(root, self._value(line, "image", where))
            if not os.path.isfile(path):
                raise ConfigError(f"{where}: {path}: no such file")
            paths.append(path)
            if classes is not None:
                labels.append(self._value(line, "label", where))
            if captioned:
                captions.append(self._value(line, "caption", where))
        if not paths:
            raise ConfigError(f"{self.path}: lists no images")
        said = captions if captioned else None
        return Files(root, paths, None if classes is None else labels, captions=said)

    def _value(self, line: dict[str, Any], key: str, where: str) -> Any:
        """What a line says of `key`. Raises ConfigError if that cannot be used."""
        caption = self.caption or column_in(line)
        column = {"image": self.image, "label": self.label, "caption": caption}[key]
        if column not in line:
            listed = ", ".join(shown(name) for name in line)
            raise ConfigError(f"settings.{key}: {where}: no '{column}' among {listed}")
        value = line[column]
        usable = isinstance(value, str) or (key == "label" and type(value) is int)
        bare = key != "caption" and (value == "" or "\0" in str(value))
        if not usable or bare:
            raise ConfigError(f"{where}: {key} {shown(value)}: needs a text")
        return value


def lines(path: str) -> Iterator[Line]:
    """The lines of a table. Raises ConfigError for what is none."""
    read = {".csv": csv_lines, ".jsonl": json_lines}.get(os.path.splitext(path)[1].lower())
    if read is None or not os.path.isfile(path):
        raise ConfigError(f"{path}: not a .csv or .jsonl file")
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: unreadable ({error})") from error


def csv_lines(path: str) -> Iterator[Line]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for line in reader:
            if None in line or None in line.values():
                raise ConfigError(f"{path}: line {reader.line_num}: not as many values as columns")
            yield reader.line_num, line


def json_lines(path: str) -> Iterator[Line]:
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path}: line {number}: not JSON ({error})") from error
            if not isinstance(line, dict):
                raise ConfigError(f"{path}: line {number}: needs keys with values, like {{…}}")
            yield number, line
