"""What score distillation pulls a sample with.

    pull(x, g) = ½ mean‖x − sg(x − g)‖²     gradient exactly g/numel: the surrogate through which
                                            every score-distillation method acts
    project     samples kept in [−1, 1], with the gradient of projected gradient descent

Directions are computed without a graph, in at least float32.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_NORMALISER = 1e-5


@torch.no_grad()
def matching_direction(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """DMD's direction (fake − real)/N, (b, *event), N = mean|x − real| of each sample.

    real, fake: what teacher and critic make of the noised x. The paper's listing, not its formula,
    which has a factor α more (arXiv:2311.18828).
    """
    return (fake - real) / normaliser(x, real)


@torch.no_grad()
def normaliser(x: Tensor, real: Tensor) -> Tensor:
    """N = mean|x − real| of each sample, (b, 1, …), without a graph."""
    size = (x - real).abs().flatten(1).mean(dim=1).clamp(min=LEAST_NORMALISER)
    return size.view(-1, *[1] * (x.ndim - 1))


def pull(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to x is `gradient` / numel, in at least float32."""
    x = x.float() if x.dtype.itemsize < 4 else x
    return 0.5 * F.mse_loss(x, (x - gradient.to(x)).detach())


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        outward = ((x <= -1) & (gradient > 0)) | ((x >= 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0)


def project(x: Tensor) -> Tensor:
    """x clamped to [−1, 1], with the projected gradient: 0 where a step down it leads further out.

    `clamp` gives none outside either, so what strays there is never called back: it drifts off.
    """
    return _Projection.apply(x)
