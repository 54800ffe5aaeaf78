"""The generated images that fit worst, each beside the real image most like it.

    distance(x)    min_y ‖φ(x) − φ(y)‖ over the reference images y, φ = domain-cnn
    confidence(x)  what the classifier gives the requested label

Worst is least confidence where labels are requested, else largest distance. For scale, `usual` is
the distance below which 95 % of real images lie from their own nearest neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import CHUNK, Manifold
from ..suite import KEPT, Sampled, Suite, scored_images


@dataclass(frozen=True, eq=False)
class Outlier:
    """One image and its nearest real one, (c, h, w) in [−1, 1].

    read: the class the classifier sees. label: the class requested, or None. confidence: in [0, 1],
    of the class requested, else of the class seen.
    """

    image: Tensor
    nearest: Tensor
    distance: float
    read: int
    label: int | None
    confidence: float


@dataclass(frozen=True, eq=False)
class Outliers:
    """The worst of n images of one sampler, worst first."""

    sampler: str
    n: int
    usual: float
    found: list[Outlier]


def outliers(
    contender: Sampled, suite: Suite, n: int, seed: int, name: str, count: int = 12
) -> Outliers:
    """The `count` worst of the first min(n, 2000) images that `evaluate` scores with this seed."""
    images, labels = scored_images(contender, suite, min(n, KEPT), seed)
    features = suite.domain(images)
    distances, nearest = nearest_real(features, suite)
    with torch.no_grad():
        confidences = suite.head(features).softmax(1)
    read = confidences.argmax(1)
    wanted = read if labels is None else labels
    confidence = confidences.gather(1, wanted[:, None])[:, 0]
    badness = distances if labels is None else -confidence
    found = [
        Outlier(
            image=images[i],
            nearest=suite.images[nearest[i]],
            distance=float(distances[i]),
            read=int(read[i]),
            label=None if labels is None else int(labels[i]),
            confidence=float(confidence[i]),
        )
        for i in badness.argsort(descending=True)[:count].tolist()
    ]
    usual = Manifold.of(suite.domain_features, k=1).radii.quantile(0.95)
    return Outliers(name, len(images), float(usual), found)


def nearest_real(features: Tensor, suite: Suite) -> tuple[Tensor, Tensor]:
    """Distances (n,) float64 of features (n, d) to the reference's, and which image is nearest."""
    real = suite.domain_features.double()
    parts = [torch.cdist(part, real).min(1) for part in features.double().split(CHUNK)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
