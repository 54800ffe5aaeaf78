"""A diffusers pipeline as a denoiser: process and prediction are read from its scheduler's config,
the calling convention from the class of its network.

    scheduler                                  process               prediction
    FlowMatch…                                 rectified flow        flow
    a table of ᾱ (DDPM, DDIM, Euler, …)        variance preserving   epsilon → eps,
                                                                     v_prediction → v, sample → x0
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMPipeline, DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor, nn

from .backbones.labelled import BLOCK, call_labelled
from .denoiser import AnyDenoiser, Cond, Denoiser, Guided
from .process import NoiseProcess, Prediction, RectifiedFlow, VariancePreserving
from .shipped import PACKAGE, pipeline_module

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FEW_STEP = "FewStepPipeline"


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
        scale = float(pipeline.scheduler.config.num_train_timesteps) if is_flow(pipeline) else 1.0
        denoiser = Denoiser(net, process, prediction, call_labelled, scale, block=BLOCK)
        labels = net.config.num_class_embeds
        if labels is None and w != 1:
            raise ValueError(f"guidance {w:g} needs a class-conditional teacher: use guidance 1")
        guided = Guided(denoiser, w, null_of(labels)) if labels else denoiser
        size = net.config.sample_size
        side = (size, size) if isinstance(size, int) else tuple(size)
        classes = None if labels is None else labels - 1
        return cls(denoiser, guided, pipeline, w, (net.config.in_channels, *side), classes)

    def with_net(self, net: nn.Module) -> "Teacher":
        """The same teacher seen through `net`, a view of its network."""
        denoiser = replace(self.denoiser, net=net)
        if isinstance(self.guided, Guided):
            return replace(self, denoiser=denoiser, guided=replace(self.guided, denoiser=denoiser))
        return replace(self, denoiser=denoiser, guided=denoiser)

    @property
    def nfe(self) -> int:
        """Network evaluations per step of the guided teacher: guidance counts twice."""
        return 1 if self.classes is None or self.w == 1 else 2

    def labels(self, n: int) -> Tensor | None:
        """n labels, each class equally often, or None if unconditional."""
        return None if self.classes is None else torch.arange(n) % self.classes


def null_of(labels: int | None) -> Callable[[Cond], Cond]:
    """Maps labels (b,) to the last one, which stands for no class."""
    return lambda cond: torch.full_like(cond, labels - 1)


def is_flow(pipeline: DiffusionPipeline) -> bool:
    return type(pipeline.scheduler).__name__.startswith("FlowMatch")


def process_of(scheduler: SchedulerMixin) -> tuple[NoiseProcess, Prediction]:
    """The noise process and prediction a scheduler's configuration describes.

    Raises ValueError for a configuration that is not understood."""
    name, config = type(scheduler).__name__, scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch"):
        return RectifiedFlow(), "flow"
    # Multistep solvers carry a table even when they integrate a flow.
    if config.get("use_flow_sigmas", False) or kind == "flow_prediction":
        raise ValueError(f"scheduler {name}: give the flow a FlowMatchEulerDiscreteScheduler")
    if "beta_schedule" not in config:
        raise ValueError(f"scheduler {name}: neither a flow nor a table of alphas_cumprod")
    if kind not in PREDICTIONS:
        raise ValueError(f"scheduler {name}: unknown prediction_type '{kind}'")
    table = scheduler.alphas_cumprod.double().clone()
    if config.get("rescale_betas_zero_snr", False):
        table[-1] = 0.0  # some schedulers replace the exact zero by 2⁻²⁴
    process = VariancePreserving(table)
    process.require_well_posed(PREDICTIONS[kind], process.t_max)
    return process, PREDICTIONS[kind]


def load_pipeline(source: str) -> DiffusionPipeline:
    """A shipped teacher by name, or a diffusers pipeline folder, in float32 on the CPU.

    Loads safetensors only. Raises ValueError if there is no such pipeline."""
    disable_progress_bar()  # the command line shows one bar of its own
    folder = PACKAGE / "assets" / source
    folder = folder if (folder / "model_index.json").is_file() else Path(source)
    index = folder / "model_index.json"
    if not index.is_file():
        known = sorted(p.parent.name for p in (PACKAGE / "assets").glob("*/model_index.json"))
        raise ValueError(
            f"teacher '{source}': neither a shipped teacher ({', '.join(known)}) nor a folder "
            "with model_index.json"
        )
    name = json.loads(index.read_text())["_class_name"]
    if name == FEW_STEP or (isinstance(name, list) and name[-1] == FEW_STEP):
        return load_few_step(folder)
    return DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def load_few_step(folder: Path) -> DiffusionPipeline:
    """A FewStepPipeline folder, through our own copy of the class: the folder's is not executed."""
    index = json.loads((folder / "model_index.json").read_text())
    settings = {k: v for k, v in index.items() if k in ("times", "stochastic", "skip_sigma_data")}
    unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
    scheduler = scheduler_class(index["scheduler"][1]).from_pretrained(folder / "scheduler")
    return few_step_class()(unet, scheduler, **settings)


def few_step_class() -> type[DiffusionPipeline]:
    """The class of `pipelines/few_step.py`."""
    return vars(pipeline_module("few_step"))[FEW_STEP]


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """A scheduler class of diffusers. Raises ValueError for any other name."""
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"'{name}' is not a scheduler of diffusers")
    return kind


def new_pipeline(
    unet: dict[str, Any], scheduler: str, config: dict[str, Any], seed: int
) -> DiffusionPipeline:
    """An untrained pipeline, from the settings of a UNet2DModel and of a scheduler class.

    Unconditional networks under a table of ᾱ make a stock DDIMPipeline."""
    kind = scheduler_class(scheduler)(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = UNet2DModel(**unet)
    if net.config.num_class_embeds is None and isinstance(process_of(kind)[0], VariancePreserving):
        return DDIMPipeline(net, kind)
    return few_step_class()(net, kind)
