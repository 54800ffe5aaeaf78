"""Prompts of a file, several images of each: what students lose in diversity shows within a prompt.

Real images, if the user brings any, are what the images of all prompts are measured against.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ...data.prompts import Prompt, categories_of, prompts_of
from ...schema import Count
from ..reference import Brought, Kind, NoneBrought, Reference, Task, in_turn


@dataclass(frozen=True)
class Prompts(Task):
    """prompts: a file of them, see `data.prompts`.  each: images of a prompt in a block."""

    prompts: str | None = None
    each: Count = 4

    def open(self, kind: Kind, brought: Brought) -> Reference:
        if self.prompts is None:
            raise ValueError("needs prompts: --prompts FILE")
        if kind.classes is not None:
            raise ValueError(f"asks for prompts, and these are {kind}")
        read = prompts_of(Path(self.prompts))
        found, categories = [prompt.text for prompt in read], categories_of(read)
        digest = digest_of(read)
        each = f"{self.each} images each" if self.each > 1 else "one image each"
        told = f"SHA-256 {digest}, {each}"
        about = f"{len(found):,} prompts of {self.prompts} (SHA-256 {digest}), {each}"
        ask = in_turn(found, self.each)
        with suppress(NoneBrought):
            real = brought()
            return Reference(
                kind.size,
                ask,
                real.images,
                about=f"{about}; {real.about}",
                statistics=real.statistics,
                categories=categories,
                groups=real.groups,
                prompts=told,
            )
        return Reference(kind.size, ask, about=about, categories=categories, prompts=told)


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Of texts and categories, in order."""
    return sha256(json.dumps(prompts).encode()).hexdigest()[:12]
