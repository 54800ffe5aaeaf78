"""What a family of diffusers pipelines may differ in: one class a family, one file of backbones/.

States stay unpacked, (b, c, [f,] h, w); packing them, positions, signs and units of the time are
the affair of `call` and `time`. A family is found by the class name of its pipeline, as methods are
found by theirs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..conditions import NOTHING, Cond
from ..denoiser import Weight, linear_guidance
from ..networks.taps import Taps
from ..resources import named, shipped_modules
from .codec import Codec, Size

Asked = Tensor | Sequence[str] | None  # labels (n,), prompts, or nothing


class Backbone(ABC):
    """A family of pipelines, bound to one of them.

    pipelines: names of the pipelines' classes. network: the component that is the network.
    time_embedding: path of the part that embeds the time, (b, width), where further inputs are
    added; empty for none. tap: path of the block that a critic's discriminator looks at.
    embedded: whether guidance is an input of the network, one evaluation, instead of two.
    prompted: whether it is asked by prompts. seeded: whether its pipeline hands its generator to
    its scheduler.
    """

    pipelines: ClassVar[tuple[str, ...]]
    network: ClassVar[str] = "transformer"
    time_embedding: ClassVar[str] = ""
    tap: ClassVar[str] = ""
    embedded: ClassVar[bool] = False
    prompted: ClassVar[bool] = False
    seeded: ClassVar[bool] = True

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline

    @property
    def net(self) -> nn.Module:
        return self.pipeline.components[self.network]

    @property
    def classes(self) -> int | None:
        """How many labels there are beside the empty one; None where conditions are no labels."""
        return None

    @property
    @abstractmethod
    def size(self) -> Size:
        """Height and width of the images it was trained for. Raises ValueError if it is unclear."""

    @abstractmethod
    def codec(self) -> Codec:
        """Between its states and images."""

    @abstractmethod
    def call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
        """The output (b, *event) of `net`, the network or a view of it.

        x: (b, *event), scaled. t: (b,) in the network's units. w: guidance, where it is an input, a
        number or (b,) on any device.
        """

    def time(self, t: Tensor) -> Tensor:
        """t of the process's clock in the network's units."""
        return t

    def to(self, device: torch.device) -> None:
        """Move what encodes conditions."""
        return None

    def reads_guidance(self, net: nn.Module) -> bool:
        """Whether guidance is an input of this network of the family."""
        return self.embedded

    def guidance_input(self) -> nn.Module | None:
        """What makes guidance an input that the pipeline itself gives; None where it gives none."""
        return None

    def encoding(self) -> Sequence[nn.Module]:
        """The networks that encode conditions."""
        return ()

    def encode(self, asked: Asked, size: Size) -> Cond:
        """The condition of labels or prompts, one row each; nothing for nothing."""
        return NOTHING

    def null(self, size: Size) -> Cond:
        """The empty condition, one row."""
        return NOTHING

    def guide(self, given: Tensor, free: Tensor, w: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """One raw output of two, (b, *event), at guidance w (b, 1, …)."""
        return linear_guidance(given, free, w, x_t, t)

    def taps(self) -> tuple[str, ...]:
        """Paths of the blocks that may be looked at and that adapters add to."""
        return (self.tap,) if self.tap else ()

    def features(self, output: Any, x: Tensor) -> Tensor:
        """A tapped block's output, of a network whose input was x, as (b, c, *positions)."""
        return output

    def read(self, *paths: str) -> Taps:
        """Taps at `paths`, by default at all."""
        return Taps(paths or self.taps(), self.features)


def backbone_of(pipeline: DiffusionPipeline, name: str | None = None) -> Backbone:
    """The family of a pipeline, by its class; or that of a module, by name.

    Raises ValueError if no shipped family knows the pipeline, and for a name that is none."""
    if name is not None:
        return named("teachers.backbones", name, Backbone)(pipeline)
    kind = type(pipeline).__name__
    for module in shipped_modules("teachers.backbones"):
        family = named("teachers.backbones", module, Backbone)
        if kind in family.pipelines:
            return family(pipeline)
    raise ValueError(f"{kind}: no family of pipelines knows it: give teacher.backbone, a module")
