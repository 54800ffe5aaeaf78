"""Coloured shapes and what is said of them, drawn as they are asked for: RGB pictures of one object
or two, see `data/compositions.py`, with captions in several wordings, see `data/captions.py`.

Scenes that are held out are in none. A caption may be wrong, as real ones are: where a share of
them names one attribute falsely, guidance has something to sharpen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ...schema import ConfigError, Range, Seed, Share
from ...teachers.teacher import Teacher
from ..captions import captions
from ..compositions import Scenes, held_out, some
from ..loader import Rows, Samples, Source, stream
from ..shapes import require_size


@dataclass(frozen=True)
class Shapes(Source):
    """n: pictures. two: the share with two objects. said: the probability with which a caption
    names an attribute. wrong: the share of captions that name one falsely. seed: of the scenes."""

    n: Annotated[int, Range(1, 10**7)] = 48_000
    two: Share = 0.35
    said: Share = 0.88
    wrong: Share = 0.0
    seed: Seed = 0

    def open(self, teacher: Teacher) -> Described:
        height, width = teacher.size
        if teacher.codec.channels != 3 or height != width or not teacher.prompted:
            raise ConfigError(
                "source: shapes are square RGB images with captions; the teacher's are "
                f"{height} × {width} of {teacher.codec.channels} channels"
                + ("" if teacher.prompted else ", and it takes no prompts")
            )
        try:
            require_size(teacher.size)
        except ValueError as error:
            raise ConfigError(f"source: {error}") from error
        return Described(self.scenes(), height, self.said, self.wrong, self.seed)

    def prompts(self) -> list[str]:
        return captions(self.scenes(), stream(self.seed, 5), self.said)

    def scenes(self) -> Scenes:
        """All of them, none that is held out."""
        generator = stream(self.seed, 3)
        two = torch.rand(self.n, generator=generator) < self.two
        pairs = some(self.n, True, False, generator)
        return Scenes.numbered(torch.where(two, pairs, some(self.n, False, False, generator)))


@dataclass(frozen=True)
class Described(Samples):
    """Scenes as samples; side: of their pictures. The others as in `Shapes`."""

    scenes: Scenes
    side: int
    said: float
    wrong: float
    seed: int

    def __len__(self) -> int:
        return len(self.scenes)

    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        """With `local` another picture of the scene and other words each time."""
        drawn = local is not None
        parts = [self.one(index, local)] if drawn else [self.one(i[None], None) for i in index]
        images = torch.cat([images for images, _ in parts])
        return Rows(images, [text for _, texts in parts for text in texts])

    def one(self, index: Tensor, local: torch.Generator | None) -> tuple[Tensor, list[str]]:
        """Pictures and captions of scenes; of a single one where nothing is drawn anew."""
        scenes = self.scenes[index]
        generator = stream(self.seed, 4, int(index[0])) if local is None else local
        images = scenes.images(self.side, generator)
        false = torch.rand(len(scenes), generator=generator) < self.wrong
        mistaken = scenes.mistaken(generator).numbers
        false = false & ~held_out()[mistaken]
        told = Scenes.numbered(torch.where(false, mistaken, scenes.numbers))
        return images, captions(told, generator, self.said)
