"""A folder of tensors that are computed once:

    manifest.json        what they are made of
    00000.safetensors    the tensors of a shard
    00000.sha256         its checksum; its presence says that the shard is whole

Shard k is the same whoever computes it, and whenever. So a build that was interrupted goes on,
several processes share the work, and a folder of other contents is refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..files import read_text, save_whole, sha256, shared, write_whole
from ..schema import ConfigError

MANIFEST = "manifest.json"
Made = Callable[[int], dict[str, Tensor]]  # the tensors of shard k


def build(
    folder: Path,
    wanted: dict[str, Any],
    shards: int,
    made: Made,
    part: tuple[int, int] = (0, 1),
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compute the shards that are missing. wanted: the manifest. part: (rank, processes) of those
    that share the work.

    Raises ConfigError if the folder holds something else."""
    rank, world = part
    require(folder, wanted)
    mine = range(rank, shards, world)
    with shared(folder):
        for done, k in enumerate(mine):
            observe(done, len(mine))
            if not is_whole(folder, k):
                write_shard(folder, k, made(k))
    observe(len(mine), len(mine))


def require(folder: Path, wanted: dict[str, Any]) -> None:
    """Make the folder, or see that it holds this. Raises ConfigError."""
    file = folder / MANIFEST
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(read_text(file))
        other = next((k for k in {**wanted, **found} if found.get(k) != wanted.get(k)), None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{file}: damaged ({error}): delete {folder}, run again") from error
    if other is not None:
        raise ConfigError(
            f"{folder}: a cache of another {other}: choose another path, or delete it"
        )


def write_shard(folder: Path, k: int, tensors: dict[str, Tensor]) -> None:
    """Put a shard, then its checksum, into the folder, each whole or not at all."""
    file = folder / f"{k:05d}.safetensors"
    save_whole(file, tensors)
    write_whole(file.with_suffix(".sha256"), f"{sha256(file)}  {file.name}\n")


def is_whole(folder: Path, k: int) -> bool:
    """Whether shard k lies there as it was written."""
    file = folder / f"{k:05d}.safetensors"
    try:
        said = read_text(file.with_suffix(".sha256")).split()
        return said[:1] == [sha256(file)]
    except (OSError, UnicodeDecodeError):
        return False


def load(folder: Path, wanted: dict[str, Any], shards: int) -> list[dict[str, Tensor]]:
    """All shards, their files mapped rather than read.

    Raises ConfigError if they are of something else, or one is missing or damaged."""
    require(folder, wanted)
    for k in range(shards):
        if not is_whole(folder, k):
            raise ConfigError(f"{folder}: shard {k:05d} is missing or damaged: run again")
    return [load_file(folder / f"{k:05d}.safetensors") for k in range(shards)]
