"""A discriminator's heads: from the features of blocks of a network to logits."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GROUP = 8  # channels normalised together: fewer say little where one pixel is left
LEFT = 4  # pixels a side at which one dense convolution ends


class ConvHead(nn.Sequential):
    """Halves the features until 4 pixels a side are left, then takes in all of them.

    (b, channels, height, width) → (b, 1, 1, 1), as in DMD2 (arXiv:2405.14867, appendix):
    [conv k4 s2 → group norm → SiLU]…, conv over what is left → group norm → SiLU → conv 1×1.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        layers: list[nn.Module] = []
        while min(height, width) > LEFT:
            layers += self._block(channels, nn.Conv2d(channels, channels, 4, stride=2, padding=1))
            height, width = height // 2, width // 2
        layers += self._block(channels, nn.Conv2d(channels, channels, (height, width)))
        super().__init__(*layers, nn.Conv2d(channels, 1, 1))

    @staticmethod
    def _block(channels: int, convolution: nn.Module) -> list[nn.Module]:
        return [convolution, nn.GroupNorm(groups_of(channels), channels), nn.SiLU()]


class Projection(nn.Module):
    """One logit a sample, from every position of features (b, channels, height, width) alike.

    As in the projected discriminators of LADD (arXiv:2403.12015), without their spectral norm.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = groups_of(channels)
        self.first = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.GroupNorm(groups, channels), nn.LeakyReLU(0.2)
        )
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular"),
            nn.GroupNorm(groups, channels),
            nn.LeakyReLU(0.2),
        )
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out(x + self.second(x)).flatten(1).mean(1, keepdim=True)


class PerFrame(nn.Module):
    """A head for planes on features (b, channels, frames, height, width): the frames' mean."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        planes = x.transpose(1, 2).flatten(0, 1)
        return self.head(planes).reshape(len(x), -1).mean(1, keepdim=True)


class Projections(nn.Module):
    """A head of its own for each of several features; logits (b, heads)."""

    def __init__(self, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            [projection_for(f) if f.ndim > 2 else head_for(f) for f in features]
        )

    def forward(self, *features: Tensor) -> Tensor:
        return torch.cat([head(f) for head, f in zip(self.heads, features)], 1)


def groups_of(channels: int) -> int:
    """How many groups of about GROUP channels divide them."""
    groups = max(channels // GROUP, 1)
    while channels % groups:
        groups -= 1
    return groups


def projection_for(features: Tensor) -> nn.Module:
    """A projection for features like these, (b, c, [frames,] h, w)."""
    head = Projection(features.shape[1])
    return PerFrame(head) if features.ndim == 5 else head


def head_for(features: Tensor) -> nn.Module:
    """A head for features like these, (b, c[, [frames,] h, w]), with torch's random weights.

    Raises ValueError for features of another shape."""
    if not isinstance(features, Tensor):
        raise ValueError("a head needs one tensor, its block puts out more: choose a part")
    if features.ndim == 2:
        width = features.shape[1]
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
    if features.ndim == 5:
        return PerFrame(head_for(features[:, :, 0]))
    if features.ndim != 4:
        axes = f"(b, c[, [frames,] h, w]), got {features.ndim} axes"
        raise ValueError(f"a discriminator's head needs features {axes}")
    return ConvHead(*features.shape[1:])
