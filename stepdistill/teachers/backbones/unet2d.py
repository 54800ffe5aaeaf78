"""diffusers' labelled networks (`UNet2DModel`, `DiTTransformer2DModel`): labels (b,), or none."""

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ...denoiser import Cond

BLOCK = "mid_block"  # where realness heads look: the bottleneck
EMBEDDING = "time_embedding"  # what embeds the time: (b, width)


def call_labelled(net: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The network's output, without a learned variance."""
    output = net(x, timestep=t, class_labels=cond, return_dict=False)[0]
    return output[:, : x.shape[1]]


def places(net: nn.Module) -> tuple[str, ...]:
    """Paths of the blocks that guidance adapters add to: residual ones, and a DiT's attentions."""
    kinds = (ResnetBlock2D, Attention)
    return tuple(name for name, module in net.named_modules() if isinstance(module, kinds))
