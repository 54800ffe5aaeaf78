"""The fake-score critic: a denoiser that tracks what the student generates, and its losses.

    pull(x, g) = ½ mean‖x − sg(x − g)‖²            gradient exactly g/numel: the surrogate through
                                                    which every score-distillation method acts
    denoising loss  E‖net(x_t, t) − target‖²        in the network's own prediction space
    realness        a head on the critic's features, log p_real/p_fake at its optimum;
                    softplus losses: critic softplus(ℓ_fake) + softplus(−ℓ_real), student
                    softplus(−ℓ_fake)               (DMD2, arXiv:2405.14867)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from .denoiser import Cond, Denoiser
from .process import Estimate, NoiseProcess


class Critic:
    """A denoiser with a head that judges x_t from the features of one block of its network.

    head: maps the output of `block` (b, …) to logits (b,); `block` is a path into the network.
    """

    def __init__(self, denoiser: Denoiser, head: nn.Module, block: str) -> None:
        self.denoiser, self.head, self.block = denoiser, head, block
        self.net = nn.ModuleDict({"network": denoiser.net, "head": head})

    @property
    def process(self) -> NoiseProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Estimate:
        return self.denoiser(x_t, t, cond)

    def judge(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> tuple[Estimate, Tensor]:
        """The estimate and the realness logits (b,), from one pass."""
        with features(self.denoiser.net.get_submodule(self.block)) as seen:
            estimate = self.denoiser(x_t, t, cond)
        return estimate, self.head(seen[0]).flatten()


@contextmanager
def features(block: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the outputs of `block` while open; deaf to later checkpoint recomputation."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    handle = block.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def denoising_loss(denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Mean squared error in the network's own prediction space, a scalar."""
    process = denoiser.process
    estimate = denoiser(process.add_noise(x0, eps, t), t, cond)
    return F.mse_loss(estimate.raw, process.target(x0, eps, t, denoiser.prediction))


def pull(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient with respect to x is `gradient` / numel, in at least float32."""
    x = x.float() if x.dtype.itemsize < 4 else x
    return 0.5 * F.mse_loss(x, (x - gradient.to(x)).detach())


def realness_loss(fake: Tensor, real: Tensor) -> Tensor:
    """The critic's softplus loss on logits (b,): 2 ln 2 where it knows nothing."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def fooling_loss(fake: Tensor) -> Tensor:
    """The student's non-saturating loss on the logits (b,) of its samples."""
    return F.softplus(-fake).mean()
