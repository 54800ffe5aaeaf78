"""Two times t > s of one trajectory, closer and closer as training goes on.

u is the time since clean data in the process's own clock; under VE it is σ, and these are the
papers' formulas.

    ratio    s = u · max(0, 1 − (1 + k·sigmoid(−b u)) / q^a),  a = 1, 2, …, once a stage
                                                                           ECT (arXiv:2406.14548)
    grid     neighbours of a Karras grid whose number of steps doubles from `first` to `last`, the
             pair weighted as a log-normal law of σ/α weights the interval  iCT (arXiv:2310.14189)
"""

from dataclasses import dataclass
from math import floor, log2, sqrt
from typing import Literal

import torch
from torch import Tensor

from ..process import NoiseProcess
from ..schema import Count, NotNegative, Positive, Steps
from ..times import Grid, TimeLaw

TimePair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pairs:
    """A law of pairs.

    time: law of t, for "ratio"; "grid" takes its mean and std for the log-normal.
    stages: how often a grows. q, k, b: of the ratio. first, last: steps of the grid.
    """

    name: Literal["ratio", "grid"] = "ratio"
    time: TimeLaw = TimeLaw("log_normal", mean=-1.1, std=2.0)
    stages: Count = 8
    q: Positive = 2.0
    k: NotNegative = 8.0
    b: NotNegative = 1.0
    first: Steps = 10
    last: Steps = 1280

    def draw(
        self, process: NoiseProcess, n: int, progress: float, generator: torch.Generator
    ) -> TimePair:
        """(t, s), each (n,) float64, at `progress` in [0, 1) of training."""
        if self.name == "grid":
            times = Grid("karras").times(process, self.steps(progress))
            weights = self.weights(process, times)
            i = torch.multinomial(weights, n, replacement=True, generator=generator)
            return times[i], times[i + 1]
        t = self.time.draw(process, n, generator)
        return t, self.before(process, t, progress)

    def steps(self, progress: float) -> int:
        """Steps of the grid: doubled at equal intervals of training."""
        levels = floor(log2(self.last / self.first)) + 1
        return min(self.first * 2 ** floor(progress * levels), self.last)

    def weights(self, process: NoiseProcess, times: Tensor) -> Tensor:
        """(n,) probabilities of the intervals of n + 1 falling times, summing to 1."""
        log_ratio = -process.log_snr(times).clamp(-100, 100)
        share = torch.erf((log_ratio - self.time.mean) / (sqrt(2) * self.time.std))
        mass = share[:-1] - share[1:]
        return mass / mass.sum()

    def before(self, process: NoiseProcess, t: Tensor, progress: float) -> Tensor:
        """s (n,), the partner of t: clean data itself where the ratio is not positive."""
        a, u = 1 + floor(progress * self.stages), t - process.t_clean
        gap = (1 + self.k * torch.sigmoid(-self.b * u)) / self.q**a
        return process.t_clean + u * (1 - gap).clamp(min=0)
