"""A pipeline's folder that somebody else made: where it lies, and what may lie in it.

Whatever is opened is a regular file of the folder, so that nothing waits for a pipe, reads a device
without end or follows a link out of it; JSON is short; weights are safetensors, and nothing else.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import read_text
from ..resources import PACKAGE
from ..schema import did_you_mean, shown
from .hub import INDEX, LEFT_OUT, hub_folder, is_id

WEIGHTS = "diffusion_pytorch_model"
ENCODER_WEIGHTS = "model"  # as transformers calls them
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def pipeline_folder(source: str, file: str = INDEX) -> Path:
    """Where a shipped teacher or a pipeline lies, as a file in it tells; one of the hub if it is on
    this machine, or may be fetched. Raises ValueError if `source` is none of these, or a bare name
    that is both a shipped one and a folder."""
    teachers, own = PACKAGE / "assets", Path(source)
    bare = own.name == source
    shipped = bare and (teachers / source / file).is_file()
    if (own / file).is_file():
        if shipped and own.resolve() != (teachers / source).resolve():
            raise ValueError(
                f"{shown(source)}: a shipped teacher and a folder here: write ./{source} for the "
                "folder, or rename it"
            )
        return own
    if shipped:
        return teachers / source
    if is_id(source):
        return hub_folder(source)
    known = sorted(p.parent.name for p in teachers.glob(f"*/{INDEX}"))
    advice = did_you_mean(source, known)
    raise ValueError(
        f"{shown(source)}: neither a shipped teacher ({', '.join(known)}) nor a folder "
        f"with {file}{advice}"
    )


def not_there(folder: Path) -> dict[str, None]:
    """Parts that make no picture, that the index of a pipeline names, and that are not there."""
    index = read_json(folder / INDEX)
    return {name: None for name in LEFT_OUT if name in index and not (folder / name).is_dir()}


def require_own_files(folder: Path) -> None:
    """Raise ValueError unless every file of a pipeline's folder and of its parts is regular and
    lies inside, or where Hugging Face's cache keeps the files of its snapshots, and every index of
    weights names such files alone."""
    for file in sorted([*folder.iterdir(), *folder.glob("*/*")]):
        target = file.resolve()
        if target.is_dir() and not file.is_symlink():
            continue
        if not target.is_file():
            raise ValueError(f"{file}: not a regular file")
        inside = target.is_relative_to(folder.resolve())
        if not (inside or target.is_relative_to(cache_of(folder))):
            raise ValueError(f"{file}: a link out of the folder: copy the file there")
    for index in sorted(folder.glob("*/*.index*.json")):
        require_shards(index)


def cache_of(folder: Path) -> Path:
    """Where the files of a snapshot of Hugging Face's cache lie; the folder itself for others."""
    place = folder.resolve()
    return place.parents[1] / "blobs" if place.parent.name == "snapshots" else place


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ValueError naming the file if there is none."""
    try:
        values = json.loads(read_text(file))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: must hold a mapping, not {shown(values)}")
    return values


def require_weights(folder: Path, stem: str = WEIGHTS) -> str | None:
    """The variant of the weights in a folder, like "fp16"; None for the plain ones. stem: what
    their files are called.

    Raises ValueError unless they are whole safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLED]
    if not files and pickled:
        raise ValueError(
            f"{folder / pickled[0]}: pickled weights are never loaded; convert to safetensors"
        )
    if not files:
        raise ValueError(f"{folder}: no weights (*.safetensors)")
    for file in files:
        require_whole(file)
    return variant_of(folder, files, stem)


def require_whole(file: Path) -> None:
    """Raise ValueError for a damaged file of weights."""
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: damaged or incomplete ({error}); copy it again") from error


def require_shards(index: Path) -> None:
    """Raise ValueError if an index of safetensors names anything else than such files beside it."""
    if ".safetensors." not in index.name:
        return  # of pickled weights, which are never looked at
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{index}: no weight_map")
    for shard in named.values():
        if not isinstance(shard, str) or os.path.basename(shard) != shard:
            raise ValueError(f"{index}: names {shown(shard)}, no file beside it")
        if not shard.endswith(".safetensors"):
            raise ValueError(f"{index}: names {shown(shard)}, which is not safetensors")
        if not (index.parent / shard).is_file():
            raise ValueError(f"{index}: names {shown(shard)}, which is missing")


def variant_of(folder: Path, files: list[Path], stem: str) -> str | None:
    """The one variant of the weights in a folder, None where there are plain ones."""
    plain = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
    if any((folder / name).is_file() for name in plain):
        return None
    # NAME.fp16.safetensors, or NAME.safetensors.index.fp16.json and its shards.
    whole = {f.name.split(".")[1] for f in files if f.match(f"{stem}.*.safetensors")}
    split = {f.name.split(".")[3] for f in folder.glob(f"{stem}.safetensors.index.*.json")}
    found = sorted({name for name in whole if "-of-" not in name} | split)
    if len(found) == 1:
        return found[0]
    here = ", ".join(f.name for f in files[:4])
    raise ValueError(f"{folder}: no {plain[0]}, but {here}: rename the one to be loaded")
