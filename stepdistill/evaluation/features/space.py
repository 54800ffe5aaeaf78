"""The spaces in which images are compared: a network, a name, and a fingerprint of its weights.

A suite names them by their files: "random-conv" is random_conv.py, with the one class derived from
FeatureSpace in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

BATCH = 500


class Real(Protocol):
    """What a space may look at when it is made: the size of images (c, h, w), and the real images
    (m, c, h, w) in [−1, 1] with their labels (m,), where there are any."""

    size: tuple[int, ...]
    images: Tensor | None
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A frozen network (b, c, h, w) → (b, d) under a name; `identity` adds its weights' hash.

    about: what it is, for the reader of a table."""

    name: str
    network: nn.Module
    about: str = ""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        """The space for images like these. Raises ValueError where there is none."""
        raise ValueError(f"{cls.__name__} is not made by name")

    @cached_property
    def identity(self) -> str:
        """Such as "random-conv@1f2e3d4c5b6a": equal exactly when distances are comparable."""
        return f"{self.name}@{weights_hash(self.network)[:12]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d) float32 of images (n, c, h, w) in [−1, 1].

        Raises ValueError where images are not finite or leave that range.
        """
        if images.ndim != 4 or not images.isfinite().all() or images.abs().max() > 1 + 1e-4:
            raise ValueError(f"{self.name}: expected finite images (n, c, h, w) in [-1, 1]")
        return torch.cat([self.network(part) for part in images.float().split(BATCH)])


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
