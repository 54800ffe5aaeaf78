"""Distances between a guess and a goal, one number per sample.

l2             mean d²                              d = guess − goal, over the D elements
l1             mean |d|
huber          mean (√(d² + c²) − c)                LCM (arXiv:2310.04378), c = 0.001 there
pseudo_huber   √(Σ d² + c²) − c                     iCT (arXiv:2310.14189), c = 0.00054 √D
                                                     there; c = 0 is the plain norm
lpips          learned perceptual distance          (arXiv:1801.03924), images in [−1, 1];
                                                     smaller ones are enlarged to 64 × 64, by
                                                     CM's and CTM's codes to 224 × 224
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import Cond
from ..denoiser import Denoiser
from ..files import tensors_only

Distance = Literal["l2", "l1", "huber", "pseudo_huber", "lpips"]

Net = Literal["vgg", "alex", "squeeze"]


class Weights(NamedTuple):
    """A file of `SOURCE`, and its size."""

    file: str
    size: str


NETS: dict[Net, Weights] = {
    "vgg": Weights("vgg16-397923af.pth", "528 MB"),
    "alex": Weights("alexnet-owt-7be5be79.pth", "233 MB"),
    "squeeze": Weights("squeezenet1_1-b8a52dc0.pth", "5 MB"),
}
SOURCE = "https://download.pytorch.org/models/"
LPIPS_SIZE = 64  # the smallest side at which every trunk keeps a spatial map


def distance(name: Distance, guess: Tensor, goal: Tensor, c: float = 0.0) -> Tensor:
    """(b,) distances between samples (b, *event). c: of an element in "huber", else of the norm."""
    if name == "lpips":
        return lpips(guess, goal)
    d = (guess - goal).flatten(1)
    if name == "l2":
        return d.square().mean(1)
    if name == "l1":
        return d.abs().mean(1)
    if name == "huber":
        return ((d.square() + c * c).sqrt() - c).mean(1)
    if c == 0:
        return d.norm(dim=1)
    return (d.square().sum(1) + c * c).sqrt() - c


def require_weights(net: Net = "vgg") -> None:
    """Raise ValueError unless the weights that "lpips" needs lie where torchvision keeps them."""
    folder, (file, size) = Path(torch.hub.get_dir()) / "checkpoints", NETS[net]
    if not (folder / file).is_file():
        raise ValueError(
            f"distance 'lpips' needs torchvision's weights {file} ({size}, from {SOURCE}{file}): "
            f"not in {folder}, put them there"
        )


def lpips(guess: Tensor, goal: Tensor, net: Net = "vgg") -> Tensor:
    """(b,) learned perceptual distances between images (b, 1|3, h, w) in [−1, 1].

    net: the features compared. Raises ValueError for other shapes and where weights are missing."""
    if guess.ndim != 4 or guess.shape[1] not in (1, 3):
        raise ValueError(f"lpips compares images (b, 1|3, h, w), got {tuple(guess.shape)}")
    small = min(guess.shape[-2:]) < LPIPS_SIZE
    pair = [
        F.interpolate(x, size=(LPIPS_SIZE, LPIPS_SIZE), mode="bilinear") if small else x
        for x in (guess, goal)
    ]
    pair = [x.expand(-1, 3, -1, -1) for x in pair]
    return _lpips_network(net).to(guess.device)(*pair).flatten()


@lru_cache(maxsize=len(NETS))
def _lpips_network(net: Net) -> nn.Module:
    from lpips import LPIPS  # 1 s to import, and only this distance needs it

    require_weights(net)
    with tensors_only():  # torchvision would unpickle whatever the file holds
        return LPIPS(net=net, verbose=False).eval().requires_grad_(False)


LEAST_NORM = 1e-6


def feature_distance(denoiser: Denoiser, x: Tensor, y: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """(b,) distances between states (b, *event) at t (b,), in all of the denoiser's taps."""
    asked = t.clamp(min=denoiser.process.t_min)
    with denoiser.taps.open(denoiser.net) as seen:
        denoiser(x, asked, cond)
        denoiser(y, asked, cond)
    features = seen.features(x)
    half = len(features) // 2
    return torch.stack([apart(a, b) for a, b in zip(features[:half], features[half:])]).sum(0)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """(b,): the mean square distance of directions in channels, of features (b, c, *positions)."""
    a, b = (v.float() if v.dtype.itemsize < 4 else v for v in (a, b))
    a, b = (v / v.norm(dim=1, keepdim=True).clamp(min=LEAST_NORM) for v in (a, b))
    return (a - b).square().sum(1).flatten(1).mean(1)
