"""The weights of LPIPS's networks, as those of other metrics: skipped where they are missing."""

from __future__ import annotations

from ..losses.distances import NETS, SOURCE, Net, require_weights
from ..resources import DOWNLOADS
from .weights import File, WeightsUnavailable, find_file


def find_lpips(net: Net) -> None:
    """Raises WeightsUnavailable where torchvision's weights are not, and may not be fetched."""
    file, size = NETS[net]
    if DOWNLOADS.allowed:
        find_file(File(file, float(size.split()[0]), SOURCE + file))
    try:
        require_weights(net)
    except ValueError as error:
        raise WeightsUnavailable(str(error)) from error
