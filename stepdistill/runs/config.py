"""A run as nested dataclasses, read from one complete YAML file and dotted overrides.

The dataclasses are the schema: unknown keys, wrong types, values out of range and settings that
contradict each other are refused with one line that names the key and what to write instead.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Annotated, Literal

from diffusers import SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel

from ..data.trajectories import CacheSettings
from ..method import Method
from ..resources import is_shipped
from ..schema import ConfigError, Count, Range, Seed, Share, fit, require_known, shown
from ..solver import Sampler
from ..teachers.bounds import CONDITIONED, SCHEDULER, SD3, UNET, require_bounds
from ..teachers.schedulers import scheduler_class
from ..training.health.settings import Health
from ..training.players import Adapters
from ..training.trainer import Optimiser
from .settings import (
    DataSettings,
    Evaluation,
    Network,
    Prompting,
    Stage,
    TeacherSettings,
    Validation,
)
from .yaml import find, load_values, written

GuidanceWeight = Annotated[float, Range(0, 1000)]


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is.

    teacher: what is distilled; `network` instead makes a new one.
    student: the folder of an earlier student, or of its run, that the first stage begins from;
    null for the teacher itself.
    guidance: w in u + w(c − u), 1 neutral.  guidance_rescale: share of the conditional output's
    spread that a guided one gets back, see `denoiser`.  negative_prompt: what guidance leads away
    from, null for the pipeline's own empty condition.  save_every: student updates between
    checkpoints.
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
    guidance_rescale: Share = 0.0
    negative_prompt: str | None = None
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


def guidance_of(run: RunConfig) -> str:
    """How a run's teacher is guided, in words."""
    rescale = f", rescaled by {run.guidance_rescale:g}" if run.guidance_rescale else ""
    away = f", away from {shown(run.negative_prompt)}" if run.negative_prompt else ""
    return f"w = {run.guidance:g}{rescale}{away}"


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
