"""The denoising loss, and how far a critic lags behind.

    E w ‖net(x_t, t) − target‖²,    w = 1, min(SNR, 5) where the target is x₀  (arXiv:2303.09556)

in the network's own prediction space.
"""

from torch import Tensor

from ..conditions import Cond
from ..denoiser import Denoiser
from ..process import Estimate, per_sample


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
    normaliser = error.var(dim=0) / len(error)
    return (error.mean(dim=0).square().sum() / normaliser.sum().clamp(min=1e-20)).sqrt()
