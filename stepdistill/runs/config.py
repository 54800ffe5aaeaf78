"""A run as nested dataclasses, read from one complete YAML file and dotted overrides.

The dataclasses are the schema: unknown keys, wrong types, values out of range and settings that
contradict each other are refused with one line that names the key and what to write instead.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from diffusers import SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel

from ..data.loader import Source
from ..data.prompts import read_prompts
from ..data.texts import DTypeName
from ..data.trajectories import CacheSettings
from ..method import Method
from ..resources import is_shipped, named, shipped_modules
from ..schema import (
    ConfigError,
    Count,
    Decay,
    Range,
    Seed,
    Steps,
    Whole,
    did_you_mean,
    fit,
    require_known,
    shown,
)
from ..solver import Sampler
from ..teachers.bounds import CONDITIONED, SCHEDULER, SD3, UNET, require_bounds
from ..teachers.schedulers import scheduler_class
from ..training.health.settings import Health
from ..training.players import Adapters
from ..training.trainer import Optimiser, Training
from .yaml import find, load_values, written

GuidanceWeight = Annotated[float, Range(0, 1000)]
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
        settings = {"size": self.size, "backbone": self.backbone, "codec": self.codec}
        settings["dtype"] = self.dtype if self.dtype != "float32" else None
        given = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
        return f"{self.path} ({given})" if given else self.path


@dataclass(frozen=True)
class DataSettings:
    """source: a file of data/sources, or an importable module, with its settings.

    dropout: the share of conditions replaced by the empty one.
    """

    source: str = "digits"
    settings: dict[str, Any] = field(default_factory=dict)
    dropout: Decay = 0.0

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


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is.

    teacher: what is distilled; `network` instead makes a new one.
    student: the folder of an earlier student, or of its run, that the first stage begins from;
    null for the teacher itself.
    guidance: w in u + w(c − u), 1 neutral.  save_every: student updates between checkpoints.
    prompts: what a teacher of text is asked where no data say so; null for the source's captions.
    adapters: student, critic and target as low-rank roles on the teacher's network; null for full
    copies.  checkpointing: recompute the networks' blocks in the backward, to save memory.
    attention: what computes it, see `networks.attention`; null for what diffusers has it by.
    keep: checkpoints kept besides the best. cache: trajectories of the teacher, for methods that
    are trained on them.
    """

    name: str = "run"
    seed: Seed = 0
    teacher: TeacherSettings | None = None
    network: Network | None = None
    student: str | None = None
    guidance: GuidanceWeight = 1.0
    data: DataSettings = DataSettings()
    prompts: Prompting | None = None
    cache: CacheSettings | None = None
    stages: list[Stage] = field(default_factory=list)
    adapters: Adapters | None = None
    checkpointing: bool = False
    attention: str | None = None
    sampler: Sampler = Sampler()
    evaluation: Evaluation = Evaluation()
    validation: Validation = Validation()
    health: Health = Health()
    precision: Literal["fp32", "bf16"] = "fp32"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    save_every: Count = 500
    keep: Count = 2
    log_every: Count = 20


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


def read(source: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The run of a YAML file, or of a shipped name, with `key=value` overrides.

    Raises ConfigError for anything that cannot be run."""
    path = find(source)
    with labelled(source if path == Path(source) else path.name):
        run = values_of(path, overrides)
        check(run)
    return run


def received(path: Path, trusted: Collection[str] = ()) -> RunConfig:
    """The run of a run folder's file, which may be anyone's.

    Raises ConfigError, and imports nothing, where it names a module that is neither shipped nor
    among `trusted`; and for anything that cannot be run."""
    with labelled(str(path)):
        run = values_of(path)
        for key, room, name in modules_of(run):
            if not is_shipped(room, name) and name not in trusted:
                raise ConfigError(
                    f"{key}: {shown(name)} is not shipped, and a run's folder runs no code "
                    f"unasked: if it is yours, add --trust-method {name}"
                )
        check(run)
    return run


def values_of(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The run of a file, before its parts are looked for. Raises ConfigError."""
    return fit(RunConfig, load_values(path, overrides))


def modules_of(run: RunConfig) -> Iterator[tuple[str, str, str]]:
    """The key, room and name of every module that a run names."""
    for i, stage in enumerate(run.stages):
        yield f"stages.{i}.method", "methods", stage.method
    yield "data.source", "data.sources", run.data.source
    if run.teacher is not None and run.teacher.backbone is not None:
        yield "teacher.backbone", "teachers.backbones", run.teacher.backbone
    if run.teacher is not None and run.teacher.codec is not None:
        yield "teacher.codec", "teachers", run.teacher.codec


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Put a label before whatever is refused."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from error


def text_of(run: RunConfig) -> str:
    """The resolved run as YAML, every key written out."""
    return written(asdict(run))


def check(run: RunConfig) -> None:
    """Raise ConfigError for settings that contradict each other."""
    for problem in _contradictions(run):
        raise ConfigError(problem)


def _contradictions(run: RunConfig) -> Iterator[str]:
    try:
        find(run.evaluation.suite, "eval/suites", "suite")
    except ConfigError as error:
        yield f"evaluation.suite: {error}"
    if run.name[0] in ".-" or {"/", "\\"} & set(run.name) or len(run.name.encode()) > 100:
        yield f"name: {shown(run.name)} is no plain folder name: no '/', no '.' or '-' in front"
    if (run.teacher is None) == (run.network is None):
        yield "teacher, network: set exactly one of them"
    run.data.build()
    yield from _repetitions(run)
    offered = set(run.sampler.steps)
    if offered and not set(run.evaluation.steps) <= offered:
        yield f"evaluation.steps: the student is offered with {sorted(offered)} steps only"
    if not run.evaluation.steps:
        yield "evaluation.steps: at least one number of steps"
    if not run.stages:
        yield "stages: a run needs at least one"
    elif run.stages[0].teacher == "last":
        yield "stages.0.teacher: there is no stage before the first: use run"
    methods = [stage.build(f"stages.{i}") for i, stage in enumerate(run.stages)]
    for i, method in enumerate(methods):
        if method.needs.trajectories and run.cache is None:
            yield f"stages.{i}.method: needs the teacher's trajectories: set cache: {{steps: 32}}"
        if method.needs.initial and not (i > 0 and methods[i - 1].needs.boundary):
            yield (
                f"stages.{i}.method: answers below its cut with what it starts from, which must be "
                "a consistency function: put a stage before it that trains one"
            )
        yield from _idle_optimisers(run.stages[i], method, f"stages.{i}.training")
    yield from _misplaced_roles(run)
    if run.network is not None and run.student is not None:
        yield "student: begins from a student of a teacher, and `network` is none: leave one out"
    if run.network is not None:
        yield from _network_problems(run, run.network, methods)


def _misplaced_roles(run: RunConfig) -> Iterator[str]:
    roles = set() if run.adapters is None else {*run.adapters.roles}
    if run.adapters is not None and run.adapters.critic_rank and "critic" not in roles:
        yield "adapters.critic_rank: the critic is not among adapters.roles: leave one out"
    narrow = run.teacher is not None and run.teacher.dtype != "float32"
    if narrow and (len(roles) < 2 or run.precision == "fp32"):
        yield (
            "teacher.dtype: bfloat16 is for a network that nobody trains: set precision: bf16, and "
            "adapters with student and critic among their roles"
        )


def _idle_optimisers(stage: Stage, method: Method, key: str) -> Iterator[str]:
    for player in ("critic", "discriminator"):
        if stage.training.optimiser_of(player) == Optimiser():
            continue
        moved = {turn.player for turn in method.turns()}
        if player not in moved:
            others = sorted(moved - {"student"})
            advice = f"write {others[0]}_optimiser" if others else "leave it out"
            yield f"{key}.{player}_optimiser: {stage.method} trains no {player}: {advice}"


def _repetitions(run: RunConfig) -> Iterator[str]:
    lists = {
        "sampler.steps": run.sampler.steps,
        "evaluation.steps": run.evaluation.steps,
        "evaluation.teacher_steps": run.evaluation.teacher_steps,
        "trackers": run.trackers,
    }
    for key, listed in lists.items():
        if len(set(listed)) < len(listed):
            yield f"{key}: {list(listed)} says one thing twice"


def _network_problems(run: RunConfig, network: Network, methods: list[Method]) -> Iterator[str]:
    """What a new network is refused for, before it is made."""
    try:
        scheduler = scheduler_class(network.scheduler)
    except ValueError as error:
        raise ConfigError(f"network.scheduler: {error}") from error
    if network.transformer and (network.unet or network.parts is None):
        yield "network.transformer: in place of unet, with parts, a folder of text encoders and VAE"
    pixels, prompted = (UNet2DModel, UNET), (UNet2DConditionModel, CONDITIONED)
    for (kind, bounds), values, key in (
        (pixels if network.parts is None else prompted, network.unet, "network.unet"),
        ((SD3Transformer2DModel, SD3), network.transformer, "network.transformer"),
        ((scheduler, SCHEDULER), network.scheduler_config, "network.scheduler_config"),
    ):
        require_known(values, [*signature(kind.__init__).parameters][1:], key)
        require_bounds(values, bounds, f"{key}.")
    if run.guidance != 1:
        yield f"guidance: {run.guidance:g} guides a teacher, which `network` is not yet: use 1"
    for i, method in enumerate(methods):
        if "teacher" in method.needs.players:
            yield f"stages.{i}.method: needs a teacher, which `network` is not yet: set teacher"
