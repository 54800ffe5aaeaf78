"""Images laid out as other people's scorers expect them, copied from what an evaluation made.

geneval     00000/metadata.jsonl, 00000/samples/0000.png     a folder a prompt, in order
compbench   samples/a red cat_000000.png                     T2I-CompBench: names are prompts
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from filecmp import cmp
from pathlib import Path
from typing import Literal

from ..data.prompts import LARGEST, read_prompts
from ..files import read_text, whole
from ..schema import ConfigError

Layout = Literal["geneval", "compbench"]
METADATA = "metadata.jsonl"
LONGEST = 200  # bytes of a name that is a prompt


def lay_out(
    layout: Layout, images: Sequence[Path], prompts: Sequence[str], out: Path, source: Path
) -> None:
    """Copy images, with a prompt each, to the folder `out`. source: the file of the prompts.

    Raises ConfigError as `planned` does."""
    copies = planned(layout, images, prompts, out, source)
    for number, row in enumerate(rows_of(source) if layout == "geneval" else ()):
        folder = out / f"{number:05d}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / METADATA).write_text(json.dumps(row) + "\n", encoding="utf-8")
    for name, image in copies.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with whole(out / name) as partial:
            shutil.copyfile(image, partial)


def planned(
    layout: Layout, images: Sequence[Path], prompts: Sequence[str], out: Path, source: Path
) -> dict[str, Path]:
    """Which image goes where below `out`; they need not be made yet.

    Raises ConfigError where `out` holds anything else, or where a prompt cannot be a name."""
    samples: dict[str, list[Path]] = {}
    for image, prompt in zip(images, prompts, strict=True):
        samples.setdefault(prompt, []).append(image)
    if layout == "geneval":
        copies = geneval(samples, rows_of(source))
    else:
        copies = compbench(samples)
    require_own(out, copies)
    return copies


def require_own(out: Path, copies: Mapping[str, Path]) -> None:
    """Raise ConfigError where a folder holds other images than those that are copied there."""
    for place in sorted(out.rglob("*.png")):
        image = copies.get(str(place.relative_to(out)))
        if image is None or not image.is_file() or not cmp(image, place, shallow=False):
            raise ConfigError(f"{out}: exists, with other images: remove it, or write elsewhere")


def geneval(samples: Mapping[str, list[Path]], rows: Sequence[dict]) -> dict[str, Path]:
    """What lies where in GenEval's layout (arXiv:2310.11513), whose metadata are lines of the
    prompts' file."""
    return {
        f"{number:05d}/samples/{k:04d}.png": image
        for number, row in enumerate(rows)
        for k, image in enumerate(samples.get(row["prompt"], ()))
    }


def rows_of(source: Path) -> list[dict]:
    """What the file of the prompts says of each, the prompt alone if it is a list of them."""
    if source.suffix.lower() != ".jsonl":
        return [{"prompt": prompt} for prompt in read_prompts(source)]
    lines = read_text(source, LARGEST).split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all("prompt" in row for row in rows):
        raise ConfigError(f"{source}: GenEval's lines have the key prompt")
    return rows


def compbench(samples: Mapping[str, list[Path]]) -> dict[str, Path]:
    """What lies where in T2I-CompBench's layout (arXiv:2307.06350). Raises ConfigError for a prompt
    that cannot be a name."""
    for prompt in samples:
        unfit = {"/", "\0"} & set(prompt) or len(prompt.encode()) > LONGEST
        if unfit:
            raise ConfigError(f"compbench names files by prompts, and cannot by {prompt[:60]!r}")
    return {
        f"samples/{prompt}_{number * len(images) + k:06d}.png": image
        for number, (prompt, images) in enumerate(samples.items())
        for k, image in enumerate(images)
    }
