"""Pictures on disk, in every form that a source reads, and a teacher as a source sees it."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stepdistill.conditions import Cond
from stepdistill.teachers.backbone import Asked
from stepdistill.teachers.codec import Pixels, Size

SIZE = (6, 4)  # height and width


class Looker:
    """What a source asks of a teacher."""

    def __init__(self, channels: int = 1, classes: int | None = None, size: Size = SIZE) -> None:
        self.codec, self.classes, self.size = Pixels(channels), classes, size
        self.event, self.device = (channels, *size), "cpu"
        self.null = {} if classes is None else {"label": torch.tensor([classes])}

    def conditions(self, asked: Asked) -> Cond:
        return {} if asked is None else {"label": asked}


def pixels(seed: int, channels: int = 1, size: Size = SIZE) -> np.ndarray:
    """Random bytes (h, w) or (h, w, channels)."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(file: Path, array: np.ndarray, **settings: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **settings)


def png(array: np.ndarray) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def pack(file: Path, members: dict[str, bytes]) -> None:
    """A tar archive of these files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def shards(folder: Path, counts: Sequence[int], classes: int = 3) -> None:
    """Archives of so many pictures; picture k of all is `pixels(k)`, of class k mod `classes`."""
    k = 0
    for number, count in enumerate(counts):
        members = {}
        for _ in range(count):
            members |= {f"{k:05d}.png": png(pixels(k)), f"{k:05d}.cls": str(k % classes).encode()}
            k += 1
        pack(folder / f"{number:05d}.tar", members)
