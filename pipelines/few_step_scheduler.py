"""A diffusers scheduler that walks the very times a few-step student was trained at.

It lies beside its config in an exported folder and serves unchanged stock pipelines. Imports torch
and diffusers only. With c the time of clean data (0 of a flow, −1 of a table of timesteps),

    x_t  = α_t x₀ + σ_t ε                     α² = ᾱ of DDPM's table; or α = 1 − t, σ = t
    F    = a x₀ + b ε                         what the network outputs at t
    s    = t′ − γ (t′ − c)                    beyond the next trained time t′
    x_s  = α_s x̂₀ + σ_s ε̂                     a jump there,
    x_t′ = k x_s + √(σ_t′² − k² σ_s²) z       and noise back to t′, k = α_t′/α_s

(strategic stochastic sampling, arXiv:2402.19159); γ = 0 is DDIM, γ = 1 consistency sampling.
"""

from pathlib import Path
from typing import Optional, Union

import torch
from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """One network evaluation at each trained time.

    prediction_type: "epsilon", "v_prediction", "sample" (x₀), or "flow_prediction" (ε − x₀).
    times: {"N": [t, …]}, the trained times for N steps, falling, in the process's own clock; None
    lets any N walk evenly from pure noise to clean data.
    gamma: γ, how much noise is added between steps, from none (0) to all (1).
    skip_sigma_data: σ_d of the consistency boundary c_skip/c_out, None for none.
    start: where any N begin, None for pure noise.
    beta_schedule and what follows: DDPM's table; None for rectified flow.
    """

    # What model_index.json calls the module of a component: diffusers looks for it in its folder.
    __module__ = "few_step_scheduler"
    source = Path(__file__).read_text(encoding="utf-8")
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        times: Optional[dict] = None,
        gamma: float = 0.0,
        skip_sigma_data: Optional[float] = None,
        beta_schedule: Optional[str] = "linear",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        trained_betas: Optional[list] = None,
        rescale_betas_zero_snr: bool = False,
        start: Optional[float] = None,
    ):
        if prediction_type not in ("epsilon", "v_prediction", "sample", "flow_prediction"):
            raise ValueError(f"prediction_type '{prediction_type}' is unknown")
        # Networks see t in units of the process's clock.
        self._angles, self._clean, self._unit = None, 0.0, num_train_timesteps
        if beta_schedule is not None:
            self.alphas_cumprod = DDPMScheduler(
                num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas,
                rescale_betas_zero_snr=rescale_betas_zero_snr,
            ).alphas_cumprod  # fmt: skip
            table = self.alphas_cumprod.double()
            angles = torch.atan2((1 - table).sqrt(), table.sqrt())
            self._angles, self._clean, self._unit = torch.cat([table.new_zeros(1), angles]), -1.0, 1
        self._times = self.timesteps = torch.empty(0)
        self.num_inference_steps = self._step_index = self._begin_index = None

    def set_timesteps(
        self,
        num_inference_steps: Optional[int] = None,
        device: Union[str, torch.device, None] = None,
        timesteps: Optional[list] = None,
        sigmas: Optional[list] = None,
        mu: Optional[float] = None,
    ):
        """Get ready for a trained number of steps. Raises ValueError for any other.

        sigmas, mu: pipelines of flows pass evenly falling sigmas unasked, and a shift; the trained
        times stay as they are. Other sigmas, and timesteps, are refused.
        """
        if sigmas is not None:
            sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
            num_inference_steps = n = len(sigmas)
            even = torch.linspace(1, 1 / n, n, dtype=torch.float64)
        if timesteps is not None or (sigmas is not None and not torch.allclose(sigmas, even)):
            raise ValueError("this student has times of its own: give num_inference_steps alone")
        times = [*self._trained(num_inference_steps), self._clean]
        self._times = torch.tensor(times, dtype=torch.float64)
        self.timesteps = (self._times[:-1] * self._unit).float().to(device)
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Union[float, torch.Tensor],
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: Optional[bool] = None,
        generator: Optional[torch.Generator] = None,
        return_dict: bool = True,
    ):
        """The state at the next trained time, clean after the last, and x̂₀.

        eta, use_clipped_model_output: what DDIM's pipelines pass; γ stands in their place.
        """
        if eta or use_clipped_model_output:
            raise ValueError("the noise between steps is the trained one: leave eta at 0")
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        t, after = self._times[self._step_index], self._times[self._step_index + 1]
        x0, eps = self._estimate(sample, model_output, t)
        s = after - self.config.gamma * (after - self._clean)
        (alpha, sigma), (alpha_after, sigma_after) = self._scales(s), self._scales(after)
        x = alpha * x0 + sigma * eps
        if s < after:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            keep = alpha_after / alpha
            x = keep * x + (sigma_after**2 - (keep * sigma) ** 2).clamp(min=0).sqrt() * noise
        self._step_index += 1
        x, x0 = x.to(sample.dtype), x0.to(sample.dtype)
        return DDPMSchedulerOutput(x, x0) if return_dict else (x, x0)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """x_t at timesteps (b,)."""
        shape = (-1,) + (1,) * (original_samples.ndim - 1)
        scales = self._scales(timesteps.to("cpu", torch.float64) / self._unit)
        alpha, sigma = (c.reshape(shape).to(original_samples) for c in scales)
        return alpha * original_samples + sigma * noise

    def scale_model_input(self, sample: torch.Tensor, timestep=None) -> torch.Tensor:
        return sample

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied by: σ of a flow, 1 of a table, as in DDIM."""
        return float(self._times[0]) if self._angles is None and len(self._times) else 1.0

    @property
    def step_index(self) -> Optional[int]:
        return self._step_index

    @property
    def begin_index(self) -> Optional[int]:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0):
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Union[float, torch.Tensor]) -> int:
        return self.timesteps.tolist().index(float(timestep))

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """The config, and this file, without which it could not be loaded again."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.__module__}.py").write_text(self.source, encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)

    def _trained(self, steps):
        table = self.config.times
        if type(steps) is not int or steps < 1:
            raise ValueError(f"num_inference_steps: a whole number from 1, not {steps!r}")
        if table is None:
            noise = 1.0 if self._angles is None else len(self._angles) - 2.0
            span = (noise if self.config.start is None else self.config.start) - self._clean
            return [self._clean + span * (1 - i / steps) for i in range(steps)]
        if str(steps) not in table:
            offered = ", ".join(sorted(table, key=int))
            raise ValueError(f"this student was trained for {offered} steps, not {steps}")
        return table[str(steps)]

    def _scales(self, t):
        """α and σ at t, float64 on the CPU; between a table's entries atan2(σ, α) is linear."""
        if self._angles is None:
            return 1 - t, t
        i = (t + 1).floor().long().clamp(0, len(self._angles) - 2)
        angle = self._angles[i] + (t + 1 - i) * (self._angles[i + 1] - self._angles[i])
        return angle.cos(), angle.sin()

    def _estimate(self, x, output, t):
        """x̂₀ and ε̂ of the first two equations; with a skip, x̂₀ tends to x at clean data."""
        precise = torch.promote_types(x.dtype, torch.float32)
        x, output = x.to(precise), output[:, : x.shape[1]].to(precise)  # no learned variance
        alpha, sigma = self._scales(t)
        forms = {"sample": (1, 0), "epsilon": (0, 1), "v_prediction": (-sigma, alpha)}
        a, b = forms.get(self.config.prediction_type, (-1, 1))
        det = alpha * b - sigma * a
        x0, eps = (b * x - sigma * output) / det, (alpha * output - a * x) / det
        if self.config.skip_sigma_data is not None:
            width = torch.hypot(sigma, alpha * self.config.skip_sigma_data)
            x0 = alpha * (self.config.skip_sigma_data / width) ** 2 * x + sigma / width * x0
            eps = (x - alpha * x0) / sigma
        return x0, eps
