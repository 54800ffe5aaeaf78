"""The fake-score critic: a denoiser that tracks what the student generates, and its losses.

    pull(x, g) = ½ mean‖x − sg(x − g)‖²            gradient exactly g/numel: the surrogate through
                                                    which every score-distillation method acts
    project         samples kept in [−1, 1], with the gradient of projected gradient descent
    denoising loss  E w ‖net(x_t, t) − target‖²     in the network's own prediction space; w = 1,
                                                    min(SNR, 5) where that is x₀ (arXiv:2303.09556)
    realness        a head on the critic's features, log p_real/p_fake at its optimum;
                    softplus losses: critic softplus(ℓ_fake) + softplus(−ℓ_real), student
                    softplus(−ℓ_fake)               (DMD2, arXiv:2405.14867)
                    hinge losses: ½ [relu(1 + ℓ_fake) + relu(1 − ℓ_real)] and −ℓ_fake
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .denoiser import Cond, Denoiser
from .features import features
from .process import Estimate, NoiseProcess, per_sample

GanLoss = Literal["softplus", "hinge"]
LEAST_NORMALISER = 1e-5


class Critic:
    """A denoiser, and if asked a head that judges x_t from the features of some blocks.

    head: maps the outputs of `blocks` (b, …), parts of the denoiser's network, to logits. frozen:
    whether the network is somebody else's, and the head all that the critic trains.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        head: nn.Module | None = None,
        blocks: Sequence[nn.Module] = (),
        frozen: bool = False,
    ) -> None:
        self.denoiser, self.head, self.blocks, self.frozen = denoiser, head, blocks, frozen
        parts = {} if frozen else {"network": denoiser.net}
        self.net = nn.ModuleDict(parts | ({} if head is None else {"head": head}))

    @property
    def process(self) -> NoiseProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Estimate:
        return self.denoiser(x_t, t, cond)

    def judge(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> tuple[Estimate, Tensor]:
        """The estimate and the realness logits, (b,) a head, from one pass. Needs a head."""
        with features(self.blocks) as seen:
            estimate = self.denoiser(x_t, t, cond)
        logits = self.head(*seen).flatten()
        return estimate, logits.to(torch.promote_types(logits.dtype, torch.float32))

    def judge_both(
        self, x_t: Tensor, y_t: Tensor, t: Tensor, x_cond: Cond, y_cond: Cond
    ) -> tuple[Estimate, Tensor, Tensor]:
        """The estimate for x_t, its logits, and those of y_t at the same times, from one pass."""
        cond = None if x_cond is None else torch.cat([x_cond, y_cond])
        both, logits = self.judge(torch.cat([x_t, y_t]), t.repeat(2), cond)
        fake, real = logits.chunk(2)
        return Estimate(*(part[: len(x_t)] for part in both)), fake, real


def denoising_loss(denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Mean squared error in the network's own prediction space, a scalar."""
    estimate = denoiser(denoiser.process.add_noise(x0, eps, t), t, cond)
    return denoising_error(denoiser, estimate, x0, eps, t).square().mean()


def denoising_error(
    denoiser: Denoiser, estimate: Estimate, x0: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """√w (output − target), (b, *event): its mean square is the denoising loss."""
    process, kind = denoiser.process, denoiser.prediction
    (root,) = per_sample(x0, process.loss_weight(kind, t).sqrt())
    return root * (estimate.raw - process.target(x0, eps, t, kind))


def lag(error: Tensor) -> Tensor:
    """How far the critic is behind: 1 while its errors (b, *event) have no mean, above if it lags.

    √(Σ mean² / Σ its standard error²) over the batch, summed over the elements of a sample: with
    few samples the ratio of a single element is wild. The optimal critic's error has mean zero
    whatever the noise and the time. A batch of one shows no spread, and gives 1.
    """
    error = error.detach().flatten(1).float()
    if len(error) == 1:
        return error.new_ones(())
    spread = error.var(dim=0) / len(error)
    return (error.mean(dim=0).square().sum() / spread.sum().clamp(min=1e-20)).sqrt()


@torch.no_grad()
def matching_direction(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """DMD's direction (fake − real)/N, (b, *event), N = mean|x − real| of each sample.

    real, fake: what teacher and critic make of the noised x. The paper's listing, not its formula,
    which has a factor α more (arXiv:2311.18828).
    """
    return (fake - real) / spread(x, real)


@torch.no_grad()
def spread(x: Tensor, real: Tensor) -> Tensor:
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


def realness_loss(fake: Tensor, real: Tensor, kind: GanLoss = "softplus") -> Tensor:
    """The critic's loss on logits (b,). Where it knows nothing: softplus 2 ln 2, hinge 1."""
    if kind == "hinge":
        return (F.relu(1 + fake).mean() + F.relu(1 - real).mean()) / 2
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def fooling_loss(fake: Tensor, kind: GanLoss = "softplus") -> Tensor:
    """The student's loss on the logits (b,) of its samples; softplus: non-saturating."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def approximate_r1(here: Tensor, there: Tensor, width: float) -> Tensor:
    """E ((ℓ(x + w n) − ℓ(x)) / w)², n ~ N(0, I): R1's ‖∇ℓ‖² as w → 0, without its second backward.

    here, there: logits (b,) of the very tensor the head saw, and of that tensor perturbed with
    std `width` (arXiv:2501.08316).
    """
    return ((there - here) / width).square().mean()
