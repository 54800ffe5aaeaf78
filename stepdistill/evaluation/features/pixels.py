"""Pixels as features, for readers that look at the image itself: φ(x) = x, flattened."""

from __future__ import annotations

from torch import nn

from .space import FeatureSpace, Real


class Pixels(FeatureSpace):
    """The space "pixels" (d = c · h · w)."""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        return FeatureSpace("pixels", nn.Flatten(), "pixels themselves")
