"""Pictures to try the README's "Your own images" with: 500 coloured shapes of 40×24 pixels.

    python eval/own_images.py photos [500]
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from stepdistill.data.loader import stream
from stepdistill.data.shapes import CLASSES, Scenes

WIDTH, HEIGHT = 40, 24


def main(folder: Path, n: int = 500) -> None:
    """Write n PNG files."""
    folder.mkdir(parents=True)
    images = Scenes.drawn(torch.arange(n) % CLASSES, stream(0, 2)).images(HEIGHT, WIDTH)
    pixels = ((images / 2 + 0.5) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:04}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
