"""A data set of Hugging Face `datasets`, mapped into memory: by its name on the hub, or a folder
that `save_to_disk` wrote.

A name is downloaded and copied as Arrow, so it needs a folder for that, `cache`; without one the
line that says so tells the size. With HF_HUB_OFFLINE=1 only what lies there already is used. No
code of a data set is run, and nobody is told that it was loaded.
"""

import os
from dataclasses import dataclass
from io import BytesIO

import datasets
from huggingface_hub import HfApi

from ...schema import ConfigError, shown
from ..images import Images
from ..stored import Stored


@dataclass(frozen=True)
class Hub(Images):
    """The settings of `Images`; path: a folder or a name. image, label: columns. split, config:
    parts of it. cache: the folder of downloads and copies."""

    image: str = "image"
    label: str = "label"
    split: str = "train"
    config: str | None = None
    cache: str | None = None

    def find(self, classes: int | None) -> "Mapped":
        folder = os.path.isdir(self.path)
        if not folder and self.cache is None:
            raise ConfigError(f"settings.cache: {size_of(self.path)}: name a folder for that")
        try:
            found = self._saved() if folder else self._downloaded()
        except ConfigError:
            raise
        except Exception as error:  # of a network, a hub or a builder: there is no common kind
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{self.path}: cannot be loaded ({reason})") from error
        self._require(found, classes)
        return Mapped(found, self.path, self.image, None if classes is None else self.label)

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

    def _require(self, found: datasets.Dataset, classes: int | None) -> None:
        columns = {"image": self.image} | ({} if classes is None else {"label": self.label})
        for key, column in columns.items():
            if column not in found.column_names:
                listed = ", ".join(shown(name) for name in found.column_names)
                raise ConfigError(f"settings.{key}: {self.path}: no '{column}' among {listed}")
        if not isinstance(found.features[self.image], datasets.Image):
            raise ConfigError(f"settings.image: {self.path}: '{self.image}' holds no images")


class Mapped(Stored):
    """Rows of a data set on disk."""

    def __init__(self, found: datasets.Dataset, path: str, image: str, label: str | None) -> None:
        self.path, self.image = path, image
        self.labels = None if label is None else list(found[label])
        kind = None if label is None else found.features[label]
        self.names = kind.names if isinstance(kind, datasets.ClassLabel) else None
        whole = found.cast_column(image, datasets.Image(decode=False))
        self.images = whole.select_columns([image])

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
    return f"{name}: {size:.1f} MB would be downloaded, and as much copied"
