"""What stays open where prompts leave it open: the entropy of an attribute that they do not name,

− Σ p log p / log k

with p the shares of its k values among images of prompts with one object that do not name it. It is
1 where all are equally frequent, as in the data, and falls where a model has favourites."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from typing import Literal

import torch
from torch import Tensor

from ...data.compositions import ATTRIBUTES
from ..following import SPACE, read_in
from ..metric import Made, Metric
from ..reference import Reference


@dataclass
class Unsaid(Metric):
    """For prompts in the words of `data/captions.py`. Images without an object do not count."""

    about = "the entropy of an attribute that prompts do not name, 1 where all values are equal."
    lower_is_better = False
    decimals = 3
    least, most = 0.0, 1.0
    needs_asked = True
    attribute: Literal["size", "colour", "shape", "ground", "position"] = "colour"
    counts: Tensor = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        reference.space(SPACE)

    def reset(self) -> None:
        self.counts = torch.zeros(ATTRIBUTES[self.attribute], dtype=torch.long)

    def update(self, made: Made) -> None:
        for seen in read_in(made):
            single = seen.named.axis is None and seen.there
            if single and seen.right(self.attribute) is None:
                self.counts[seen.value(self.attribute)] += 1

    def merge(self, other: Unsaid) -> None:
        self.counts = self.counts + other.counts

    def compute(self) -> list[float]:
        if not self.counts.sum():
            return []
        shares = self.counts / self.counts.sum()
        return [float(torch.special.entr(shares.double()).sum()) / log(len(shares))]
