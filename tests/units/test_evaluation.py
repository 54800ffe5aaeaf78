"""Distances against closed forms, scipy, torchmetrics and double loops; what each space must see.

Mutations that must each fail a test here: `+ 2 * root_trace` or no clamp in `_distance`; `delta`
without its weight in `Moments.merge`; scatter divided by n; the diagonal kept in `_kernel_within`;
`kthvalue(k)` in `Manifold.of`; precision and recall swapped; `paired` measured against the first
teacher instead of the one with most steps; the warm-up or the block number dropped from the seed;
a metric that merges nothing; features made anew for every metric; labels of digits drawn before
their noise.
"""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stepdistill.data.sources import digits
from stepdistill.evaluation.evaluate import Sampled, evaluate
from stepdistill.evaluation.features import domain_cnn
from stepdistill.evaluation.features.domain_cnn import load_domain_cnn, train_domain_cnn
from stepdistill.evaluation.features.random_conv import random_conv
from stepdistill.evaluation.features.space import FeatureSpace
from stepdistill.evaluation.intervals import interval, mean_and_error
from stepdistill.evaluation.kept import OfFeatures
from stepdistill.evaluation.manifold import Manifold
from stepdistill.evaluation.metric import Made, Metric
from stepdistill.evaluation.metrics.diversity import diversity
from stepdistill.evaluation.metrics.kid import kid_blocks
from stepdistill.evaluation.moments import Moments, frechet_distance, frechet_from_features
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.rows import Row
from stepdistill.evaluation.suite import Suite
from stepdistill.jobs.suites import load


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def gaussian(mean: Tensor, covariance: Tensor, n: int = 1000) -> Moments:
    """Moments that are exactly these, as of n samples."""
    return Moments("test", n, mean.double(), covariance.double() * (n - 1))


def correlated(n: int, d: int, seed: int) -> Tensor:
    return normal(n, d, seed=seed) @ normal(d, d, seed=seed + 100) + normal(d, seed=seed + 200)


# Fréchet distance


def test_equal_moments_have_no_distance():
    a = Moments.of(correlated(200, 12, 0), "test")
    assert 0 <= frechet_distance(a, a) < 1e-10


def test_distance_never_turns_negative():
    # Rounding takes the bare formula below zero for some of these: −1e-13 times their scale.
    for seed in range(20):
        a = Moments.of(1e4 * correlated(40, 30, seed), "test")
        assert frechet_distance(a, a) >= 0


def test_diagonal_gaussians_match_the_closed_form():
    v1, v2 = torch.tensor([1.0, 4.0, 0.25, 0.0]), torch.tensor([9.0, 1.0, 0.25, 2.0])
    m1, m2 = torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 0.0])
    expected = (m1 - m2).square().sum() + (v1.sqrt() - v2.sqrt()).square().sum()
    found = frechet_distance(gaussian(m1, v1.diag()), gaussian(m2, v2.diag()))
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_commuting_gaussians_match_the_closed_form():
    basis = torch.linalg.qr(normal(6, 6)).Q
    l1, l2 = torch.rand(6, generator=rng(1)).double(), torch.rand(6, generator=rng(2)).double()
    a = gaussian(torch.zeros(6), basis @ l1.diag() @ basis.T)
    b = gaussian(torch.ones(6), basis @ l2.diag() @ basis.T)
    expected = 6 + (l1.sqrt() - l2.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_general_gaussians_match_scipy_sqrtm():
    x, y = correlated(300, 10, 0).numpy(), correlated(250, 10, 1).numpy()
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    expected = gap @ gap + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    found = frechet_from_features(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(expected, rel=1e-9)


def test_distance_is_symmetric_and_blind_to_rotation():
    x, y = correlated(100, 8, 0), correlated(120, 8, 1)
    rotation = torch.linalg.qr(normal(8, 8, seed=9)).Q
    d = frechet_from_features(x, y)
    assert frechet_from_features(y, x) == pytest.approx(d, rel=1e-10)
    assert frechet_from_features(x @ rotation, y @ rotation) == pytest.approx(d, rel=1e-10)


@pytest.mark.parametrize("n, m", [(20, 30), (30, 20), (20, 200), (200, 20)])
def test_gram_route_equals_covariance_route(n: int, m: int):
    x, y = correlated(n, 64, 0), correlated(m, 64, 1)
    by_covariance = frechet_distance(Moments.of(x, "test"), Moments.of(y, "test"))
    assert frechet_from_features(x, y) == pytest.approx(by_covariance, rel=1e-7)


def test_distance_matches_torchmetrics_on_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    images, space, theirs = *two_sets(), torchmetrics_module()
    fid = FrechetInceptionDistance(feature=theirs)
    fid.update(images[0], real=True)
    fid.update(images[1], real=False)
    ours = frechet_from_features(*map(space, images))
    assert ours == pytest.approx(fid.compute().item(), rel=1e-3)


# Streaming moments


def test_moments_do_not_depend_on_chunks_or_their_order():
    x = correlated(500, 16, 3) + 500  # far from zero: Σ xxᵀ would cancel
    whole = Moments.of(x, "test")
    for sizes in ([1, 99, 400], [400, 1, 99], [0, 250, 250]):
        order = torch.randperm(500, generator=rng(sizes[0]))
        streamed = Moments.empty("test", 16)
        for part in x[order].split(sizes):
            streamed = streamed.update(part)
        assert streamed.n == 500
        torch.testing.assert_close(streamed.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(streamed.covariance, whole.covariance, rtol=1e-10, atol=1e-10)


def test_moments_equal_numpy_mean_and_covariance():
    x = correlated(60, 5, 4)
    moments = Moments.of(x, "test")
    np.testing.assert_allclose(moments.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_merged_shards_equal_the_whole_in_any_order():
    x = correlated(90, 7, 5)
    a, b, c = (Moments.of(part, "test") for part in x.split([10, 50, 30]))
    whole = Moments.of(x, "test").covariance
    for merged in (a.merge(b).merge(c), c.merge(a.merge(b)), b.merge(c).merge(a)):
        torch.testing.assert_close(merged.covariance, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_features_are_accumulated_in_float64(dtype: torch.dtype):
    x = (correlated(400, 6, 6) + 30).to(dtype)
    streamed = Moments.empty("test", 6)
    for part in x.split(7):
        streamed = streamed.update(part)
    expected = np.cov(x.double().numpy(), rowvar=False)
    np.testing.assert_allclose(streamed.covariance, expected, rtol=1e-11)


def test_refuses_mixed_spaces_nan_and_a_single_sample():
    a = Moments.of(normal(10, 4), "random-conv@1")
    for other in (Moments.of(normal(10, 4), "random-conv@2"), Moments.of(normal(10, 5), a.space)):
        with pytest.raises(ValueError, match="within one feature space"):
            frechet_distance(a, other)
        with pytest.raises(ValueError, match="within one feature space"):
            a.merge(other)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinity"):
            a.update(torch.full((2, 4), bad))
    single = Moments.of(normal(1, 4), a.space)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(a, single)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_from_features(normal(1, 4), normal(9, 4))
    with pytest.raises(ValueError, match="one space"):
        frechet_from_features(normal(3, 4), normal(9, 5))


# Kernel distance


def naive_kid(x: Tensor, y: Tensor) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kid_equals_a_double_loop():
    x, y = normal(18, 5), normal(25, 5, seed=1) * 1.5 + 0.3
    assert kid_blocks(x, y) == [pytest.approx(naive_kid(x, y), rel=1e-10)]
    halves = [pytest.approx(naive_kid(part, y), rel=1e-10) for part in x.split(9)]
    assert kid_blocks(x, y, block=10) == halves


def test_kid_is_unbiased():
    draws = normal(900, 21, 4)
    same = [kid_blocks(draw[:12], draw[12:])[0] for draw in draws]
    mean, error = mean_and_error(same)
    assert abs(mean) < 3 * error
    # The biased estimate would sit at E k(x, x) − E k(x, y) over n: far outside this error.
    assert 3 * error < 1 / 12


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_matches_torchmetrics_on_the_same_features():
    from torchmetrics.image.kid import KernelInceptionDistance

    images, space, theirs = *two_sets(), torchmetrics_module()
    size = len(images[0])
    kid = KernelInceptionDistance(theirs, subsets=1, subset_size=size)
    kid.update(images[0], real=True)
    kid.update(images[1], real=False)
    ours = kid_blocks(*map(space, images))
    assert ours == [pytest.approx(kid.compute()[0].item(), rel=1e-3)]


def test_kid_refuses_single_samples():
    for x, y in ((normal(1, 3), normal(9, 3)), (normal(9, 3), normal(1, 3)), (normal(0, 3),) * 2):
        with pytest.raises(ValueError, match="need 2"):
            kid_blocks(x, y)


# Precision, recall, diversity, interval


def naive_coverage(centres: Tensor, points: Tensor, k: int) -> float:
    radius = [sorted((c - o).norm().item() for o in centres)[k] for c in centres]
    covered = [
        any((p - c).norm().item() <= r for c, r in zip(centres, radius, strict=True))
        for p in points
    ]
    return sum(covered) / len(points)


def test_precision_and_recall_equal_the_direct_formula():
    real, fake = normal(40, 3), normal(30, 3, seed=1) * 0.6 + 0.5
    found = Manifold.of(real).share(fake), Manifold.of(fake).share(real)
    expected = naive_coverage(real, fake, 3), naive_coverage(fake, real, 3)
    assert found == pytest.approx(expected)
    assert expected[0] != expected[1]


def test_each_metric_looks_at_its_own_side():
    """Precision at generated among real images, recall at real among generated ones."""
    images = resampled(60, 5)
    seen, real = random_conv()(images), random_conv()(digits.load()[0][:200])
    reference = replace(SUITE.reference, images=digits.load()[0][:200], _summaries={})
    found = {}
    for name in ("precision", "recall"):
        metric = named(name).fresh()
        metric.open(reference)
        metric.update(Made(images, None, None, reference))
        (found[name],) = metric.compute()
    real, seen = real.double(), seen.double()
    expected = naive_coverage(real, seen, 3), naive_coverage(seen, real, 3)
    assert (found["precision"], found["recall"]) == pytest.approx(expected)
    assert expected[0] != expected[1]


def test_precision_and_recall_do_not_depend_on_chunks():
    real, fake = normal(101, 4), normal(67, 4, seed=1)
    whole, cut = Manifold.of(real), Manifold.of(real, chunk=7)
    torch.testing.assert_close(whole.radii, cut.radii)
    assert torch.equal(whole.covers(fake), cut.covers(fake, chunk=11))


def test_precision_sees_garbage_and_recall_sees_lost_modes():
    real = torch.cat([normal(100, 2), normal(100, 2, seed=1) + 20])
    lost = normal(100, 2, seed=2)
    garbage = torch.cat([normal(50, 2, seed=3), normal(50, 2, seed=4) - 40])
    assert Manifold.of(real).share(lost) > 0.8 and Manifold.of(lost).share(real) <= 0.5
    assert Manifold.of(real).share(garbage) <= 0.5


def test_a_manifold_needs_more_points_than_neighbours():
    with pytest.raises(ValueError, match="need 4"):
        Manifold.of(normal(3, 2))


def test_diversity_is_the_mean_distance_within_classes():
    features = torch.tensor([[0.0], [1.0], [3.0], [10.0], [14.0], [99.0]])
    classes = torch.tensor([0, 0, 0, 1, 1, 2])
    assert diversity(features, classes) == pytest.approx(((1 + 3 + 2) / 3 + 4) / 2)
    with pytest.raises(ValueError, match="two images"):
        diversity(features, torch.arange(6))


def test_interval_covers_a_known_mean_95_times_in_100():
    values = normal(2000, 4, seed=7) + 3
    covered = sum(low <= 3 <= high for _, low, high in (interval(v.tolist()) for v in values))
    assert abs(covered / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="at least 2"):
        interval([1.0])


# The two spaces


def resampled(count: int, seed: int, among: Tensor | None = None) -> Tensor:
    """Digits drawn with replacement, all classes or those `among` is true for."""
    images, _ = digits.load()
    pool = images if among is None else images[among]
    return pool[torch.randint(len(pool), (count,), generator=rng(seed))]


def distances(space: FeatureSpace, sets: list[Tensor]) -> list[float]:
    reference = Moments.of(space(digits.load()[0]), space.identity)
    return [frechet_distance(reference, Moments.of(space(x), space.identity)) for x in sets]


def worsened(space: FeatureSpace, sets: list[Tensor]) -> float:
    """Standard deviations by which the worst of `sets` exceeds 1,000 fresh resampled digits."""
    clean = torch.tensor(distances(space, [resampled(1000, seed) for seed in range(6)]))
    return ((min(distances(space, sets)) - clean.mean()) / clean.std()).item()


def test_random_conv_sees_collapse():
    assert worsened(random_conv(), [resampled(100, s).repeat(10, 1, 1, 1) for s in (8, 9)]) > 20


def test_domain_cnn_sees_a_lost_class():
    labels = digits.load()[1]
    sets = [resampled(1000, 8, labels != lost) for lost in range(10)]
    assert worsened(load_domain_cnn().space, sets) > 10


@pytest.mark.parametrize("make", [random_conv, lambda: load_domain_cnn().space])
def test_distances_grow_with_noise_and_blur(make):
    space, clean = make(), resampled(1000, 3)
    noise = torch.randn(clean.shape, generator=rng(1))
    noisy = [(clean + s * noise).clamp(-1, 1) for s in (0, 0.2, 0.4, 0.8)]
    smooth = nn.functional.avg_pool2d(clean, 3, stride=1, padding=1)
    blurred = [torch.lerp(clean, smooth, w) for w in (0, 0.25, 0.5, 1)]
    for series in (noisy, blurred):
        assert all(a < b for a, b in pairwise(distances(space, series)))


def test_features_do_not_depend_on_batches(monkeypatch):
    images = resampled(50, 0)
    for space in (random_conv(), load_domain_cnn().space):
        whole = space(images)
        assert whole.dtype == torch.float32
        monkeypatch.setattr("stepdistill.evaluation.features.space.BATCH", 7)
        torch.testing.assert_close(space(images), whole, rtol=1e-5, atol=1e-5)
        monkeypatch.undo()


def test_identity_follows_the_weights():
    assert random_conv().identity == random_conv().identity == RANDOM_CONV
    assert random_conv(seed=1).identity != RANDOM_CONV
    space = load_domain_cnn().space
    before = space.identity
    changed = load_domain_cnn()
    changed.body[0].weight[0, 0, 0, 0] += 1e-3
    assert changed.space.identity != before


# Drawn from integers, so it is the same on every machine; another value makes old results foreign.
RANDOM_CONV = "random-conv@21db59e9ec88"


@pytest.mark.parametrize(
    "images",
    [torch.full((2, 1, 8, 8), float("nan")), torch.full((2, 1, 8, 8), 255.0), torch.zeros(8, 8)],
)
def test_spaces_refuse_images_out_of_range(images: Tensor):
    with pytest.raises(ValueError, match=r"finite images .* in \[-1, 1\]"):
        random_conv()(images)


def test_digits_fill_their_range():
    images, labels = digits.load()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert torch.equal((images + 1) * 8, ((images + 1) * 8).round())
    assert torch.equal(labels.bincount() > 170, torch.ones(10, dtype=torch.bool))


def test_committed_classifier_has_the_accuracy_its_header_claims():
    said = domain_cnn.committed_recipe()
    images, labels = digits.load()
    _, held_out = domain_cnn.split(len(images), int(said["seed"]))
    found = domain_cnn.accuracy(load_domain_cnn(), images, labels, held_out)
    assert found >= 0.98
    assert said == domain_cnn.recipe(int(said["seed"]), found)


def test_the_recipe_repeats_itself_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    (first, _), (second, _) = train_domain_cnn(3, epochs=1), train_domain_cnn(3, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.space.identity == second.space.identity
    assert first.space.identity != train_domain_cnn(4, epochs=1)[0].space.identity


def test_the_command_makes_the_committed_classifier_again(tmp_path):
    threads = torch.get_num_threads()
    domain_cnn.main(tmp_path / "net.safetensors")
    torch.set_num_threads(threads)
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        said = json.loads(file.metadata()["recipe"])
    again = domain_cnn.DigitsCNN()
    again.load_state_dict(load_file(tmp_path / "net.safetensors"))
    images, _ = digits.load()
    agree = again.eval()(images).argmax(1) == load_domain_cnn()(images).argmax(1)
    # Rounding differs between machines and grows while training: same answers, not same bits.
    assert agree.float().mean() > 0.99
    assert float(said.pop("held_out_accuracy")) >= 0.98
    assert said.items() <= domain_cnn.committed_recipe().items()


# The suite


DIGITS = Kind(digits.EVENT, digits.CLASSES)
SUITE = load("digits", DIGITS)
FREE = load("digits", Kind(digits.EVENT))


def named(name: str) -> Metric:
    (metric,) = (m for m in SUITE.metrics if m.name == name)
    return metric


def sampler(model: str, steps: int, sample, nfe: int | None = None, parameters: int = 0) -> Sampled:
    return Sampled(model, steps, nfe or steps, parameters, digits.EVENT, sample)


def untimed(rows: list[Row]) -> list[Row]:
    return [replace(row, seconds=None) for row in rows]


@pytest.fixture(scope="module")
def scored() -> tuple[list, list]:
    """Rows of made-up contenders that know the answer, and what the progress callback heard."""
    heard: list[tuple[int, int]] = []
    rows = evaluate(CONTENDERS, SUITE, 300, 3, 0, lambda *x: heard.append(x))
    return rows, heard


def toward_class_means(amount: float):
    """Real digits of the requested class pulled to its mean: blurrier and less diverse."""
    images, labels = digits.load()
    means = torch.stack([images[labels == c].mean(0) for c in range(10)])
    real = SUITE.reference.draw

    def sample(noise: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
        return torch.lerp(real(noise, wanted, generator), means[wanted], amount)

    return sample


CONTENDERS = [
    sampler("teacher", 4, toward_class_means(0.3), 8, 1000),
    sampler("teacher", 32, toward_class_means(0.02), 64, 1000),
    sampler("student", 1, toward_class_means(0.12), 1, 900),
    sampler("untrained-student", 1, lambda noise, labels, generator: noise.tanh(), 1, 900),
]


def test_rows_rank_contenders_by_their_distance_to_data(scored):
    rows, _ = scored
    assert [(r.model, r.steps) for r in rows] == [
        ("teacher", 4),
        ("teacher", 32),
        ("student", 1),
        ("untrained-student", 1),
        ("real", 0),
    ]
    coarse, teacher, student, untrained, real = rows
    for value in ("frechet", "frechet_random", "kid"):
        order = [r.value(value) for r in (real, teacher, student, coarse, untrained)]
        assert order[1:] == sorted(order[1:]), value
        assert order[0] < order[2], value
    assert untrained.value("precision") < 0.1 < 0.9 < teacher.value("precision")
    assert coarse.value("recall") < student.value("recall") < teacher.value("recall")
    assert untrained.value("accuracy") < 0.3 and teacher.value("accuracy") > 0.97
    assert coarse.value("diversity") < student.value("diversity") < teacher.value("diversity") == 1
    for row in rows:
        for name in SUITE.headline:
            score = row.scores[name]
            assert 0 <= score.low < score.value < score.high
        assert row.scores["kid"].error > 0 and row.n == 900
    assert teacher.seconds > 0 and real.seconds is None


def test_paired_distance_is_measured_from_the_teacher_of_most_steps(scored):
    coarse, teacher, student, untrained, real = scored[0]
    assert teacher.value("paired") == 0 and "paired" not in real.scores
    # The same digit pulled 0.28 of the way further than the teacher's, or 0.10.
    ratio = coarse.value("paired") / student.value("paired")
    assert ratio == pytest.approx(0.28 / 0.10, rel=1e-3)
    assert untrained.value("paired") > 0.5


def test_progress_counts_every_evaluation_and_image(scored):
    _, heard = scored
    done, totals = zip(*heard, strict=True)
    assert set(totals) == {300 * 3 * (9 + 65 + 2 + 2 + 1)} and done[-1] == totals[0]
    assert list(done) == sorted(set(done))


def test_a_stopped_evaluation_goes_on(tmp_path):
    def stop(done: int, total: int) -> None:
        if done > 0.95 * total:
            raise KeyboardInterrupt

    file, calls = tmp_path / "out" / "scored.jsonl", []
    whole = evaluate(CONTENDERS, SUITE, 40, 2, 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(CONTENDERS, SUITE, 40, 2, 0, stop, file)
    assert file.read_text().count("\n") == 1 + 5 + 1  # all of a block, the teacher of the next
    with file.open("a") as torn:
        torn.write('{"sampler": 0, "blo')
    field = [replace(c, sample=counted(c, calls)) for c in CONTENDERS]
    heard: list[tuple[int, int]] = []
    rows = evaluate(field, SUITE, 40, 2, 0, lambda *x: heard.append(x), file)
    assert untimed(rows) == untimed(whole)
    assert all(calls.count((c.model, c.steps)) == 2 for c in field)  # warm-up and the last block
    assert heard[0][0] > 0 and heard[-1][0] == heard[-1][1]


def counted(contender: Sampled, calls: list):
    def sample(*given):
        calls.append((contender.model, contender.steps))
        return contender.sample(*given)

    return sample


def test_what_another_evaluation_scored_is_not_taken_up(tmp_path):
    file = tmp_path / "scored.jsonl"
    dull = [replace(CONTENDERS[2], sample=toward_class_means(0.9))]
    evaluate(dull, SUITE, 40, 2, 0, file=file)
    taken = evaluate(CONTENDERS[2:3], SUITE, 40, 2, 0, file=file)
    again = evaluate(CONTENDERS[2:3], SUITE, 40, 3, 0, file=file)
    head, *rows = file.read_text().splitlines(True)
    file.write_text("".join([head, *rows[1:], "{}\n"]))
    assert untimed(evaluate(CONTENDERS[2:3], SUITE, 40, 3, 0, file=file)) == untimed(again)
    assert untimed(taken) == untimed(evaluate(CONTENDERS[2:3], SUITE, 40, 2, 0))
    assert again[0].n == 120


def recording(calls: list):
    def sample(noise: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        calls.append((noise, labels, torch.rand(1, generator=generator).item()))
        return SUITE.reference.images[: len(noise)].clone()

    return sample


def test_contenders_meet_the_same_noise_and_every_block_fresh_noise():
    first, second = [], []
    pair = [sampler("student", 1, recording(first)), sampler("teacher", 1, recording(second))]
    evaluate(pair, replace(SUITE, batch=25), 40, 2, 5)
    for (noise, labels, u), (noise2, labels2, u2) in zip(first, second, strict=True):
        assert torch.equal(noise, noise2) and torch.equal(labels, labels2) and u == u2
    assert [len(noise) for noise, _, _ in first] == [25, 25, 15, 25, 15]  # warm-up, two blocks
    noises = torch.cat([noise for noise, _, _ in first]).flatten(1)
    assert len(noises.unique(dim=0)) == len(noises)
    assert len({u for _, _, u in first}) == len(first)
    for block in (first[1:3], first[3:5]):
        labels = torch.cat([labels for _, labels, _ in block])
        assert labels.bincount().tolist() == [4] * 10


def test_same_seed_same_rows_other_seed_other_rows():
    student = [sampler("student", 1, toward_class_means(0.1))]
    a, b, c = (evaluate(student, SUITE, 40, 2, seed)[0] for seed in (1, 1, 2))
    assert a.scores == b.scores
    assert a.value("frechet") != c.value("frechet")
    assert not {"diversity", "paired"} & a.scores.keys()


def looking_at(keep: int | None) -> Suite:
    """SUITE in batches of 30, whose metrics of features look at so many images of a block."""
    metrics = [replace_keep(m, keep) if isinstance(m, OfFeatures) else m for m in SUITE.metrics]
    return replace(SUITE, batch=30, metrics=tuple(metrics))


def replace_keep(metric: OfFeatures, keep: int | None) -> OfFeatures:
    found = copy(metric)
    found.keep = keep
    return found


def test_features_are_kept_only_as_far_as_pairs_need_them():
    student = [sampler("student", 1, toward_class_means(0.1))]
    small = replace(SUITE, batch=30)
    whole = evaluate(student, small, 100, 2, 1)[0]
    capped = evaluate(student, looking_at(50), 100, 2, 1)[0]
    assert evaluate(student, looking_at(None), 100, 2, 1)[0].scores == whole.scores
    for name in ("frechet", "accuracy"):
        assert capped.scores[name] == whole.scores[name]
    for name in ("kid", "recall"):
        assert capped.scores[name] != whole.scores[name]


def test_images_beyond_the_range_are_clipped_as_if_saved():
    def bright(noise: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return SUITE.reference.draw(noise, labels, generator) * 1.3

    samplers = bright, lambda *given: bright(*given).clamp(-1, 1)
    pair = [sampler("student", 1, sample) for sample in samplers]
    raw, clipped, _ = evaluate(pair, SUITE, 40, 2, 1)
    assert raw.scores == clipped.scores


def test_unconditional_contenders_get_no_labels_and_no_accuracy():
    calls: list = []
    row, real = evaluate([sampler("teacher", 1, recording(calls))], FREE, 40, 2, 0)
    assert all(labels is None for _, labels, _ in calls)
    assert "accuracy" not in row.scores and "accuracy" not in real.scores
    assert row.value("diversity") == 1


def test_real_images_have_the_requested_class():
    images, labels = digits.load()
    wanted = torch.arange(200) % 10
    drawn = SUITE.reference.draw(torch.zeros(200, 1, 8, 8), wanted, rng())
    matches = (drawn[:, None] == images[None]).flatten(2).all(2)
    assert matches.any(1).all()
    assert (labels[matches.int().argmax(1)] == wanted).all()


def test_refuses_what_cannot_give_a_block_or_an_image():
    student = sampler("student", 1, recording([]))
    with pytest.raises(ValueError, match="at least one, and two for intervals"):
        evaluate([student], SUITE, 40, 0, 0)
    with pytest.raises(ValueError, match="at least 20 images"):
        evaluate([student], SUITE, 10, 2, 0)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate([], SUITE, 40, 2, 0)
    for broken in (lambda x, *_: x[:1], lambda x, *_: x * float("nan")):
        with pytest.raises(ValueError, match="student at 1 steps returned"):
            evaluate([sampler("student", 1, broken)], SUITE, 40, 2, 0)


def test_noise_comes_in_batches_and_is_that_of_a_whole_block():
    """Digits' numbers rest on it: one stream with all noise of a block, then its labels."""
    calls: list = []
    evaluate([sampler("student", 1, recording(calls))], replace(SUITE, batch=16), 40, 2, 3)
    assert [len(noise) for noise, _, _ in calls] == [16, *[16, 16, 8] * 2]
    stream = rng(int(np.random.SeedSequence((3, 1)).generate_state(1)[0]))
    whole = torch.randn(40, 1, 8, 8, generator=stream)
    labels = torch.randperm(40, generator=stream) % 10
    assert torch.equal(torch.cat([noise for noise, _, _ in calls[-3:]]), whole)
    assert torch.equal(torch.cat([asked for _, asked, _ in calls[-3:]]), labels)


@pytest.mark.parametrize("name", [metric.name for metric in SUITE.metrics])
def test_a_metric_that_was_merged_has_seen_both_halves(name: str):
    """As resumed blocks and several processes need it."""
    noise, amount = (
        normal(80, 1, 8, 8).tanh().float(),
        torch.linspace(0, 1, 80)[:, None, None, None],
    )
    labels, truth = torch.arange(80) % 10, resampled(80, 2)
    drawn = torch.lerp(resampled(80, 1), noise, amount)

    def seen(*parts: slice) -> Metric:
        metric = named(name).fresh()
        for rows in parts:
            metric.update(Made(drawn[rows], labels[rows], truth[rows], SUITE.reference))
        return metric

    first, second = slice(0, 30), slice(30, 80)
    whole, merged = seen(first, second), seen(first)
    merged.merge(seen(second))
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-9)
    assert merged.compute() != pytest.approx(seen(first).compute(), rel=1e-9)
    assert len(whole.compute()) == 1


def test_features_are_computed_once_for_all_metrics(monkeypatch):
    calls: list[str] = []
    call = FeatureSpace.__call__

    def counting(space: FeatureSpace, images: Tensor) -> Tensor:
        calls.append(space.name)
        return call(space, images)

    monkeypatch.setattr(FeatureSpace, "__call__", counting)
    evaluate([sampler("student", 1, recording([]))], SUITE, 40, 2, 0)
    # Two blocks of the student and of real images.
    assert sorted(calls) == ["domain-cnn"] * 4 + ["random-conv"] * 4


# A network in the form torchmetrics expects, and two sets of images to compare


def two_sets() -> tuple[tuple[Tensor, Tensor], FeatureSpace]:
    noise = torch.rand(400, 1, 8, 8, generator=rng(4)) * 2 - 1
    return (resampled(400, 1), torch.lerp(resampled(400, 2), noise, 0.2)), random_conv()


def torchmetrics_module() -> nn.Module:
    class Theirs(nn.Module):
        num_features = 288

        def __init__(self) -> None:
            super().__init__()
            self.network = random_conv().network

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images)

    return Theirs()
