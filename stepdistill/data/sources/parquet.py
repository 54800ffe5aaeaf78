"""Pictures in Parquet files, as Hugging Face stores them: a column of images, and one of labels
or of captions.

An image is its bytes, or a pair of bytes and path; names of classes are read from the files. They
are read in order, file by file in an order of their own each time round, `buffer` samples shuffled
among themselves, so that no copy is made and memory holds no more than the buffer, encoded.
"""

import os
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from ...schema import ConfigError, Count, shown
from .. import listing
from ..images import InColumns
from ..stored import Label, Stored


@dataclass(frozen=True)
class Parquet(InColumns):
    """The settings of `InColumns`; path: a file, or a folder of them.

    buffer: samples that are shuffled among themselves, and held.
    """

    buffer: Count = 10_000

    def window(self) -> int | None:
        return self.buffer

    def find(self, classes: int | None, captioned: bool = False) -> "RowGroups":
        alone = self.path.endswith(".parquet") and os.path.isfile(self.path)
        paths = [self.path] if alone else listing.files(self.path, (".parquet",), "a table")
        columns = self.columns(names_of(paths[0]) if captioned else (), classes, captioned)
        return RowGroups([footer(path, columns) for path in paths], columns, self.buffer)


class Footer(NamedTuple):
    """What the end of a file says: the number of rows in each of its groups, names of classes."""

    path: str
    groups: list[int]
    names: list[str] | None


def footer(path: str, columns: dict[str, str]) -> Footer:
    """columns: by the setting that names each. Raises ConfigError if the file lacks one."""
    try:
        with pq.ParquetFile(path) as file:
            schema, about = file.schema_arrow, file.metadata
            groups = [about.row_group(k).num_rows for k in range(about.num_row_groups)]
        features = Features.from_arrow_schema(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: {damaged(error)}") from error
    for key, column in columns.items():
        if column not in schema.names:
            listed = ", ".join(shown(name) for name in schema.names)
            raise ConfigError(f"settings.{key}: {path}: no '{column}' among {listed}")
    label = features.get(columns.get("label"))
    return Footer(path, groups, label.names if isinstance(label, ClassLabel) else None)


class RowGroups(Stored):
    """Pictures in the row groups of files, numbered through; the groups read last are held.

    columns: of image, and of label or caption. held: rows that are held, and what lies around.
    """

    def __init__(self, tables: list[Footer], columns: dict[str, str], held: int) -> None:
        self.tables, self.image = tables, columns["image"]
        self.names = tables[0].names if "label" in columns else None
        self.labels = [each for t in tables for each in values(t.path, columns.get("label"))]
        if "caption" in columns:
            self.captions = [each for t in tables for each in values(t.path, columns["caption"])]
        self.groups = [(table.path, k) for table in tables for k in range(len(table.groups))]
        sizes = [size for table in tables for size in table.groups]
        self.begins, self.file_begins = np.cumsum([0, *sizes]), np.cumsum([0, *self.shards])
        self.most = 2 * held + 2 * max(sizes, default=0)  # a window has at most half held out
        self.recent: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    @property
    def shards(self) -> tuple[int, ...]:
        return tuple(sum(table.groups) for table in self.tables)

    def __len__(self) -> int:
        return int(self.begins[-1])

    def file(self, number: int) -> BytesIO:
        k, row = self._place(number)
        value = self._group(k)[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ConfigError(f"{self.name(number)}: holds no bytes of an image (settings.image)")
        return BytesIO(content)

    def name(self, number: int) -> str:
        path, row = self._row(number)
        return f"{path}: row {row}"

    def key(self, number: int) -> str:
        path, row = self._row(number)
        return f"{os.path.basename(path)}:{row}"

    def _place(self, number: int) -> tuple[int, int]:
        """The group of a picture, and its row there."""
        k = int(np.searchsorted(self.begins, number, side="right")) - 1
        return k, number - int(self.begins[k])

    def _row(self, number: int) -> tuple[str, int]:
        """The file of a picture, and its row there."""
        k = int(np.searchsorted(self.file_begins, number, side="right")) - 1
        return self.tables[k].path, number - int(self.file_begins[k])

    def _group(self, k: int) -> pa.ChunkedArray:
        """The images of a group."""
        if k not in self.recent:
            path, place = self.groups[k]
            try:
                with pq.ParquetFile(path) as file:
                    self.recent[k] = file.read_row_group(place, columns=[self.image])[self.image]
            except (pa.ArrowException, OSError) as error:
                raise ConfigError(f"{path}: {damaged(error)}") from error
        self.recent.move_to_end(k)
        while len(self.recent) > 1 and sum(map(len, self.recent.values())) > self.most:
            self.recent.popitem(last=False)
        return self.recent[k]


def names_of(path: str) -> list[str]:
    """The columns of a file."""
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: {damaged(error)}") from error


def values(path: str, column: str | None) -> list[Label]:
    """The values of a column, none if none is named."""
    if column is None:
        return []
    try:
        return pq.read_table(path, columns=[column])[column].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: {damaged(error)}") from error


def damaged(error: Exception) -> str:
    """Words for what pyarrow could not read, on one line."""
    return f"not a whole Parquet file ({' '.join(str(error).split())})"
