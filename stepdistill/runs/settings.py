"""The parts of a run's configuration: what is distilled, from what, how, and how it is judged."""

from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ..data.loader import Source
from ..data.prompts import read_prompts
from ..data.texts import DTypeName
from ..method import Method
from ..resources import named, shipped_modules
from ..schema import ConfigError, Decay, Range, Seed, Steps, Whole, did_you_mean, fit, shown
from ..training.trainer import Training

Side = Annotated[int, Range(1, 2**14)]
T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """An untrained network, for runs that make a teacher.

    unet: settings of a UNet2DModel, or with `parts` of a UNet2DConditionModel. transformer: of an
    SD3Transformer2DModel instead. parts: a shipped teacher or a folder of whose vae, text_encoder
    and tokenizer it makes a Stable Diffusion; of a transformer, of text_encoder_2 and tokenizer_2,
    too. scheduler: a class of diffusers, which fixes the noise process and the prediction. license:
    of the weights, for the model card.
    """

    license: str = "unknown"
    parts: str | None = None
    unet: dict[str, Any] = field(default_factory=dict)
    transformer: dict[str, Any] = field(default_factory=dict)
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    scheduler_config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherSettings:
    """What is distilled; a text alone is its path.

    path: a shipped teacher, a diffusers pipeline folder, or one of the hub as OWNER/NAME@COMMIT; or
    a file of safetensors, with `config`, one of those, for its configurations. size: height and
    width of its images, null for what it was trained for. backbone, codec: modules of your own in
    place of what the pipeline's class says, see `teachers/`. dtype: of a network that stays as it
    is under adapters in float32. offload: leave text encoders and VAE on the CPU.
    """

    path: str
    config: str | None = None
    size: tuple[Side, Side] | None = None
    backbone: str | None = None
    codec: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False

    shorthand = "path"

    def __str__(self) -> str:
        settings = {"config": self.config, "size": self.size}
        settings |= {"backbone": self.backbone, "codec": self.codec}
        settings["dtype"] = self.dtype if self.dtype != "float32" else None
        given = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
        return f"{self.path} ({given})" if given else self.path


@dataclass(frozen=True)
class DataSettings:
    """source: a file of data/sources, or an importable module, with its settings.

    dropout: the share of conditions replaced by the empty one. cache: a folder, of this run or
    shared, for what the VAE makes of each image in numbers of dtype, so that it runs once; null to
    run it in every step.
    """

    source: str = "digits"
    settings: dict[str, Any] = field(default_factory=dict)
    dropout: Decay = 0.0
    cache: str | None = None
    dtype: DTypeName = "float32"

    renamed = {"name": "source", "path": "settings.path"}

    def build(self) -> Source:
        """The source. Raises ConfigError for settings it lacks or refuses."""
        kind = part("data.sources", self.source, Source, "data.source")
        return fit(kind, self.settings, "data.settings")


@dataclass(frozen=True)
class Prompting:
    """file: of prompts, see `data.prompts`; a text alone is that. texts: the prompts themselves.

    cache: a folder, of this run or shared, for what encoders make of each in numbers of dtype, so
    that they run once; null to run them in every step.
    """

    file: str | None = None
    texts: tuple[str, ...] = ()
    cache: str | None = None
    dtype: DTypeName = "float32"

    shorthand = "file"

    def __post_init__(self) -> None:
        if (self.file is None) == (not self.texts):
            raise ValueError("set file or texts, one of them")

    def read(self) -> tuple[str, ...]:
        """All of them. Raises ConfigError for a file without any."""
        return self.texts or tuple(read_prompts(Path(str(self.file))))


@dataclass(frozen=True)
class Stage:
    """One method with its settings; it starts from the student of the stage before.

    teacher: the run's, or the last stage's student, at the guidance that is its input.
    """

    method: str = "consistency"
    settings: dict[str, Any] = field(default_factory=dict)
    training: Training = Training()
    teacher: Literal["run", "last"] = "run"

    def build(self, key: str = "stage") -> Method:
        """The method. Raises ConfigError, with `key`, for settings it lacks or refuses."""
        kind = part("methods", self.method, Method, f"{key}.method")
        return fit(kind, self.settings, f"{key}.settings")


@dataclass(frozen=True)
class Evaluation:
    """n fresh images in each of `blocks` seed blocks, for every number of steps listed.

    suite: a shipped one (eval/suites) or a YAML file, see `evaluation.suite`. reference: a folder
    of real images, or a published file .npz, for suites that need one, null for those that the data
    hold out.
    """

    suite: str = "digits"
    reference: str | None = None
    n: Annotated[int, Range(20, 10**6)] = 1000
    blocks: Annotated[int, Range(2, 1000)] = 3
    steps: tuple[Steps, ...] = (1,)
    teacher_steps: tuple[Steps, ...] = (1, 4, 32)
    seed: Seed = 1000


@dataclass(frozen=True)
class Validation:
    """Looks at the student while it is trained. every: student updates between pictures of it, 0
    for none. samples: in each row of them. metric: of the suite, by whose score over n images, at
    the fewest steps and beside the teacher at most, a checkpoint is the best; null for the distance
    to the teacher."""

    every: Whole = 0
    samples: Annotated[int, Range(1, 64)] = 6
    metric: str | None = None
    n: Annotated[int, Range(20, 10**5)] = 200


def part(room: str, name: str, base: type[T], key: str) -> type[T]:
    """A shipped part of a kind, or the one in an importable module, whose fields are its settings.

    Raises ConfigError naming `key`."""
    if not all(word.isidentifier() for word in name.split(".")):
        raise ConfigError(f"{key}: {shown(name)} is not the name of a module")
    try:
        kind = named(room, name, base)
    except Exception as error:  # importing runs whatever stands in the user's module
        advice = did_you_mean(name, shipped_modules(room))
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: {reason}{advice}") from error
    if not is_dataclass(kind):
        raise ConfigError(f"{key}: '{name}' needs @dataclass before its class")
    return kind
