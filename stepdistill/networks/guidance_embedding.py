"""The guidance as an input of a `UNet2DConditionModel`, where diffusers' pipelines give it to one.

    h(t) ← h(t) + P E(w − 1),    h the sines of the time, before the network's own layers

as LCM has it (arXiv:2310.04378) and `time_cond_proj_dim` says of a network: the stock pipeline then
makes one pass a step, whatever `guidance_scale`. P is zero at first.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

WIDTH = 256  # of the embedding, as LCM's
SCALE = 1000.0
PATH, PROJECTION = "time_embedding", "time_embedding.cond_proj.weight"


def embedded(w: float | Tensor, width: int, like: Tensor) -> Tensor:
    """E(w − 1), (b, width), of guidance w, a number or (b,); like: (b, …) of the network's."""
    # In the order in which pipelines round: thousands of radians make it visible.
    w = (torch.as_tensor(w, dtype=torch.float64) - 1).float().cpu().expand(len(like)) * SCALE
    pace = torch.log(torch.tensor(10_000.0)) / (width // 2 - 1)
    angles = w[:, None] * torch.exp(torch.arange(width // 2, dtype=torch.float32) * -pace)
    rows = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(rows, (0, width % 2)).to(like)


class GuidanceEmbedding(nn.Module):
    """P, for a network whose times have `channels` sines; an input of `WithInputs`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, channels, bias=False)
        nn.init.zeros_(self.proj.weight)

    def attach(
        self, net: nn.Module, t: Tensor, s: Tensor, w: Tensor, labels: Tensor | None
    ) -> list:
        """A hook on `net`, to be removed after the call that it is for; looks at w (b,) alone."""
        extra = self.proj(embedded(w, WIDTH, t[:, None].to(self.proj.weight)))

        def add(_module: nn.Module, given: tuple) -> tuple:
            return given[0] + extra.to(given[0].dtype), *given[1:]

        return [net.get_submodule(PATH).register_forward_pre_hook(add)]

    def folded(self, net: UNet2DConditionModel) -> UNet2DConditionModel:
        """A network of its own with this input, as diffusers has it."""
        settings = {key: value for key, value in net.config.items() if not key.startswith("_")}
        made = UNet2DConditionModel(**settings | {"time_cond_proj_dim": WIDTH})
        made.load_state_dict({**net.state_dict(), PROJECTION: self.proj.weight.detach()})
        like = next(net.parameters())
        return made.to(like.device, like.dtype).train(net.training).requires_grad_(False)
