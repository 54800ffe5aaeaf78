"""A data set of Hugging Face `datasets`, mapped into memory: by its name on the hub, or a folder
that `save_to_disk` wrote.

A name is downloaded, to where HF_HOME says, and copied as Arrow, for which it needs a folder,
`cache`; without one the line that says so tells the size of both. With HF_HUB_OFFLINE=1 only what
lies there already is used. No code of a data set is run, and the hub counts no loading.
"""

import os
from dataclasses import dataclass
from io import BytesIO

import datasets
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE

from ...schema import ConfigError, shown
from ..images import InColumns
from ..stored import Stored


@dataclass(frozen=True)
class Hub(InColumns):
    """The settings of `InColumns`; path: a folder or a name. split, config: parts of it. cache: the
    folder of the copy."""

    split: str = "train"
    config: str | None = None
    cache: str | None = None

    def find(self, classes: int | None, captioned: bool = False) -> "Mapped":
        folder = os.path.isdir(self.path)
        if not folder and self.cache is None:
            raise ConfigError(f"settings.cache: {size_of(self.path)}: name a folder for the copy")
        try:
            found = self._saved() if folder else self._downloaded()
        except ConfigError:
            raise
        except Exception as error:  # of a network, a hub or a builder: there is no common kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{self.path}: cannot be loaded ({reason})") from error
        columns = self.columns(found.column_names, classes, captioned)
        self._require(found, columns)
        return Mapped(found, self.path, columns)

    def _saved(self) -> datasets.Dataset:
        found = datasets.load_from_disk(self.path)
        if isinstance(found, datasets.Dataset):
            return found
        if self.split not in found:
            raise ConfigError(f"settings.split: '{self.split}' is none of {', '.join(found)}")
        return found[self.split]

    def _downloaded(self) -> datasets.Dataset:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else each loading is reported
        return datasets.load_dataset(self.path, self.config, split=self.split, cache_dir=self.cache)

    def _require(self, found: datasets.Dataset, columns: dict[str, str]) -> None:
        for key, column in columns.items():
            if column not in found.column_names:
                listed = ", ".join(shown(name) for name in found.column_names)
                raise ConfigError(f"settings.{key}: {self.path}: no '{column}' among {listed}")
        if not isinstance(found.features[self.image], datasets.Image):
            raise ConfigError(f"settings.image: {self.path}: '{self.image}' holds no images")


class Mapped(Stored):
    """Rows of a data set on disk; columns: of image, and of label or caption."""

    def __init__(self, found: datasets.Dataset, path: str, columns: dict[str, str]) -> None:
        self.path, self.image, label = path, columns["image"], columns.get("label")
        caption = columns.get("caption")
        self.captions = None if caption is None else list(found[caption])
        self.labels = None if label is None else list(found[label])
        kind = None if label is None else found.features[label]
        self.names = kind.names if isinstance(kind, datasets.ClassLabel) else None
        whole = found.cast_column(self.image, datasets.Image(decode=False))
        self.images = whole.select_columns([self.image])

    def __len__(self) -> int:
        return len(self.images)

    def file(self, number: int) -> str | BytesIO:
        value = self.images[number][self.image]
        if value is None:
            raise ConfigError(f"{self.name(number)}: holds no image")
        return value["path"] if value["bytes"] is None else BytesIO(value["bytes"])

    def name(self, number: int) -> str:
        return f"{self.path}: row {number}"

    def key(self, number: int) -> str:
        return str(number)


def size_of(name: str) -> str:
    """What would be downloaded, in words. Raises ConfigError if the hub does not say."""
    try:
        files = HfApi().dataset_info(name, files_metadata=True).siblings
    except Exception as error:  # offline, no such name, a gate: each library has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name}: neither a folder nor to be had ({reason})") from error
    size = sum(file.size or 0 for file in files) / 1e6
    return f"{name}: {size:.1f} MB would be downloaded to {HF_HUB_CACHE} and as much copied"
