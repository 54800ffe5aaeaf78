"""The user's own images: a folder of them, or the share of the training data that is held out.

Classes are asked for as often as the images have them, or equally often where those have none.
Where there are classes, the classifier of the space "classes" reads them.

A published reference may come with statistics of features, or be nothing but these; whose features
they are the suite must say, see `published`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..features.classes import classifier
from ..reference import Brought, Kind, Reader, Reference, Task, evenly


@dataclass(frozen=True)
class Folder(Task):
    """For images of any size, as the user brings them. statistics: the space of those that a
    published reference holds, such as inception-tf; without it they are left aside. balanced: each
    class is asked for equally often, however often the images have it. reader: whether a classifier
    of the classes is trained, which reads them."""

    needs_images = True
    statistics: str | None = None
    balanced: bool = False
    reader: bool = True

    @property
    def needs_labels(self) -> bool:
        return self.reader or not self.balanced

    def open(self, kind: Kind, brought: Brought) -> Reference:
        images, labels, about, published, _ = brought()
        if published is not None:
            published = replace(published, space=self.statistics)
        found = Reference(kind.size, images=images, about=about, statistics=published)
        if kind.classes is None:
            return found
        if images is None or labels is None:
            return replace(found, ask=evenly(kind.classes))
        if self.balanced:
            known = int(labels.bincount(minlength=kind.classes).min()) > 0
            found = replace(found, ask=evenly(kind.classes), labels=labels if known else None)
        else:
            ask = partial(as_often, labels)
            found = replace(found, ask=ask, labels=labels)
        if not self.reader:
            return found
        return replace(found, reader=Reader("classes", classifier(images, labels)[0].head))


def as_often(labels: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n labels in the proportions of labels (m,): every n-th of them in order, or shuffled."""
    places = (torch.arange(n) + 0.5) / n * len(labels)
    asked = labels.sort().values[places.long()]
    return asked if generator is None else asked[torch.randperm(n, generator=generator)]
