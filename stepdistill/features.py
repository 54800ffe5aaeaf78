"""What a network sees: the outputs of its blocks, and a distance between two states in them.

    d(x, y) = Σ_blocks mean_positions ‖ x̂ − ŷ ‖²,    x̂, ŷ features over their norm at each position

as in LPIPS (arXiv:1801.03924), with the teacher's own network in place of a classifier: SoundCTM
(arXiv:2405.18503).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .denoiser import Cond, Denoiser
from .informed import bare

LEAST_NORM = 1e-6


@contextmanager
def features(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the outputs of `blocks` while open; deaf to later checkpoint recomputation."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def feature_distance(denoiser: Denoiser, x: Tensor, y: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """(b,) distances between states (b, *event) at t (b,), in all of the network's `places`."""
    net, asked = bare(denoiser.net), t.clamp(min=denoiser.process.t_min)
    with features([net.get_submodule(path) for path in denoiser.places]) as seen:
        denoiser(x, asked, cond)
        denoiser(y, asked, cond)
    half = len(seen) // 2
    return torch.stack([apart(a, b) for a, b in zip(seen[:half], seen[half:])]).sum(0)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """(b,): the mean square distance of directions in channels, of features (b, c, *positions)."""
    a, b = (v.float() if v.dtype.itemsize < 4 else v for v in (a, b))
    a, b = (v / v.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM) for v in (a, b))
    return (a - b).square().sum(1).flatten(1).mean(1)
