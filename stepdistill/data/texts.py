"""What text encoders make of a run's prompts, computed once and kept, see `shards`:

    00000.safetensors    the conditions NAME (m, …) of the first SHARD different prompts

Then the encoders run before training and need no place beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..conditions import Cond
from ..schema import ConfigError
from ..teachers.teacher import Teacher
from . import shards

SHARD, BATCH = 1024, 32  # prompts in a file, and encoded at once
DTypeName = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Texts:
    """Conditions by prompt; found: the shards. places: the number of each prompt."""

    found: list[dict[str, Tensor]]
    places: dict[str, int]

    def rows(self, asked: Sequence[str]) -> Cond | None:
        """Of prompts, in float32; None where one of them is not kept."""
        places = [self.places.get(prompt) for prompt in asked]
        if not places or any(place is None for place in places):
            return None
        picked = [(self.found[place // SHARD], place % SHARD) for place in places]
        return {
            name: widened(torch.stack([shard[name][row] for shard, row in picked]))
            for name in self.found[0]
        }


def widened(rows: Tensor) -> Tensor:
    """Numbers in float32; masks as they are."""
    return rows.float() if rows.is_floating_point() else rows


def different(teacher: Teacher) -> list[str]:
    """The prompts of a run, each once, in order."""
    return list(dict.fromkeys(teacher.prompts))


def manifest(teacher: Teacher, dtype: DTypeName) -> dict[str, Any]:
    """What they are made of: equal for equal contents."""
    parts = teacher.pipeline.components.items()
    tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
    words = [(each.get_vocab(), each.model_max_length) for each in tokenizers]
    return {
        "format": 1,
        "pipeline": type(teacher.pipeline).__name__,
        "tokenizers": sha256(json.dumps(words, sort_keys=True).encode()).hexdigest(),
        "encoders": teacher.encoders_hash,
        "prompts": teacher.prompts_hash,
        "size": list(teacher.size),
        "dtype": dtype,
    }


def text_bytes(teacher: Teacher, dtype: DTypeName) -> int:
    """What they take on disk, without a few hundred bytes a shard."""
    row = narrowed(teacher.null, dtype)
    each = sum(value.numel() * value.element_size() for value in row.values())
    return len(different(teacher)) * each


def narrowed(cond: Cond, dtype: DTypeName) -> dict[str, Tensor]:
    """A condition as it is kept."""
    kind = getattr(torch, dtype)
    return {k: v.to(kind) if v.is_floating_point() else v for k, v in cond.items()}


@torch.no_grad()
def encoded(
    teacher: Teacher, prompts: Sequence[str], dtype: DTypeName, k: int
) -> dict[str, Tensor]:
    """The tensors of shard k of these prompts, on the CPU."""
    own = prompts[k * SHARD : (k + 1) * SHARD]
    batches = [own[i : i + BATCH] for i in range(0, len(own), BATCH)]
    parts = [narrowed(teacher.encode(batch), dtype) for batch in batches]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def kept(
    folder: Path,
    teacher: Teacher,
    dtype: DTypeName,
    part: tuple[int, int],
    wait: Callable[[], None],
    observe: Callable[[int, int], None],
) -> Texts:
    """Compute what is missing, and open all of it. part: (rank, processes) of those that share the
    work, and wait for one another.

    Raises ConfigError if the folder holds something else."""
    if not teacher.backbone.encoding():
        raise ConfigError("prompts.cache: the backbone does not say what encodes: leave it out")
    prompts, wanted = different(teacher), manifest(teacher, dtype)
    count = ceil(len(prompts) / SHARD)
    made = partial(encoded, teacher, prompts, dtype)
    shards.build(folder, wanted, count, made, part, observe)
    wait()
    places = {prompt: place for place, prompt in enumerate(prompts)}
    return Texts(shards.load(folder, wanted, count), places)
