"""The mean of independent blocks, and how sure it is.

Interval of a mean over B independent blocks: mean ± t₀.₉₇₅(B−1) · sd / √B. (Resampling one block
with replacement would not do: its duplicates act like fewer images, and a Fréchet distance grows as
images get fewer, so the point would lie outside its own interval.)

A smooth function f of means keeps that interval when every block is replaced by what f makes of it
to first order: of a ratio r = x̄ / ȳ, by r + (x_b − r y_b) / ȳ; of a root r = √x̄, by
r + (x_b − x̄) / 2r. The mean of these numbers is r, and their spread the error of r.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from statistics import fmean

import torch
from scipy.special import stdtrit

from .rows import Score

ROUNDING = 1e-9  # differences that are none, by the size of what differs


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


def alike(values: Sequence[float]) -> bool:
    """Whether values are too few, or too equal but for rounding, to say how sure their mean is."""
    return len(values) < 2 or max(values) - min(values) <= ROUNDING * max(map(abs, values))


def around(value: float, blocks: Sequence[float], least: float = -inf, most: float = inf) -> Score:
    """The score `value`, the mean of independent blocks, with its interval within least and most.

    Without one where the blocks do not differ: they cannot tell how sure they are."""
    kept = tuple(blocks)
    if alike(kept):
        return Score(value, blocks=kept)
    _, low, high = interval(kept)
    return Score(value, max(least, low), min(most, high), blocks=kept)


def of_ratio(values: Sequence[float], base: Sequence[float]) -> Score | None:
    """The score x̄ / ȳ of blocks x and y ≥ 0 of the same noise; None where there is none."""
    if not values or not base or not fmean(base):
        return None
    scale = fmean(base)
    found = fmean(values) / scale
    return around(found, [found + (v - found * b) / scale for v, b in zip(values, base)], 0.0)


def of_root(values: Sequence[float]) -> Score | None:
    """The score √x̄ of blocks x ≥ 0; None where there are none."""
    if not values:
        return None
    mean = fmean(values)
    found = mean**0.5
    slope = 1 / (2 * found) if found else 0.0
    return around(found, [found + slope * (v - mean) for v in values], 0.0)
