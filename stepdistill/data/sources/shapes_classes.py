"""Coloured shapes, drawn as they are asked for: RGB pictures of any size, 48 classes or none.

Class 6 k + s is shape s in colour k, see `data/shapes.py`. Each picture has a scene of its own, so
what is trained on is a finite sample of a distribution that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ...schema import ConfigError, Range, Seed
from ...teachers.teacher import Teacher
from ..loader import Rows, Samples, Source
from ..shapes import CLASSES, NAMES, Scenes, require_size


@dataclass(frozen=True)
class ShapesClasses(Source):
    """n: pictures, of every class equally many. seed: of their scenes."""

    n: Annotated[int, Range(CLASSES, 10**7)] = 48_000
    seed: Seed = 0

    def open(self, teacher: Teacher) -> Drawings:
        channels, classes = teacher.codec.channels, teacher.classes
        if channels != 3 or classes not in (None, CLASSES):
            raise ConfigError(
                f"source: shapes have 3 channels and {CLASSES} classes or none; the teacher's "
                f"images have {channels} channels and {classes or 'no'} classes"
            )
        try:
            require_size(teacher.size)
        except ValueError as error:
            raise ConfigError(f"source: {error}") from error
        generator = torch.Generator().manual_seed(self.seed)
        scenes = Scenes.drawn(torch.arange(self.n) % CLASSES, generator)
        return Drawings(scenes, teacher.size, classes is not None)


@dataclass(frozen=True)
class Drawings(Samples):
    """Scenes as samples. size: height and width. labelled: whether their classes are told."""

    scenes: Scenes
    size: tuple[int, int]
    labelled: bool

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES if self.labelled else ()

    def rows(self, index: Tensor, local: torch.Generator | None = None) -> Rows:
        asked = self.scenes[index]
        return Rows(asked.images(*self.size), asked.labels if self.labelled else None)
