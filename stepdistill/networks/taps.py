"""What a network sees on its way: the outputs of some of its blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def features(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the outputs of `blocks` while open, none of a later recomputation."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
