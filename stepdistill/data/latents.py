"""What a VAE makes of a source's images, computed once and kept, see `shards`:

    00000.safetensors    mean, std (m, *event): of the first SHARD samples

Then the VAE runs before training alone. Its own noise is drawn anew each time; what a source draws,
like cuts and mirrored images, is not: each sample is as it is without chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..schema import ConfigError
from ..teachers.backbone import Asked
from . import shards
from .loader import Drawn, Loader, dropped
from .texts import DTypeName

SHARD, BATCH = 1024, 16  # samples in a file, and encoded at once


@dataclass(frozen=True)
class Encoded(Loader):
    """A loader whose samples are encoded; found: the shards. asked: for each of them."""

    found: tuple[dict[str, Tensor], ...] = ()
    asked: Asked = None

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        index = self.samples.walk(number * size, size, self.seed).tolist()
        mean, std = (self.rows(name, index) for name in ("mean", "std"))
        x0 = mean + std * torch.randn(mean.shape, generator=local)
        cond = dropped(self.teacher, self.asked_for(index), self.dropout, local)
        return Drawn(x0.to(self.teacher.device), cond)

    def rows(self, name: str, index: list[int]) -> Tensor:
        """Of samples, in float32."""
        return torch.stack([self.found[i // SHARD][name][i % SHARD] for i in index]).float()

    def asked_for(self, index: list[int]) -> Asked:
        """What a teacher is asked for samples."""
        if isinstance(self.asked, Tensor):
            return self.asked[index]
        return None if self.asked is None else [self.asked[i] for i in index]


def manifest(loader: Loader, dtype: DTypeName) -> dict[str, Any]:
    """What they are made of: equal for equal contents."""
    teacher = loader.teacher
    return {
        "format": 1,
        "codec": type(teacher.codec).__name__,
        "vae": teacher.codec_hash,
        "images": loader.samples.digest(),
        "size": list(teacher.size),
        "dtype": dtype,
    }


def latent_bytes(loader: Loader, dtype: DTypeName) -> int:
    """What they take on disk, without a few hundred bytes a shard."""
    each = 2 * prod(loader.teacher.event) * getattr(torch, dtype).itemsize
    return len(loader.samples) * each


@torch.no_grad()
def encoded(loader: Loader, dtype: DTypeName, k: int) -> dict[str, Tensor]:
    """The tensors of shard k, on the CPU."""
    teacher, n = loader.teacher, len(loader.samples)
    index = torch.arange(k * SHARD, min((k + 1) * SHARD, n)).split(BATCH)
    images = (loader.samples.rows(part).images for part in index)
    parts = [teacher.codec.posterior(each.to(teacher.device)) for each in images]
    kind = getattr(torch, dtype)
    both = (torch.cat([part[i].to("cpu", kind) for part in parts]) for i in range(2))
    return dict(zip(("mean", "std"), both, strict=True))


def require_posterior(loader: Loader) -> None:
    """Raise ConfigError for a codec of one's own that encodes otherwise than its posterior says."""
    codec, device = loader.teacher.codec, loader.teacher.device
    images = loader.samples.rows(torch.arange(1)).images.to(device)
    mean, x0 = codec.posterior(images)[0], codec.encode(images)
    if not torch.allclose(mean, x0, rtol=1e-3, atol=1e-3 * float(x0.abs().max())):
        raise ConfigError(
            f"data.cache: the posterior of {type(codec).__name__} is not what it encodes: write one"
        )


def kept(
    folder: Path,
    loader: Loader,
    dtype: DTypeName,
    part: tuple[int, int],
    wait: Callable[[], None],
    observe: Callable[[int, int], None],
) -> Encoded:
    """Compute what is missing, and open all of it. part: (rank, processes) of those that share the
    work, and wait for one another.

    Raises ConfigError if the folder holds something else, and for a codec whose posterior is not
    what it encodes."""
    samples = loader.samples
    require_posterior(loader)
    wanted, count = manifest(loader, dtype), ceil(len(samples) / SHARD)
    shards.build(folder, wanted, count, partial(encoded, loader, dtype), part, observe)
    wait()
    found = tuple(shards.load(folder, wanted, count))
    return Encoded(samples, loader.teacher, loader.dropout, loader.seed, found, samples.asked())
