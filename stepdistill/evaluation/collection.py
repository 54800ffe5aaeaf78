"""Images that somebody made, in a folder, with what each was asked for where it says so, see
`data.captioned`; of images in subfolders alone one of each in turn, so that blocks are alike."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.captioned import captioned
from ..data.listing import listed
from ..data.pictures import FORMATS, SUFFIXES, Fit
from ..data.stored import natural
from ..files import whole
from ..schema import ConfigError


@dataclass(frozen=True)
class Collection:
    """files: images in order. prompts: of each, None where nobody says. size: height and width of
    the first. labels: the number of each one's class, and classes, their names in natural order;
    none where images lie in no subfolders."""

    files: list[Path]
    prompts: list[str] | None
    size: tuple[int, int]
    labels: list[int] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def images(self, first: int, count: int) -> Tensor:
        """(count, 3, height, width) in [−1, 1]. Raises ConfigError for one of another size."""
        fit, found = Fit(self.size, 3), []
        for file in self.files[first : first + count]:
            try:
                found.append(fit.read(str(file)))
            except ConfigError as error:
                raise ConfigError(f"{file}: {error}") from error
        pixels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)
        return pixels.float() / 127.5 - 1


def is_collection(folder: Path) -> bool:
    """Whether a folder holds images, and is no run or pipeline."""
    if not folder.is_dir():
        return False
    names = {entry.name.lower() for entry in listed(folder)}
    if {"model_index.json", "config.yaml"} & names:
        return False
    several = any(entry.is_dir(follow_symlinks=False) for entry in listed(folder))
    return several or any(name.endswith(SUFFIXES) for name in names)


def collection_of(folder: Path) -> Collection:
    """The images of a folder. Raises ConfigError where there are none, or its words do not fit."""
    found, prompts = captioned(folder)
    labels, classes = (None, ()) if prompts is not None else classes_of(folder, found)
    if labels is not None:
        order = in_turn(labels)
        found, labels = [found[i] for i in order], [labels[i] for i in order]
    return Collection(found, prompts, size_of(found[0]), labels, classes)


def classes_of(folder: Path, found: list[Path]) -> tuple[list[int] | None, tuple[str, ...]]:
    """The number of each file's class, and the classes' names; none where files lie loose."""
    parts = [file.relative_to(folder).parts for file in found]
    if min(map(len, parts)) < 2:
        return None, ()
    names = sorted({part[0] for part in parts}, key=natural)
    place = {name: i for i, name in enumerate(names)}
    return [place[part[0]] for part in parts], tuple(names)


def in_turn(labels: list[int]) -> list[int]:
    """The order that takes one of each class, again and again, as long as it has one."""
    before: dict[int, int] = {}
    turns = []
    for label in labels:
        turns.append(before.get(label, 0))
        before[label] = turns[-1] + 1
    return sorted(range(len(labels)), key=lambda i: (turns[i], labels[i]))


def size_of(file: Path) -> tuple[int, int]:
    """Height and width of an image. Raises ConfigError for what is none."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise ConfigError(f"{file}: not a readable PNG, JPEG or WebP image") from error


def save(file: Path, image: Tensor) -> None:
    """Keep an image (c, h, w) uint8 as a PNG, whole or not at all."""
    with whole(file) as partial:
        write(partial, image)


def write(file: Path | BytesIO, image: Tensor) -> None:
    """Write an image (c, h, w) uint8 as a PNG."""
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(file, format="PNG")
