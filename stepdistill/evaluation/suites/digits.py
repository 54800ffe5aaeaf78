"""All 1,797 digits: of every class equally often or, for unconditional samplers, of none.

The classifier of the space "domain-cnn" reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.sources import digits
from ..features.domain_cnn import load_domain_cnn
from ..reference import Brought, Kind, Reader, Reference, Task

KIND = Kind(digits.EVENT, digits.CLASSES)  # of conditional samplers


@dataclass(frozen=True)
class Digits(Task):
    """For images (1, 8, 8) of ten classes or none."""

    def open(self, kind: Kind, brought: Brought) -> Reference:
        if kind not in (KIND, Kind(digits.EVENT)):
            raise ValueError(f"scores images {KIND} or none; the teacher makes {kind}")
        images, labels = digits.load()
        return Reference(
            size=digits.EVENT,
            ask=None if kind.classes is None else ask,
            images=images,
            labels=labels,
            reader=Reader("domain-cnn", load_domain_cnn().head),
            about=f"digits, {len(images)} images",
        )


def ask(n: int, generator: torch.Generator | None) -> Tensor:
    """n labels, each class equally often."""
    if generator is None:
        return torch.arange(n) % digits.CLASSES
    # Labels follow the noise of the whole block in one stream: what was scored before counts on it.
    for rows in torch.arange(n).split(1000):
        torch.randn(len(rows), *digits.EVENT, generator=generator)
    return torch.randperm(n, generator=generator) % digits.CLASSES
