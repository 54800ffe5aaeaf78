"""The share of images that hold what their prompts name, read without learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..averaged import OfImages
from ..following import SPACE, follows, read_in
from ..metric import Made
from ..reference import Reference


@dataclass
class Follows(OfImages):
    """attribute: None for all that a prompt names; images of prompts that do not name it do not
    count. For prompts in the words of `data/captions.py`."""

    about = "the share of images in which an exact reader finds all that their prompts name."
    lower_is_better = False
    decimals = 3
    least, most = 0.0, 1.0
    needs_asked = True
    attribute: Literal["size", "colour", "shape", "ground", "position", "relation"] | None = None

    def open(self, reference: Reference) -> None:
        reference.space(SPACE)

    def each(self, made: Made) -> Tensor | None:
        found = [follows(each, self.attribute) for each in read_in(made)]
        known = [value for value in found if value is not None]
        return torch.tensor(known) if known else None
