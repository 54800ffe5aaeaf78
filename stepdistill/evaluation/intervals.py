"""The mean of independent blocks, and how sure it is.

Interval of a mean over B independent blocks: mean ± t₀.₉₇₅(B−1) · sd / √B. (Resampling one block
with replacement would not do: its duplicates act like fewer images, and a Fréchet distance grows as
images get fewer, so the point would lie outside its own interval.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.special import stdtrit


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error sd/√B of B independent values. Raises ValueError for B < 2."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} value(s) have no standard error: need at least 2")
    v = torch.tensor(values, dtype=torch.float64)
    return v.mean().item(), (v.std() / len(v) ** 0.5).item()


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % interval of the mean of B ≥ 2 independent blocks."""
    mean, error = mean_and_error(values)
    reach = float(stdtrit(len(values) - 1, 0.975)) * error
    return mean, mean - reach, mean + reach
