"""Pictures as training data: what the sources of images share.

A source says where pictures lie (`Images.find`); here they are fitted to the teacher, cut and
flipped, a share is kept for evaluation, and small sets are decoded once and held in memory.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ..schema import ConfigError, Range, Seed
from ..teachers.backbone import Asked
from ..teachers.codec import Size
from ..teachers.teacher import Teacher
from .loader import Rows, Samples, Source, shuffled, windowed
from .pictures import TAKEN, Fit
from .prompts import LONGEST, column_in, is_prompt
from .stored import Stored, is_held_out, numbered

HELD = 2**28  # bytes of pixels that are held in memory


@dataclass(frozen=True)
class Images(Source):
    """path: where the pictures are.

    size: shorter side to which they are resized (bicubic, antialiased), after which they are cut to
    the teacher's size; null takes only pictures of exactly that. crop: where they are cut.
    flip: mirror every second one, by chance. channels: change colours to grey, or CMYK to RGB.
    classes: names of the teacher's classes in its order; null for the natural order 1, 2, …, 10.
    held_out: share kept for evaluation, never trained on; held_out_seed chooses it.
    """

    path: str
    size: Annotated[int, Range(1, 2**14)] | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    channels: Literal["grey", "rgb"] | None = None
    classes: tuple[str, ...] | None = None
    held_out: Annotated[float, Range(0, 0.5)] = 0.0
    held_out_seed: Seed = 0

    @abstractmethod
    def find(self, classes: int | None, captioned: bool = False) -> Stored:
        """The pictures; with labels if the teacher has so many classes, with captions if it is
        asked by prompts. Raises ConfigError."""

    def prompts(self) -> list[str]:
        stored = self._captioned()
        kept = is_held_out(stored, self.held_out, self.held_out_seed)
        return [stored.captions[i] for i in np.flatnonzero(~kept)]

    def _stored(self, teacher: Teacher, training: bool) -> Stored:
        """What a teacher of prompts is trained on has captions; what is held out may."""
        if not teacher.prompted:
            return self.find(teacher.classes)
        try:
            return self._captioned()
        except ConfigError:
            if training:
                raise
            return self.find(None)

    def _captioned(self) -> Stored:
        """The pictures with their captions. Raises ConfigError."""
        stored = self.find(None, captioned=True)
        for number, caption in enumerate(stored.captions):
            if not is_prompt(caption):
                raise ConfigError(
                    f"{stored.name(number)}: its caption is no text of at most {LONGEST:,} "
                    "characters"
                )
        return stored

    def window(self) -> int | None:
        """How many are shuffled among themselves where they are read in order, else None."""
        return None

    def open(self, teacher: Teacher) -> "Pictures":
        return self._pictures(teacher, training=True)

    def open_held_out(self, teacher: Teacher) -> "Pictures":
        if self.held_out == 0:
            raise ConfigError("settings.held_out: no images are kept for evaluation: name a share")
        return self._pictures(teacher, training=False)

    def _pictures(self, teacher: Teacher, training: bool) -> "Pictures":
        fit = self._fit(teacher)
        try:
            found = self._found(fit, teacher, training)
            return found if found.window else found.held()
        except ConfigError as error:
            # What is wrong with another setting says so itself.
            where = "" if str(error).startswith("settings.") else "settings.path: "
            raise ConfigError(f"{where}{error}") from error

    def _found(self, fit: Fit, teacher: Teacher, training: bool) -> "Pictures":
        classes, stored = teacher.classes, self._stored(teacher, training)
        kept = is_held_out(stored, self.held_out, self.held_out_seed)
        taken = np.flatnonzero(kept ^ training)
        if not len(taken):
            raise ConfigError(f"{self.path}: held_out leaves none of {len(stored)} images here")
        drawn = training and self.crop == "random", training and self.flip
        labels, names = None, ()
        if classes is not None:
            given = stored.names if self.classes is None else self.classes
            numbers, names = numbered(stored, given, classes)
            labels = torch.from_numpy(numbers[taken])
        said = None
        if teacher.prompted and stored.captions is not None:
            said = [stored.captions[i] for i in taken]
        return Pictures(stored, fit, taken, labels, names, self.window(), drawn, captions=said)

    def _fit(self, teacher: Teacher) -> Fit:
        channels, size = teacher.codec.channels, teacher.size
        if channels not in TAKEN:
            raise ConfigError(f"source: images have 1 to 4 channels, the teacher {channels}")
        if self.size is not None and self.size < min(size):
            raise ConfigError(f"settings.size: the teacher takes {size[1]}×{size[0]}, no fewer")
        return Fit(size, channels, self.size, self.channels)


@dataclass(frozen=True)
class InColumns(Images):
    """What sources of tables share: image, label, caption name columns; caption null for prompt,
    text or caption, whichever is there."""

    image: str = "image"
    label: str = "label"
    caption: str | None = None

    def columns(self, names: Iterable[str], classes: int | None, captioned: bool) -> dict[str, str]:
        """Those that are read, by the setting that names each. names: of all that are there."""
        read = {"image": self.image} | ({} if classes is None else {"label": self.label})
        return read | ({"caption": self.caption or column_in(names)} if captioned else {})


@dataclass(frozen=True)
class Pictures(Samples):
    """Samples of stored pictures.

    taken: numbers of those in use. labels: of these, or None. window: how many are shuffled among
    themselves, None for all. drawn: whether places of cuts and flips are drawn from the batch's own
    stream. pixels: of each, where they are held in memory. captions: of those in use, or None.
    """

    stored: Stored
    fit: Fit
    taken: np.ndarray
    labels: Tensor | None
    names: tuple[str, ...] = ()
    window: int | None = None
    drawn: tuple[bool, bool] = (False, False)
    pixels: list[np.ndarray] | None = None
    captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.taken)

    def asked(self) -> Asked:
        return self.labels if self.captions is None else self.captions

    def digest(self) -> str:
        found = sha256(repr((self.fit, self.drawn)).encode())
        for number in self.taken.tolist():
            found.update(sha256(self.stored.read(number)).digest())
        return found.hexdigest()

    @cached_property
    def lengths(self) -> list[int]:
        """How many of those in use lie in each shard."""
        ends = np.cumsum(self.stored.shards)
        within = np.searchsorted(ends, self.taken, side="right")
        return np.bincount(within, minlength=len(ends)).tolist()

    def walk(self, first: int, count: int, seed: int) -> Tensor:
        if self.window is None:
            return shuffled(len(self), first, count, seed)
        return windowed(self.lengths, self.window, first, count, seed)

    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        pictures = [self._picture(i) for i in index.tolist()]
        if local is not None and any(self.drawn):
            draws = torch.rand(len(pictures), 3, generator=local).tolist()
            pictures = [self._changed(p, *draw) for p, draw in zip(pictures, draws, strict=True)]
        cut = np.stack([middle(picture, self.fit.size) for picture in pictures])
        images = torch.from_numpy(cut).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        if self.captions is not None:
            return Rows(images, [self.captions[i] for i in index.tolist()])
        return Rows(images, None if self.labels is None else self.labels[index])

    def held(self) -> "Pictures":
        """The same, decoded now if they fit into memory: what is unfit is found at once."""
        scale = 1 if self.fit.side is None else self.fit.side / min(self.fit.size)
        size = len(self) * self.fit.channels * self.fit.size[0] * self.fit.size[1] * scale**2
        if size > HELD:
            return self
        return replace(self, pixels=[self._picture(i) for i in range(len(self))])

    def _picture(self, i: int) -> np.ndarray:
        """Picture i of those in use, cut unless that is drawn."""
        if self.pixels is not None:
            return self.pixels[i]
        number = int(self.taken[i])
        file = self.stored.file(number)
        try:
            picture = self.fit.read(file)
        except ConfigError as error:
            raise ConfigError(f"{self.stored.name(number)}: {error}") from error
        return picture if self.drawn[0] else middle(picture, self.fit.size).copy()

    def _changed(self, picture: np.ndarray, down: float, right: float, side: float) -> np.ndarray:
        """A picture cut and mirrored by three numbers in [0, 1)."""
        cut, flip = self.drawn
        if cut:
            (height, width), (h, w) = picture.shape[:2], self.fit.size
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            picture = picture[top : top + h, left : left + w]
        return picture[:, ::-1] if flip and side < 0.5 else picture


def middle(picture: np.ndarray, size: Size) -> np.ndarray:
    """The middle (height, width) of a picture (height, width, channels)."""
    top, left = ((have - want) // 2 for have, want in zip(picture.shape, size))
    return picture[top : top + size[0], left : left + size[1]]
