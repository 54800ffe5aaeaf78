"""Shipped teachers and pipeline folders from disk, safely, and new networks.

A pipeline is made of its parts here, never by its own index. Loads safetensors only and never
unpickles; whatever is missing, damaged or not of a known kind is a ValueError that names the file.
"""

from functools import cache
from inspect import signature
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDPMPipeline,
    DiffusionPipeline,
    SchedulerMixin,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from ..process import VariancePreserving
from ..resources import INPUTS, pipeline_class
from ..schema import shown
from . import bounds
from .folder import (
    INDEX,
    not_there,
    pipeline_folder,
    read_json,
    require_own_files,
    require_weights,
)
from .hub import LEFT_OUT
from .parts import foreign, load_network, load_text_encoder, load_tokenizer, require_keys
from .schedulers import FEW_STEP_SCHEDULER, FLOWS, TABLES, is_flow, process_of, scheduler_class

FEW_STEP = "FewStepPipeline"
STOCK = {"DDIMPipeline": DDIMPipeline, "DDPMPipeline": DDPMPipeline}
SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
SD3 = "StableDiffusion3Pipeline"
PROJECTED = ["transformers", "CLIPTextModelWithProjection"]
TOLD = ("force_zeros_for_empty_prompt",)  # settings of a pipeline that mean something here
TRAINED = ("times", "gamma", "guidance", "skip_sigma_data", "start")
PROMPTED = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
PARTS: dict[str, dict[str, list[str]]] = {  # beside the scheduler: library and class, by pipeline
    **{name: {"unet": ["diffusers", "UNet2DModel"]} for name in (FEW_STEP, *STOCK)},
    SD: PROMPTED,
    SDXL: PROMPTED
    | {
        "text_encoder_2": PROJECTED,
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    },
    SD3: {
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": PROJECTED,
        "text_encoder_2": PROJECTED,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    },
}


class OfText(NamedTuple):
    """A class of pipelines that are asked by prompts. part, net, limits: its network, its class and
    bounds. without: parts and settings that make no picture."""

    made: type[DiffusionPipeline]
    part: str
    net: type[nn.Module]
    limits: dict[str, Any]
    without: dict[str, Any]


CONDITIONED = "unet", UNet2DConditionModel, bounds.CONDITIONED
UNCHECKED = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
FAMILIES = {
    SD: OfText(StableDiffusionPipeline, *CONDITIONED, UNCHECKED),
    SDXL: OfText(StableDiffusionXLPipeline, *CONDITIONED, {"add_watermarker": False}),
    SD3: OfText(
        StableDiffusion3Pipeline, "transformer", SD3Transformer2DModel, bounds.SD3, NO_T5
    ),
}
NETWORKS = {family.part for family in FAMILIES.values()}
OLD = ("tensor_format", "timestep_values")  # keys of schedulers of diffusers 0.1, without effect


def load_pipeline(source: str) -> DiffusionPipeline:
    """A shipped teacher by name, or a diffusers pipeline folder, in float32 on the CPU.

    Loads safetensors only, and never unpickles. Raises ValueError naming the file that is missing,
    damaged, or not of a known kind."""
    folder = pipeline_folder(source)
    require_own_files(folder)
    index = read_json(folder / INDEX)
    name = kind_named(index, folder / INDEX)
    if name in FAMILIES:
        return load_prompted(folder, index, name)
    unet = load_network(folder / "unet", UNet2DModel, bounds.UNET)
    parts = {"unet": unet, "scheduler": load_scheduler(folder, index)}
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


def load_prompted(folder: Path, index: dict[str, Any], name: str) -> DiffusionPipeline:
    """A Stable Diffusion from its folder."""
    scheduler, family = load_scheduler(folder, index), FAMILIES[name]
    net = load_network(folder / family.part, family.net, family.limits)
    told = {key: index[key] for key in TOLD if key in index}
    return around(folder, name, net, scheduler, told)


def around(
    folder: Path,
    name: str,
    net: nn.Module,
    scheduler: SchedulerMixin,
    told: dict[str, Any],
) -> DiffusionPipeline:
    """A Stable Diffusion around a network, whose other parts lie in a folder; told: further
    settings."""
    parts: dict[str, Any] = {
        "vae": load_network(folder / "vae", AutoencoderKL, bounds.VAE).eval().requires_grad_(False)
    }
    for part, (_, kind) in PARTS[name].items():
        if part.startswith("text_encoder"):
            parts[part] = load_text_encoder(folder / part, kind)
        if part.startswith("tokenizer"):
            parts[part] = load_tokenizer(folder / part)
    family = FAMILIES[name]
    parts |= {family.part: net, "scheduler": scheduler, **told}
    with foreign(folder):
        return family.made(**parts, **family.without)


def kind_named(index: dict[str, Any], file: Path) -> str:
    """The pipeline's class in an index. Raises ValueError unless it and its parts are known."""
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    if not isinstance(name, str) or name not in PARTS:
        advice = "give teacher.backbone, a module"
        raise ValueError(f"{file}: {shown(name)}: no family of pipelines knows it: {advice}")
    for part, kind in PARTS[name].items():
        if index.get(part) != kind:
            what = "network" if part in NETWORKS else part
            raise ValueError(f"{file}: its {what} is not of a known class ({kind[1]})")
    known = (*PARTS[name], "scheduler", *(("inputs",) if name == FEW_STEP else LEFT_OUT))
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
            folder,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=torch.float32,
            **not_there(folder),
        )


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


def absent(pipeline: DiffusionPipeline) -> list[str]:
    """Parts that a pipeline does without, and that its class does not say it can: whoever loads its
    folder with diffusers gives None for them."""
    missing = [name for name, part in pipeline.components.items() if part is None]
    return [name for name in missing if name not in {"inputs", *pipeline._optional_components}]


def is_falling(row: object) -> bool:
    """Whether `row` is a list of falling numbers."""
    if not isinstance(row, list) or not all(type(t) in (int, float) for t in row):
        return False
    return all(isfinite(t) for t in row) and all(t > s for t, s in pairwise(row))


def few_step_class() -> type[DiffusionPipeline]:
    """The class of `pipelines/few_step.py`."""
    return pipeline_class("few_step", FEW_STEP)


def few_step_scheduler_class() -> type[SchedulerMixin]:
    """The class of `pipelines/few_step_scheduler.py`."""
    return pipeline_class("few_step_scheduler", FEW_STEP_SCHEDULER)


def new_pipeline(
    unet: dict[str, Any],
    scheduler: str,
    config: dict[str, Any],
    seed: int,
    parts: str | None = None,
    transformer: dict[str, Any] | None = None,
) -> DiffusionPipeline:
    """An untrained pipeline, from the settings of a network and of a scheduler class.

    parts: a shipped teacher or a folder whose VAE, text encoders and tokenizers it takes; None for
    pixels, of which unconditional networks under a table of ᾱ make a stock DDIMPipeline.
    transformer: settings of that of Stable Diffusion 3, in place of a U-Net's."""
    with foreign("network.scheduler_config"):
        kind = scheduler_class(scheduler)(**config)
    name = None if parts is None else SD3 if transformer else SD
    made = UNet2DModel if name is None else FAMILIES[name].net
    with foreign("network.transformer" if transformer else "network.unet"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = made(**(transformer or unet))
    if parts is not None:
        folder = pipeline_folder(parts, "vae/config.json")
        require_own_files(folder)
        return around(folder, name, net, kind, {})
    if net.config.num_class_embeds is None and isinstance(process_of(kind)[0], VariancePreserving):
        return DDIMPipeline(net, kind)
    return few_step_class()(net, kind)
