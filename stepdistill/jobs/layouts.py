"""Images laid out as other people's scorers expect them, copied from what an evaluation made.

geneval     00000/metadata.jsonl, 00000/samples/0000.png     a folder a prompt, in order
compbench   samples/a red cat_000000.png                     T2I-CompBench: names are prompts
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..data.prompts import LARGEST, read_prompts
from ..files import read_text
from ..schema import ConfigError

Layout = Literal["geneval", "compbench"]
LONGEST = 200  # bytes of a name that is a prompt


def lay_out(
    layout: Layout, images: Sequence[Path], prompts: Sequence[str], out: Path, source: Path
) -> None:
    """Copy images, with a prompt each, to the new folder `out`. source: the file of the prompts.

    Raises ConfigError where `out` exists, or where a prompt cannot be a name."""
    if out.exists():
        raise ConfigError(f"{out}: exists: remove it, or write elsewhere")
    samples: dict[str, list[Path]] = {}
    for image, prompt in zip(images, prompts, strict=True):
        samples.setdefault(prompt, []).append(image)
    if layout == "geneval":
        geneval(samples, out, rows_of(source))
    else:
        compbench(samples, out)


def geneval(samples: dict[str, list[Path]], out: Path, rows: Sequence[dict]) -> None:
    """GenEval's layout (arXiv:2310.11513), whose metadata are lines of the prompts' file."""
    for number, row in enumerate(rows):
        folder = out / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        for k, image in enumerate(samples.get(row["prompt"], ())):
            shutil.copyfile(image, folder / "samples" / f"{k:04d}.png")


def rows_of(source: Path) -> list[dict]:
    """What the file of the prompts says of each, the prompt alone if it is a list of them."""
    if source.suffix.lower() != ".jsonl":
        return [{"prompt": prompt} for prompt in read_prompts(source)]
    lines = read_text(source, LARGEST).split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all("prompt" in row for row in rows):
        raise ConfigError(f"{source}: GenEval's lines have the key prompt")
    return rows


def compbench(samples: dict[str, list[Path]], out: Path) -> None:
    """The layout of T2I-CompBench (arXiv:2307.06350)."""
    for prompt in samples:
        unfit = {"/", "\0"} & set(prompt) or len(prompt.encode()) > LONGEST
        if unfit:
            raise ConfigError(f"compbench names files by prompts, and cannot by {prompt[:60]!r}")
    (out / "samples").mkdir(parents=True)
    for number, (prompt, images) in enumerate(samples.items()):
        for k, image in enumerate(images):
            name = f"{prompt}_{number * len(images) + k:06d}.png"
            shutil.copyfile(image, out / "samples" / name)
