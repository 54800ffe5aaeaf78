"""A student beside its teacher, whatever they make: there are no real images to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference import Kind, Reference, Task


@dataclass(frozen=True)
class BesideTeacher(Task):
    """For images of any size, of every class equally often or of none."""

    def open(self, kind: Kind) -> Reference:
        def ask(n: int, generator: torch.Generator | None) -> Tensor:
            order = torch.arange(n)
            if generator is not None:
                order = torch.randperm(n, generator=generator)
            return order % kind.classes

        return Reference(kind.size, None if kind.classes is None else ask, about="none")
