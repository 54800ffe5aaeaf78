"""Codecs: between images in [−1, 1] and the states x0 that a teacher denoises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
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

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (b, *event), of what `encode` draws x0 from."""
        x0 = self.encode(images)
        return x0, torch.zeros_like(x0)

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


@dataclass(frozen=True)
class Latents(Codec):
    """Latents z of a VAE, scaled: x0 = scaling_factor · (z − mean) / std, with its latents_mean and
    latents_std by channel, where it has any, else its shift_factor as the mean. factor: pixels to a
    latent, a side."""

    vae: AutoencoderKL
    factor: int

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Of z, (c, 1, 1): its mean, and how much larger it is than x0."""
        config, device = self.vae.config, self.vae.device
        both = config.latents_mean is not None and config.latents_std is not None
        shift = [config.shift_factor or 0.0]
        mean = torch.tensor(config.latents_mean if both else shift, device=device)
        std = torch.tensor(config.latents_std if both else [1.0], device=device)
        return mean[:, None, None], std[:, None, None] / config.scaling_factor

    def to(self, device: torch.device) -> None:
        self.vae.to(device)

    def event(self, size: Size) -> tuple[int, ...]:
        if size[0] % self.factor or size[1] % self.factor:
            raise ValueError(
                f"size {size[0]} × {size[1]}: needs multiples of {self.factor}, pixels to a latent"
            )
        return self.vae.config.latent_channels, size[0] // self.factor, size[1] // self.factor

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean of each latent without a generator, else a sample."""
        found, (mean, scale) = self.found(images), self.scale
        z = found.mean.float()
        if generator is not None:
            z = z + found.std * torch.randn(z.shape, generator=generator).to(z)
        return (z - mean) / scale

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found, (mean, scale) = self.found(images), self.scale
        return (found.mean.float() - mean) / scale, found.std.float() / scale

    def found(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The VAE's own distribution of z, where the VAE is."""
        return self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist

    def decode(self, x0: Tensor) -> Tensor:
        mean, scale = self.scale
        z = (x0.to(self.vae.device) * scale + mean).to(self.vae.dtype)
        return self.vae.decode(z, return_dict=False)[0].float()
