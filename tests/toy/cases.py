"""What the mathematical tests run on: processes, their scales in numpy, random tensors, an MLP."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from stepdistill.process import (
    NoiseProcess,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
)

# Stable Diffusion's table, and the same at zero terminal SNR (arXiv:2305.08891, algorithm 1).
SD_TABLE = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
# The same ends, but linear in β, as AnimateDiff has it.
LINEAR_TABLE = np.cumprod(1 - np.linspace(0.00085, 0.012, 1000))
# And in a hundred timesteps.
SHORT_TABLE = np.cumprod(1 - np.linspace(0.0085, 0.12, 100))
_root = np.sqrt(SD_TABLE)
ZERO_TABLE = ((_root - _root[-1]) * _root[0] / (_root[0] - _root[-1])) ** 2

TABLES = {"vp": SD_TABLE, "vp-zero": ZERO_TABLE, "vp-linear": LINEAR_TABLE, "vp-short": SHORT_TABLE}
PROCESSES: dict[str, NoiseProcess] = {
    **{name: VariancePreserving(torch.tensor(table)) for name, table in TABLES.items()},
    "ve": VarianceExploding(),
    "rf": RectifiedFlow(),
    "trig": TrigFlow(sigma_data=0.5),
}
PREDICTIONS = ("x0", "eps", "v", "flow", "edm")

# Times inside each process, between the knots of a table.
_vp = [3.3, 120.6, 499.2, 803.7, 990.4]
TIMES = {
    "vp": _vp,
    "vp-zero": _vp,
    "vp-linear": _vp,
    "vp-short": [0.3, 12.6, 49.2, 80.7, 98.4],
    "ve": [0.01, 0.3, 1.7, 9.0, 60.0],
    "rf": [0.02, 0.2, 0.5, 0.83, 0.97],
    "trig": [0.03, 0.4, 0.9, 1.3, 1.5],
}


def scales(name: str, t: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(α, σ) of one of PROCESSES, without the package."""
    t = np.asarray(t, dtype=np.float64)
    if name == "ve":
        return np.ones_like(t), t
    if name == "rf":
        return 1 - t, t
    if name == "trig":
        return np.cos(t), 0.5 * np.sin(t)
    angles = np.concatenate([[0.0], np.arccos(np.sqrt(TABLES[name]))])
    angle = np.interp(t, np.arange(len(angles)) - 1, angles)
    return np.cos(angle), np.sin(angle)


def close(ours: object, theirs: object, rtol: float = 1e-7, atol: float = 0.0) -> None:
    """Assert that numbers, arrays or tensors (with or without a graph) are equal within bounds."""
    pair = [x.detach().numpy() if isinstance(x, Tensor) else x for x in (ours, theirs)]
    np.testing.assert_allclose(*pair, rtol=rtol, atol=atol)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(*which: int, n: int | None = None) -> dict[str, Tensor]:
    """A condition of labels, one a sample; or of one label n times."""
    row = torch.tensor(which)
    return {"label": row if n is None else row.expand(n)}


def at(t: float | list[float] | Tensor, n: int | None = None) -> Tensor:
    """Times in float64, one number repeated n times if asked."""
    times = torch.as_tensor(t, dtype=torch.float64)
    return times if n is None else times.expand(n)


def check_gradient(net: nn.Module, value: Callable[..., complex], atol: float = 1e-8) -> None:
    """Assert that a network's gradient is that of `value`, a numpy function of its parameters.

    By complex steps, value(w + ih).imag / h, which cancel nothing: h may be tiny.
    """
    weights = [p.detach().numpy().astype(complex) for p in net.parameters()]
    for parameter, weight in zip(net.parameters(), weights):
        gradient = np.zeros(weight.shape)
        for k in np.ndindex(weight.shape):
            weight[k] += 1e-30j
            gradient[k] = value(*weights).imag / 1e-30
            weight[k] -= 1e-30j
        close(parameter.grad, gradient, rtol=1e-6, atol=atol * np.abs(gradient).max())


class MLP(nn.Module):
    """A smooth random function of x (b, d) and t (b,), float64."""

    def __init__(self, d: int, seed: int = 0, slow: float = 1.0) -> None:
        super().__init__()
        self.slow = slow  # what t is divided by
        self.first = nn.Parameter(normal(seed, d + 1, 16) / (d + 1) ** 0.5)
        self.last = nn.Parameter(normal(seed + 1, 16, d) / 4)

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        inputs = torch.cat([x, (t / self.slow)[:, None]], dim=1)
        return torch.tanh(inputs @ self.first) @ self.last


def per_sample_scales(name: str, t: Tensor) -> tuple[Tensor, Tensor]:
    """`scales` as columns of a tensor."""
    return tuple(torch.from_numpy(np.asarray(c))[:, None] for c in scales(name, t.numpy()))
