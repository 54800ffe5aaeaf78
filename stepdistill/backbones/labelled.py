"""diffusers' labelled networks (`UNet2DModel`, `DiTTransformer2DModel`): labels (b,), or none."""

from torch import Tensor, nn

from ..denoiser import Cond

BLOCK = "mid_block"  # where realness heads look: the bottleneck


def call_labelled(net: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The network's output, without a learned variance."""
    output = net(x, timestep=t, class_labels=cond, return_dict=False)[0]
    return output[:, : x.shape[1]]
