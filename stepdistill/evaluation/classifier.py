"""Small classifiers behind spaces of features: a body whose features are compared, and a head.

    body  convolutions → … → d features, standardised, before ReLU
    head  ReLU → linear → logits

Cross-entropy with label smoothing 0.1, AdamW, one learning-rate cycle, over a random 80 % of the
images; the other 20 % give the held-out accuracy. Features are taken before the last ReLU: closer
to the Gaussian that a Fréchet distance assumes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .gallery import Images, at_once

BATCH, RATE, DECAY, SMOOTHING, TRAIN_SHARE = 64, 3e-3, 0.05, 0.1, 0.8


class Classifier(nn.Module):
    """Images (b, c, h, w) in [−1, 1] → logits (b, classes); `body` alone gives the features."""

    def __init__(self, body: nn.Sequential, features: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(features, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def convolution(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    """3×3, standardised, ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def fit(net: Classifier, images: Images, labels: Tensor, among: Tensor, epochs: int) -> None:
    """Train a network in place on the images of these numbers, its randomness torch's own; frozen
    and in eval mode afterwards."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    steps = epochs * -(-len(among) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(epochs):
        for rows in among[torch.randperm(len(among))].split(BATCH):
            if len(rows) == 1:  # has no deviation to be standardised by
                continue
            optimiser.zero_grad()
            loss = cross_entropy(net(images[rows]), labels[rows], label_smoothing=SMOOTHING)
            loss.backward()
            optimiser.step()
            rate.step()
    net.eval().requires_grad_(False)


def split(total: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the images trained on (80 %) and held out (20 %)."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order.tensor_split([int(TRAIN_SHARE * total)])


@torch.no_grad()
def accuracy(net: Classifier, images: Images, labels: Tensor, among: Tensor) -> float:
    """Share of the images of these numbers whose largest logit is their label's."""
    parts = among.split(at_once(images.shape[1:]))
    right = [net(images[rows]).argmax(1) == labels[rows] for rows in parts]
    return torch.cat(right).double().mean().item()
