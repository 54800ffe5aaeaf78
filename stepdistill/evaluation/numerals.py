"""Numbers as a reader sees them in tables."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three significant digits from 0.1 on, four decimals below; never an exponent."""
    size = abs(value)
    decimals = 4 if size < 0.1 else max(0, 2 - math.floor(math.log10(size)))
    return signed(value, decimals)


def signed(value: float, decimals: int) -> str:
    """With a true minus sign."""
    return f"{value:.{decimals}f}".replace("-", "−")


def span(low: float, high: float) -> str:
    """From low to high."""
    return f"{number(low)}–{number(high)}"
