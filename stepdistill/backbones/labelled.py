"""`UNet2DModel` and `DiTTransformer2DModel`: pixels or latents with class labels (b,), or none."""

import torch
from torch import Tensor, nn

from ..denoiser import Cond


def call_labelled(net: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The network's output, without a learned variance."""
    output = net(x, timestep=t, class_labels=cond, return_dict=False)[0]
    return output[:, : x.shape[1]]


def null_label(classes: int) -> "NullLabel":
    """Maps labels (b,) to the label that stands for no class: the one after the last."""
    return NullLabel(classes)


class NullLabel:
    def __init__(self, label: int) -> None:
        self.label = label

    def __call__(self, cond: Tensor) -> Tensor:
        return torch.full_like(cond, self.label)
