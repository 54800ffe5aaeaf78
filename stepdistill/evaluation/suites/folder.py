"""The user's own images: a folder of them, or the share of the training data that is held out.

Classes are asked for as often as the images have them. Where there are classes, the classifier of
the space "classes" reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..features.classes import classifier
from ..reference import Brought, Kind, Reader, Reference, Task


@dataclass(frozen=True)
class Folder(Task):
    """For images of any size, as the user brings them."""

    needs_images = True

    def open(self, kind: Kind, brought: Brought) -> Reference:
        images, labels, about = brought()
        if tuple(images.shape[1:]) != kind.size:
            raise ValueError(f"the real images are {tuple(images.shape[1:])}, the samples {kind}")
        if kind.classes is None:
            return Reference(kind.size, images=images, about=about)
        return Reference(
            size=kind.size,
            ask=lambda n, generator: as_often(labels, n, generator),
            images=images,
            labels=labels,
            reader=Reader("classes", classifier(images, labels)[0].head),
            about=about,
        )


def as_often(labels: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n labels in the proportions of labels (m,): every n-th of them in order, or shuffled."""
    places = (torch.arange(n) + 0.5) / n * len(labels)
    asked = labels.sort().values[places.long()]
    return asked if generator is None else asked[torch.randperm(n, generator=generator)]
