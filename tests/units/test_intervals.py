"""Intervals of every metric hold the expected value at that n in 95 of 100 evaluations, and so do
those of differences; better is said of equals in 5 of 100 at most.

The expected value at that n is the score of all blocks of a simulation together, 2,000 of them.

Mutations that must each fail a test here: an interval of 1.96 deviations, or of the deviation of a
block; a ratio whose teacher is taken for known; a root of the ends instead of the slope, or without
its half; differences of blocks that do not share their noise; a winner that is only the best.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from test_metrics import METRICS, SIDES, no_weights, opened, reference_of  # noqa: F401

from stepdistill.evaluation.differences import better, difference, loss_difference, winner
from stepdistill.evaluation.intervals import around, interval, of_ratio, of_root
from stepdistill.evaluation.metric import Made, Metric
from stepdistill.evaluation.report.table import WINNER, columns_of, notes_of
from stepdistill.evaluation.rows import Row, Score, read, written

BLOCKS, N, REAL = 5, 40, 60  # of a trial; images a block; real ones
TRIALS = 400
Values = list[list[float]]


class Case(NamedTuple):
    """A metric and its settings, with real images or without."""

    name: str
    settings: dict = {}
    real: bool = True

    def __str__(self) -> str:
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return "-".join([self.name, *settings, *[] if self.real else ["no-real"]])


VARIANTS = [
    Case("vendi", {"ratio": True}),
    Case("vendi", {"per_class": True}),
    Case("feature_variance", {"ratio": False}),
    *(Case(name, real=False) for name in ("saturation", "high_frequency", "channel_drift")),
]
CASES = [*(Case(name) for name in METRICS), *VARIANTS]


def simulate(case: Case, blocks: int) -> tuple[Metric, Values, Values, Values]:
    """A metric, and the blocks of two students and of the teacher that they resemble."""
    side = SIDES.get(case.name, 2)
    shape, rng = (N, 3, side, side), torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return 0.5 * torch.randn(shape, generator=rng)

    real = torch.cat([normal(), normal()])[:REAL].clamp(-1, 1) if case.real else None
    reference = reference_of(real, shape[1:])
    metric = opened(case.name, reference, **case.settings)
    found: tuple[Values, Values, Values] = [], [], []
    for _ in range(blocks):
        noise, labels = normal(), torch.randperm(N, generator=rng) % 2
        theirs = noise.clamp(-1, 1)
        first = (0.8 * noise + 0.5 * normal() + 0.1).clamp(-1, 1)
        second = (0.9 * noise + 0.3 * normal() - 0.2).clamp(-1, 1)
        for values, images in zip(found, (first, second, theirs)):
            fresh = metric.fresh()
            fresh.update(Made(images, labels, theirs, reference))
            values.append(fresh.compute())
    return metric, *found


def coverage(case: Case, trials: int) -> tuple[list[bool], list[bool]]:
    """Whether each interval of a student, and of its difference to the other, holds the truth."""
    metric, first, second, best = simulate(case, trials * BLOCKS)
    truths = [metric.score(values, best).value for values in (first, second)]
    held, apart = [], []
    for start in range(0, trials * BLOCKS, BLOCKS):
        part = slice(start, start + BLOCKS)
        scores = [metric.score(values[part], best[part]) for values in (first, second)]
        if scores[0].low is not None:
            held.append(scores[0].low <= truths[0] <= scores[0].high)
        gap = difference(*(row(metric.name, score) for score in scores), metric.name)
        if gap is not None:
            apart.append(gap.low <= truths[0] - truths[1] <= gap.high)
    return held, apart


def row(metric: str, score: Score, model: str = "student") -> Row:
    return Row(model, 1, 1, 5 * N, "", 0, None, {metric: score})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_intervals_hold_the_expected_value_more_often_than_not(case: Case, no_weights):  # noqa: F811
    held, apart = coverage(case, 12)
    assert len(held) >= 11 and sum(held) >= 9
    assert len(apart) >= 11 and sum(apart) >= 9


@pytest.mark.full(shard="intervals")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_intervals_hold_the_expected_value_95_times_in_100(case: Case, no_weights, figure):  # noqa: F811
    for name, held in zip(("value", "difference"), coverage(case, TRIALS)):
        share = sum(held) / len(held)
        figure(f"{name} of {case}", share)
        assert len(held) >= 0.98 * TRIALS and 0.92 <= share <= 0.98, name
