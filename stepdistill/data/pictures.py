"""One picture file as pixels of the size and channels a teacher takes, or a line saying why not.

PNG, JPEG (a phone's MPO too, of which the first picture counts) and WebP of 8 bits a channel. The
orientation that a camera noted is followed; colour profiles are not. Without being asked nothing is
lost: no resizing, no change of colours; grey and colour are exchanged where the channels are equal.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..schema import ConfigError
from ..teachers.codec import Size
from .resize import Resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA")  # 8 bits a channel, with or without transparency
CONVERTED = ("CMYK", "YCbCr")  # to RGB, if asked
LARGEST = 2**26  # pixels that are decoded
# Of red, green, blue and opacity, what a teacher of so many channels takes.
TAKEN = {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}


@dataclass(frozen=True)
class Fit:
    """How pictures become what the teacher takes.

    size: height and width. channels: 1 grey, 3 colour; 2 and 4 have opacity beside them. side: the
    shorter side after resizing, None for pictures of exactly `size`. convert: colours are changed
    to grey or to RGB. resize: to a square of `size`, in place of `side`.
    """

    size: Size
    channels: int
    side: int | None = None
    convert: Literal["grey", "rgb"] | None = None
    resize: Resize | None = None

    def read(self, file: str | BytesIO) -> np.ndarray:
        """Pixels (height, width, channels) uint8, resized and upright, but not yet cut.

        Raises ConfigError, to which the caller adds the name, if the file cannot be used."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of enormous pictures, which are refused here
                with Image.open(file, formats=FORMATS) as image:
                    self._require(image)
                    return self._pixels(ImageOps.exif_transpose(image))
        except UnidentifiedImageError as error:
            raise ConfigError("not a PNG, JPEG or WebP image inside") from error
        except ConfigError:
            raise
        except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
            reason = " ".join(str(error).replace(repr(file), "the file").split())
            raise ConfigError(f"unreadable or damaged ({reason}); replace it") from error

    def _require(self, image: Image.Image) -> None:
        """Raise ConfigError for what the header already shows, before pixels take memory."""
        wanted = self.size[1], self.size[0]
        exact = self.side is None and self.resize is None
        if exact and image.size not in (wanted, self.size):  # it may be turned yet
            raise ConfigError(unfit(image.size, wanted))
        if image.width * image.height > LARGEST:
            raise ConfigError(f"has more than {LARGEST // 2**20} million pixels; make it smaller")
        stored = [tile[3] for tile in image.tile]  # PIL reads "RGB;16B" as RGB, and drops bytes
        modes = MODES + (CONVERTED if self.convert == "rgb" else ())
        if image.mode not in modes or "16" in str(stored):
            advice = ", or set channels: rgb" if image.mode in CONVERTED else ""
            raise ConfigError(f"mode {image.mode}; save it with 8 bits, grey or RGB{advice}")
        # A phone's MPO holds a second view or a gain map of the same picture.
        if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
            raise ConfigError("an animation; save one picture")

    def _pixels(self, image: Image.Image) -> np.ndarray:
        wanted = self.size[1], self.size[0]
        if self.side is None and self.resize is None and image.size != wanted:
            raise ConfigError(unfit(image.size, wanted))
        image = image.convert("RGB") if image.mode in CONVERTED else image
        image = image.convert("RGBA")
        if self.channels in (1, 3) and image.getextrema()[3][0] < 255:
            raise ConfigError("has transparent pixels; put it on a background")
        if self.convert == "grey":
            image = image.convert("LA").convert("RGBA")
        if self.side is not None:
            image = image.resize(covering(image.size, self.size, self.side), Image.BICUBIC)
        if self.resize is not None:
            image = self.resize.picture(image.convert("RGB")).convert("RGBA")
        pixels = np.asarray(image)
        if self.channels < 3 and (pixels[..., :3] != pixels[..., :1]).any():
            raise ConfigError("has colours, but the teacher is grey; set channels: grey")
        return pixels[..., TAKEN[self.channels]]


def unfit(size: Size, wanted: Size) -> str:
    """Words for a picture of another size; both are width and height."""
    pixels = "{}×{} pixels, but the teacher takes {}×{}".format(*size, *wanted)
    return f"{pixels}; resize it, or set size: {min(wanted)}"


def covering(picture: Size, size: Size, side: int) -> Size:
    """Width and height after resizing: they just cover `size` (height, width) scaled until its
    shorter side is `side`. picture: (width, height)."""
    width, height = (side * length / min(size) for length in size[::-1])
    scale = max(width / picture[0], height / picture[1])
    wide, high = round(picture[0] * scale), round(picture[1] * scale)
    return max(wide, size[1], 1), max(high, size[0], 1)
