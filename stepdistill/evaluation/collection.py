"""Images that somebody made, in a folder, with what each was asked for where the folder says so:

metadata.jsonl    {"file_name": "0.png", "prompt": "…"} a line (or text, caption)
captions.txt      a line for each image, in natural order of their names
00000/metadata.jsonl, 00000/samples/0000.png    GenEval's layout, one folder a prompt
CLASS/…/0.png     a folder a class: one of each in turn, so that blocks of images are alike
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.listing import files, folders, listed
from ..data.pictures import FORMATS, SUFFIXES, Fit
from ..data.prompts import COLUMNS, LARGEST, LONGEST
from ..data.stored import natural
from ..files import read_text, whole
from ..schema import ConfigError, shown

METADATA, CAPTIONS, SAMPLES = "metadata.jsonl", "captions.txt", "samples"


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
    try:
        found, prompts = pairs_of(folder)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            str(error) if isinstance(error, ConfigError) else f"{folder}: {error}"
        ) from error
    for number, prompt in enumerate(prompts or (), 1):
        if not isinstance(prompt, str) or len(prompt) > LONGEST:
            raise ConfigError(
                f"{folder}: prompt {number} is no text of at most {LONGEST:,} characters"
            )
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


def pairs_of(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Images and their prompts. Raises ValueError and OSError for what cannot be read."""
    if (folder / METADATA).is_file():
        rows = [mapping(line) for line in lines(folder / METADATA)]
        named = [inside(folder, row.get("file_name")) for row in rows]
        return existing(folder, named), [prompt_in(row) for row in rows]
    if (folder / CAPTIONS).is_file():
        found = [folder / e.name for e in listed(folder) if e.name.lower().endswith(SUFFIXES)]
        said = lines(folder / CAPTIONS)
        if len(said) != len(found):
            raise ValueError(f"{CAPTIONS} has {len(said)} lines for {len(found)} images")
        return existing(folder, found), said
    if any((Path(entry.path) / METADATA).is_file() for entry in listed(folder)):
        return by_prompt(folder)
    return [Path(path) for path in files(folder, SUFFIXES)], None


def by_prompt(folder: Path) -> tuple[list[Path], list[str]]:
    """GenEval's layout."""
    found, prompts = [], []
    for entry in folders(folder):
        place = Path(entry.path)
        said = prompt_in(mapping(read_text(place / METADATA).splitlines()[0]))
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
    if not isinstance(name, str) or not (folder / name).resolve().is_relative_to(folder.resolve()):
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
