"""Codecs: between images in [−1, 1] and the states x0 that a teacher denoises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Size = tuple[int, int]  # height and width of an image, in pixels


class Codec(ABC):
    """Images (b, c, height, width) in [−1, 1] ↔ clean samples x0 (b, *event) of unit scale.

    channels: c. A codec of one's own is made from the pipeline: `__init__(pipeline)`.
    """

    channels: int = 3

    def to(self, device: torch.device) -> None:
        """Move what it has of networks."""
        return None

    @abstractmethod
    def event(self, size: Size) -> tuple[int, ...]:
        """The shape of one sample of images of this size. Raises ValueError if there is none."""

    @abstractmethod
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x0; whatever is random comes from the CPU generator."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Images, not clamped, with a graph."""


@dataclass(frozen=True)
class Pixels(Codec):
    """Samples are images. channels: 1 grey, 3 colour."""

    channels: int

    def event(self, size: Size) -> tuple[int, ...]:
        return (self.channels, *size)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return images

    def decode(self, x0: Tensor) -> Tensor:
        return x0
