"""Every metric on inputs whose answer is known, and against the libraries that people quote.

Mutations that must each fail a test here: balls that reach a neighbour too few; density not divided
by k; a line through distances that does not end at k = 0; eigenvalues of a kernel that is not
divided by n; a variance over all classes at once; pairs of two classes; a peak of 1 in PSNR; a crop
that is resized; prompts that are all one; the teacher's blocks in another order.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision
from measured import (
    METRICS,
    SIDES,
    forget_lpips,
    normal,
    opened,
    pictures,
    reference_of,
    value,
)
from torch import Tensor

from stepdistill.evaluation.features.space import FeatureSpace
from stepdistill.evaluation.manifold import Manifold
from stepdistill.evaluation.metric import Made, Metric
from stepdistill.evaluation.metrics.feature_variance import FeatureVariance
from stepdistill.evaluation.metrics.fid_infinity import frechet_infinity
from stepdistill.evaluation.metrics.high_frequency import HighFrequency, details
from stepdistill.evaluation.metrics.lpips_diversity import LPIPSDiversity
from stepdistill.evaluation.metrics.lpips_paired import LPIPSPaired
from stepdistill.evaluation.metrics.patch_frechet import PatchFrechet
from stepdistill.evaluation.metrics.psnr import PSNR
from stepdistill.evaluation.metrics.same_picture import SamePicture
from stepdistill.evaluation.metrics.ssim import SSIM
from stepdistill.evaluation.metrics.vendi import Vendi, vendi
from stepdistill.evaluation.moments import Moments, frechet_distance
from stepdistill.losses import distances
from stepdistill.resources import named


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_lpips(monkeypatch)


# What holds of every metric


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("real", [True, False], ids=["real", "no-real"])
def test_batches_and_merging_change_nothing(name: str, real: bool, no_weights):
    side = SIDES.get(name, 4)
    reference = reference_of(pictures(60, 1, side) if real else None, (3, side, side))
    try:
        metric = opened(name, reference)
    except ValueError as error:
        assert not real and "no real images" in str(error)
        return
    drawn, truth, labels = pictures(80, 2, side, 0.3), pictures(80, 3, side), torch.arange(80) % 2

    def seen(*cuts: int) -> Metric:
        fresh = metric.fresh()
        for a, b in zip(cuts, cuts[1:]):
            fresh.update(Made(drawn[a:b], labels[a:b], truth[a:b], reference))
        return fresh

    whole = seen(0, 80).compute()
    assert len(whole) == 1 and math.isfinite(whole[0])
    merged = seen(0, 30)
    merged.merge(seen(30, 31, 80))
    for other in (seen(0, 7, 50, 80), merged):
        assert other.compute() == pytest.approx(whole, rel=1e-6, abs=1e-12)
    assert seen(0, 80).compute() == whole
    assert seen(0, 30).compute() != pytest.approx(whole, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_what_it_says_and_which_way(name: str):
    metric = named("evaluation.metrics", name, Metric)()
    assert metric.about.endswith(".") and metric.way.endswith("is better.")
    assert metric.better(1.0, 0.5) != metric.better(0.5, 1.0)


# Fréchet distance of infinitely many images


def test_a_line_through_points_of_a_line_is_that_line():
    exact = Moments("test", 10**9, torch.zeros(3).double(), torch.eye(3).double() * (10**9 - 1))
    same = torch.ones(40, 3, dtype=torch.float64)  # no scatter: every part is as far
    assert frechet_infinity(same, exact) == pytest.approx(3 + 3, rel=1e-6)


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.4, 1.0), (0.3, 1.5)])
def test_its_bias_is_a_third_of_the_distances_or_less(shift: float, scale: float, figure):
    d, n, draws = 8, 150, 250
    real = Moments("test", 10**9, torch.zeros(d).double(), torch.eye(d).double() * (10**9 - 1))
    truth = d * (shift**2 + (scale - 1) ** 2)
    found, plain = [], []
    for seed in range(draws):
        x = scale * normal(n, d, seed=seed) + shift
        found.append(frechet_infinity(x, real) - truth)
        plain.append(frechet_distance(real, Moments.of(x, "test")) - truth)
    bias, before = (torch.tensor(each).mean().item() for each in (found, plain))
    figure(f"bias of FID∞ by that of FID, shift {shift}, scale {scale}", bias / before)
    assert before > 0 and abs(bias) <= before / 3


def test_it_needs_two_images_a_part():
    real = Moments.of(normal(9, 3), "test")
    with pytest.raises(ValueError, match="5 parts need 10"):
        frechet_infinity(normal(9, 3), real)


# Density and coverage


def naive_density_and_coverage(real: Tensor, made: Tensor, k: int) -> tuple[float, float]:
    radii = [sorted((x - o).norm().item() for o in real)[k] for x in real]
    hits = [[(y - x).norm().item() <= r for y in made] for x, r in zip(real, radii)]
    count = sum(sum(row) for row in hits)
    return count / (k * len(made)), sum(any(row) for row in hits) / len(real)


def as_images(rows: Tensor) -> Tensor:
    """Rows (n, d) in [−1, 1] as images whose pixels they are."""
    return rows.float()[:, :, None, None]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_density_and_coverage_equal_the_papers_formulas(k: int):
    real, made = normal(40, 3).tanh(), (normal(30, 3, seed=1) * 0.6 + 0.5).tanh()
    reference = reference_of(as_images(real))
    batch = Made(as_images(made), None, None, reference)
    expected = naive_density_and_coverage(real.float().double(), made.float().double(), k)
    for metric, wanted in zip(("density", "coverage"), expected):
        assert value(opened(metric, reference, k=k), batch) == pytest.approx(wanted, rel=1e-12)


def test_real_images_have_density_1_and_the_papers_coverage():
    n, m, k = 60, 40, 5
    density, coverage = [], []
    for seed in range(200):
        x, y = normal(n + m, 2, seed=seed).split([n, m])
        manifold = Manifold.of(x, k)
        density.append(manifold.depth(y) / k)
        coverage.append(manifold.reached(y).double().mean())
    missed = math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    for found, expected in ((density, 1.0), (coverage, 1 - missed)):
        found = torch.tensor(found)
        assert abs(found.mean() - expected) < 4 * found.std() / len(found) ** 0.5


def test_an_outlier_fools_precision_and_recall_but_neither_of_these():
    """The paper's example: one real image far away, and garbage in its wide ball."""
    real = torch.cat([normal(200, 2), torch.full((1, 2), 30.0)])
    garbage = normal(200, 2, seed=1) + 15
    assert Manifold.of(real, 5).share(garbage) == 1
    assert Manifold.of(real, 5).depth(garbage) / 5 < 0.25
    assert Manifold.of(real, 5).reached(garbage).double().mean() < 0.02


def test_balls_do_not_depend_on_chunks():
    manifold, points = Manifold.of(normal(50, 3)), normal(33, 3, seed=1)
    assert torch.equal(manifold.reached(points, chunk=7), manifold.reached(points))
    assert manifold.depth(points, chunk=7) == manifold.depth(points)


# Lost diversity


@pytest.mark.parametrize("counts", [[5], [4, 4, 4], [1, 1, 1, 1], [6, 3, 1]])
def test_the_vendi_score_counts_orthogonal_groups(counts: list[int]):
    """k equal ones give k; of unequal ones the exponential of their entropy."""
    basis = torch.linalg.qr(normal(40, 40)).Q
    rows = torch.cat([basis[i].repeat(n, 1) * (i + 1) for i, n in enumerate(counts)])
    shares = torch.tensor(counts).double() / sum(counts)
    expected = torch.special.entr(shares).sum().exp().item()
    assert vendi(rows) == pytest.approx(expected, rel=1e-12)
    assert vendi(rows.repeat(20, 1)) == pytest.approx(expected, rel=1e-9)  # more rows than columns
    if len(set(counts)) == 1:
        assert expected == pytest.approx(len(counts))


def test_the_vendi_score_of_each_class_is_averaged():
    rows = torch.eye(4)[[0, 0, 0, 0, 1, 2, 1, 2, 3]]
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    reference = reference_of(None, (4, 1, 1))
    batch = Made(as_images(rows), labels, None, reference)
    per_class = Vendi(space="pixels", per_class=True)
    assert value(per_class, batch) == pytest.approx((1 + 2) / 2)  # of the third there is one image
    shares = torch.tensor([4, 2, 2, 1]).double() / 9
    assert value(Vendi(space="pixels"), batch) == pytest.approx(
        torch.special.entr(shares).sum().exp().item()
    )
    assert "one prompt or class" in per_class.about and "teacher" not in per_class.about


def test_feature_variance_is_that_within_classes():
    centres = 0.5 * torch.tensor([[1.0, 0, 0], [-1, 1, 0]]).double()
    labels = torch.arange(4000) % 2
    scale = torch.tensor([0.1, 0.02]).double()[labels, None]
    rows = centres[labels] + scale * normal(4000, 3)
    batch = Made(as_images(rows), labels, None, reference_of(None, (3, 1, 1)))
    expected = 3 * (0.1**2 + 0.02**2) / 2
    metric = FeatureVariance(space="pixels")
    assert value(metric, batch) == pytest.approx(expected, rel=0.05)
    assert metric.score([[2.0], [4.0]], [[4.0], [8.0]]).value == 0.5
    assert metric.score([[2.0], [4.0]], None) is None
    assert FeatureVariance(ratio=False).score([[2.0], [4.0]], None).value == 3


def test_pairs_of_one_prompt_are_compared_and_no_others():
    """Two prompts, of which one gives the same picture twice in three pairs at most."""
    a, b, c, d = pictures(4, 0, 40)
    near = (a + 0.03 * normal(3, 40, 40, seed=9).float()).clamp(-1, 1)
    images, prompts = torch.stack([a, near, b, a, c, d]), ["x", "x", "x", "y", "y", "only once"]
    reference = reference_of(None, (3, 40, 40))
    found = value(SamePicture(), Made(images, prompts, None, reference))
    assert found == pytest.approx((1 / 3 + 0) / 2)
    assert value(SamePicture(near=1e-6), Made(images, prompts, None, reference)) == 0
    merged = SamePicture()
    merged.reset()
    for part in (slice(0, 2), slice(2, 6)):  # prompts are told apart alike in every batch
        merged.update(Made(images[part], prompts[part], None, reference))
    assert merged.compute() == [pytest.approx(found)]


@pytest.mark.parametrize(
    "metric",
    [SamePicture(), FeatureVariance(space="pixels"), Vendi(space="pixels", per_class=True)],
)
def test_there_is_no_diversity_of_one_image_a_prompt(metric: Metric):
    metric.reset()
    reference = reference_of(None, (3, 4, 4))
    metric.update(Made(pictures(3, 0), ["a", "b", "c"], None, reference))
    assert metric.compute() == []
    assert metric.score([[], []], [[], []]) is None


# Beside the teacher


def test_psnr_is_that_of_torchmetrics_and_of_a_constant_offset():
    from torchmetrics.image import PeakSignalNoiseRatio

    theirs = pictures(6, 0, 16)
    images = (theirs + 0.1 * pictures(6, 1, 16)).clamp(-1, 1)
    ours = PSNR().compare(images, theirs)
    for image, their, found in zip(images, theirs, ours):
        library = PeakSignalNoiseRatio(data_range=(-1, 1))
        assert found == pytest.approx(library(image[None], their[None]).item(), rel=1e-5)
    offset = PSNR().compare(torch.full((1, 3, 4, 4), 0.2), torch.zeros(1, 3, 4, 4))
    assert offset.item() == pytest.approx(20, rel=1e-6)  # a tenth of the range
    assert PSNR().compare(theirs, theirs).tolist() == [100] * 6


def test_ssim_is_that_of_torchmetrics_and_1_for_equal_images():
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    theirs = pictures(5, 0, 32)
    images = (theirs + 0.2 * pictures(5, 1, 32)).clamp(-1, 1)
    library = StructuralSimilarityIndexMeasure(data_range=2.0)
    ours = SSIM().compare(images, theirs)
    assert ours.mean().item() == pytest.approx(library(images, theirs).item(), rel=1e-6)
    assert SSIM().compare(theirs, theirs).tolist() == pytest.approx([1] * 5)
    assert SSIM().compare(images[:1], theirs[:1]).shape == (1,)


def test_ssim_refuses_what_its_windows_do_not_fit_in():
    with pytest.raises(ValueError, match="11 × 11"):
        SSIM().open(reference_of(None, (3, 8, 8)))


def test_ssim_without_torchmetrics_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stepdistill.evaluation.metrics.ssim.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install torchmetrics"):
        SSIM().open(reference_of(None, (3, 16, 16)))


@pytest.mark.parametrize("name", ["psnr", "ssim", "paired", "lpips_paired"])
def test_without_a_teacher_there_is_nothing_to_be_beside(name: str, no_weights):
    reference = reference_of(None, (3, 12, 12))
    metric = opened(name, reference).fresh()
    metric.update(Made(pictures(3, 0, 12), None, None, reference))
    assert metric.compute() == [] and metric.score([[], []], None) is None


# LPIPS, with random weights in the official files


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where torchvision keeps weights; nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    distances._lpips_network.cache_clear()
    yield tmp_path / "hub" / "checkpoints"
    distances._lpips_network.cache_clear()


def write_weights(folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.squeezenet1_1()
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_metrics_are_those_of_the_library(weights: Path):
    import lpips

    write_weights(weights)
    library = lpips.LPIPS(net="squeeze", verbose=False)
    images, theirs, labels = (
        pictures(6, 0, 64),
        pictures(6, 1, 64),
        torch.tensor([0, 0, 0, 1, 1, 2]),
    )
    images = (images * 127.5 + 127.5).round() / 127.5 - 1  # as saved
    reference = reference_of(None, (3, 64, 64))
    batch = Made(images, labels, theirs, reference)
    with torch.no_grad():
        expected = library(images, theirs).mean().item()
        pairs = [library(images[i : i + 1], images[j : j + 1]) for i, j in [(0, 1), (0, 2), (1, 2)]]
        first, second = torch.cat(pairs).mean().item(), library(images[3:4], images[4:5]).item()
    paired, diversity = LPIPSPaired(net="squeeze"), LPIPSDiversity(net="squeeze")
    for metric in (paired, diversity):
        metric.open(reference)
    assert value(paired, batch) == pytest.approx(expected, rel=1e-5)
    assert value(diversity, batch) == pytest.approx((first + second) / 2, rel=1e-5)
    assert value(paired, Made(images, labels, images, reference)) == 0
    few = LPIPSDiversity(net="squeeze", each=2)
    few.open(reference)
    assert value(few, batch) == pytest.approx((pairs[0].item() + second) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", [LPIPSPaired, LPIPSDiversity])
@pytest.mark.parametrize(
    "net, file", [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")]
)
def test_missing_weights_are_named_in_one_line(kind: type, net: str, file: str, weights: Path):
    with pytest.raises(ValueError) as raised:
        kind(net=net).open(reference_of(None, (3, 64, 64)))
    said = str(raised.value)
    for part in (file, " MB", f"https://download.pytorch.org/models/{file}", str(weights)):
        assert part in said
    assert "\n" not in said


# Pixel health


def test_saturation_is_the_share_that_is_clipped_beyond_the_real_ones():
    half = torch.ones(4, 1, 2, 2) * torch.tensor([1.0, -1.0, 0.0, 0.99]).view(1, 1, 2, 2)
    third = 0.9 * half
    reference = reference_of(half)
    metric = opened("saturation", reference)
    blocks = [[value(metric, Made(images, None, None, reference))] for images in (half, third)]
    assert blocks == [[0.5], [0.0]]
    assert metric.score(blocks, None).value == -0.25
    alone = opened("saturation", reference_of(None, (1, 2, 2)))
    assert alone.score([[0.5], [0.75]], [[0.25], [0.25]]).value == 0.375
    assert alone.score([[0.5], [0.75]], None) is None
    assert metric.better(-0.01, 0.02) and metric.better(0.01, -0.02)


def test_details_of_noise_a_chessboard_and_a_plain():
    noise = 0.1 * normal(400, 1, 8, 8)
    assert details(noise).mean().item() == pytest.approx(0.75 * 0.01, rel=0.03)
    board = ((torch.arange(6)[:, None] + torch.arange(6)) % 2 * 2 - 1).expand(1, 1, 6, 6)
    assert details(board).item() == 1
    assert details(torch.full((1, 3, 5, 5), 0.3)).item() == pytest.approx(0, abs=1e-12)
    assert details(board[..., :5, :5]).item() == 1


def test_high_frequency_is_the_ratio_of_noise_variances():
    real, made = 0.2 * normal(500, 1, 8, 8), 0.1 * normal(500, 1, 8, 8, seed=1)
    reference = reference_of(real.clamp(-1, 1).float())
    metric = opened("high_frequency", reference)
    block = value(metric, Made(made.float(), None, None, reference))
    assert metric.score([[block], [block]], None).value == pytest.approx(0.25, rel=0.03)
    alone = opened("high_frequency", reference_of(None, (1, 8, 8)))
    assert alone.score([[1.0], [3.0]], [[2.0], [2.0]]).value == 1
    assert metric.better(1.1, 0.8) and metric.better(0.9, 1.2)
    with pytest.raises(ValueError, match="no details"):
        opened("high_frequency", reference_of(torch.zeros(2, 1, 4, 4)))
    with pytest.raises(ValueError, match="2 × 2 pixels"):
        HighFrequency().open(reference_of(None, (1, 1, 9)))


@pytest.mark.parametrize("real", [True, False])
def test_channel_drift_finds_a_planted_shift_and_a_planted_contrast(real: bool):
    truth = 0.1 * normal(300, 3, 4, 4).float()
    std = truth[:, 1].double().std(correction=0).item()
    mean = truth[:, 1].double().mean().item()
    reference = reference_of(truth if real else None, (3, 4, 4))
    metric = opened("channel_drift", reference)
    shifted, bold = truth.clone(), truth.clone()
    shifted[:, 1] += 0.05
    bold[:, 1] = 1.5 * (truth[:, 1] - mean) + mean
    for images, expected in ((shifted, 0.05 / std), (bold, 0.5), (truth, 0)):
        found = value(metric, Made(images, None, truth, reference))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_channel_drift_needs_something_to_drift_from():
    metric = opened("channel_drift", reference_of(None, (3, 4, 4))).fresh()
    metric.update(Made(pictures(3, 0), None, None, reference_of(None, (3, 4, 4))))
    assert metric.compute() == []


# Patches


def test_patch_frechet_is_that_of_the_middles_and_blind_to_margins():
    real, made = pictures(40, 0, 6), pictures(40, 1, 6, 0.4)
    reference, middles = reference_of(real), reference_of(real[:, :, 2:4, 2:4])
    found = value(opened("patch_frechet", reference), Made(made, None, None, reference))
    cut = Made(made[:, :, 2:4, 2:4], None, None, middles)
    assert found == pytest.approx(value(opened("frechet", middles), cut), rel=1e-9)
    other = made.clone()
    other[:, :, :2] = 1
    assert value(opened("patch_frechet", reference), Made(other, None, None, reference)) == found
    with pytest.raises(ValueError, match="exceeds images"):
        PatchFrechet(crop=7, space="pixels").open(reference)
    assert isinstance(reference.space("pixels"), FeatureSpace)
