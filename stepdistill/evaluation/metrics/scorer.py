"""Your own scorer: a function of a module of yours, as for preferences or aesthetics.

    def score(images, prompts):    # (b, c, h, w) in [0, 1]; texts, labels (b,) or None
        return …                   # (b,) numbers

The metric is their mean.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from ..averaged import OfImages
from ..metric import Made
from ..reference import Reference


@dataclass
class Scorer(OfImages):
    """module: whose `score` is called. larger: whether a larger number is better. needs_asked:
    whether it says nothing of images without a prompt or label."""

    about = "the mean of what a scorer of your own says of the images."
    module: str = ""
    larger: bool = True
    needs_asked: bool = False

    def open(self, reference: Reference) -> None:
        try:
            self._score = import_module(self.module).score
        except (ImportError, ValueError, AttributeError) as error:
            raise ValueError(
                f"module: {self.module or 'none'}: no function score: {error}"
            ) from error

    @property
    def lower_is_better(self) -> bool:
        return not self.larger

    def each(self, made: Made) -> Tensor:
        asked = made.asked if made.asked is None else list(made.asked)
        return self._numbers(self._score(made.images / 2 + 0.5, asked), len(made.images))

    def _numbers(self, said: object, count: int) -> Tensor:
        with suppress(TypeError, ValueError, RuntimeError):
            values = torch.as_tensor(said).double()
            if values.shape == (count,) and values.isfinite().all():
                return values
        raise ValueError(f"{self.module}: needs a finite number for each image")
