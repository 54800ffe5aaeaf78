"""Pipelines of the hub, by OWNER/NAME@COMMIT: from its cache on this machine, and fetched only
where that is allowed.

A commit never changes, so a run means the same tomorrow. Of a pipeline only what is read here is
fetched: its index and card, configurations, tokens, and safetensors, the plain ones where variants
lie beside them. No code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from ..resources import DOWNLOADS
from ..schema import ConfigError

INDEX = "model_index.json"
ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<commit>[^/@]*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
READ = (".json", ".txt", ".model")  # beside weights
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # parts that make no picture
# Of NAME.safetensors, NAME.fp16.safetensors and NAME.fp16-00001-of-00002.safetensors.
VARIANT = re.compile(r"[^.]+\.(?P<variant>[^.-]+)(-\d+-of-\d+)?\.safetensors")


def is_id(source: str) -> bool:
    """Whether a source names a pipeline of the hub, and no path: with a commit, or where what it
    names may be fetched."""
    found = None if Path(source).exists() else ID.fullmatch(source)
    return found is not None and (found["commit"] is not None or DOWNLOADS.allowed)


def hub_folder(source: str) -> Path:
    """Where a pipeline of the hub lies on this machine.

    Raises ValueError where it does not and may not be fetched, where that fails, and for what is no
    commit."""
    found = ID.fullmatch(source)
    repo, commit = found["repo"], found["commit"] or ""
    if not COMMIT.fullmatch(commit):
        commit = commit_of(repo, commit)
        raise ValueError(f"{source}: of the hub, a commit is needed: {repo}@{commit}")
    index = try_to_load_from_cache(repo, INDEX, revision=commit)
    here = Path(index).parent if isinstance(index, str) else None
    if DOWNLOADS.allowed:
        try:
            return fetched(repo, commit)
        except ValueError:
            if here is None:
                raise
    if here is not None:
        return here
    raise ValueError(
        f"{source}: neither a folder nor in the cache of the hub: allow downloads (--download)"
    )


def located(source: Path) -> Path:
    """A path, or where the pipeline of the hub that it names lies. Raises ConfigError."""
    try:
        return hub_folder(str(source)) if is_id(str(source)) else source
    except ValueError as error:
        raise ConfigError(str(error)) from error


def commit_of(repo: str, revision: str) -> str:
    """The commit that a branch or a tag is at now, where that may be asked."""
    if not DOWNLOADS.allowed:
        return "COMMIT, 40 digits"
    with reached(repo):
        return str(HfApi().model_info(repo, revision=revision or None).sha)


@cache
def fetched(repo: str, commit: str) -> Path:
    """The folder of a pipeline, fetched as far as it is not there."""
    with reached(repo):
        files = HfApi().model_info(repo, revision=commit).siblings or []
        names = [file.rfilename for file in files]
        if INDEX not in names:
            raise ValueError(f"no {INDEX}, so no pipeline")
        return Path(snapshot_download(repo, revision=commit, allow_patterns=wanted(names)))


def wanted(names: Sequence[str]) -> list[str]:
    """The files of a repository that are read."""
    parts = [name for name in map(PurePosixPath, names) if len(name.parts) == 2]
    chosen = [name for name in (INDEX, "README.md") if name in names]
    for part in sorted({name.parent for name in parts} - {*map(PurePosixPath, LEFT_OUT)}):
        inside = [name for name in parts if name.parent == part]
        weights = [name for name in inside if name.suffix == ".safetensors"]
        plain = [name for name in weights if not VARIANT.fullmatch(name.name)]
        chosen += [str(name) for name in inside if name.suffix in READ]
        chosen += [str(name) for name in plain or weights]
    return chosen


@contextmanager
def reached(repo: str) -> Iterator[None]:
    """The hub at work: whatever it raises is a ValueError that names the pipeline."""
    try:
        yield
    except Exception as error:  # of a network, a server or a disk: there is no common kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{repo}: of the hub: {reason}") from error
