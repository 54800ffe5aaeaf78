"""What a run is made of before anything is trained: its methods, its teacher, its data and its
devices, and the refusals of settings that do not fit together.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DiffusionPipeline
from torch import Tensor

from ..data.loader import Loader, Unseen
from ..denoiser import Denoiser, Guided, Rescaled
from ..method import Method
from ..networks.attention import set_attention
from ..networks.inputs import GUIDANCE_INPUTS
from ..networks.lora import AdapterView
from ..networks.views import bare
from ..schema import ConfigError
from ..teachers.codec import Pixels
from ..teachers.loading import load_any, load_pipeline, new_pipeline
from ..teachers.single_file import load_single_file
from ..teachers.teacher import Kept, Teacher, require_answer
from .begin import Beginning, beginning_of
from .config import RunConfig
from .settings import TeacherSettings

FLOAT = 4  # bytes
Span = tuple[float, float]  # of guidance
PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # ours (YAML reads "no" as false) → accelerate's


@dataclass(frozen=True)
class Setup:
    """What a run is made of; one method a stage. Nothing in it changes while the run is trained.

    beginning: the student that the first stage begins from, None for the teacher."""

    run: RunConfig
    methods: tuple[Method, ...]
    teacher: Teacher
    data: Loader | Unseen
    accelerator: Accelerator
    beginning: Beginning | None = None

    @classmethod
    def of(cls, run: RunConfig, accelerator: Accelerator) -> "Setup":
        """Raises ConfigError for a run that cannot be trained."""
        methods = tuple(stage.build() for stage in run.stages)
        teacher = asked_by(run, teacher_of(run))
        check_memory(run, teacher)
        check_times(run, methods, teacher.denoiser)
        beginning = beginning_of(run, teacher)
        teacher.denoiser.net.to(accelerator.device)
        teacher.to(accelerator.device)
        if run.attention is not None:  # on its device: not all of them compute on a CPU
            attend(teacher, run.attention)
        data = data_of(run, teacher, any(method.needs.data for method in methods))
        check_guidance(run, methods, teacher)
        check_export(run, methods, teacher)
        if run.teacher is not None and run.teacher.dtype != "float32":  # after what it may begin as
            teacher.denoiser.net.to(getattr(torch, run.teacher.dtype))
        return cls(run, methods, teacher, data, accelerator, beginning)

    def reading(self, texts: Kept | None) -> "Setup":
        """The same with the conditions of prompts that are kept; None to encode them."""
        teacher = replace(self.teacher, texts=texts)
        return replace(self, teacher=teacher, data=replace(self.data, teacher=teacher))


def teacher_of(run: RunConfig) -> Teacher:
    """The run's teacher, or its new network in the same shape. Raises ConfigError."""
    try:
        if run.network is None:
            asked = run.teacher
            pipeline = pipeline_of(asked)
            how = asked.size, asked.backbone, asked.codec
            teacher = Teacher.from_pipeline(pipeline, run.guidance, *how)
            teacher = replace(teacher, offload=asked.offload)
        else:
            n = run.network
            scheduler = n.scheduler, n.scheduler_config
            pipeline = new_pipeline(n.unet, *scheduler, run.seed, n.parts, n.transformer)
            teacher = Teacher.from_pipeline(pipeline, run.guidance)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"teacher: {error}") from error
    except (ImportError, SyntaxError, LookupError, AttributeError) as error:  # of a user's module
        raise ConfigError(f"teacher: {type(error).__name__}: {error}") from error
    if run.guidance_rescale > 0:
        teacher = with_rescale(teacher, run.guidance_rescale)
    if run.negative_prompt is not None:
        teacher = away_from(teacher, run.negative_prompt)
    if run.adapters is None:
        return teacher
    return teacher.with_net(AdapterView(teacher.denoiser.net, None))


def with_rescale(teacher: Teacher, share: float) -> Teacher:
    """A teacher whose guided output is rescaled. Raises ConfigError where it is not guided so."""
    if not isinstance(teacher.guided, Guided):
        raise ConfigError("guidance_rescale: is for guidance by two passes of the teacher: use 0")
    guide = Rescaled(teacher.guided.guide, share)
    return replace(teacher, guided=replace(teacher.guided, guide=guide))


def away_from(teacher: Teacher, prompt: str) -> Teacher:
    """A teacher whose guidance leads away from a prompt. Raises ConfigError where it has none."""
    if not (teacher.prompted and isinstance(teacher.guided, Guided)):
        raise ConfigError(
            "negative_prompt: is for a teacher of prompts, guided by two passes: leave it out"
        )
    null = teacher.encode([prompt])
    return replace(teacher, away=prompt, guided=replace(teacher.guided, null=null))


def pipeline_of(asked: TeacherSettings) -> DiffusionPipeline:
    """What is distilled. Raises ValueError where it cannot be loaded."""
    if asked.config is not None:
        return load_single_file(Path(asked.path), asked.config)
    if Path(asked.path).is_file():
        raise ValueError(f"{asked.path}: one file: set config, a folder with its configurations")
    return (load_pipeline if asked.backbone is None else load_any)(asked.path)


def attend(teacher: Teacher, attention: str) -> None:
    """Compute a teacher's attention so, and its students'. Raises ConfigError where that fails."""
    try:
        set_attention(bare(teacher.denoiser.net), attention)
        require_answer(teacher)
    except ValueError as error:
        raise ConfigError(f"attention: {error}") from error


def asked_by(run: RunConfig, teacher: Teacher) -> Teacher:
    """The teacher with the run's prompts. Raises ConfigError where it takes none, or has none."""
    if not teacher.prompted:
        if run.prompts is not None:
            raise ConfigError("prompts: the teacher takes none: leave them out")
        return teacher
    try:
        given = run.data.build().prompts() if run.prompts is None else run.prompts.read()
    except ConfigError as error:
        raise ConfigError(f"{'data' if run.prompts is None else 'prompts'}.{error}") from error
    return replace(teacher, prompts=tuple(given))


def data_of(run: RunConfig, teacher: Teacher, needed: bool = True) -> Loader | Unseen:
    """The run's training data; zeros and labels alone if none is needed.

    Raises ConfigError if the data do not fit the teacher."""
    if not teacher.null and run.data.dropout > 0:
        raise ConfigError("data.dropout: the network takes no labels (num_class_embeds): use 0")
    if run.data.cache is not None and not needed:
        raise ConfigError("data.cache: no method looks at images: leave it out")
    if run.data.cache is not None and isinstance(teacher.codec, Pixels):
        raise ConfigError("data.cache: the teacher works on pixels, not on latents: leave it out")
    if not needed:
        return Unseen(teacher, run.data.dropout)
    try:
        samples = run.data.build().open(teacher)
    except ConfigError as error:
        raise ConfigError(f"data.{error}") from error
    if teacher.prompted and samples.rows(torch.zeros(1, dtype=torch.long)).asked is None:
        raise ConfigError(
            "data.source: its images have no captions, and the teacher is asked by prompts"
        )
    return Loader(samples, teacher, run.data.dropout, run.seed)


def check_memory(run: RunConfig, teacher: Teacher) -> None:
    """Raise ConfigError for a batch that no step can hold: x₀, noise, x_t and an answer alone."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for i, stage in enumerate(run.stages):
        needed = 4 * FLOAT * prod(teacher.event) * stage.training.batch
        if needed > memory:
            raise ConfigError(
                f"stages.{i}.training.batch: {stage.training.batch:,} samples take more than "
                f"{needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}: take fewer, "
                "and more accumulation"
            )


def check_guidance(run: RunConfig, methods: Sequence[Method], teacher: Teacher) -> None:
    """Raise ConfigError for a teacher that a stage cannot learn from, and for guidance, the run's,
    a method's or the cache's, that would do nothing or that a student never sees."""
    given: set[str] = set()  # inputs of the student so far
    trained: tuple[str, Span] | None = None  # by which stage for which guidance
    for i, (stage, method) in enumerate(zip(run.stages, methods)):
        own = stage.teacher == "run"
        cached = run.cache is not None and run.cache.guidance is not None
        ranged = method.needs.trajectories and cached
        try:
            method.check_teacher(teacher.guided if own else teacher.denoiser)
        except ValueError as error:
            raise ConfigError(f"stages.{i}: {error}") from error
        if (method.needs.guidance or ranged) and not teacher.null:
            raise ConfigError(f"stages.{i}: guidance needs a class-conditional teacher")
        if method.needs.guidance and not own and not given.intersection(GUIDANCE_INPUTS):
            raise ConfigError(f"stages.{i}: guides the last student, which takes no guidance")
        if ranged and not set(GUIDANCE_INPUTS) & {*method.needs.inputs}:
            raise ConfigError(f"stages.{i}: {stage.method} gives no student w: no cache.guidance")
        given |= {*method.needs.inputs}
        drawn = run.cache.guidance if ranged else method.needs.guidance
        if drawn and trained and not own:
            check_seen(f"stages.{i}: guidance", drawn, *trained)
        if drawn and set(GUIDANCE_INPUTS) & {*method.needs.inputs}:
            trained = f"stages.{i}", (min(drawn), max(drawn))
            check_seen("guidance", (run.guidance, run.guidance), *trained)
    asked = [m.needs.trajectories or m.passes(run.sampler).teacher > 0 for m in methods]
    ranged = any(method.needs.guidance for method in methods) or (run.cache and run.cache.guidance)
    for key, idle in (("guidance_rescale", 0.0), ("negative_prompt", None)):
        if getattr(run, key) != idle and run.guidance == 1 and not ranged:
            raise ConfigError(f"{key}: changes nothing at guidance 1: leave it out")
    if run.guidance != 1 and not any(asked):
        raise ConfigError(f"guidance: {run.guidance:g} is for a teacher that no stage asks: use 1")


def check_export(run: RunConfig, methods: Sequence[Method], teacher: Teacher) -> None:
    """Raise ConfigError for a student that no pipeline of prompts would call as it was trained."""
    family = teacher.backbone
    if not family.prompted:
        return
    kind = type(teacher.pipeline).__name__
    if not family.seeded and run.sampler.gamma > 0 and run.sampler.steps != (1,):
        raise ConfigError(
            f"sampler.gamma: {kind} hands its generator to no scheduler, so that noise between "
            "steps could not be repeated: use 0"
        )
    given = {each for method in methods for each in method.needs.inputs} - {"logvar"}
    known = {"w"} if family.guidance_input() is not None and not family.embedded else set()
    if given - known:
        raise ConfigError(
            f"stages: a student with the input {min(given - known)} is called by no {kind}: choose "
            "another method, or settings without it"
        )


def check_batches(setup: Setup) -> None:
    """Raise ConfigError for a turn of fewer samples than its method compares, if it is trained on
    these processes: a trained one may be opened on any."""
    processes = setup.accelerator.num_processes
    for i, (stage, method) in enumerate(zip(setup.run.stages, setup.methods)):
        training, least = stage.training, method.needs.batch
        if training.batch * training.accumulation * processes < least:
            raise ConfigError(
                f"stages.{i}.training.batch: {stage.method} compares {least} samples of a turn or "
                f"more, and has {training.batch} × {training.accumulation} accumulated × "
                f"{processes} processes: raise one of them, or lower what settings ask for"
            )


def check_seen(key: str, asked: Span, stage: str, trained: Span) -> None:
    """Raise ConfigError for guidance outside the range that `stage` trains its student for."""
    outside = next((w for w in asked if not trained[0] <= w <= trained[1]), None)
    if outside is not None:
        raise ConfigError(
            f"{key}: {outside:g} lies outside the {trained[0]:g} to {trained[1]:g} that {stage} "
            "trains its student for: write one inside, or widen that range"
        )


def check_times(run: RunConfig, methods: Sequence[Method], denoiser: Denoiser) -> None:
    """Raise ConfigError for sampling times the student never sees, or where x̂₀ is undefined."""
    process, offered = denoiser.process, {*run.sampler.steps, *run.evaluation.steps}
    try:
        *_, trained = (method.trained_times(process, run.sampler) for method in methods)
        for n in sorted(offered):
            times = run.sampler.times(process, n)
            process.require_well_posed(denoiser.prediction, float(times[0]))
            check_trained(n, times, trained, tolerance=1e-6 * process.t_max)
    except ValueError as error:
        raise ConfigError(f"sampler: {error}") from error


def check_trained(n: int, times: Tensor, trained: Tensor | None, tolerance: float) -> None:
    """Raise ValueError if one of `times` is not among `trained`; None trains everywhere."""
    if trained is None:
        return
    gaps = (times[:, None] - trained).abs().min(dim=1).values
    if float(gaps.max()) > tolerance:
        t = float(times[gaps.argmax()])
        raise ValueError(
            f"{n} steps ask the student at t = {t:g}, which the last stage never trains: choose a "
            "grid that holds it (such as 16 uniform steps for 1, 2 and 4), or other steps"
        )


def accelerator_of(run: RunConfig, folder: Path) -> Accelerator:
    """The accelerator of a run, logging below its folder."""
    AcceleratorState._reset_state()  # else an earlier run of this process fixes the precision
    trackers = list(run.trackers) or None
    if "wandb" in run.trackers and find_spec("wandb") is None:
        raise ConfigError("trackers: wandb is not installed: pip install 'stepdistill[wandb]'")
    return Accelerator(
        # Else processes that torchrun starts without a GPU would know nothing of each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=PRECISIONS[run.precision],
        log_with=trackers,
        project_dir=str(folder),
    )
