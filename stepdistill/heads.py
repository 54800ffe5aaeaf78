"""Realness heads: from the features of a block of the critic's network to one logit a sample."""

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
        groups = max(channels // GROUP, 1)
        while channels % groups:
            groups -= 1
        return [convolution, nn.GroupNorm(groups, channels), nn.SiLU()]


def head_for(features: Tensor) -> nn.Module:
    """A head for features like these, (b, c, h, w) or (b, c), with torch's random weights.

    Raises ValueError for features of another shape."""
    if features.ndim == 2:
        width = features.shape[1]
        return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
    if features.ndim != 4:
        raise ValueError(f"a realness head needs features (b, c[, h, w]), got {features.ndim} axes")
    return ConvHead(*features.shape[1:])
