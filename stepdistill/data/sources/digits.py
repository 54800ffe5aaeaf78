"""The 1,797 handwritten digits that scikit-learn carries: 8×8 grey pixels, ten classes.

    x = v / 8 − 1,   v ∈ {0, …, 16}  ⇒  x ∈ [−1, 1]

UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), CC BY 4.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from ...schema import ConfigError
from ...teachers.teacher import Teacher
from ..loader import InMemory, Source

EVENT = (1, 8, 8)
CLASSES = 10


@dataclass(frozen=True)
class Digits(Source):
    """No settings."""

    def open(self, teacher: Teacher) -> InMemory:
        if teacher.event != EVENT or teacher.classes not in (None, CLASSES):
            raise ConfigError(
                f"source: 'digits' are images {EVENT} of {CLASSES} classes or none; the teacher "
                f"makes {teacher.event} of {teacher.classes or 'no'} classes"
            )
        images, labels = load()
        return InMemory(images, None if teacher.classes is None else labels)


@lru_cache(maxsize=1)
def load() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) float32 in [−1, 1] and labels (1797,) int64 in 0..9.

    Every caller shares the two tensors: copy before writing into them.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(8).sub(1).unsqueeze(1)
    return images, torch.from_numpy(digits.target).long()
