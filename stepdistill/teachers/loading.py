"""Shipped teachers and pipeline folders from disk, safely, and new networks.

Loads safetensors only and never unpickles; whatever is missing, damaged or not of a known kind is a
ValueError that names the file.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
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
from safetensors import SafetensorError, safe_open
from torch import nn

from ..process import VariancePreserving
from ..resources import INPUTS, PACKAGE, pipeline_class
from ..schema import did_you_mean, shown
from .schedulers import FEW_STEP_SCHEDULER, process_of, scheduler_class

FEW_STEP = "FewStepPipeline"
INDEX = "model_index.json"
TRAINED = ("times", "gamma", "guidance", "skip_sigma_data")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LONGEST = 100_000  # timesteps of a scheduler


def load_pipeline(source: str) -> DiffusionPipeline:
    """A shipped teacher by name, or a diffusers pipeline folder, in float32 on the CPU.

    Loads safetensors only, and never unpickles. Raises ValueError naming the file that is missing,
    damaged, or not of a known kind."""
    folder = pipeline_folder(source)
    index = read_json(folder / INDEX)
    declared, name = index.get("unet"), index.get("_class_name")
    if declared != ["diffusers", "UNet2DModel"]:
        raise ValueError(f"{folder / INDEX}: its network is not of a known class (UNet2DModel)")
    few_step = name == FEW_STEP or (isinstance(name, list) and name[-1:] == [FEW_STEP])
    parts = {"unet": load_network(folder / "unet"), "scheduler": load_scheduler(folder, index)}
    if few_step:
        inputs = load_inputs(folder / "inputs") if (folder / "inputs").is_dir() else None
        return few_step_class()(**parts, inputs=inputs, **few_step_settings(index, folder / INDEX))
    if type(parts["scheduler"]).__name__ == FEW_STEP_SCHEDULER:
        return DDPMPipeline(**parts)
    with foreign(folder):
        return DiffusionPipeline.from_pretrained(
            folder, **parts, use_safetensors=True, local_files_only=True
        )


def load_any(source: str) -> DiffusionPipeline:
    """A folder of any of diffusers' own pipelines, for a backbone that is named.

    Loads safetensors only and runs no code of the folder. Raises ValueError where it cannot be."""
    folder = pipeline_folder(source)
    with foreign(folder):
        return DiffusionPipeline.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )


def pipeline_folder(source: str) -> Path:
    """Where a shipped teacher or a pipeline lies. Raises ValueError if `source` is neither."""
    teachers = PACKAGE / "assets"
    for folder in (teachers / source, Path(source)):
        if (folder / INDEX).is_file():
            return folder
    known = sorted(p.parent.name for p in teachers.glob(f"*/{INDEX}"))
    advice = did_you_mean(source, known)
    raise ValueError(
        f"{shown(source)}: neither a shipped teacher ({', '.join(known)}) nor a folder "
        f"with {INDEX}{advice}"
    )


def load_network(folder: Path) -> UNet2DModel:
    """The network of a pipeline folder, every parameter from its safetensors.

    Raises ValueError for weights that are missing, damaged, pickled only or not finite."""
    read_json(folder / "config.json")
    require_weights(folder)
    with foreign(folder):
        net, loaded = UNet2DModel.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    # diffusers warns, and fills what is missing with random numbers.
    for fault in ("missing_keys", "unexpected_keys"):
        if loaded[fault]:
            kind, first = fault.partition("_")[0], sorted(loaded[fault])[0]
            raise ValueError(f"{folder}: {kind} weights, like {first}: does config.json fit them?")
    for name, value in net.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{folder}: the weights {name} are not finite")
    return net


def load_inputs(folder: Path) -> nn.Module:
    """The extra inputs of an exported network. Raises ValueError for damaged or missing weights."""
    config = read_json(folder / "config.json")
    require_weights(folder)
    with foreign(folder):
        name = config["_class_name"]
        kind = pipeline_class(INPUTS[name], name)
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def require_weights(folder: Path) -> None:
    """Raise ValueError unless the folder holds whole safetensors files."""
    files = sorted(folder.glob("*.safetensors"))
    pickled = [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLED]
    if not files and pickled:
        raise ValueError(
            f"{folder / pickled[0]}: pickled weights are never loaded; convert to safetensors"
        )
    if not files:
        raise ValueError(f"{folder}: no weights (*.safetensors)")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: damaged or incomplete ({error}); copy it again") from error


def load_scheduler(folder: Path, index: dict[str, Any]) -> SchedulerMixin:
    """The scheduler of a pipeline folder, from its configuration alone.

    Raises ValueError if it is neither one of diffusers' nor a FewStepScheduler."""
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
    if few_step:
        few_step_settings(config, file)
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 2 <= steps <= LONGEST:
        raise ValueError(f"{file}: num_train_timesteps is {shown(steps)}, not 2 to {LONGEST}")
    with foreign(file):
        return kind.from_config(config)


def few_step_settings(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """What a few-step student was trained for, from the values of a file.

    Raises ValueError for times no student can have."""
    settings = {k: v for k, v in values.items() if k in TRAINED}
    times = settings.get("times")
    rows = times.items() if isinstance(times, dict) else []
    fit = all(n.isdecimal() and is_falling(row) and len(row) == int(n) for n, row in rows)
    if times is not None and not (rows and fit):
        raise ValueError(f"{file}: times must map each N to N falling numbers")
    gamma = settings.get("gamma", 0.0)
    if type(gamma) not in (int, float) or not 0 <= gamma <= 1:
        raise ValueError(f"{file}: gamma is {shown(gamma)}, not 0 to 1")
    return settings


def trained_settings(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """`times`, `gamma`, `guidance`, `skip_sigma_data` of an exported student; empty for others."""
    for part in (pipeline, pipeline.scheduler):
        if type(part).__name__ in (FEW_STEP, FEW_STEP_SCHEDULER):
            return {name: part.config[name] for name in TRAINED if name in part.config}
    return {}


def is_falling(row: object) -> bool:
    """Whether `row` is a list of falling numbers."""
    numbers = isinstance(row, list) and all(type(t) in (int, float) for t in row)
    return numbers and all(t > s for t, s in pairwise(row))


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises ValueError naming the file if there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: must hold a mapping, not {shown(values)}")
    return values


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
