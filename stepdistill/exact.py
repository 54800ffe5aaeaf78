"""Exact denoisers of Gaussians and mixtures, with a conditional and an unconditional side.

For tests and toys: what a perfect network under the process would answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .conditions import NOTHING, Cond
from .process import Estimate, NoiseProcess, per_sample


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of N(m, s² I), and its exact flow map.

        v_t² = α² s² + σ²,   x̂₀ = m + (α s²/v_t²)(x − α m),   ε̂ = (σ/v_t²)(x − α m),
        Φ_{t→s}(x) = α_s m + (v_s/v_t)(x − α_t m).

    mean: (*event,); with a label (b,) as condition one row per class, (k, *event).
    """

    mean: Tensor
    std: float
    process: NoiseProcess

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate:
        alpha, sigma = per_sample(x_t, *self.process.scales(t))
        mean = self._mean(x_t, cond)
        offset = (x_t - alpha * mean) / (alpha**2 * self.std**2 + sigma**2)
        return Estimate(x0=mean + alpha * self.std**2 * offset, eps=sigma * offset)

    def flow_map(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond = NOTHING) -> Tensor:
        """Where the probability-flow ODE carries x_t from t to s, (b, *event)."""
        (a_t, s_t), (a_s, s_s) = (per_sample(x_t, *self.process.scales(u)) for u in (t, s))
        mean = self._mean(x_t, cond)
        spread = torch.sqrt((a_s**2 * self.std**2 + s_s**2) / (a_t**2 * self.std**2 + s_t**2))
        return a_s * mean + spread * (x_t - a_t * mean)

    def _mean(self, x: Tensor, cond: Cond) -> Tensor:
        mean = self.mean.to(x)
        return mean[cond["label"]] if cond else mean


@dataclass(frozen=True)
class GaussianMixture:
    """The exact denoiser of Σ_k π_k N(μ_k, s² I).

    means: (k, d); weights: (k,), summing to 1. A label (b,) names one component; k itself is the
    empty condition ∅, the whole mixture, as is no condition at all.
    """

    means: Tensor
    std: float
    process: NoiseProcess
    weights: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate:
        alpha, sigma = per_sample(x_t, *self.process.scales(t))
        var = (alpha * self.std) ** 2 + sigma**2
        offset = x_t[:, None] - alpha[:, None] * self.means.to(x_t)
        logits = self._log_prior(x_t, cond) - offset.square().sum(-1) / (2 * var)
        weight = torch.softmax(logits, dim=1)[..., None]
        pull = (weight * offset).sum(1) / var
        centre = (weight * self.means.to(x_t)).sum(1)
        return Estimate(x0=centre + alpha * self.std**2 * pull, eps=sigma * pull)

    @property
    def null(self) -> Cond:
        """The empty condition, one row."""
        return {"label": torch.tensor([len(self.means)])}

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n exact draws (n, d) and the component (n,) each comes from."""
        k = torch.multinomial(self.weights.double(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.std * noise, k

    def _log_prior(self, x: Tensor, cond: Cond) -> Tensor:
        prior = self.weights.to(x).log().expand(len(x), -1)
        if not cond:
            return prior
        label = cond["label"]
        k = torch.arange(len(self.means), device=x.device)
        excluded = (label[:, None] != k) & (label[:, None] != len(self.means))
        return prior.masked_fill(excluded, -torch.inf)
