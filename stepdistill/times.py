"""Grids of times to walk along, and laws to draw times from.

A grid has n + 1 times, descending, from the process's t_max, or from less noise, to clean data: n
network evaluations of a first-order solver. A law maps uniform random numbers to times, one per
sample.

    uniform    t falls evenly in the process's own clock
    trailing   uniform, rounded to whole timesteps: diffusers' `timestep_spacing="trailing"`
    karras     (σ/α)^(1/ρ) falls evenly (EDM, arXiv:2206.00364), then clean data
    shifted    u ↦ s·u / (1 + (s − 1)·u) of a uniform grid (SD 3, arXiv:2403.03206)
"""

from dataclasses import dataclass, replace
from math import ceil, floor, log
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .process import NoiseProcess
from .schema import Bend, NotNegative, Share, Start, Whole, check_fields

KARRAS_SIGMA_MAX = 80.0  # where a Karras grid begins under a process that starts at pure noise
PURE_NOISE = 1e6  # σ/α above which nothing of the signal is left


def shift_fraction(u: Tensor, shift: float) -> Tensor:
    """s·u / (1 + (s − 1)·u): moves times towards noise for s > 1, keeps 0 and 1."""
    return shift * u / (1 + (shift - 1) * u)


@dataclass(frozen=True)
class Grid:
    """A rule for n + 1 descending times.

    shift is read by "shifted", rho by "karras". of: take the n from so many times, 0 for n itself;
    entry k is the one at kN/n, rounded down (LCM's times) or up (PCM's phases). start: how far
    above clean data "uniform" and "shifted" begin, as a share of the way to t_max: a one-step
    student that is asked at less than pure noise is sharp from the start (σ = 2.5 of SiD,
    arXiv:2404.04057, is 0.714 under rectified flow).
    """

    name: Literal["uniform", "trailing", "karras", "shifted"] = "uniform"
    shift: Bend = 1.0
    rho: Bend = 7.0
    of: Whole = 0
    rounding: Literal["down", "up"] = "down"
    start: Start = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.start < 1 and self.name not in ("uniform", "shifted"):
            raise ValueError(f"start: grid '{self.name}' begins at t_max: leave it at 1")

    def times(self, process: NoiseProcess, n: int) -> Tensor:
        """(n + 1,) float64, strictly falling to process.t_clean, from process.t_max or `start`.

        Raises ValueError if n < 1, if "trailing" has fewer than n whole timesteps, or `of` fewer
        than n.
        """
        if n < 1:
            raise ValueError(f"a grid needs at least one step, got {n}")
        if self.of:
            return self._some(replace(self, of=0).times(process, self.of), n)
        if self.name == "karras":
            return self._karras(process, n)
        if self.name == "trailing":
            return self._trailing(process, n)
        u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        if self.name == "shifted":
            u = shift_fraction(u, self.shift)
        return process.t_clean + self.start * u * (process.t_max - process.t_clean)

    def _some(self, times: Tensor, n: int) -> Tensor:
        if n > self.of:
            raise ValueError(f"a grid of {self.of} times has no {n} to take")
        rounded = floor if self.rounding == "down" else ceil
        return times[[*(rounded(k * self.of / n) for k in range(n)), -1]]

    def _trailing(self, process: NoiseProcess, n: int) -> Tensor:
        whole = process.t_max - process.t_clean
        if whole % 1 or n > whole:
            raise ValueError(
                f"grid 'trailing' walks along whole timesteps: {type(process).__name__} spans "
                f"{whole:g}, which {n} cannot divide; use 'uniform'"
            )
        # diffusers' own expression, so that ties and rounding errors fall as they do there.
        times = np.append(np.arange(whole, 0, -whole / n)[:n].round(), 0)
        return process.t_clean + torch.from_numpy(times)

    def _karras(self, process: NoiseProcess, n: int) -> Tensor:
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        ratios = torch.exp(-process.log_snr(ends))
        high, low = torch.where(ratios > PURE_NOISE, KARRAS_SIGMA_MAX, ratios)
        u = torch.linspace(0, 1, max(n, 2), dtype=torch.float64)[:n]
        ratio = (high ** (1 / self.rho) + u * (low ** (1 / self.rho) - high ** (1 / self.rho))).pow(
            self.rho
        )
        times = process.time_at(-ratio.log())
        times[0] = process.t_max
        return torch.cat([times, torch.tensor([process.t_clean], dtype=torch.float64)])


def times_above(process: NoiseProcess, ratio: float, n: int, generator: torch.Generator) -> Tensor:
    """(n,) times with σ/α between `ratio` and 80, most of them near `ratio`.

    v = ln((σ/α) / ratio) follows Student's t, df 0.01, scale 0.2, truncated (TCM, 2410.14895).
    """
    df, scale = 0.01, 0.2
    width = scale * df**0.5
    # In y, v = width · sinh y, the density is nearly even: cosh^−df.
    y = np.linspace(0, np.arcsinh(np.log(KARRAS_SIGMA_MAX / ratio) / width), 4096)
    mass = np.cumsum(np.cosh(y) ** -df)
    u = torch.rand(n, generator=generator, dtype=torch.float64).numpy()
    v = width * np.sinh(np.interp(u * (mass[-1] - mass[0]) + mass[0], mass, y))
    return process.time_at(-torch.from_numpy(v) - log(ratio))


@dataclass(frozen=True)
class TimeLaw:
    """A law of training times, one per sample, inside [t_min, t_max].

    uniform        t = t_min + (low + (high − low)·u)(t_max − t_min)
    shifted        the same after u ↦ shift_fraction(u, shift)
    logit_normal   the same with u = sigmoid(mean + std·n)             (SD 3, arXiv:2403.03206)
    log_normal     ln(σ/α) = mean + std·n                              (EDM, arXiv:2206.00364)
    karras_index   any entry, from low·1000 to high·1000, of a 1000-step Karras grid, counted from
                   the clean end                                           (DMD2, arXiv:2405.14867)
    """

    name: Literal["uniform", "shifted", "logit_normal", "log_normal", "karras_index"] = "uniform"
    low: Share = 0.0
    high: Share = 1.0
    mean: float = 0.0
    std: NotNegative = 1.0
    shift: Bend = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.low > self.high:
            raise ValueError(f"low must not lie above high, got {self.low} and {self.high}")

    def draw(self, process: NoiseProcess, n: int, generator: torch.Generator) -> Tensor:
        """(n,) float64 times on the CPU."""
        if self.name in ("logit_normal", "log_normal"):
            normal = torch.randn(n, generator=generator, dtype=torch.float64)
            z = self.mean + self.std * normal
            if self.name == "log_normal":
                return process.time_at(-z).clamp(process.t_min, process.t_max)
            return self._place(process, torch.sigmoid(z))
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        if self.name == "karras_index":
            grid = Grid("karras").times(process, 1000)[:-1].flip(0)
            first, last = (min(round(end * 1000), 999) for end in (self.low, self.high))
            return grid[first + (u * (last + 1 - first)).long()]
        return self._place(process, shift_fraction(u, self.shift) if self.name == "shifted" else u)

    def _place(self, process: NoiseProcess, u: Tensor) -> Tensor:
        u = self.low + (self.high - self.low) * u
        return process.t_min + u * (process.t_max - process.t_min)
