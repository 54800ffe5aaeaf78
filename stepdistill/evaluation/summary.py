"""What a space of features says of real images: features of some of them, and moments of all.

They are read and looked at once, a batch at a time. Where images lie in files, their summary is
kept in the user's cache folder, by

    SHA-256 (content of the images, identity of the space, φ of the first images)

of which the last sees what no identity does: another machine, number of threads or version, and a
network of yours that was edited. What is damaged there is made again; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import save_whole
from ..resources import cache_folder
from .features.space import FeatureSpace
from .gallery import Gallery, Images
from .moments import Moments

MOST = 10_000  # real images that are compared one by one
PROBED, RECIPE = 2, 1  # images whose features are part of the key
WIDEST = 2**13  # numbers whose covariance is added up


@dataclass(frozen=True, eq=False)
class Summary:
    """Of m images in a space of this identity.

    rows: features (n, d) of all or, where there are more than MOST, of so many that are evenly
    spread. mean, scatter: of all where rows are fewer, see `moments`."""

    space: str
    m: int
    rows: Tensor
    mean: Tensor | None = None
    scatter: Tensor | None = None

    @cached_property
    def moments(self) -> Moments:
        """Of all m. Raises ValueError where features are too wide to be added up."""
        if len(self.rows) == self.m:
            return Moments.of(self.rows, self.space)
        if self.mean is None or self.scatter is None:
            raise ValueError(
                f"features of {self.rows.shape[1]:,} numbers are too wide for a covariance of more "
                f"than {MOST:,} real images: give fewer"
            )
        return Moments(self.space, self.m, self.mean, self.scatter)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file of it holds."""
        found = {"rows": self.rows, "mean": self.mean, "scatter": self.scatter}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def places(m: int) -> Tensor:
    """The numbers of the images, of m, that are compared one by one: at most MOST, evenly spread,
    since in a folder those of a class lie together."""
    count = min(MOST, m)
    return torch.arange(count) * m // count


def summary(images: Images, space: FeatureSpace) -> Summary:
    """Of real images (m, c, h, w), from the cache if it is there."""
    file = cached_at(images, space) if isinstance(images, Gallery) else None
    found = file and known(file, images, space)
    if found is None:
        found = look(images, space)
        if file:
            keep(found, file)
    return found


def look(images: Images, space: FeatureSpace) -> Summary:
    """Of images that are looked at now."""
    wanted, first, rows, moments = places(len(images)), 0, [], None
    few, batch = len(images) <= MOST, space.at_once(images.shape[1:])
    for features in joined(map(space, images.split(batch)), MOST):
        inside = (wanted >= first) & (wanted < first + len(features))
        rows.append(features[wanted[inside] - first])
        first += len(features)
        if not few and features.shape[1] <= WIDEST:
            part = Moments.of(features, space.identity)
            moments = part if moments is None else moments.merge(part)
    found = Summary(space.identity, len(images), torch.cat(rows))
    if moments is None:
        return found
    return Summary(found.space, found.m, found.rows, moments.mean, moments.scatter)


def joined(parts: Iterable[Tensor], least: int) -> Iterator[Tensor]:
    """The rows of parts, in parts of at least so many, but for the last."""
    waiting, n = [], 0
    for part in parts:
        waiting.append(part)
        n += len(part)
        if n >= least:
            yield torch.cat(waiting)
            waiting, n = [], 0
    if waiting:
        yield torch.cat(waiting)


def cached_at(images: Gallery, space: FeatureSpace) -> Path | None:
    """The file in the cache; None for a user without one."""
    folder = cache_folder()
    if folder is None:
        return None
    told = RECIPE, images.digest, len(images), space.identity, space.batch
    key = hashlib.sha256(repr(told).encode())
    key.update(space(images[:PROBED]).contiguous().numpy().tobytes())
    return folder / f"reference-{key.hexdigest()[:32]}.safetensors"


def known(file: Path, images: Gallery, space: FeatureSpace) -> Summary | None:
    """What the cache holds; None where that is nothing, or damaged."""
    try:
        found = Summary(space.identity, len(images), **load_file(file))
    except (OSError, SafetensorError, TypeError):
        return None
    return found if is_whole(found) else None


def is_whole(found: Summary) -> bool:
    """Whether all parts are there, and fit."""
    n, d = len(places(found.m)), found.rows.shape[-1]
    if found.rows.shape != (n, d):
        return False
    if found.mean is None or found.scatter is None:
        return n == found.m or d > WIDEST
    return found.mean.shape == (d,) and found.scatter.shape == (d, d)


def keep(found: Summary, file: Path) -> None:
    """Put a summary into the cache; where that cannot be written it is made again."""
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_whole(file, found.tensors)
