"""A diffusers pipeline as a teacher: a frozen denoiser, a codec, and the conditions it takes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import cycle
from typing import Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..conditions import Cond, move, repeat
from ..denoiser import AnyDenoiser, Denoiser, Guided, evaluations, unguided
from ..networks.lora import base_tensors
from ..process import VariancePreserving
from ..resources import named
from ..solver import Sampler
from ..times import Grid
from .backbone import Asked, Backbone, backbone_of
from .codec import Codec, Size
from .loading import FEW_STEP, foreign
from .schedulers import FEW_STEP_SCHEDULER, clip_of, process_of
from .spacing import own_sampler


class Kept(Protocol):
    """Conditions of prompts that need not be encoded."""

    def rows(self, asked: Sequence[str]) -> Cond | None:
        """Of prompts; None where one of them is not kept."""
        ...


@dataclass(frozen=True)
class Teacher:
    """A frozen denoiser and the pipeline it came from.

    denoiser: conditional, without guidance, what students begin as. guided: with guidance w, what
    methods distil; x̂₀ is clipped where the pipeline's scheduler clips it. Students do without, for
    a clip has no gradient where it acts. size: height and width of its images. prompts: of a run,
    if it is asked by prompts. texts: their conditions, where these are kept. offload: whether text
    encoders and VAE stay where they are. away: the prompt that `guided` leads away from, None for
    the empty condition.
    """

    pipeline: DiffusionPipeline
    backbone: Backbone
    denoiser: Denoiser
    guided: AnyDenoiser
    codec: Codec
    w: float
    size: Size
    prompts: tuple[str, ...] = ()
    texts: Kept | None = None
    offload: bool = False
    away: str | None = None

    @classmethod
    def from_pipeline(
        cls,
        pipeline: DiffusionPipeline,
        w: float = 1.0,
        size: Size | None = None,
        backbone: str | None = None,
        codec: str | None = None,
    ) -> "Teacher":
        """w: guidance in u + w(c − u), 1 neutral. size: None for what the network was trained for.

        backbone, codec: names of modules, None for what the pipeline's class and its family say.
        Raises ValueError for pipelines of no known family and schedulers of no known process, for
        guidance on an unconditional teacher, and for a network that does not answer."""
        with understood(type(pipeline).__name__):
            family = backbone_of(pipeline, backbone)
        net = family.net.eval().requires_grad_(False)
        process, prediction = process_of(pipeline.scheduler)
        denoiser = Denoiser(net, process, prediction, family.call, family.time, family.read())
        clip = None if is_few_step(pipeline) else clip_of(pipeline.scheduler)
        asked = denoiser if clip is None else replace(denoiser, clip=clip)
        size = family.size if size is None else size
        with understood(type(pipeline).__name__):
            null = family.null(size)
        if not (null or family.embedded) and w != 1:
            raise ValueError(f"guidance {w:g} needs a class-conditional teacher: use guidance 1")
        made = family.codec() if codec is None else named("teachers", codec, Codec)(pipeline)
        guided = Guided(asked, w, null, family.guide) if null else asked
        if family.embedded:
            guided = replace(asked, w=w)
        teacher = cls(pipeline, family, denoiser, guided, made, w, size)
        require_answer(teacher)
        return teacher

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sample; a batch may have another."""
        return self.codec.event(self.size)

    @property
    def classes(self) -> int | None:
        """How many labels there are beside the empty one; None where conditions are no labels."""
        return self.backbone.classes

    @property
    def prompted(self) -> bool:
        """Whether it is asked by prompts."""
        return self.backbone.prompted

    def to(self, device: torch.device) -> None:
        """Move what makes conditions and pictures, not the network; nothing with `offload`."""
        if not self.offload:
            self.codec.to(device)
            self.backbone.to(device)

    @cached_property
    def null(self) -> Cond:
        """The empty condition, one row; nothing for a teacher that takes none."""
        return self.backbone.null(self.size)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.net.parameters()).device

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the base network's weights; roles on it do not count."""
        return digest_of(base_tensors(self.denoiser.net))

    @cached_property
    def encoders_hash(self) -> str:
        """SHA-256 of the weights of what encodes conditions."""
        numbered = enumerate(self.backbone.encoding())
        states = {f"{i}.{name}": v for i, net in numbered for name, v in net.state_dict().items()}
        return digest_of(states)

    @cached_property
    def codec_hash(self) -> str:
        """SHA-256 of the VAE, its settings and its weights; of nothing where there is none."""
        vae = self.pipeline.components.get("vae")
        if vae is None:
            return digest_of({})
        settings = {k: v for k, v in vae.config.items() if not k.startswith("_")}
        said = json.dumps(settings, sort_keys=True, default=str)
        return sha256((said + digest_of(vae.state_dict())).encode()).hexdigest()

    @cached_property
    def prompts_hash(self) -> str:
        """SHA-256 of the run's prompts, in order."""
        return sha256(json.dumps(self.prompts).encode()).hexdigest()

    def with_net(self, net: nn.Module) -> "Teacher":
        """The same teacher seen through `net`, a view of its network."""
        asked = replace(unguided(self.guided), net=net)
        two = isinstance(self.guided, Guided)
        guided = replace(self.guided, denoiser=asked) if two else asked
        return replace(self, denoiser=replace(self.denoiser, net=net), guided=guided)

    @property
    def nfe(self) -> int:
        """Network evaluations per step of the guided teacher: guidance counts twice."""
        return evaluations(self.guided)

    def asked(self, n: int) -> Asked:
        """What n fixed rows are asked for: labels or prompts in turn, or None."""
        if self.prompted:
            return [prompt for prompt, _ in zip(cycle(self.prompts or ("",)), range(n))]
        return None if self.classes is None else torch.arange(n) % self.classes

    def drawn(self, n: int, generator: torch.Generator) -> Asked:
        """What n rows are asked for at random: labels or prompts, all equally often, or None."""
        count = len(self.prompts) if self.prompted else self.classes
        if not count:
            return None
        index = torch.randint(count, (n,), generator=generator)
        return [self.prompts[i] for i in index.tolist()] if self.prompted else index

    def conditions(self, asked: Asked) -> Cond:
        """The condition of labels or prompts, one row each, on the network's device."""
        kept = None if self.texts is None else self.texts.rows(asked)
        return move(self.encode(asked) if kept is None else kept, self.device)

    def called_at(self, net: nn.Module) -> float:
        """The guidance_scale of a plain call of its pipeline around a student's network."""
        return self.w if self.backbone.reads_guidance(net) else 1.0

    def encode(self, asked: Asked) -> Cond:
        """The same, where it is encoded."""
        return self.backbone.encode(asked, self.size)

    def some(self, n: int) -> Cond:
        """n fixed rows; empty conditions where they are neither labels nor prompts."""
        asked = self.asked(n)
        if asked is None:
            return move(repeat(self.null, n), self.device)
        return self.conditions(asked)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors and their names."""
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def understood(name: str) -> Iterator[None]:
    """Make a ValueError of whatever parts that do not fit together raise."""
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:  # libraries index and add up before they look
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: its parts do not fit ({type(error).__name__}: {reason})"
        ) from error


def require_answer(teacher: Teacher) -> None:
    """Raise ValueError unless the network maps a sample (1, *event) to finite numbers like it."""
    denoiser = teacher.denoiser
    parameter = next(denoiser.net.parameters())
    with foreign("the network"), torch.no_grad():
        x = torch.zeros(1, *teacher.event, dtype=parameter.dtype, device=parameter.device)
        middle = torch.tensor([denoiser.process.t_max / 2], dtype=torch.float64)
        output = denoiser.output(x, middle, teacher.some(1))
    if output.shape != x.shape or not output.isfinite().all():
        shape = teacher.event
        raise ValueError(f"the network maps {shape} to another shape, or to nothing finite")


def is_few_step(pipeline: DiffusionPipeline) -> bool:
    """Whether it walks as `pipelines/` say: evenly in any number of steps, and without a clip."""
    names = type(pipeline).__name__, type(pipeline.scheduler).__name__
    return FEW_STEP in names or FEW_STEP_SCHEDULER in names


def teacher_sampler(teacher: Teacher) -> Sampler:
    """Deterministic, in any number of steps, at the times of the teacher's own pipeline."""
    scheduler, process = teacher.pipeline.scheduler, teacher.denoiser.process
    if not is_few_step(teacher.pipeline):
        return own_sampler(scheduler, process)
    if isinstance(process, VariancePreserving):
        return Sampler((), Grid("trailing"), gamma=0.0)
    shift = scheduler.config.get("shift", 1.0)
    grid = Grid("uniform") if shift == 1 else Grid("shifted", shift=shift)
    return Sampler((), grid, gamma=0.0)
