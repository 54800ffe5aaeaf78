"""Inception-v3 as FID has it (Heusel et al. 2017, arXiv 1706.08500), in the flavours people quote.

    8-bit levels u = round(127.5 (x + 1))  →  resize to 299 × 299  →  (u − 128) / 128  →  Inception
    φ = means over the last feature map, 2,048 numbers          logits = W φ, 1,008 classes

The flavours differ in the resize alone, and by whole points of FID; each is a file of `features/`.
Network and weights are torch-fidelity's, a conversion of TensorFlow's of 2015. W has no bias, as
the Inception score has it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import tensors_only
from .weights import File, fast_device, find_file, require_extra, unfit

SIDE, BATCH = 299, 32
FILE = File(
    "weights-inception-2015-12-05-6726825d.pth",
    95.6,
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    also=("pt_inception-2015-12-05-6726825d.pth",),  # as pytorch-fid and clean-fid call it
)
Resize = Callable[[Tensor], Tensor]  # levels (b, 3, h, w) in 0..255 → (b, 3, 299, 299), float32


class Inception(nn.Module):
    """Images (b, 1 or 3, h, w) in [−1, 1] → features (b, 2048); `head` → logits (b, 1008)."""

    def __init__(self, layers: list[nn.Module], resize: Resize) -> None:
        super().__init__()
        *body, last = layers  # torch-fidelity lists them in the order in which it calls them
        self.body = nn.Sequential(*body, nn.Flatten())
        self.head = nn.Linear(last.in_features, last.out_features, bias=False)
        self.head.weight = last.weight
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        return self.body((self.resize(levels(images)) - 128) / 128)


def inception(resize: Resize, channels: int, given: str = "") -> Inception:
    """The network of a flavour, for images of so many channels. given: a file of weights to be
    taken instead of FID's.

    Raises Unavailable where libraries or weights are missing, ValueError for other than grey or
    RGB images."""
    if channels not in (1, 3):
        raise ValueError(f"Inception sees grey or RGB images, not {channels} channels")
    require_extra("fid", "torch_fidelity", "cleanfid")
    return load(find_file(FILE, given), resize)


def load(path: Path, resize: Resize) -> Inception:
    """torch-fidelity's network with the weights of a file, frozen; nothing is unpickled."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        with tensors_only():
            net = FeatureExtractorInceptionV3(FILE.name, ["2048"], str(path))
    except Exception as error:  # a torn file, another network, a program: each fails otherwise
        raise unfit(path, "weights of FID's Inception", error) from error
    network = Inception(list(net.children()), resize).to(fast_device())
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def levels(images: Tensor) -> Tensor:
    """Images in [−1, 1] as a file of 8 bits holds them, 0..255, in RGB."""
    return (images + 1).mul(127.5).round().expand(-1, 3, -1, -1)
