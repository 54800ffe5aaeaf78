"""A diffusers pipeline as a frozen denoiser, what methods distil."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from torch import Tensor, nn

from ..denoiser import AnyDenoiser, Cond, Denoiser, Guided
from ..process import VariancePreserving
from ..schema import shown
from ..solver import Sampler
from ..times import Grid
from .backbones.unet2d import BLOCK, EMBEDDING, call_labelled, places
from .loading import foreign
from .schedulers import is_flow, process_of

LARGEST = 1024  # height or width of a network's samples


@dataclass(frozen=True)
class Teacher:
    """A frozen denoiser and the pipeline it came from.

    denoiser: conditional, without guidance. guided: with guidance w, what methods distil.
    event: shape of one sample (c, h, w). classes: number of labels, None if unconditional.
    """

    denoiser: Denoiser
    guided: AnyDenoiser
    pipeline: DiffusionPipeline
    w: float
    event: tuple[int, ...]
    classes: int | None

    @classmethod
    def from_pipeline(cls, pipeline: DiffusionPipeline, w: float = 1.0) -> "Teacher":
        """w: guidance in u + w(c − u), 1 neutral.

        Raises ValueError for networks or schedulers nobody taught this toolkit, and for guidance
        on an unconditional teacher."""
        net = pipeline.unet if "unet" in pipeline.components else None
        if not isinstance(net, UNet2DModel):
            raise ValueError(
                f"{type(pipeline).__name__}: its network is not of a known class (UNet2DModel)"
            )
        net.eval().requires_grad_(False)
        process, prediction = process_of(pipeline.scheduler)
        scheduler = pipeline.scheduler
        scale = float(scheduler.config.num_train_timesteps) if is_flow(scheduler) else 1.0
        denoiser = Denoiser(
            net,
            process,
            prediction,
            call_labelled,
            scale,
            block=BLOCK,
            embedding=EMBEDDING,
            places=places(net),
        )
        labels = net.config.num_class_embeds
        if labels is not None and labels < 2:
            raise ValueError(f"num_class_embeds {labels}: needs a class and the empty label")
        if labels is None and w != 1:
            raise ValueError(f"guidance {w:g} needs a class-conditional teacher: use guidance 1")
        guided = Guided(denoiser, w, null_of(labels)) if labels else denoiser
        classes = None if labels is None else labels - 1
        event = (net.config.in_channels, *sides(net.config.sample_size))
        require_answer(denoiser, event, classes)
        return cls(denoiser, guided, pipeline, w, event, classes)

    def with_net(self, net: nn.Module) -> "Teacher":
        """The same teacher seen through `net`, a view of its network."""
        denoiser = replace(self.denoiser, net=net)
        if isinstance(self.guided, Guided):
            return replace(self, denoiser=denoiser, guided=replace(self.guided, denoiser=denoiser))
        return replace(self, denoiser=denoiser, guided=denoiser)

    @property
    def nfe(self) -> int:
        """Network evaluations per step of the guided teacher: guidance counts twice."""
        return 2 if isinstance(self.guided, Guided) and self.w != 1 else 1

    def labels(self, n: int) -> Tensor | None:
        """n labels, each class equally often, or None if unconditional."""
        return None if self.classes is None else torch.arange(n) % self.classes


def sides(size: object) -> tuple[int, int]:
    """Height and width of a network's samples. Raises ValueError if its config does not say."""
    pair = (size, size) if isinstance(size, int) else size
    numbers = isinstance(pair, list | tuple) and [type(n) for n in pair] == [int, int]
    if not numbers or not all(1 <= n <= LARGEST for n in pair):
        raise ValueError(f"the network's sample_size is {shown(size)}: needs 1 to {LARGEST} pixels")
    return tuple(pair)


def require_answer(denoiser: Denoiser, event: tuple[int, ...], classes: int | None) -> None:
    """Raise ValueError unless the network maps a sample (1, *event) to finite numbers like it."""
    parameter = next(denoiser.net.parameters())
    x = torch.zeros(1, *event, dtype=parameter.dtype, device=parameter.device)
    label = None if classes is None else torch.zeros(1, dtype=torch.long, device=x.device)
    middle = torch.tensor([denoiser.process.t_max / 2], dtype=torch.float64)
    with foreign("the network"), torch.no_grad():
        answer = denoiser(x, middle, label)
    if answer.raw.shape != x.shape or not answer.raw.isfinite().all():
        raise ValueError(f"the network maps {event} to another shape, or to nothing finite")


def teacher_sampler(teacher: Teacher) -> Sampler:
    """Deterministic, any number of steps, at whole timesteps where the process is a table."""
    table = isinstance(teacher.denoiser.process, VariancePreserving)
    return Sampler((), Grid("trailing" if table else "uniform"), gamma=0.0)


def null_of(labels: int | None) -> Callable[[Cond], Cond]:
    """Maps labels (b,) to the last one, which stands for no class."""
    return lambda cond: torch.full_like(cond, labels - 1)
