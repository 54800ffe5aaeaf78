"""Prompts about coloured shapes, in four cells and one: of one object or two, of combinations that
training had or never had, and few words that leave most open.

Real images are fresh pictures of the scenes that the prompts describe, see `data/compositions.py`;
what a prompt names is read without learning, see `evaluation/following.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ...data.captions import captions
from ...data.compositions import Scenes, some
from ...data.loader import stream
from ...schema import Range, Seed
from ..reference import Brought, Kind, Reference, Task

# Category, and the probability with which a prompt names an attribute.
CELLS = (
    ("one object", 1.0),
    ("two objects", 1.0),
    ("one object, held out", 1.0),
    ("two objects, held out", 1.0),
    ("few words", 0.25),
)


@dataclass(frozen=True)
class Shapes(Task):
    """n: prompts of each cell. seed: of their scenes and words."""

    n: Annotated[int, Range(10, 10**5)] = 1000
    seed: Seed = 0

    def open(self, kind: Kind, brought: Brought) -> Reference:
        channels, height, width = kind.size
        if not kind.prompts or channels != 3 or height != width:
            raise ValueError(f"asks square RGB images for prompts, and these are {kind}")
        prompts, scenes = self.cells()

        def ask(n: int, generator: torch.Generator | None) -> list[str]:
            drawn = generator is not None
            rows = torch.randperm(self.n, generator=generator) if drawn else torch.arange(self.n)
            places = [(i % len(CELLS), int(rows[i // len(CELLS) % self.n])) for i in range(n)]
            return [prompts[cell * self.n + row] for cell, row in places]

        categories: dict[str, tuple[str, ...]] = {}
        for place, prompt in enumerate(prompts):
            cell = CELLS[place // self.n][0]
            categories[prompt] = tuple(dict.fromkeys((*categories.get(prompt, ()), cell)))
        images = Scenes.numbered(scenes).images(height, stream(self.seed, 2))
        about = (
            f"coloured shapes, {self.n:,} prompts of each of {len(CELLS)} cells, seed {self.seed}"
        )
        return Reference(kind.size, ask, images, about=about, categories=categories, prompts=about)

    def cells(self) -> tuple[list[str], Tensor]:
        """The prompts of all cells, in order, and the numbers of their scenes."""
        prompts, scenes = [], []
        for cell, (name, said) in enumerate(CELLS):
            generator = stream(self.seed, 1, cell)
            drawn = some(self.n, "two" in name, "held out" in name, generator)
            prompts += captions(Scenes.numbered(drawn), generator, said)
            scenes.append(drawn)
        return prompts, torch.cat(scenes)
