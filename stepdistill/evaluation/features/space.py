"""The spaces in which images are compared: a network, a name, and a fingerprint of its weights.

A suite names them by their files: "random-conv" is random_conv.py, with the one class derived from
FeatureSpace in it. What follows a colon, as in "dinov2:DIR", is a place where weights lie, or the
name of one of several models; few spaces take one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from ..gallery import Images, at_once

BATCH, VALUES = 500, 2**20  # images, and pixel values, that a network sees at a time


class Real(Protocol):
    """What a space may look at when it is made: the size of images (c, h, w), and the real images
    (m, c, h, w) in [−1, 1] with their labels (m,), where there are any."""

    size: tuple[int, ...]
    images: Images | None
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """A frozen network (b, c, h, w) → (b, d) under a name; `identity` adds its weights' hash.

    about: what it is, for the reader of a table. how: what else decides on its numbers, such as a
    resize. libraries: with their versions, on which rounding depends. batch: images at a time,
    unless said at most BATCH and VALUES. head: features (b, d) → logits (b, classes), where it has
    classes."""

    name: str
    network: nn.Module
    about: str = ""
    how: str = ""
    batch: int | None = None
    head: nn.Module | None = None
    libraries: str = ""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        """The space for images like these. Raises ValueError where there is none."""
        raise ValueError(f"{cls.__name__} is not made by name")

    @classmethod
    def at(cls, real: Real, place: str) -> FeatureSpace:
        """The space with what a suite writes after a colon, nothing if there is none.

        Raises ValueError where there is none, or no such place."""
        if place:
            raise ValueError(f"{cls.__name__} takes nothing after a colon, such as '{place}'")
        return cls.of(real)

    @cached_property
    def identity(self) -> str:
        """Such as "random-conv@1f2e3d4c5b6a": equal where features are, to the last bit."""
        return self._named(self.how, self.libraries)

    @cached_property
    def comparable(self) -> str:
        """The same without versions: equal exactly when distances are comparable."""
        return self._named(self.how)

    @cached_property
    def _short(self) -> str:
        return f"{self.name}@{weights_hash(self.network)[:12]}"

    def _named(self, *said: str) -> str:
        words = ", ".join(filter(None, said))
        return f"{self._short} ({words})" if words else self._short

    def at_once(self, size: Sequence[int]) -> int:
        """How many images of this size (c, h, w) the network sees at a time."""
        return self.batch or at_once(size, BATCH, VALUES)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, d) float32 of images (n, c, h, w) in [−1, 1].

        Raises ValueError where images are not finite or leave that range.
        """
        if images.ndim != 4 or not images.isfinite().all() or images.abs().max() > 1 + 1e-4:
            raise ValueError(f"{self.name}: expected finite images (n, c, h, w) in [-1, 1]")
        device, parts = self._device(images), images.float().split(self.at_once(images.shape[1:]))
        return torch.cat([self.network(part.to(device)).to(images.device) for part in parts])

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Logits (n, classes) of features (n, d). Raises ValueError where it has no classes."""
        if self.head is None:
            raise ValueError(f"{self.name} tells no classes apart")
        return self.head(features.to(self._device(features))).to(features.device)

    def _device(self, tensor: Tensor) -> torch.device:
        """Where the network is; that of the tensor for one without parameters."""
        return next((p.device for p in self.network.parameters()), tensor.device)


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
