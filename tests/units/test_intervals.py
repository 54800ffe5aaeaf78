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
from measured import METRICS, SIDES, forget_lpips, opened, reference_of, values

from stepdistill.data.sources import digits
from stepdistill.evaluation.differences import better, difference, loss_difference, winner
from stepdistill.evaluation.intervals import around, interval, of_ratio, of_root
from stepdistill.evaluation.metric import Made, Metric
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.report.table import WINNER, columns_of, notes_of
from stepdistill.evaluation.rows import Row, Score, read, written
from stepdistill.jobs.suites import load

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
        return "-".join([self.name, *settings, "real" if self.real else "teacher"])


VARIANTS = [
    Case("vendi", {"ratio": True}),
    Case("vendi", {"per_class": True}),
    Case("feature_variance", {"ratio": False}),
    *(Case(name, real=False) for name in ("saturation", "high_frequency", "channel_drift")),
]
CASES = [*(Case(name) for name in METRICS), *VARIANTS]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_lpips(monkeypatch)


def simulate(case: Case, count: int) -> tuple[Metric, Values, Values, Values]:
    """A metric, and the blocks of two students and of the teacher that they resemble."""
    side = SIDES.get(case.name, 2)
    shape, rng = (N, 3, side, side), torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return 0.5 * torch.randn(shape, generator=rng)

    real = torch.cat([normal(), normal()])[:REAL].clamp(-1, 1) if case.real else None
    reference = reference_of(real, shape[1:])
    metric = opened(case.name, reference, **case.settings)
    found: tuple[Values, Values, Values] = [], [], []
    for _ in range(count):
        noise, labels = normal(), torch.randperm(N, generator=rng) % 2
        theirs = noise.clamp(-1, 1)
        first = (0.8 * noise + 0.5 * normal() + 0.1).clamp(-1, 1)
        second = (0.9 * noise + 0.3 * normal() - 0.2).clamp(-1, 1)
        for blocks, images in zip(found, (first, second, theirs)):
            blocks.append(values(metric, Made(images, labels, theirs, reference)))
    return metric, *found


def coverage(case: Case, trials: int) -> tuple[list[bool], list[bool]]:
    """Whether each interval of a student, and of its difference to the other, holds the truth."""
    metric, first, second, best = simulate(case, trials * BLOCKS)
    truths = [metric.score(each, best).value for each in (first, second)]
    held, apart = [], []
    for start in range(0, trials * BLOCKS, BLOCKS):
        part = slice(start, start + BLOCKS)
        scores = [metric.score(each[part], best[part]) for each in (first, second)]
        if scores[0].low is not None:
            held.append(scores[0].low <= truths[0] <= scores[0].high)
        gap = difference(*(row(metric.name, score) for score in scores), metric.name)
        if gap is not None:
            apart.append(gap.low <= truths[0] - truths[1] <= gap.high)
    return held, apart


def row(metric: str, score: Score, model: str = "student") -> Row:
    return Row(model, 1, 1, 5 * N, "", 0, None, {metric: score})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_intervals_hold_the_expected_value_more_often_than_not(case: Case, no_weights):
    held, apart = coverage(case, 12)
    assert len(held) >= 11 and sum(held) >= 9
    assert len(apart) >= 11 and sum(apart) >= 9


@pytest.mark.full(shard="intervals")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_intervals_hold_the_expected_value_95_times_in_100(case: Case, no_weights, figure):
    for name, held in zip(("value", "difference"), coverage(case, TRIALS)):
        share = sum(held) / len(held)
        figure(f"{name} of {case}", share)
        assert len(held) >= 0.98 * TRIALS and 0.92 <= share <= 0.98, name


# The intervals themselves


def blocks_of(mean: float, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(n, BLOCKS, generator=generator, dtype=torch.float64)


def test_a_score_has_the_t_interval_within_its_range_and_its_blocks():
    score = around(2.0, [1.0, 2.0, 3.0])
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert score == Score(mean, low, high, blocks=(1.0, 2.0, 3.0))
    assert high - mean == pytest.approx(4.302653 * 1 / 3**0.5, rel=1e-6)
    assert around(2.0, [1.0, 2.0, 3.0], 1.5, 2.5).ends == (1.5, 2.5)


@pytest.mark.parametrize("blocks", [[0.25], [0.25, 0.25, 0.25], [0.1 + 0.2, 0.3, 0.3]])
def test_blocks_that_do_not_differ_give_no_interval(blocks: list[float]):
    assert around(blocks[0], blocks) == Score(blocks[0], blocks=tuple(blocks))


def test_the_interval_of_a_ratio_knows_that_both_are_paired():
    """The exact variance of x̄ / ȳ to first order, from a million pairs."""
    x, y = 5 + blocks_of(0, 4000, 1), 4 + 0.5 * blocks_of(0, 4000, 2)
    x = x + 1.5 * (y - 4)
    scores = [of_ratio(a, b) for a, b in zip(x.tolist(), y.tolist())]
    held = sum(score.low <= 5 / 4 <= score.high for score in scores)
    assert abs(held / 4000 - 0.95) < 0.015
    spread = torch.tensor([s.blocks for s in scores]).std(1).square().mean().sqrt()
    gap = 1 / 4  # d of x / y, with x = u + 1.5 v, y = 4 + v: (du + 1.5 dv − 1.25 dv) / 4
    assert spread == pytest.approx(gap * (1 + 0.25**2 * 0.5**2) ** 0.5, rel=0.03)
    assert of_ratio([1.0, 3.0], [4.0, 4.0]).value == 0.5
    assert of_ratio([2.0, 4.0], [1.0, 2.0]) == Score(2.0, blocks=(2.0, 2.0))  # itself, scaled
    assert of_ratio([1.0], []) is None and of_ratio([], [1.0]) is None
    assert of_ratio([1.0, 2.0], [0.0, 0.0]) is None


def test_the_interval_of_a_root_holds_it():
    x = (30 + blocks_of(0, 4000, 3)).tolist()
    held = sum(s.low <= 30**0.5 <= s.high for s in map(of_root, x))
    assert abs(held / 4000 - 0.95) < 0.015
    assert of_root([4.0, 4.0]).value == 2 and of_root([0.0, 0.0]) == Score(0.0, blocks=(0.0, 0.0))
    assert of_root([]) is None


# Differences


class Plain(Metric):
    """Smaller is better."""

    name = "plain"
    about = "a number."

    def reset(self) -> None: ...

    def update(self, made: Made) -> None: ...

    def merge(self, other: Metric) -> None: ...

    def compute(self) -> list[float]:
        return []


class Larger(Plain):
    lower_is_better = False


class Nearer(Plain):
    ideal = 1.0


def plain(*blocks: float, model: str = "student") -> Row:
    return row("plain", around(sum(blocks) / len(blocks), blocks), model)


def test_what_blocks_have_in_common_cancels():
    """Each block is far from the next, but a is the better in each."""
    a, b = plain(1.0, 5.0, 9.0), plain(1.3, 5.2, 9.4)
    gap = difference(a, b, "plain")
    assert gap.value == pytest.approx(-0.3) and gap.low < -0.3 < gap.high < 0 and gap.sure
    assert a.scores["plain"].high > b.value("plain") > a.value("plain")
    assert better(a, b, Plain()) and not better(b, a, Plain())
    assert better(b, a, Larger()) and not better(a, b, Larger())
    unpaired = plain(1.3, 9.4, 5.2)
    assert not better(a, unpaired, Plain())


@pytest.mark.parametrize("a, b", [((1.1, 1.12), (1.3, 1.33)), ((0.9, 0.88), (1.3, 1.33))])
def test_nearer_to_the_ideal_is_better_from_both_sides(a, b):
    near, far = plain(*a, a[0]), plain(*b, b[0])
    assert better(near, far, Nearer()) and not better(far, near, Nearer())
    lower = plain(*(2 - each for each in b), 2 - b[0])
    assert better(near, lower, Nearer())
    assert loss_difference(near, far, Nearer()).value == pytest.approx(
        abs(near.value("plain") - 1) - abs(far.value("plain") - 1)
    )


@pytest.mark.parametrize("kind", [Plain, Larger, Nearer])
def test_better_is_said_of_equals_in_5_of_100_at_most(kind: type[Metric]):
    common = 3 * blocks_of(0, 2000, 7)
    a, b = (common + blocks_of(1, 2000, seed) for seed in (8, 9))
    pairs = [(plain(*x), plain(*y)) for x, y in zip(a.tolist(), b.tolist())]
    said = sum(better(x, y, kind()) or better(y, x, kind()) for x, y in pairs)
    assert said / 2000 <= 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    if kind is not Nearer:
        assert said / 2000 >= 0.05 - 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_without_blocks_nothing_is_better():
    a, b = plain(1.0, 1.1, 1.2), plain(2.0, 2.2, 2.1)
    assert better(a, b, Plain())
    old = row("plain", Score(2.1, 2.0, 2.2))  # as results of before are read
    other = row("fancy", around(2.0, [1.0, 3.0]))
    for unknown in (old, other, plain(2.0, 2.1, 2.2)):  # the last is the same distance away in each
        assert difference(a, unknown, "plain") is None
        assert not better(a, unknown, Plain()) and not better(unknown, a, Plain())


def test_rows_that_do_not_compare_are_refused():
    a = plain(1.0, 1.1, 1.2)
    with pytest.raises(ValueError, match="do not compare, use one n"):
        difference(a, replace(a, n=1), "plain")
    with pytest.raises(ValueError, match="3 and 2 blocks do not compare"):
        difference(a, plain(1.0, 1.1), "plain")


def test_the_winner_is_better_than_each_other():
    best, second, third = plain(1.0, 1.1, 1.2), plain(1.3, 1.5, 1.5), plain(3.0, 3.3, 3.1)
    assert winner([third, best, second], Plain()) is best
    close = plain(1.1, 0.9, 1.3)
    assert winner([best, close, third], Plain()) is None
    assert winner([best], Plain()) is None and winner([], Plain()) is None
    assert winner([third, best, second], Larger()) is third
    assert winner([best, row("plain", Score(5.0))], Plain()) is None


def test_the_table_marks_a_winner_only_where_it_is_one():
    suite = load("digits", Kind(digits.EVENT, digits.CLASSES))

    def student(model: str, frechet: list[float], recall: list[float]) -> Row:
        scores = {"frechet": frechet, "recall": recall}
        made = {name: around(sum(of) / len(of), of) for name, of in scores.items()}
        return Row(model, 1, 1, 300, "", 0, None, made)

    rows = [
        student("teacher", [0.1, 0.11, 0.12], [0.99, 0.98, 0.97]),
        student("student", [0.5, 0.6, 0.7], [0.5, 0.6, 0.7]),
        student("student", [0.9, 1.1, 1.1], [0.6, 0.5, 0.7]),
    ]
    cells = {c.name: [c.text(r).endswith(WINNER) for r in rows] for c in columns_of(rows, suite)}
    assert cells.pop("frechet") == [False, True, False]
    assert not any(any(column) for column in cells.values())
    assert "★ marks" in " ".join(notes_of(rows, suite))
    assert "★" not in " ".join(notes_of(rows[:2], suite))


def test_blocks_are_in_the_results_and_old_results_have_none():
    a = plain(1.0, 1.1, 1.2)
    results = json.loads(json.dumps(written([a])))
    assert read(results) == [a]
    del results["rows"][0]["scores"]["plain"]["blocks"]
    (old,) = read(results)
    assert old.scores["plain"].blocks == () and old.value("plain") == a.value("plain")
    assert math.isclose(sum(a.scores["plain"].blocks) / 3, a.value("plain"))
