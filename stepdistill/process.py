"""The forward process, and the algebra between what networks predict.

A noise process is two functions of time, the signal scale α and the noise scale σ:

    x_t = α_t x₀ + σ_t ε,    ε ~ N(0, I).                                              (1)

Whatever a network predicts is a linear form  a_t x₀ + b_t ε  in the same two unknowns:

    prediction    a_t                      b_t                     for example
    "x0"           1                        0                      a plain denoiser
    "eps"          0                        1                      DDPM, Stable Diffusion 1, XL
    "v"           −σ                        α                      Stable Diffusion 2
    "flow"         α′                       σ′                     SD 3, FLUX: dx_t/dt in this clock
    "edm"          σ/(σ_d √(σ²+σ_d²α²))    −σ_d α/√(σ²+σ_d²α²)     EDM's raw network F
                                                                                       (2)
so (1) and (2) are two equations for (x₀, ε), and converting any prediction into any other under
any process is solving one 2×2 system: `NoiseProcess.estimate`. Nothing else in this package knows
that parameterisations exist.

Shapes: t is (b,), in the process's own clock, noise last; samples are (b, *event). Scales are
float64 on the CPU (t is tiny) and are moved to the sample's device and dtype once.

Sources: DDPM (arXiv:2006.11239), v (2202.00512), EDM (2206.00364), rectified flow (2209.03003),
TrigFlow (2410.11081), zero terminal SNR (2305.08891).
"""

from abc import ABC, abstractmethod
from math import pi
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Prediction = Literal["x0", "eps", "v", "flow", "edm"]

# The sine of the angle between the rows of (1) and (2) below which their system says nothing.
ILL_POSED = 1e-6


class Estimate(NamedTuple):
    """A denoiser's answer: the posterior means of both unknowns of (1), each (b, *event).

    `raw` is the network's own output, before the algebra; None where there is no network.
    """

    x0: Tensor
    eps: Tensor
    raw: Tensor | None = None


class NoiseProcess(ABC):
    """A pair of scales (α_t, σ_t) whose signal-to-noise ratio falls as t grows.

    t_clean: the time of clean data, σ = 0, where an ODE ends. No network is asked there.
    t_min, t_max: the lowest and the highest time at which networks are trained and asked.
    sigma_data: standard deviation of the data, for EDM's and TrigFlow's preconditioning.
    """

    t_clean: float = 0.0
    t_min: float
    t_max: float
    sigma_data: float = 1.0
    # The direction a·x̂₀ + b·ε̂ that stays constant along a straight step, see `along_frame`.
    frame: tuple[float, float] = (-1.0, 1.0)

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α_t, σ_t), each (b,), float64 on the CPU."""

    @abstractmethod
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(dα/dt, dσ/dt), each (b,), float64 on the CPU."""

    @abstractmethod
    def time_at(self, log_snr: Tensor) -> Tensor:
        """The time (b,) at which ln(α/σ) equals `log_snr`: the inverse of `log_snr`."""

    def input_scale(self, t: Tensor) -> Tensor:
        """What the state is multiplied by before a network sees it, (b,)."""
        return torch.ones_like(exact(t))

    def start_scale(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise that sampling starts from at t, (b,)."""
        return self.scales(t)[1]

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(α/σ), (b,); −∞ at pure noise, +∞ at clean data."""
        alpha, sigma = self.scales(t)
        return alpha.log() - sigma.log()

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of (1), (b, *event)."""
        alpha, sigma = per_sample(x0, *self.scales(t))
        return alpha * x0 + sigma * eps

    def renoise(self, x_s: Tensor, eps: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """The forward transition from s to a noisier t (b, *event): in distribution, x_t given x_s.

        x_t = a x_s + √(σ_t² − a²σ_s²) ε with a = α_t/α_s, for fresh noise ε and α_s > 0.
        """
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.scales(s), self.scales(t)
        keep = alpha_t / alpha_s
        spread = (sigma_t**2 - (keep * sigma_s) ** 2).clamp(min=0).sqrt()
        keep, spread = per_sample(x_s, keep, spread)
        return keep * x_s + spread * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """What a perfect network of this kind outputs: the linear form (2), (b, *event)."""
        a, b = per_sample(x0, *self._form(prediction, t))
        return a * x0 + b * eps

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor, prediction: Prediction) -> Estimate:
        """Solve (1) and (2) for (x₀, ε), given x_t and the network's output."""
        pair = self._solve(x_t, output, t, *self._form(prediction, t))
        return pair._replace(raw=output)

    def along_frame(self, x_t: Tensor, t: Tensor, direction: Estimate) -> Estimate:
        """The pair (x₀, ε) consistent with x_t whose `frame` a·x₀ + b·ε equals `direction`'s.

        A DDIM step is an Euler step along it, in the frame where the path is straight:
        (−1, 1), the frame of rectified flow, is regular everywhere; VE uses EDM's, (0, 1).
        """
        a, b = self.frame
        ones = torch.ones_like(exact(t))
        return self._solve(x_t, a * direction.x0 + b * direction.eps, t, a * ones, b * ones)

    def loss_weight(self, prediction: Prediction, t: Tensor) -> Tensor:
        """The weight (b,) of a squared error of this prediction: 1, for x0 min(α²/σ², 5).

        Networks that predict x0 must be kept from spending themselves on noise (arXiv:2303.09556).
        """
        if prediction != "x0":
            return torch.ones_like(exact(t))
        return torch.exp(2 * self.log_snr(t)).clamp(max=5)

    def velocity_weight(self, prediction: Prediction, t: Tensor) -> Tensor:
        """(∂v/∂output)², (b,): a squared error of this prediction times it is one of the velocity
        v = αε − σx₀ (arXiv:2202.00512); 1 + σ²/α² of "eps" where α² + σ² = 1."""
        (alpha, sigma), (a, b) = self.scales(t), self._form(prediction, t)
        return ((alpha**2 + sigma**2) / (alpha * b - sigma * a)).square()

    def is_well_posed(self, prediction: Prediction, t: float) -> bool:
        """Whether a network's output at time t determines both unknowns there."""
        at = torch.tensor([t], dtype=torch.float64)
        return bool(self._sine(*self.scales(at), *self._form(prediction, at)) > ILL_POSED)

    def magnification(self, prediction: Prediction, t: Tensor) -> Tensor:
        """|∂x̂₀/∂output|, (b,): how much larger an error of the output is in x̂₀; 1/α of "eps"."""
        (alpha, sigma), (a, b) = self.scales(t), self._form(prediction, t)
        return (sigma / (alpha * b - sigma * a)).abs()

    def require_well_posed(self, prediction: Prediction, t: float) -> None:
        """Raise ValueError if sampling from time t would divide by zero."""
        if not self.is_well_posed(prediction, t):
            raise ValueError(
                f"prediction '{prediction}' says nothing about x0 at t = {t:g} of "
                f"{type(self).__name__}: start below it, or use a 'v' or 'flow' network"
            )

    def has_identity_at_clean(self, prediction: Prediction) -> bool:
        """Whether x̂₀ → x_t as σ → 0 whatever the network says (not so for "x0")."""
        at = torch.tensor([self.t_clean], dtype=torch.float64)
        _, b = self._form(prediction, at)
        return bool(b.abs() > 0)

    def _form(self, prediction: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.scales(t)
        if prediction == "x0":
            return torch.ones_like(alpha), torch.zeros_like(alpha)
        if prediction == "eps":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        if prediction == "v":
            return -sigma, alpha
        if prediction == "flow":
            return self.rates(t)
        if prediction == "edm":
            width = torch.hypot(sigma, self.sigma_data * alpha)
            return sigma / (self.sigma_data * width), -self.sigma_data * alpha / width
        raise ValueError(f"unknown prediction '{prediction}': use x0, eps, v, flow or edm")

    def _solve(self, x_t: Tensor, output: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Estimate:
        alpha, sigma = self.scales(t)
        # A configured run is refused at such times (require_well_posed); a stray sample is not.
        stray = self._sine(alpha, sigma, a, b) <= ILL_POSED
        alpha = torch.where(stray, alpha.clamp(min=ILL_POSED), alpha)
        sigma = torch.where(stray, sigma.clamp(min=ILL_POSED), sigma)
        det = alpha * b - sigma * a
        alpha, sigma, a, b, det = per_sample(x_t, alpha, sigma, a, b, det)
        # Divided last, as schedulers do: rounding errors of the difference are shared with them.
        x0, eps = (b * x_t - sigma * output) / det, (alpha * output - a * x_t) / det
        return Estimate(x0=x0, eps=eps)

    @staticmethod
    def _sine(alpha: Tensor, sigma: Tensor, a: Tensor, b: Tensor) -> Tensor:
        norm = torch.hypot(alpha, sigma) * torch.hypot(a, b)
        return (alpha * b - sigma * a).abs() / norm.clamp(min=1e-300)


def exact(t: Tensor) -> Tensor:
    """t as float64 on the CPU."""
    return t.to("cpu", torch.float64)


def per_sample(x: Tensor, *coefficients: Tensor) -> list[Tensor]:
    """Coefficients (b,) reshaped to broadcast over x (b, *event). The only place that does."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (-1,) + (1,) * (x.ndim - 1)
    return [c.to(device=x.device, dtype=dtype).reshape(shape) for c in coefficients]


class RectifiedFlow(NoiseProcess):
    """α = 1 − t, σ = t (arXiv:2209.03003): SD 3, FLUX. A schedule's shift belongs to grids."""

    t_min, t_max = 1e-3, 1.0

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = exact(t)
        return 1 - t, t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones_like(exact(t))
        return -ones, ones

    def time_at(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-exact(log_snr))


class TrigFlow(NoiseProcess):
    """α = cos t, σ = σ_d sin t, t ∈ [0, π/2] (arXiv:2410.11081). Networks see x_t/σ_d."""

    t_min, t_max = 1e-3, pi / 2

    def __init__(self, sigma_data: float = 1.0) -> None:
        self.sigma_data = sigma_data

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = exact(t)
        return t.cos(), self.sigma_data * t.sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = exact(t)
        return -t.sin(), self.sigma_data * t.cos()

    def time_at(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-exact(log_snr)) / self.sigma_data)

    def input_scale(self, t: Tensor) -> Tensor:
        return torch.full_like(exact(t), 1 / self.sigma_data)


class VarianceExploding(NoiseProcess):
    """α = 1, σ = t ∈ [t_min, t_max] (arXiv:2206.00364). Networks see x_t/√(t² + σ_d²)."""

    frame = (0.0, 1.0)

    def __init__(self, t_min: float = 2e-3, t_max: float = 80.0, sigma_data: float = 0.5) -> None:
        self.t_min, self.t_max, self.sigma_data = t_min, t_max, sigma_data

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = exact(t)
        return torch.ones_like(t), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = exact(t)
        return torch.zeros_like(t), torch.ones_like(t)

    def time_at(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-exact(log_snr))

    def input_scale(self, t: Tensor) -> Tensor:
        return 1 / torch.hypot(exact(t), torch.tensor(self.sigma_data, dtype=torch.float64))


class VariancePreserving(NoiseProcess):
    """A DDPM table ᾱ_0 … ᾱ_{T−1}; t is the (fractional) timestep, −1 is clean data.

    Between table entries the angle θ = atan2(σ, α) is interpolated linearly, so the table may end
    at zero terminal SNR (θ = π/2, arXiv:2305.08891). Time −1, with θ = 0, is where diffusers'
    schedulers end with `set_alpha_to_one`; like them, sampling starts from unit noise, not σ_T.
    """

    t_clean, t_min = -1.0, 0.0

    def __init__(self, alphas_cumprod: Tensor) -> None:
        """alphas_cumprod: (T,), in [0, 1), strictly falling.

        Raises ValueError otherwise."""
        table = exact(alphas_cumprod)
        if table.ndim != 1 or len(table) < 2 or not bool((table.diff() < 0).all()):
            raise ValueError("alphas_cumprod must be a strictly falling table of two or more")
        if not (0 <= float(table[-1]) and float(table[0]) < 1):
            raise ValueError("alphas_cumprod must lie in [0, 1)")
        angles = torch.atan2((1 - table).sqrt(), table.sqrt())
        self.angles = torch.cat([torch.zeros(1, dtype=torch.float64), angles])
        self.t_max = len(table) - 1.0

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle, _ = self._interpolate(t)
        # cos(π/2) is 6e-17 in floating point; at zero terminal SNR the signal is exactly absent.
        alpha = torch.where(angle >= pi / 2, torch.zeros_like(angle), angle.cos())
        return alpha, angle.sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle, slope = self._interpolate(t)
        return -angle.sin() * slope, angle.cos() * slope

    def start_scale(self, t: Tensor) -> Tensor:
        return torch.ones_like(exact(t))

    def time_at(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-exact(log_snr)))
        i = (torch.searchsorted(self.angles, angle) - 1).clamp(0, len(self.angles) - 2)
        return i - 1 + (angle - self.angles[i]) / (self.angles[i + 1] - self.angles[i])

    def _interpolate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = exact(t) + 1
        i = position.detach().floor().long().clamp(0, len(self.angles) - 2)
        slope = self.angles[i + 1] - self.angles[i]
        return self.angles[i] + (position - i) * slope, slope
