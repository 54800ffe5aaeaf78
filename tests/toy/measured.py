"""Every metric, opened for small pictures of two classes whose pixels are their features."""

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stepdistill.evaluation.metric import Made, Metric
from stepdistill.evaluation.reference import Reader, Reference
from stepdistill.resources import named

FOLDER = Path(import_module("stepdistill.evaluation.metrics").__file__).parent
NETWORKS = {"clip_score", "inception_score"}  # need ones of their own
PROGRAMS = {"command"}  # starts one for every block
CAPTIONS = {"follows", "template_error", "unsaid"}  # of what they say: units/test_compositions.py
EVERY = {file.stem for file in FOLDER.glob("[!_]*.py")}
METRICS = sorted(EVERY - NETWORKS - PROGRAMS - CAPTIONS)
SIDES = {"ssim": 12}  # that its windows fit in
SETTINGS = {
    "lpips_diversity": {"each": 16},
    "patch_frechet": {"crop": 2},
    "same_picture": {"near": 0.5},
    "scorer": {"module": "brightness"},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pictures(n: int, seed: int, side: int = 4, shift: float = 0.0) -> Tensor:
    """Images (n, 3, side, side) in [−1, 1]."""
    return (0.5 * normal(n, 3, side, side, seed=seed) + shift).clamp(-1, 1).float()


def reference_of(images: Tensor | None, size: tuple[int, ...] | None = None) -> Reference:
    """Real images of two classes that a seeded linear reader tells apart by their pixels."""
    size = tuple(images.shape[1:]) if size is None else size
    head = nn.Linear(math.prod(size), 2)
    head.weight.data = normal(2, math.prod(size), seed=5).float()
    head.bias.data.zero_()
    return Reference(size, images=images, reader=Reader("pixels", head))


def forget_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root mean square difference instead of LPIPS, which needs weights."""
    for name in ("lpips_diversity", "lpips_paired"):
        module = import_module(f"stepdistill.evaluation.metrics.{name}")
        monkeypatch.setattr(module, "find_lpips", lambda net: None)
        monkeypatch.setattr(module, "lpips", root_mean_square)


def root_mean_square(x: Tensor, y: Tensor, net: str) -> Tensor:
    return (x - y).square().flatten(1).mean(1).sqrt()


def opened(name: str, reference: Reference, **settings: object) -> Metric:
    """A metric as a suite opens it."""
    metric = named("evaluation.metrics", name, Metric)(**SETTINGS.get(name, {}) | settings)
    metric.name = name
    if metric.space is not None:
        metric.space = "pixels"
    metric.open(reference)
    return metric


def values(metric: Metric, *batches: Made) -> list[float]:
    """What batches of one block give."""
    fresh = metric.fresh()
    for made in batches:
        fresh.update(made)
    return fresh.compute()


def value(metric: Metric, *batches: Made) -> float:
    """The one value of a block."""
    (found,) = values(metric, *batches)
    return found
