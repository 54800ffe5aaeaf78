"""Any diffusers pipeline's images, called as its users call it and kept on the disk.

    IMAGES/KEY/about.json     of what they are, and what was asked: the key is its hash
    IMAGES/KEY/000123.png     the image of the evaluation's request 123

An image depends on its request and on the batch it is made in, whose composition is fixed, so that
a stopped evaluation, or one by several processes, comes to the same files. Where a pipeline draws
from torch's global generator (diffusers hands `generator` to fewer schedulers than it takes),
images are made one at a time, with that generator seeded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..evaluation.collection import Collection, save, write
from ..evaluation.evaluate import Request, Requests, Sampled
from ..evaluation.reference import Asked, Kind
from ..evaluation.rows import STUDENT
from ..files import read_text, write_whole
from ..files import sha256 as hash_of
from ..schema import ConfigError
from ..teachers.folder import not_there, require_own_files
from ..teachers.loading import FEW_STEP, foreign
from .costs import NETWORKS, parts_of

KEPT = 20 * 10**9  # bytes of a model's images
FAILED = "failed.txt"  # beside a model's images: why the rest is missing


class CallFailed(ConfigError):
    """A pipeline that raises, or gives no finite images, when it is called as it should be."""


@dataclass(frozen=True)
class Call:
    """How a pipeline is called. steps, guidance: None for its own defaults."""

    steps: int | None = None
    guidance: float | None = None


class Probe(NamedTuple):
    """image: (1, c, h, w) uint8. nfe: the network evaluations it takes, calls: in how many calls.
    seeded: whether its generator alone decides it, and not torch's global one."""

    image: Tensor
    nfe: int
    calls: int
    seeded: bool


@dataclass(frozen=True, eq=False)
class Foreign:
    """A pipeline of diffusers, or of others', in a folder.

    asks: the argument that says what is asked for, None where nothing can be."""

    folder: Path
    pipeline: DiffusionPipeline
    call: Call
    asks: str | None

    @classmethod
    def of(cls, folder: Path, call: Call, trust: bool = False) -> "Foreign":
        """Raises ConfigError for a folder that cannot be loaded, or that has code unasked."""
        code = sorted(str(path.relative_to(folder)) for path in folder.glob("**/*.py"))
        if code and not trust:
            raise ConfigError(
                f"{folder}: has code of its own, {code[0]}, which is not run unasked: read it, and "
                "add --trust-remote-code"
            )
        try:
            require_own_files(folder)
            with foreign(folder):
                pipeline = DiffusionPipeline.from_pretrained(
                    folder,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=trust,
                    torch_dtype=torch.float32,  # else each part has that of its files
                    **not_there(folder),
                )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        pipeline.set_progress_bar_config(disable=True)
        if torch.accelerator.is_available():
            pipeline.to(torch.accelerator.current_accelerator())
        known = signature(pipeline.__call__).parameters
        asks = next((name for name in ("prompt", "class_labels") if name in known), None)
        return cls(folder, pipeline, call, asks)

    @property
    def network(self) -> nn.Module:
        """What is asked at every step. Raises ConfigError where there is none."""
        parts = self.pipeline.components
        found = next((parts[name] for name in NETWORKS if parts.get(name) is not None), None)
        if found is None:
            raise ConfigError(f"{self.folder}: none of {', '.join(NETWORKS)} is a part of it")
        return found

    @cached_property
    def kind(self) -> Kind:
        """Of its images. Raises ConfigError for a pipeline that makes none."""
        return Kind(tuple(self.probed.image.shape[1:]), self.classes, self.asks == "prompt")

    @property
    def classes(self) -> int | None:
        """How many labels it can be asked for."""
        if self.asks != "class_labels":
            return None
        config = self.network.config
        count = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
        own = type(self.pipeline).__name__ == FEW_STEP  # whose last label stands for no class
        return None if count is None else count - own

    @cached_property
    def probed(self) -> Probe:
        """What an image of nothing in particular shows."""
        asked = {"prompt": "", "class_labels": 0}.get(self.asks)
        sizes = []

        def seen(_module: nn.Module, args: tuple, given: dict, _output: Any) -> None:
            first = next(v for v in (*args, *given.values()) if isinstance(v, Tensor))
            sizes.append(len(first))

        before = torch.get_rng_state()
        hook = self.network.register_forward_hook(seen, with_kwargs=True)
        try:
            image = self.called([Request(asked, 0)])
        finally:
            hook.remove()
        return Probe(image, sum(sizes), len(sizes), torch.equal(torch.get_rng_state(), before))

    def made(self, requests: Sequence[Request]) -> Tensor:
        """Images (n, c, h, w) uint8 of requests, in one call if their seeds alone decide them."""
        if self.probed.seeded:
            return self.called(requests)
        alone = []
        for request in requests:
            torch.manual_seed(request.seed)
            alone.append(self.called([request]))
        return torch.cat(alone)

    def called(self, requests: Sequence[Request]) -> Tensor:
        """Images (n, c, h, w) uint8 of one call. Raises ConfigError where it fails."""
        given = self._arguments(requests)
        known = signature(self.pipeline.__call__).parameters
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            name = type(self.pipeline).__name__
            raise ConfigError(f"{self.folder}: {name} takes no {unknown[0]}: leave it out")
        try:
            images = self.pipeline(**given).images
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
            pixels = pixels.permute(0, 3, 1, 2)
        except Exception as error:  # anyone's code, which may raise anything
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise CallFailed(f"{self.folder}: its call fails: {words}") from error
        if not pixels.isfinite().all():
            raise CallFailed(f"{self.folder}: its images are not finite")
        return (pixels * 255).round().to(torch.uint8)

    def _arguments(self, requests: Sequence[Request]) -> dict[str, Any]:
        given = {
            "generator": [torch.Generator().manual_seed(r.seed) for r in requests],
            "num_inference_steps": self.call.steps,
            "guidance_scale": self.call.guidance,
            "output_type": "np",
        }
        if self.asks is not None:
            given[self.asks] = [request.asked for request in requests]
        # How many labels there are, consistency models have to be told.
        takes = "batch_size" in signature(self.pipeline.__call__).parameters
        if self.asks is None or (takes and self.asks == "class_labels"):
            given["batch_size"] = len(requests)
        return {name: value for name, value in given.items() if value is not None}

    @cached_property
    def hash(self) -> str:
        """Of all its files."""
        digest = sha256()
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(self.folder)}\n{hash_of(path)}\n".encode())
        return digest.hexdigest()


def about(model: Foreign, wanted: Requests) -> dict[str, Any]:
    """All that images depend on."""
    return {
        "pipeline": type(model.pipeline).__name__,
        "files": model.hash,
        "steps": model.call.steps,
        "guidance": model.call.guidance,
        "requests": sha256(json.dumps(wanted.each).encode()).hexdigest(),
        "images": len(wanted),
        "batch": [wanted.n, wanted.batch],
        "threads": torch.get_num_threads(),
        "device": str(model.pipeline.device),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
    }


def places(model: Foreign, wanted: Requests, store: Path) -> list[Path]:
    """Where the images of all requests lie, or will."""
    facts = json.dumps(about(model, wanted), sort_keys=True).encode()
    folder = store / sha256(facts).hexdigest()[:16]
    return [folder / f"{i:06d}.png" for i in range(len(wanted))]


def collect(
    model: Foreign,
    wanted: Requests,
    store: Path,
    part: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] = lambda made: None,
) -> Collection:
    """The images of all requests below `store`; those that are missing are made.

    part: which of how many processes this is; each makes every so many-th batch. advance(n) is
    called after n more images. Raises CallFailed, which is kept beside the images."""
    files = places(model, wanted, store)
    folder = files[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "about.json", json.dumps(about(model, wanted), indent=1))
    try:
        for number, rows in enumerate(wanted.batches()):
            if number % part[1] == part[0]:
                fill(files[rows], model, wanted.each[rows])
            advance(len(files[rows]))
    except CallFailed as error:
        write_whole(folder / FAILED, str(error))  # for the process that scores
        raise
    return Collection(files, None, tuple(model.kind.size[1:]))


def fill(files: Sequence[Path], model: Foreign, wanted: Sequence[Request]) -> None:
    """Make the images of these requests, unless all are there."""
    if all(file.is_file() for file in files):
        return
    for file, image in zip(files, model.made(wanted)):
        save(file, image)


def missing(kept: Collection) -> str:
    """Why images are missing that other processes should have made; nothing where none is."""
    file = kept.files[0].with_name(FAILED)
    if all(image.is_file() for image in kept.files):
        file.unlink(missing_ok=True)  # of an earlier try
        return ""
    return read_text(file) if file.is_file() else "another process did not make its images"


def too_many(model: Foreign, wanted: Requests) -> int:
    """Bytes of all images, if they are more than are kept, else 0."""
    file = BytesIO()
    write(file, model.probed.image[0])
    size = len(wanted) * len(file.getvalue())
    return size if size > KEPT else 0


def sampled(model: Foreign, wanted: Requests, kept: Collection | None) -> Sampled:
    """A row of a table. wanted: of it. kept: its images; None for those that are made when they
    are looked at."""

    def made(first: int, count: int) -> tuple[Tensor, Asked]:
        requests = wanted.each[first : first + count]
        asked = [request.asked for request in requests]
        if model.asks == "class_labels":
            asked = torch.tensor(asked)
        images = kept.images(first, count) if kept else model.made(requests).float() / 127.5 - 1
        return images, None if model.asks is None else asked

    def call(count: int) -> Tensor:
        return model.called([wanted.each[i % len(wanted)] for i in range(count)])

    nfe = model.probed.nfe
    steps = model.probed.calls if model.call.steps is None else model.call.steps
    parameters = sum(p.numel() for p in model.network.parameters())
    source, parts = str(model.folder), parts_of(model.pipeline)
    known = (source, made, model.kind, call, parts)
    return Sampled(STUDENT, steps, nfe, parameters, (), None, *known)
