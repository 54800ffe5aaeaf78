"""How far the objects that prompts ask for are from the shapes that fit them best:
Σ (c − c_s)² / Σ c over the pixels, see `shape_reader`. Clean pictures have about 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..averaged import OfImages
from ..following import SPACE, read_in
from ..metric import Made
from ..reference import Reference


@dataclass
class TemplateError(OfImages):
    """For prompts in the words of `data/captions.py`."""

    about = "how far objects are from clean shapes, as a share of their area."
    least = 0.0
    decimals = 4
    needs_asked = True

    def open(self, reference: Reference) -> None:
        reference.space(SPACE)

    def each(self, made: Made) -> Tensor | None:
        errors = [reading.error for reading in read_in(made)]
        return torch.tensor(errors) if errors else None
