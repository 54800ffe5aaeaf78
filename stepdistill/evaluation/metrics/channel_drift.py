"""How far colours and contrast have drifted, in deviations of the real images' pixels:

max over channels c of max(|m_c − m°_c|, |s_c − s°_c|) / s°_c

m, s are the mean and the deviation of a channel over all pixels of all images. Real images are the
reference's or, where there are none, the teacher's of the same noise at most steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..gallery import at_once
from ..metric import Made, Metric, pairs_kept
from ..reference import Reference

TINY = 1e-6


@dataclass
class ChannelDrift(Metric):
    """At least 0; there is none with neither real images nor a teacher."""

    about = (
        "the largest shift of a colour channel's mean, or of its deviation, in deviations of the "
        "reference images, or of the teacher at most steps where there are none."
    )
    decimals = 3
    least = 0.0
    real: Tensor | None = field(init=False, repr=False)
    seen: list[Tensor] = field(init=False, repr=False)
    theirs: list[Tensor] = field(init=False, repr=False)

    def open(self, reference: Reference) -> None:
        self.real = None
        if reference.images is not None:
            parts = reference.images.split(at_once(reference.size))
            self.real = moments([sums(part) for part in parts])

    def reset(self) -> None:
        self.seen, self.theirs = [], []

    def update(self, made: Made) -> None:
        if self.real is not None:
            self.seen.append(sums(made.images))
        elif made.paired is not None:
            self.seen.append(sums(made.images[: len(made.paired)]))
            self.theirs.append(sums(made.paired))

    def of(self, n: int, size: tuple[int, ...]) -> int:
        return n if self.real is not None else min(n, pairs_kept(size))

    def merge(self, other: ChannelDrift) -> None:
        self.seen += other.seen
        self.theirs += other.theirs

    def compute(self) -> list[float]:
        if not self.seen:
            return []
        real = moments(self.theirs) if self.real is None else self.real
        return [((moments(self.seen) - real).abs() / real[1].clamp(min=TINY)).max().item()]


def sums(images: Tensor) -> Tensor:
    """Of every image and channel, the means (b, 2, c) of values and of their squares."""
    pixels = images.double().flatten(2)
    return torch.stack([pixels.mean(2), pixels.square().mean(2)], 1)


def moments(parts: list[Tensor]) -> Tensor:
    """Means and deviations (2, c) of channels from the `sums` of all images."""
    mean, square = torch.cat(parts).mean(0)
    return torch.stack([mean, (square - mean.square()).clamp(min=0).sqrt()])
