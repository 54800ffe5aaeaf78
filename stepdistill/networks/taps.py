"""What a network sees on its way: the outputs of some of its blocks, as (b, c, *positions)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .views import bare


def as_they_are(output: Any, x: Tensor) -> Tensor:
    """The output of a block that already is (b, c, *positions)."""
    return output


@dataclass(frozen=True)
class Taps:
    """Blocks of a network and how to read them.

    paths: where they are. read: a block's output, and the network's input (b, *event), as features
    (b, c, *positions): tokens are laid out, one of several outputs is taken.
    """

    paths: tuple[str, ...] = ()
    read: Callable[[Any, Tensor], Tensor] = as_they_are

    @contextmanager
    def open(self, net: nn.Module) -> Iterator["Seen"]:
        """Collects what the blocks of a network, or of the one below its views, put out."""
        blocks = [bare(net).get_submodule(path) for path in self.paths]
        with collected(blocks) as outputs:
            yield Seen(outputs, self.read)


NO_TAPS = Taps()


@dataclass(frozen=True)
class Seen:
    """Outputs of blocks, in the order of the pass."""

    outputs: list[Any]
    read: Callable[[Any, Tensor], Tensor]

    def features(self, x: Tensor) -> list[Tensor]:
        """The features (b, c, *positions) of each, of a network whose input was x."""
        return [self.read(output, x) for output in self.outputs]


@contextmanager
def collected(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Collects the outputs of `blocks` while open, none of a later recomputation."""
    outputs: list[Any] = []

    def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
        outputs.append(output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
