"""A folder of images as training data, in memory, in the shape a network takes.

    DIR/…/name.png               an unconditional network: every image below DIR
    DIR/class/…/name.png         a conditional one: subfolders in the order of their names are the
                                 labels 0, 1, …

PNG, JPEG and WebP, of exactly the network's size; nothing is resized or cropped, and no orientation
tag is followed. Grey and colour are exchanged where nothing is lost: a colour file serves a grey
network if its three channels are equal. Hidden files are left out; anything else that is no image
is refused by name, as are links to folders and transparent, animated or 16-bit images.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...schema import ConfigError
from ...teachers.teacher import Teacher
from ..loader import InMemory, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")  # 8 bits a channel, with or without transparency


@dataclass(frozen=True)
class Folder(Source):
    """path: the folder."""

    path: str

    def open(self, teacher: Teacher) -> InMemory:
        try:
            return InMemory(*load_folder(self.path, teacher.event, teacher.classes))
        except ConfigError as error:
            raise ConfigError(f"settings.path: {error}") from error


def load_folder(
    folder: str | Path, event: tuple[int, int, int], classes: int | None
) -> tuple[Tensor, Tensor | None]:
    """Images (n, *event) float32 in [−1, 1], and labels (n,) int64 or None without classes.

    event: (channels, height, width), channels 1 or 3. Raises ConfigError naming the file or folder
    that does not fit."""
    folder = Path(folder)
    if event[0] not in (1, 3):
        raise ConfigError(f"{folder}: images have 1 or 3 channels, the teacher {event[0]}")
    groups = [folder] if classes is None else class_folders(folder, classes)
    found = [images_below(group) for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of enormous pictures, which are refused for their size
        images = torch.stack([read(file, event) for files in found for file in files])
    sizes = torch.tensor([len(files) for files in found])
    return images, None if classes is None else torch.arange(classes).repeat_interleave(sizes)


def class_folders(folder: Path, classes: int) -> list[Path]:
    """The subfolders, one a class. Raises ConfigError for loose files or another number."""
    groups = listed(folder)
    for group in groups:
        if not group.is_dir():
            raise ConfigError(f"{group}: lies in no subfolder, so it has no class; move it there")
    if len(groups) != classes:
        raise ConfigError(f"{folder}: {len(groups)} subfolders for the teacher's {classes} classes")
    return groups


def images_below(folder: Path) -> list[Path]:
    """Every image file below the folder, sorted. Raises ConfigError if there is none."""
    files = list(walk(folder))
    if not files:
        raise ConfigError(f"{folder}: holds no images ({', '.join(SUFFIXES)})")
    return files


def walk(folder: Path) -> Iterator[Path]:
    """The image files below a folder. Raises ConfigError for anything else there."""
    for entry in listed(folder):
        if entry.is_dir() and not entry.is_symlink():
            yield from walk(entry)
        elif entry.is_file() and entry.suffix.lower() in SUFFIXES:
            yield entry
        else:
            raise ConfigError(f"{entry}: not an image ({', '.join(SUFFIXES)}); move it elsewhere")


def listed(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries."""
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no folder has such a name"
        raise ConfigError(f"{folder}: not a readable folder ({reason})") from error


def read(file: Path, event: tuple[int, int, int]) -> Tensor:
    """One image (*event) float32 in [−1, 1]. Raises ConfigError, with its name, if it cannot be."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            require_fit(image, file, event)
            pixels = np.asarray(image.convert("RGBA"))
    except UnidentifiedImageError as error:
        raise ConfigError(f"{file}: not a PNG, JPEG or WebP image inside") from error
    except ConfigError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise ConfigError(f"{file}: unreadable or damaged ({error}); replace it") from error
    if (pixels[..., 3] < 255).any():
        raise ConfigError(f"{file}: has transparent pixels; put it on a background")
    colours = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)
    if event[0] == 1 and not bool((colours == colours[:1]).all()):
        raise ConfigError(f"{file}: has colours, but the teacher is grey; convert it")
    return colours[: event[0]].float() / 127.5 - 1


def require_fit(image: Image.Image, file: Path, event: tuple[int, int, int]) -> None:
    """Raise ConfigError for what the header already shows, before pixels take memory."""
    size, wanted = (image.width, image.height), (event[2], event[1])
    if size != wanted:
        pixels = "{}×{} pixels, but the teacher takes {}×{}".format(*size, *wanted)
        raise ConfigError(f"{file}: {pixels}; resize it")
    stored = [tile[3] for tile in image.tile]  # PIL reads "RGB;16B" as RGB, without its low bytes
    if image.mode not in MODES or "16" in str(stored):
        raise ConfigError(f"{file}: mode {image.mode}; save it with 8 bits, grey or RGB")
    if getattr(image, "n_frames", 1) != 1:
        raise ConfigError(f"{file}: an animation; save one picture")
