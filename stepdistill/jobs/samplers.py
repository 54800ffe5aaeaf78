"""Teachers, students and exported folders as samplers of an evaluation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..conditions import Cond, move
from ..denoiser import Denoiser
from ..evaluation.evaluate import Sampled
from ..evaluation.reference import Asked
from ..evaluation.report.table import steps_text
from ..evaluation.rows import STUDENT, TEACHER
from ..networks.inputs import WithInputs, is_given_guidance
from ..networks.views import parameter_count
from ..runs.stages import TrainedRun
from ..schema import ConfigError
from ..solver import Sampler, sample
from ..teachers.hub import is_id
from ..teachers.loading import load_pipeline, pipeline_folder, trained_settings
from ..teachers.teacher import Teacher, teacher_sampler
from .costs import parts_of
from .suites import kind_of

UNTRAINED = "untrained-student"  # the teacher, sampled as its student is

Draw = Callable[[Tensor, Cond, torch.Generator], Tensor]


def of_run(trained: TrainedRun) -> list[Sampled]:
    """A trained run: teacher rows, the untrained student at its fewest steps, the student."""
    evaluation, teacher = trained.run.evaluation, trained.teacher
    sampler = trained.run.sampler
    found = []
    if trained.run.network is None:
        found += [of_teacher(teacher, n) for n in evaluation.teacher_steps]
        fewest = min(evaluation.steps)
        found.append(of_student(UNTRAINED, teacher.denoiser, sampler, fewest, teacher))
    student = trained.student
    return found + [of_student(STUDENT, student, sampler, n, teacher) for n in evaluation.steps]


def of_teacher(teacher: Teacher, steps: int) -> Sampled:
    """The guided teacher with Euler (DDIM) steps on its own uniform grid."""
    sampler = teacher_sampler(teacher)

    def draw(noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        return sampler.draw(teacher.guided, noise, steps, cond, generator)

    nfe = steps * teacher.nfe
    return sampled(TEACHER, steps, nfe, teacher.denoiser, teacher, draw)


def of_student(
    model: str, student: Denoiser, sampler: Sampler, steps: int, teacher: Teacher
) -> Sampled:
    """A student as its run samples it; teacher: whose conditions and codec it has."""

    def draw(noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        return sampler.draw(student, noise, steps, cond, generator)

    return sampled(model, steps, steps, student, teacher, draw)


def of_folder(
    folder: Path, steps: int | None, guidance: float | None = None, alone: bool = True
) -> tuple[Sampled, Teacher]:
    """An exported pipeline as a student, at `steps` or at its fewest, and as a teacher. guidance:
    of a network that reads it; where it is not alone, that of others.

    Raises ConfigError if it is none, was not trained for these steps, or reads no guidance."""
    # A path here is a path, whatever shipped teachers are called.
    source = f"./{folder}" if folder.is_dir() and not folder.is_absolute() else str(folder)
    try:
        pipeline_folder(source)
    except ValueError as error:
        kinds = "neither a run's folder (config.yaml) nor a pipeline's (model_index.json)"
        raise ConfigError(str(error) if is_id(source) else f"{folder}: {kinds}") from error
    try:
        pipeline = load_pipeline(source)
        teacher = Teacher.from_pipeline(pipeline)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    trained = trained_settings(pipeline)
    student, table = exported(pipeline, teacher), trained.get("times")
    told = guidance if alone or reads(student, teacher) else None
    student = with_guidance(student, teacher, told, str(folder))
    if table is None:
        any_steps = teacher_sampler(teacher)
        return of_student(STUDENT, student, any_steps, steps or 1, teacher), teacher
    steps = steps or min(map(int, table))
    if str(steps) not in table:
        raise ConfigError(f"{folder}: trained for {', '.join(table)} steps, not {steps}")
    times = torch.tensor(table[str(steps)], dtype=torch.float64)

    def draw(noise: Tensor, cond: Cond, generator: torch.Generator) -> Tensor:
        return sample(student, noise, times, cond, generator, trained["gamma"])

    return sampled(STUDENT, steps, steps, student, teacher, draw), teacher


def with_guidance(student: Denoiser, teacher: Teacher, w: float | None, name: str) -> Denoiser:
    """A student at guidance w, None for its own. Raises ConfigError where it reads none, and where
    nothing says its own."""
    if w is None and teacher.backbone.reads_guidance(student.net):
        raise ConfigError(f"{name}: its network reads the guidance: say which, by --guidance")
    if w is not None and not reads(student, teacher):
        raise ConfigError(f"--guidance: {name} does not read it: its guidance is fixed")
    return student if w is None else replace(student, w=w)


def reads(student: Denoiser, teacher: Teacher) -> bool:
    """Whether guidance is an input of a student's network."""
    return teacher.backbone.reads_guidance(student.net) or is_given_guidance(student.net)


def exported(pipeline: DiffusionPipeline, teacher: Teacher) -> Denoiser:
    """The network of an exported pipeline as the student it was."""
    trained = trained_settings(pipeline)
    student = replace(teacher.denoiser, skip=trained.get("skip_sigma_data") is not None)
    inputs = pipeline.components.get("inputs")
    if inputs is None:
        return student
    net = WithInputs(student.net, inputs.eval().requires_grad_(False))
    return replace(student, net=net, w=trained["guidance"])


def in_batches(
    sampler: Sampled, noise: Tensor, asked: Asked, generator: torch.Generator, batch: int
) -> Tensor:
    """The images (n, c, h, w) that a sampler makes of noise (n, *event), a batch at a time.

    generator: the one that the noise came from; re-noising continues its stream."""
    made = []
    for start in range(0, len(noise), batch):
        rows = slice(start, start + batch)
        given = None if asked is None else asked[rows]
        made.append(sampler.sample(noise[rows], given, generator))
    return torch.cat(made)


def label(model: str, steps: int) -> str:
    """How a sampler is named beside its pictures."""
    return f"{model}, {steps_text(steps)}"


def sampled(
    model: str, steps: int, nfe: int, denoiser: Denoiser, teacher: Teacher, draw: Draw
) -> Sampled:
    """A sampler whose x̂₀ come from `draw` on the denoiser's device; images are clamped."""
    parameters = parameter_count(denoiser.net)
    device = next(denoiser.net.parameters()).device

    @torch.inference_mode()
    def images(noise: Tensor, asked: Asked, generator: torch.Generator) -> Tensor:
        cond = move(teacher.conditions(asked), device)
        x0 = draw(noise.to(device), cond, generator)
        return teacher.codec.decode(x0).clamp(-1, 1).cpu()

    # Of other conditions than labels and prompts nobody knows what may be asked.
    told = teacher.prompted or teacher.classes is not None or not teacher.null
    kind = kind_of(teacher) if told else None
    parts = {**parts_of(teacher.pipeline), "network": [denoiser.net]}
    return Sampled(model, steps, nfe, parameters, teacher.event, images, kind=kind, parts=parts)
