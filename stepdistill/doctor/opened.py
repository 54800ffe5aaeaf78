"""A pipeline's folder as the doctor reads it: configurations, and whose classes they are for.

Only JSON is read, only classes of diffusers and of `pipelines/` are used, and no code of the folder
is run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from math import prod
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from torch import nn

from ..schema import shown
from ..teachers import bounds
from ..teachers.folder import INDEX, pipeline_folder, read_json, require_own_files
from ..teachers.loading import (
    FEW_STEP,
    few_step_class,
    few_step_scheduler_class,
    foreign,
    with_prediction,
)
from ..teachers.schedulers import FEW_STEP_SCHEDULER, is_flow, scheduler_class
from . import stubs

FLOW, TABLE, TRIG, KARRAS = "rectified flow", "variance preserving", "TrigFlow", "EDM"
OTHERS = ("SCM", TRIG), ("EDM", KARRAS), ("CosineDPM", KARRAS), ("CMStochastic", KARRAS)
MODULAR = "modular_model_index.json"
LARGEST = 2**20  # of the numbers in a network's configuration
MOST_NUMBERS = 2**26  # in one state


class Unknown(RuntimeError):
    """Nothing can be said of a folder; the message says why."""


@dataclass(frozen=True)
class Opened:
    """A folder. index: what model_index.json says; kind: the pipeline's class; parts: the class and
    configuration of each part that is neither a text encoder nor missing."""

    path: Path
    index: dict[str, Any]
    kind: type[DiffusionPipeline]
    parts: dict[str, tuple[type, dict[str, Any]]]

    def network(self) -> tuple[type, dict[str, Any]]:
        """The class and configuration of what is asked at every time."""
        for name in ("transformer", "unet"):
            if name in self.parts:
                return self.parts[name]
        raise Unknown(f"{self.kind.__name__} has neither a transformer nor a unet")

    def scheduler(self) -> SchedulerMixin:
        kind, config = self.parts["scheduler"]
        with foreign(self.path / "scheduler"):
            return kind.from_config(config)

    def pipeline(self, observe: stubs.Observe) -> DiffusionPipeline:
        """The unmodified class on stubs, whose networks tell `observe` what they are asked."""
        parts = {}
        for name, parameter in accepted(self.kind.__init__).items():
            if name in self.parts or is_text(name):
                parts[name] = self.part(name, parameter, observe)
            elif name in self.index and not isinstance(self.index[name], list):
                parts[name] = self.index[name]
            elif name in self.index or parameter.default is Parameter.empty:
                parts[name] = None
        if "requires_safety_checker" in accepted(self.kind.__init__):
            parts["requires_safety_checker"] = False
        with foreign(self.path):
            return self.kind(**parts)

    def part(self, name: str, parameter: Parameter, observe: stubs.Observe) -> Any:
        if "tokenizer" in name or name == "processor":
            return stubs.Tokens()
        if "text_encoder" in name:
            meant = f"{self.index.get(name)} {parameter.annotation}"
            return stubs.Words(pooled="WithProjection" in meant)
        kind, config = self.parts[name]
        if name == "scheduler":
            return self.scheduler()
        if name == "inputs":
            return stubs.Inputs(config, observe)
        asked = name.startswith(("unet", "transformer"))
        return stubs.network(kind, config, observe) if asked else stubs.autoencoder(kind, config)


def accepted(function: Callable) -> dict[str, Parameter]:
    """The parameters of a function that have a name of their own, without `self`."""
    variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    found = signature(function).parameters.items()
    return {k: p for k, p in found if k != "self" and p.kind not in variable}


def is_text(name: str) -> bool:
    return "tokenizer" in name or "text_encoder" in name or name == "processor"


def opened(source: str) -> Opened:
    """A folder, or a shipped teacher by name.

    Raises ValueError for what is no folder of a pipeline, or a damaged one, and Unknown where its
    classes are not those of diffusers."""
    path = pipeline_folder(source)
    require_own_files(path)
    index = read_json(path / INDEX)
    kind = pipeline_kind(index)
    parts = {}
    for name in accepted(kind.__init__):
        there = isinstance(index.get(name), list) and len(index[name]) == 2 and index[name][1]
        if there and not is_text(name):
            found = class_of(name, index[name][1], path)
            if found is not None:
                parts[name] = found, configuration(path / name, name)
    if "scheduler" not in parts:
        raise ValueError(f"{path / INDEX}: names no scheduler")
    return Opened(path, index, kind, parts)


def pipeline_kind(index: dict[str, Any]) -> type[DiffusionPipeline]:
    name = index.get("_class_name")
    if isinstance(name, list) and name:
        if name[-1] == FEW_STEP:
            return few_step_class()
        raise Unknown(f"its pipeline {shown(name[-1])} is code of its own, which is not run")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise Unknown(f"this diffusers has no pipeline {shown(name)}")
    return kind


def class_of(name: str, said: object, path: Path) -> type | None:
    """The class of a part; None for parts that pipelines do without, like safety checkers."""
    if name == "scheduler":
        if said == FEW_STEP_SCHEDULER:
            return few_step_scheduler_class()
        try:
            return scheduler_class(said)
        except ValueError as error:
            raise Unknown(f"{path / INDEX}: {error}") from error
    if name == "inputs":
        return nn.Module
    kind = getattr(diffusers, said, None) if isinstance(said, str) else None
    if isinstance(kind, type) and issubclass(kind, ModelMixin):
        return kind
    if name.startswith(("unet", "transformer", "vae")):
        raise Unknown(f"this diffusers has no {name} {shown(said)}")
    return None


def configuration(folder: Path, name: str) -> dict[str, Any]:
    """What config.json of a part says. Raises ValueError for what would take memory or time."""
    file = folder / ("scheduler_config.json" if name == "scheduler" else "config.json")
    config = read_json(file)
    if name == "scheduler":
        bounds.require_bounds(config, bounds.SCHEDULER, f"{file}: ")
        return with_prediction(config, file)
    require_small(config, file)
    return config


def require_small(config: dict[str, Any], file: Path) -> None:
    """Raise ValueError for numbers that no network has, and for states that no machine holds."""
    for key, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ValueError(f"{file}: {key} is {shown(number)}, beyond {LARGEST}")
    size = config.get("sample_size")
    sizes = [n for n in (size if isinstance(size, list) else [size] * 2) if isinstance(n, int)]
    channels = config.get("in_channels")
    count = prod(sizes) * (channels if isinstance(channels, int) else 1)
    if count > MOST_NUMBERS:
        raise ValueError(f"{file}: sample_size and in_channels make states of {count} numbers")


def process_of(scheduler: SchedulerMixin) -> str:
    """What a scheduler takes x_t to be. That it has a table of ᾱ says nothing: solvers of flows
    have one as well."""
    config, name = scheduler.config, type(scheduler).__name__
    named = name.startswith("FlowM") or is_flow(scheduler)
    solves = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if named or solves:
        return FLOW
    return next((process for start, process in OTHERS if name.startswith(start)), TABLE)
