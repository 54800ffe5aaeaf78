"""Pictures on disk, in every form that a source reads, and a teacher as a source sees it."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from stepdistill.conditions import Cond
from stepdistill.data.loader import Source
from stepdistill.data.sources.folder import Folder
from stepdistill.data.sources.table import Table
from stepdistill.data.sources.webdataset import WebDataset
from stepdistill.teachers.backbone import Asked
from stepdistill.teachers.codec import Pixels, Size

SIZE = (6, 4)  # height and width

N, NAMES = 12, ("ape", "cat", "dog")  # pictures of a source, and their classes, in turn


class Looker:
    """What a source asks of a teacher."""

    prompted = False

    def __init__(self, channels: int = 1, classes: int | None = None, size: Size = SIZE) -> None:
        self.codec, self.classes, self.size = Pixels(channels), classes, size
        self.event, self.device = (channels, *size), "cpu"
        self.null = {} if classes is None else {"label": torch.tensor([classes])}

    def conditions(self, asked: Asked) -> Cond:
        return {} if asked is None else {"label": asked}


class Reader(Looker):
    """One that is asked by prompts."""

    prompted = True


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


def in_folder(folder: Path) -> Source:
    for k in range(N):
        save(folder / NAMES[k % 3] / f"{k}.png", pixels(k))
    return Folder(str(folder))


def in_archives(folder: Path) -> Source:
    shards(folder, (5, 4, 3))
    return WebDataset(str(folder), classes=NAMES)


def in_csv(folder: Path) -> Source:
    lines = ["file,animal"]
    for k in range(N):
        save(folder / "pictures" / f"{k}.png", pixels(k))
        lines.append(f"pictures/{k}.png,{NAMES[k % 3]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return Table(str(folder / "list.csv"), image="file", label="animal")


def in_json(folder: Path) -> Source:
    lines = []
    for k in range(N):
        save(folder / f"{k}.png", pixels(k))
        lines.append(json.dumps({"image": f"{k}.png", "label": k % 3}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return Table(str(folder / "list.jsonl"), classes=NAMES)


def data_set():
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    images = [{"bytes": png(pixels(k)), "path": None} for k in range(N)]
    columns = {"image": images, "label": [k % 3 for k in range(N)]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def in_parquet(folder: Path) -> Source:
    from stepdistill.data.sources.parquet import Parquet

    whole = data_set()
    whole.select(range(5)).to_parquet(folder / "0.parquet", batch_size=2)
    whole.select(range(5, N)).to_parquet(folder / "1.parquet", batch_size=3)
    return Parquet(str(folder), buffer=4)


def in_data_set(folder: Path) -> Source:
    from stepdistill.data.sources.hub import Hub

    data_set().save_to_disk(folder)
    return Hub(str(folder))


FORMS = {
    "folder": in_folder,
    "webdataset": in_archives,
    "csv": in_csv,
    "jsonl": in_json,
    "parquet": in_parquet,
    "hub": in_data_set,
}


def shown(pictures: torch.Tensor) -> list[int]:
    """Which of the twelve pictures these are."""
    known = {pixels(k).tobytes(): k for k in range(N)}
    return [known[((p[0] + 1) * 127.5).round().byte().numpy().tobytes()] for p in pictures]
