"""The digits classifier behind the space "domain-cnn", and the recipe of its committed weights.

    body  8×8 image → conv 16 → conv 32 stride 2 → conv 32 → 64 features, standardised, before ReLU
    head  ReLU → linear → 10 logits

25 epochs over 80 % of scikit-learn's digits, as `classifier.py` says; the held-out accuracy is in
the file's header.

    python -m stepdistill.evaluation.features.domain_cnn OUT.safetensors

writes the committed file again: byte for byte on a like machine, elsewhere up to rounding.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ...data.sources import digits
from ..classifier import (
    BATCH,
    DECAY,
    RATE,
    SMOOTHING,
    TRAIN_SHARE,
    Classifier,
    accuracy,
    convolution,
    fit,
    split,
)
from .space import FeatureSpace, Real

FEATURES, CLASSES = 64, 10
EPOCHS = 25
WEIGHTS = files("stepdistill") / "assets" / "digits-cnn.safetensors"


class DigitsCNN(Classifier):
    """Images (b, 1, 8, 8) in [−1, 1] → logits (b, 10); `body` alone gives the features (b, 64)."""

    def __init__(self) -> None:
        body = nn.Sequential(
            *convolution(1, 16, stride=1),
            *convolution(16, 32, stride=2),
            *convolution(32, 32, stride=1),
            nn.Flatten(),
            nn.Linear(32 * 16, FEATURES),
            nn.BatchNorm1d(FEATURES),
        )
        super().__init__(body, FEATURES, CLASSES)

    @property
    def space(self) -> FeatureSpace:
        """The space "domain-cnn" of this network."""
        return FeatureSpace("domain-cnn", self.body, "a small classifier of digits")


def load_domain_cnn() -> DigitsCNN:
    """The committed classifier, frozen."""
    net = DigitsCNN()
    with as_file(WEIGHTS) as path:
        net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


class DomainCNNSpace(FeatureSpace):
    """The space "domain-cnn"."""

    @classmethod
    def of(cls, real: Real) -> FeatureSpace:
        if real.size != digits.EVENT:
            raise ValueError(f"domain-cnn sees images {digits.EVENT}, not {real.size}")
        return load_domain_cnn().space


def train_domain_cnn(seed: int, epochs: int = EPOCHS) -> tuple[DigitsCNN, float]:
    """The recipe: a frozen classifier and its accuracy on the held-out 20 %, in seconds."""
    images, labels = digits.load()
    train, held_out = split(len(images), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DigitsCNN()
        fit(net, images, labels, train, epochs)
    return net, accuracy(net, images, labels, held_out)


def recipe(seed: int, held_out_accuracy: float) -> dict[str, str]:
    """What the safetensors header says about the weights, under the key "recipe" as JSON."""
    images, labels = digits.load()
    data = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes())
    return {
        "command": "python -m stepdistill.evaluation.features.domain_cnn",
        "settings": f"epochs {EPOCHS}, batch {BATCH}, AdamW one-cycle {RATE}, decay {DECAY}, "
        f"label smoothing {SMOOTHING}, train share {TRAIN_SHARE}",
        "seed": str(seed),
        "held_out_accuracy": f"{held_out_accuracy:.4f}",
        "data": "scikit-learn load_digits (UCI, CC BY 4.0)",
        "data_sha256": data.hexdigest(),
    }


def committed_recipe() -> dict[str, str]:
    """The header of the committed weights."""
    with as_file(WEIGHTS) as path, safe_open(path, "pt") as file:
        return json.loads(file.metadata()["recipe"])


def main(out: Path, seed: int = 0) -> None:
    """Train and write the weights with their recipe."""
    torch.set_num_threads(1)  # sums then run in one order
    net, held_out_accuracy = train_domain_cnn(seed)
    # One key, because safetensors writes several in random order.
    header = json.dumps(recipe(seed, held_out_accuracy), sort_keys=True)
    save_file(net.state_dict(), out, metadata={"recipe": header})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(
            "usage: python -m stepdistill.evaluation.features.domain_cnn OUT.safetensors"
        )
    main(Path(sys.argv[1]))
