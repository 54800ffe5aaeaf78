"""A small classifier of the reference's own classes: sees lost classes and blurred objects.

    body  image → conv 16 → conv 32 stride 2 → conv 64 stride 2 → 4×4 means → 64 features
    head  ReLU → linear → a logit for each class

At least STEPS steps over 80 % of the reference, as `classifier.py` says. It is trained where it is
first asked for and kept by the content of images and labels, so distances stay comparable on one
machine; its identity tells weights of two machines apart.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...files import save_whole
from ...resources import cache_folder
from ..classifier import BATCH, TRAIN_SHARE, Classifier, accuracy, convolution, fit, split
from ..gallery import Gallery, Images
from .space import FeatureSpace, Real

FEATURES, STEPS, SEED, RECIPE = 64, 900, 0, 1
FEWEST = 5  # images a class
RIGHT = "held_out_accuracy"  # beside the weights


class ClassesSpace(FeatureSpace):
    """The space "classes"."""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        if real.images is None or real.labels is None:
            raise ValueError("classes: the reference has no classes to tell apart")
        counts = real.labels.bincount()
        if len(counts) < 2 or int(counts.min()) < FEWEST:
            raise ValueError(f"classes: needs two classes, and {FEWEST} images in each")
        net, right = classifier(real.images, real.labels)
        about = f"a small classifier of the reference's classes, {right:.1%} right on held-out ones"
        return FeatureSpace("classes", net.body, about)


def classifier(images: Images, labels: Tensor) -> tuple[Classifier, float]:
    """The classifier of images (m, c, h, w) and labels (m,), frozen, and its held-out accuracy.

    Taken from the cache if it is there."""
    digest = hashlib.sha256(f"{RECIPE}{tuple(images.shape)}".encode())
    digest.update(images.digest.encode() if isinstance(images, Gallery) else content(images))
    digest.update(content(labels))
    folder = cache_folder()
    file = folder and folder / f"classes-{digest.hexdigest()[:32]}.safetensors"
    net = new(images.shape[1], int(labels.max()) + 1)
    known = file and kept(net, file)
    if known is not None:
        return net, known
    train, held_out = split(len(images), SEED)
    epochs = -(-STEPS // max(1, int(TRAIN_SHARE * len(images)) // BATCH))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        fit(net, images, labels, train, epochs)
    right = accuracy(net, images, labels, held_out)
    if file:
        keep(net, right, file)
    return net, right


def content(tensor: Tensor) -> bytes:
    """All its numbers."""
    return tensor.contiguous().numpy().tobytes()


def new(channels: int, classes: int) -> Classifier:
    """Seeded, not trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        body = nn.Sequential(
            *convolution(channels, 16, stride=1),
            *convolution(16, 32, stride=2),
            *convolution(32, 64, stride=2),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64 * 16, FEATURES),
            nn.BatchNorm1d(FEATURES),
        )
        return Classifier(body, FEATURES, classes)


def kept(net: Classifier, file: Path) -> float | None:
    """Load a network from the cache: its held-out accuracy; None where it is not there, or
    damaged."""
    try:
        state = load_file(file)
        right = float(state.pop(RIGHT))
        net.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError, LookupError):
        return None
    net.eval().requires_grad_(False)
    return right


def keep(net: Classifier, right: float, file: Path) -> None:
    """Put a network into the cache; where that cannot be written it is trained again."""
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_whole(file, net.state_dict() | {RIGHT: torch.tensor(right)})
