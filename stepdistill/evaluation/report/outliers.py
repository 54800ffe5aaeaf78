"""The generated images that fit worst, each beside the real image most like it.

    distance(x)    min_y ‖φ(x) − φ(y)‖ over the reference images y, φ the suite's first space
    confidence(x)  what the suite's reader gives the requested label

Worst is least confidence where labels are requested and read, else largest distance. For scale,
`usual` is the distance below which 95 % of real images lie from their own nearest neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluate import Sampled, first_block
from ..kept import KEPT
from ..manifold import Manifold, at_a_time
from ..metric import Made
from ..suite import Suite


@dataclass(frozen=True, eq=False)
class Outlier:
    """One image and its nearest real one, (c, h, w) in [−1, 1].

    read: the class the reader sees. label: the class requested. confidence: in [0, 1], of the class
    requested, else of the class seen. None where there is none of these.
    """

    image: Tensor
    nearest: Tensor
    distance: float
    read: int | None
    label: int | None
    confidence: float | None

    @property
    def badness(self) -> float:
        """The larger, the worse."""
        if self.label is None or self.confidence is None:
            return self.distance
        return -self.confidence


@dataclass(frozen=True, eq=False)
class Outliers:
    """The worst of n images of one sampler, worst first, in a space."""

    sampler: str
    n: int
    space: str
    usual: float
    found: list[Outlier]


def outliers(
    sampler: Sampled, suite: Suite, n: int, seed: int, name: str, count: int = 12
) -> Outliers:
    """The `count` worst of the first min(n, 2000) images that `evaluate` scores with this seed and
    blocks of n.

    The suite needs real images, and a space."""
    few = min(n, KEPT)
    found: list[Outlier] = []
    for images, asked in first_block(sampler, suite, n, seed, few):
        found += _worst(Made(images, asked, None, suite.reference), suite, count)
        found = sorted(found, key=lambda one: -one.badness)[:count]
    real = suite.reference.features(suite.space)
    usual = Manifold.of(real, k=1).radii.quantile(0.95)
    return Outliers(name, few, suite.space, float(usual), found)


def _worst(made: Made, suite: Suite, count: int) -> list[Outlier]:
    """The `count` worst of a batch."""
    distances, nearest = _nearest_real(made.features(suite.space), suite)
    reader = suite.reference.reader
    labels = made.asked if isinstance(made.asked, Tensor) else None
    read = confidence = None
    if reader is not None:
        confidences = reader.confidences(made.features(reader.space))
        read = confidences.argmax(1)
        wanted = read if labels is None else labels
        confidence = confidences.gather(1, wanted[:, None])[:, 0]
    badness = distances if labels is None or confidence is None else -confidence
    places = suite.reference.places
    return [
        Outlier(
            image=made.images[i].clone(),
            nearest=suite.reference.images[int(places[nearest[i]])],
            distance=float(distances[i]),
            read=None if read is None else int(read[i]),
            label=None if labels is None else int(labels[i]),
            confidence=None if confidence is None else float(confidence[i]),
        )
        for i in badness.argsort(descending=True)[:count].tolist()
    ]


def _nearest_real(features: Tensor, suite: Suite) -> tuple[Tensor, Tensor]:
    """Distances (n,) float64 of features (n, d) to the reference's, and which image is nearest."""
    real = suite.reference.features(suite.space).double()
    rows = features.double().split(at_a_time(real))
    parts = [torch.cdist(part, real).min(1) for part in rows]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
