"""A run as nested dataclasses, read from one complete YAML file and dotted overrides.

The dataclasses are the schema: unknown keys, wrong types and values out of range are refused with
one line that names the key and what to write instead.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .method import Method, load
from .roles import Adapters
from .shipped import shipped, shipped_names
from .solver import Sampler
from .trainer import Optimiser, Training


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line for the user."""


@dataclass(frozen=True)
class Network:
    """An untrained network, for runs that make a teacher.

    unet: settings of a UNet2DModel. scheduler: a class of diffusers, which fixes the noise process
    and the prediction. license: of the weights, for the model card.
    """

    license: str = "unknown"
    unet: dict[str, Any] = field(default_factory=dict)
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    scheduler_config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSettings:
    """dropout: the share of labels replaced by the empty one."""

    name: Literal["digits"] = "digits"
    dropout: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One method with its settings; it starts from the student of the stage before."""

    method: str = "consistency"
    settings: dict[str, Any] = field(default_factory=dict)
    training: Training = Training()

    def build(self) -> Method:
        """The method. Raises ConfigError for settings it does not have or refuses."""
        try:
            kind = load(self.method)
            return structured(kind, self.settings)
        except ValueError as error:
            raise ConfigError(f"stage '{self.method}': {error}") from error


@dataclass(frozen=True)
class Evaluation:
    """n fresh images in each of `blocks` seed blocks, for every number of steps listed."""

    suite: Literal["digits"] = "digits"
    n: int = 1000
    blocks: int = 3
    steps: tuple[int, ...] = (1,)
    teacher_steps: tuple[int, ...] = (1, 4, 32)
    seed: int = 1000


@dataclass(frozen=True)
class Run:
    """Everything a run is.

    teacher: a shipped teacher or a diffusers pipeline folder; `network` instead makes a new one.
    guidance: w in u + w(c − u), 1 neutral.  save_every: student updates between checkpoints.
    adapters: student, critic and target as low-rank roles on the teacher's network; null for full
    copies.  checkpointing: recompute the networks' blocks in the backward, to save memory.
    """

    name: str = "run"
    seed: int = 0
    teacher: str | None = None
    network: Network | None = None
    guidance: float = 1.0
    data: DataSettings = DataSettings()
    stages: list[Stage] = field(default_factory=list)
    adapters: Adapters | None = None
    checkpointing: bool = False
    sampler: Sampler = Sampler()
    evaluation: Evaluation = Evaluation()
    precision: Literal["fp32", "bf16"] = "fp32"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    save_every: int = 500
    log_every: int = 20


def structured(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from plain values. Raises ConfigError naming the key that does not fit."""
    schema = OmegaConf.structured(kind)
    OmegaConf.set_readonly(schema, False)
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(values)))
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error


def first_line(error: OmegaConfBaseException) -> str:
    """What is wrong, and at which key."""
    text = str(error).splitlines()[0]
    return f"{error.full_key}: {text}" if error.full_key and error.full_key not in text else text


def read(source: str, overrides: tuple[str, ...] = ()) -> Run:
    """The run of a YAML file, or of a shipped name, with `key=value` overrides.

    Raises ConfigError for anything that cannot be run."""
    path = find(source)
    try:
        values = OmegaConf.load(path)
        if not OmegaConf.is_dict(values):
            raise ConfigError(f"{path}: not a mapping of keys to values")
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals or not key:
                raise ConfigError(f"override '{override}': write key=value")
            OmegaConf.update(values, key, yaml.safe_load(value))
        run = structured(Run, OmegaConf.to_container(values, resolve=True))
        check(run)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{path.name}: {str(error).splitlines()[0]}") from error
    return run


def find(source: str) -> Path:
    """The file of a path or of a shipped name. Raises ConfigError if there is none."""
    path = Path(source)
    if path.is_file():
        return path
    named = shipped("configs") / f"{source}.yaml"
    if named.is_file():
        return named
    known = ", ".join(shipped_names("configs", ".yaml"))
    raise ConfigError(f"config '{source}': no such file, and not a shipped name ({known})")


def text_of(run: Run) -> str:
    """The resolved run as YAML, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(run))


def check(run: Run) -> None:
    """Raise ConfigError for settings that contradict each other or are out of range."""
    for bad, message in _problems(run):
        if bad:
            raise ConfigError(message)
    for stage in run.stages:
        stage.build()


def _problems(run: Run) -> list[tuple[bool, str]]:
    evaluation, sampler = run.evaluation, run.sampler
    problems = [
        (
            not run.name.strip(".") or "/" in run.name,
            f"name: '{run.name}' must be a plain folder name",
        ),
        (run.seed < 0, f"seed: must not be negative, got {run.seed}"),
        (not run.stages, "stages: a run needs at least one"),
        (
            (run.teacher is None) == (run.network is None),
            "teacher, network: set exactly one of them",
        ),
        (not 0 <= run.data.dropout < 1, f"data.dropout: {run.data.dropout} is not in [0, 1)"),
        (evaluation.n < 20, f"evaluation.n: at least 20, got {evaluation.n}"),
        (evaluation.seed < 0, f"evaluation.seed: must not be negative, got {evaluation.seed}"),
        (not evaluation.steps, "evaluation.steps: at least one number of steps"),
        (evaluation.blocks < 2, "evaluation.blocks: at least 2, for an interval"),
        (min((*sampler.steps, 1)) < 1, "sampler.steps: numbers of steps are positive"),
        (min((*evaluation.steps, *evaluation.teacher_steps, 1)) < 1, "evaluation: steps < 1"),
        (
            bool(sampler.steps) and not set(evaluation.steps) <= set(sampler.steps),
            f"evaluation.steps: the student is offered with {list(sampler.steps)} steps only",
        ),
        (run.save_every < 1 or run.log_every < 1, "save_every, log_every: at least 1"),
    ]
    return problems + [p for i, stage in enumerate(run.stages) for p in _stage_problems(i, stage)]


def _stage_problems(i: int, stage: Stage) -> list[tuple[bool, str]]:
    t, key = stage.training, f"stages.{i}.training"
    problems = [
        (t.updates < 1, f"{key}.updates: at least 1, got {t.updates}"),
        (t.batch < 1, f"{key}.batch: at least 1, got {t.batch}"),
        (t.accumulation < 1, f"{key}.accumulation: at least 1, got {t.accumulation}"),
        (not 0 <= t.average < 1, f"{key}.average: {t.average} is not in [0, 1)"),
        (not 0 <= t.target < 1, f"{key}.target: {t.target} is not in [0, 1)"),
        (t.skips < 1, f"{key}.skips: at least 1, got {t.skips}"),
    ]
    for name, optimiser in (("optimiser", t.optimiser), ("critic_optimiser", t.critic_optimiser)):
        problems += [(bad, f"{key}.{name}.{text}") for bad, text in _optimiser_problems(optimiser)]
    return problems


def _optimiser_problems(o: Optimiser) -> list[tuple[bool, str]]:
    return [
        (not o.lr > 0, f"lr: must be positive, got {o.lr}"),
        (
            len(o.betas) != 2 or not all(0 <= b < 1 for b in o.betas),
            f"betas: two numbers in [0, 1), got {list(o.betas)}",
        ),
        (o.weight_decay < 0, f"weight_decay: must not be negative, got {o.weight_decay}"),
        (o.clip < 0, f"clip: must not be negative (0 for none), got {o.clip}"),
        (o.warmup < 0, f"warmup: must not be negative, got {o.warmup}"),
    ]
