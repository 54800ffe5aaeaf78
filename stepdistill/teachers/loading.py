"""Shipped teachers and pipeline folders from disk, safely, and new networks.

A pipeline is made of its parts here, never by its own index. Loads safetensors only and never
unpickles; whatever is missing, damaged or not of a known kind is a ValueError that names the file.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DiffusionPipeline,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils import logging
from torch import nn

from ..process import VariancePreserving
from ..resources import INPUTS, pipeline_class
from ..schema import did_you_mean, shown
from . import bounds
from .folder import INDEX, pipeline_folder, read_json, require_own_files, require_weights
from .schedulers import FEW_STEP_SCHEDULER, FLOWS, TABLES, is_flow, process_of, scheduler_class

FEW_STEP = "FewStepPipeline"
STOCK = {"DDIMPipeline": DDIMPipeline, "DDPMPipeline": DDPMPipeline}
TRAINED = ("times", "gamma", "guidance", "skip_sigma_data", "start")
PARTS = ("unet", "scheduler", "inputs")
OLD = ("tensor_format", "timestep_values")  # keys of schedulers of diffusers 0.1, without effect


def load_pipeline(source: str) -> DiffusionPipeline:
    """A shipped teacher by name, or a diffusers pipeline folder, in float32 on the CPU.

    Loads safetensors only, and never unpickles. Raises ValueError naming the file that is missing,
    damaged, or not of a known kind."""
    folder = pipeline_folder(source)
    require_own_files(folder)
    index = read_json(folder / INDEX)
    name = kind_named(index, folder / INDEX)
    parts = {"unet": load_network(folder / "unet"), "scheduler": load_scheduler(folder, index)}
    if name == FEW_STEP:
        inputs = load_inputs(folder / "inputs") if (folder / "inputs").is_dir() else None
        settings = few_step_settings(index, folder / INDEX)
        require_times(settings, parts["scheduler"], folder / INDEX)
        return few_step_class()(**parts, inputs=inputs, **settings)
    if type(parts["scheduler"]).__name__ == FEW_STEP_SCHEDULER:
        return DDPMPipeline(**parts)
    if name == "DDIMPipeline" and is_flow(parts["scheduler"]):
        raise ValueError(f"{folder / INDEX}: DDIMPipeline makes no flow: write DDPMPipeline there")
    with foreign(folder):
        return STOCK[name](**parts)


def kind_named(index: dict[str, Any], file: Path) -> str:
    """The pipeline's class in an index. Raises ValueError unless it and its parts are known."""
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    if index.get("unet") != ["diffusers", "UNet2DModel"]:
        raise ValueError(f"{file}: its network is not of a known class (UNet2DModel)")
    if name not in (FEW_STEP, *STOCK):
        advice = "give teacher.backbone, a module"
        raise ValueError(f"{file}: {shown(name)}: no family of pipelines knows it: {advice}")
    known = PARTS if name == FEW_STEP else PARTS[:2]
    for key, value in index.items():
        is_part = isinstance(value, list) and len(value) == 2 and value[1] is not None
        if is_part and not key.startswith("_") and key not in known:
            raise ValueError(f"{file}: {name} has no part {shown(key)}")
    return name


def load_any(source: str) -> DiffusionPipeline:
    """A folder of any of diffusers' own pipelines, for a backbone that is named.

    Loads safetensors only and runs no code of the folder. Raises ValueError where it cannot be."""
    folder = pipeline_folder(source)
    require_own_files(folder)
    with foreign(folder):
        return DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )


def load_network(folder: Path) -> UNet2DModel:
    """The network of a pipeline folder, every parameter from its safetensors.

    Raises ValueError for a configuration with unknown keys or out of bounds, and for weights that
    are missing, damaged, pickled only or not finite."""
    file = folder / "config.json"
    config = read_json(file)
    require_keys(config, signature(UNet2DModel.__init__).parameters, file)
    bounds.require_bounds(config, bounds.UNET, f"{file}: ")
    variant = require_weights(folder)
    with foreign(folder):
        net, loaded = UNet2DModel.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=variant,
        )
    # diffusers warns, and fills what is missing with random numbers.
    for fault in ("missing_keys", "unexpected_keys"):
        if loaded[fault]:
            kind, first = fault.partition("_")[0], sorted(loaded[fault])[0]
            raise ValueError(f"{folder}: {kind} weights, like {first}: does config.json fit them?")
    for name, value in net.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{folder}: the weights {name} are not finite")
    return net.float()


def load_inputs(folder: Path) -> nn.Module:
    """The extra inputs of an exported network. Raises ValueError for damaged or missing weights."""
    file = folder / "config.json"
    config = read_json(file)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in INPUTS:
        raise ValueError(f"{file}: {shown(name)} is none of {', '.join(INPUTS)}")
    kind = pipeline_class(INPUTS[name], name)
    require_keys(config, signature(kind.__init__).parameters, file)
    bounds.require_bounds(config, bounds.INPUTS, f"{file}: ", bounds.MOST)
    variant = require_weights(folder)
    with foreign(folder):
        return kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, variant=variant
        ).float()


def load_scheduler(folder: Path, index: dict[str, Any]) -> SchedulerMixin:
    """The scheduler of a pipeline folder, from its configuration alone.

    Raises ValueError if it is neither one of diffusers' nor a FewStepScheduler, and for keys that
    no scheduler knows."""
    file = folder / "scheduler" / "scheduler_config.json"
    declared, config = index.get("scheduler"), read_json(file)
    if not isinstance(declared, list) or len(declared) != 2:
        raise ValueError(f"{folder / INDEX}: names no scheduler")
    few_step = declared[1] == FEW_STEP_SCHEDULER
    if "_class_name" not in config:
        raise ValueError(f"{file}: not the configuration of a scheduler")
    try:
        kind = few_step_scheduler_class() if few_step else scheduler_class(declared[1])
    except ValueError as error:
        raise ValueError(f"{folder / INDEX}: {error}") from error
    trained = few_step_settings(config, file) if few_step else {}
    config = with_prediction(config, file)
    require_keys(config, {*signature(kind.__init__).parameters, *scheduler_keys(), *OLD}, file)
    bounds.require_bounds(config, bounds.SCHEDULER, f"{file}: ")
    with foreign(file):
        scheduler = kind.from_config(config)
    require_times(trained, scheduler, file)
    return scheduler


def with_prediction(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A scheduler's configuration in which `predict_epsilon`, of diffusers up to 0.7, is said by
    `prediction_type`. Raises ValueError where the two contradict each other."""
    if "predict_epsilon" not in config:
        return config
    config = dict(config)
    meant = "epsilon" if config.pop("predict_epsilon") else "sample"
    if config.setdefault("prediction_type", meant) != meant:
        said = shown(config["prediction_type"])
        raise ValueError(f"{file}: predict_epsilon contradicts prediction_type {said}")
    return config


def require_keys(config: dict[str, Any], known: Iterable[str], file: Path) -> None:
    """Raise ValueError for the first key of a configuration that is not known: diffusers would
    drop it unsaid."""
    known = [*known]
    for key in config:
        if not key.startswith("_") and key not in known:
            advice = did_you_mean(key, known) or "; delete it if it means nothing"
            raise ValueError(f"{file}: {shown(key)} is no setting this diffusers knows{advice}")


@cache
def scheduler_keys() -> frozenset[str]:
    """Settings of any scheduler that is understood: those of another class travel along."""
    kinds = [scheduler_class(f"{kind}Scheduler") for kind in (*FLOWS, *TABLES)]
    found = {key for kind in kinds for key in signature(kind.__init__).parameters}
    return frozenset(found - {"self", "args", "kwargs"})


def few_step_settings(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """What a few-step student was trained for, from the values of a file.

    Raises ValueError for times no student can have, and for numbers out of range."""
    settings = {k: v for k, v in values.items() if k in TRAINED}
    times = settings.get("times")
    rows = times.items() if isinstance(times, dict) else []
    fit = all(n.isdecimal() and is_falling(row) and len(row) == int(n) > 0 for n, row in rows)
    if times is not None and not (rows and fit):
        raise ValueError(f"{file}: times must map each N to N falling numbers")
    for key, low, high, optional in (
        ("gamma", 0, 1, False),
        ("guidance", 0, 1000, False),
        ("skip_sigma_data", 1e-6, 1e6, True),
        ("start", 0, 1e6, True),
    ):
        value = settings.get(key)
        if key not in settings or (optional and value is None):
            continue
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"{file}: {key} is {shown(value)}, not {low:g} to {high:g}")
    return settings


def require_times(trained: dict[str, Any], scheduler: SchedulerMixin, file: Path) -> None:
    """Raise ValueError for times outside the clock of a scheduler's process."""
    steps = scheduler.config["num_train_timesteps"]
    clean, last = (0.0, 1.0) if is_flow(scheduler) else (-1.0, steps - 1.0)
    start = [] if trained.get("start") is None else [trained["start"]]
    for t in [t for row in (trained.get("times") or {}).values() for t in row] + start:
        if not clean < t <= last:
            raise ValueError(f"{file}: times: {t:g} is not between {clean:g} and {last:g}")


def trained_settings(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """`times`, `gamma`, `guidance`, `skip_sigma_data`, `start` of an exported student; empty for
    others."""
    for part in (pipeline, pipeline.scheduler):
        if type(part).__name__ in (FEW_STEP, FEW_STEP_SCHEDULER):
            return {name: part.config[name] for name in TRAINED if name in part.config}
    return {}


def is_falling(row: object) -> bool:
    """Whether `row` is a list of falling numbers."""
    if not isinstance(row, list) or not all(type(t) in (int, float) for t in row):
        return False
    return all(isfinite(t) for t in row) and all(t > s for t, s in pairwise(row))


@contextmanager
def foreign(where: Path | str) -> Iterator[None]:
    """diffusers at work: quiet, and whatever it raises is a ValueError that says where."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its log says less than our errors do, on more lines
    logging.disable_progress_bar()  # the command line shows one bar of its own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # its constructors check little: anything can come out of them
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{where}: {reason} ({type(error).__name__})") from error
    finally:
        logging.set_verbosity(level)


def few_step_class() -> type[DiffusionPipeline]:
    """The class of `pipelines/few_step.py`."""
    return pipeline_class("few_step", FEW_STEP)


def few_step_scheduler_class() -> type[SchedulerMixin]:
    """The class of `pipelines/few_step_scheduler.py`."""
    return pipeline_class("few_step_scheduler", FEW_STEP_SCHEDULER)


def new_pipeline(
    unet: dict[str, Any], scheduler: str, config: dict[str, Any], seed: int
) -> DiffusionPipeline:
    """An untrained pipeline, from the settings of a UNet2DModel and of a scheduler class.

    Unconditional networks under a table of ᾱ make a stock DDIMPipeline."""
    with foreign("network.scheduler_config"):
        kind = scheduler_class(scheduler)(**config)
    with foreign("network.unet"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet2DModel(**unet)
    if net.config.num_class_embeds is None and isinstance(process_of(kind)[0], VariancePreserving):
        return DDIMPipeline(net, kind)
    return few_step_class()(net, kind)
