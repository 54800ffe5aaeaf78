"""The spaces in which images are compared: a network, a name, and a fingerprint of its weights.

Two spaces are reported, never one. A classifier (`domain_cnn.py`, `classes.py`) sees lost classes
but throws away much of what is not class, and with it much of collapse, blur and garbage. A random
convolution has no such preference. It measures, at three scales, how strongly each of its random
filters answers and how unevenly:

    h₀ = x,   hᵢ = LeakyReLU(Wᵢ ∗ hᵢ₋₁ + bᵢ),   φ = (mean hᵢ, std hᵢ over pixels)ᵢ₌₁..₃

Distances in these spaces are written `frechet` and `frechet_random`; FID is one in Inception's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .space import FeatureSpace, Real

WIDTHS = (32, 48, 64)


class RandomConv(nn.Module):
    """Seeded random filters at full, half and quarter size, pooled to their mean and deviation."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = pairwise((channels, *WIDTHS))
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=2 if level else 1, padding=1)
            for level, (i, o) in enumerate(sizes)
        )
        for conv in self.convs:
            fan_in = 9 * conv.in_channels
            conv.weight.data = _uniform(conv.weight.shape, generator) * (6 / fan_in) ** 0.5
            conv.bias.data = _uniform(conv.bias.shape, generator) / 2
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for conv in self.convs:
            x = nn.functional.leaky_relu(conv(x), 0.2)
            pooled += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        return torch.cat(pooled, 1)


class RandomConvSpace(FeatureSpace):
    """The space "random-conv"."""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        return random_conv(real.size[0])


def random_conv(channels: int = 1, seed: int = 0) -> FeatureSpace:
    """The space "random-conv" (d = 288) for images of so many channels; no weights file."""
    return FeatureSpace("random-conv", RandomConv(channels, seed), "seeded random convolutions")


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    # Only integers are drawn bit for bit alike on every machine, as the hash requires.
    return torch.randint(-127, 128, shape, generator=generator) / 127
