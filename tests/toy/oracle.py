"""Gaussian data N(M, S²) and what is exact about it, in numpy: maps, steps, and players of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from cases import PROCESSES, at, normal, per_sample_scales, scales
from torch import nn

from stepdistill.conditions import NOTHING
from stepdistill.denoiser import Denoiser
from stepdistill.exact import Gaussian
from stepdistill.method import Batch
from stepdistill.networks.inputs import WithInputs
from stepdistill.process import Estimate
from stepdistill.resources import pipeline_class

M, S = 0.7, 1.3


def flow_map(name: str, x, t, s):
    """Φ_{t→s}(x) = α_s M + (v_s / v_t)(x − α_t M), v² = α²S² + σ²."""
    (a_t, g_t), (a_s, g_s) = scales(name, t), scales(name, s)
    spread = np.hypot(a_s * S, g_s) / np.hypot(a_t * S, g_t)
    return a_s * M + spread * (x - a_t * M)


def ddim(name: str, x, t, s):
    """A DDIM step of the exact denoiser."""
    (a_t, g_t), (a_s, g_s) = scales(name, t), scales(name, s)
    variance = (a_t * S) ** 2 + g_t**2
    x0 = M + a_t * S**2 / variance * (x - a_t * M)
    return a_s * x0 + g_s * g_t / variance * (x - a_t * M)


def column(t: torch.Tensor) -> np.ndarray:
    return t.numpy()[:, None]


@dataclass(frozen=True)
class Oracle(Denoiser):
    """A player whose step to `s`, or to where `towards` says, is the exact map.

    shift is added to where it arrives.
    """

    name: str = "rf"
    towards: Callable[[torch.Tensor], torch.Tensor] | None = None
    shift: float = 0.0

    def __call__(self, x_t, t, cond=NOTHING) -> Estimate:
        to = self.s if self.towards is None else self.towards(t)
        with torch.no_grad():
            arrived = torch.from_numpy(flow_map(self.name, x_t.numpy(), column(t), column(to)))
        arrived = arrived + self.shift
        (a_t, g_t), (a_s, g_s) = per_sample_scales(self.name, t), per_sample_scales(self.name, to)
        det = a_t * g_s - g_t * a_s
        nowhere = det.abs() < 1e-9  # there the limit of a shorter and shorter step, the denoiser
        det = torch.where(nowhere, torch.ones_like(det), det)
        there = Estimate((g_s * x_t - g_t * arrived) / det, (a_t * arrived - a_s * x_t) / det)
        here = Gaussian(at([M]), S, self.process)(x_t, t)
        return Estimate(*(torch.where(nowhere, a, b) for a, b in zip(here[:2], there[:2])))


def oracle(name: str, **kwargs) -> Oracle:
    return Oracle(nn.Identity(), PROCESSES[name], "v", name=name, **kwargs)


class Timed(nn.Module):
    """A network with an embedding of the time, as backbones have."""

    def __init__(self, seed, slow):
        super().__init__()
        self.slow = slow
        self.time = nn.Linear(1, 16).double()
        self.body = nn.Sequential(nn.Linear(18, 32), nn.SiLU(), nn.Linear(32, 2)).double()
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) / 3)

    def forward(self, x, t, cond=None):
        return self.body(torch.cat([x, self.time(t[:, None] / self.slow)], 1))


def informed(name, seed=0, prediction="v", born=False):
    """A student with a second time, whose embedding is not zero unless newly born."""
    process = PROCESSES[name]
    torch.manual_seed(seed)
    inputs = pipeline_class("extra_inputs", "ExtraInputs")(["s"], 16, "time").double()
    if not born:
        nn.init.normal_(inputs.embeddings[0].linear_2.weight, std=0.5)
    scale = 1000 / process.t_max
    net = WithInputs(Timed(seed, 1000), inputs)
    return Denoiser(net, process, prediction, time=lambda t: t * scale)


def next_on(grid: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The time after t on a falling grid."""
    return lambda t: grid[(t[:, None] <= grid).sum(1).clamp(max=len(grid) - 1)]


def batch(n: int = 64, seed: int = 0, d: int = 1, cond=NOTHING, progress: float = 0.0) -> Batch:
    shared, local = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    return Batch(M + S * normal(seed, n, d), cond, shared, local, progress)
