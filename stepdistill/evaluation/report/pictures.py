"""Images on the page: small ones as they are, of large ones thumbnails, the full ones beside it.

Images up to SMALL pixels high are enlarged by whole numbers and lie within the page as PNG. Of
larger ones it holds thumbnails in WebP, each a link to the image itself: a PNG of FOLDER, named by
what it holds, so that nobody's words become a path.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..collection import save

FOLDER = "report-images"
SIDE = 48  # least height of an image in a mosaic, in pixels
SMALL = 96  # of images that need no thumbnail
THUMB, SLIDE = 112, 160  # heights of thumbnails: of one by itself, and under the slider
QUALITY = 75  # of WebP
NAME = re.compile(r"[0-9a-f]{16}\.png")


@dataclass(frozen=True)
class Tile:
    """A picture as a data URI, what it shows, and, of a thumbnail, where the full image lies."""

    picture: str
    alt: str
    link: str = ""


@dataclass(frozen=True)
class Strip:
    """Tiles, so many beside one another; whole: all in one picture."""

    tiles: list[Tile]
    across: int

    @property
    def whole(self) -> bool:
        return not self.tiles[0].link


@dataclass
class Album:
    """The full images that a page links to, written to a folder as they are met.

    folder: of FOLDER; None to write none. names: of those that are linked.
    """

    folder: Path | None = None
    names: set[str] = field(default_factory=set)

    def strip(self, images: Tensor, across: int, alt: str) -> Strip:
        """Images (n, c, h, w), small ones as one mosaic, large ones as a link each."""
        if is_small(images):
            return Strip([Tile(mosaic(images, across), alt)], across)
        tiles = [
            Tile(mosaic(image[None], 1), f"{alt}, {number}", self._kept(image))
            for number, image in enumerate(images, 1)
        ]
        return Strip(tiles, across)

    def _kept(self, image: Tensor) -> str:
        """Keep an image; its place relative to the page."""
        pixels = as_bytes(image)
        seen = f"{tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes()
        name = f"{sha256(seen).hexdigest()[:16]}.png"
        self.names.add(name)
        if self.folder is not None and not (self.folder / name).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            save(self.folder / name, pixels)
        return f"{FOLDER}/{name}"

    def prune(self) -> None:
        """Remove the images of a page that was here before."""
        if self.folder is None or not self.folder.is_dir():
            return
        for file in self.folder.iterdir():
            if NAME.fullmatch(file.name) and file.name not in self.names:
                file.unlink()


def is_small(images: Tensor) -> bool:
    """Whether images (…, h, w) need no thumbnails."""
    return max(images.shape[-2:]) <= SMALL


def shown(images: Tensor) -> Tensor:
    """Images (…, c, h, w) that can be seen: grey or in colours, else their first channel."""
    return images if images.shape[-3] in (1, 3) else images[..., :1, :, :]


def lean(images: Tensor) -> Tensor:
    """Images in [−1, 1], large ones in the 256 levels of a file: a quarter of the memory."""
    return images if is_small(images) else as_bytes(images)


def as_bytes(images: Tensor) -> Tensor:
    """Images in [−1, 1] as uint8; what is uint8 stays."""
    if images.dtype == torch.uint8:
        return images
    return images.nan_to_num().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def mosaic(images: Tensor, columns: int, side: int = THUMB) -> str:
    """Data URI of images (n, c, h, w) in [−1, 1] or uint8, c = 1 or 3, row by row with clear gaps.

    PNG of small ones, else WebP of thumbnails whose longer side is `side`."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"mosaic of shape {tuple(images.shape)}: expected (n, 1 or 3, h, w)")
    if is_small(images):
        zoom = -(-SIDE // images.shape[2])
        pixels = as_bytes(images).repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        return _encoded(_tiled(pixels, columns, max(2, zoom // 2)), "PNG", optimize=True)
    small = torch.cat([_shrunk(image[None], side) for image in images])
    return _encoded(_tiled(small, columns, 4), "WEBP", quality=QUALITY)


def _shrunk(images: Tensor, side: int) -> Tensor:
    """Images whose longer side is `side`, as bytes."""
    scale = side / max(images.shape[-2:])
    size = [max(1, round(length * scale)) for length in images.shape[-2:]]
    found = interpolate(as_bytes(images).float(), size, mode="bicubic", antialias=True)
    return found.round().clamp(0, 255).to(torch.uint8)


def _tiled(pixels: Tensor, columns: int, gap: int) -> Tensor:
    """One picture (H, W, 4) of images (n, 1 or 3, h, w), clear between them."""
    pixels = pixels.expand(-1, 3, -1, -1)
    pixels = torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], 1)
    rows = -(-len(pixels) // columns)
    missing = rows * columns - len(pixels)
    padded = pad(pixels, (0, gap, 0, gap, 0, 0, 0, missing))
    tiles = padded.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    return tiles.flatten(2, 3).flatten(0, 1)[:-gap, :-gap]


def _encoded(picture: Tensor, form: str, optimize: bool = False, quality: int = 80) -> str:
    out = io.BytesIO()
    Image.fromarray(picture.contiguous().numpy(), "RGBA").save(
        out, form, optimize=optimize, quality=quality
    )
    return data_uri(out.getvalue(), form.lower())


def data_uri(content: bytes, form: str = "png") -> str:
    """A picture within the page."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def clipped(words: str, most: int) -> str:
    """Words of anyone, not all of them."""
    flat = " ".join(words.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def enumerated(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
