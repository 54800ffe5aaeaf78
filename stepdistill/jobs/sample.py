"""Samples as one PNG: a grid of images, without axes."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..denoiser import Guided
from ..evaluation.evaluate import Sampled
from ..evaluation.gallery import at_once
from ..evaluation.rows import STUDENT
from ..files import whole
from ..runs.folder import RunFolder
from ..runs.stages import reopen
from ..schema import ConfigError
from ..teachers.backbone import Asked
from ..teachers.teacher import Teacher, teacher_sampler
from .samplers import in_batches, of_folder, of_student, of_teacher, with_guidance
from .sources import Opening

SIDE = 64  # pixels of an image in the grid, at least
COUNT, EACH, COLUMNS = 64, 4, 10


def draw_grid(
    source: Path,
    out: Path,
    opening: Opening,
    count: int | None,
    seed: int,
    prompts: tuple[str, ...] = (),
    beside: int | None = None,
) -> None:
    """Write `count` samples of a run or an exported pipeline to a PNG, which is there whole; of
    several prompts a row each, or more. Without a count COUNT, or EACH of every prompt. beside:
    steps of the run's teacher, whose samples of the same noise stand below each row.

    Raises ConfigError for a source that is neither, steps it was not trained for, prompts where it
    takes none, and a teacher where there is none."""
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ConfigError(f"{out}: write a .png file")
    if beside is not None and not RunFolder(source).is_run:
        raise ConfigError(f"--teacher: {source} is no run, and says no teacher: name its run")
    student, teacher = student_of(source, opening)
    below = None if beside is None else below_of(source, teacher, beside, opening)
    count = count or (EACH * len(prompts) if prompts else COUNT)
    asked, each = asked_of(teacher, count, prompts), count // max(1, len(prompts))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, *student.event, generator=generator)
    batch = at_once((teacher.codec.channels, *teacher.size))
    start = generator.get_state()
    images = in_batches(student, noise, asked, generator, batch)
    widest = range(1, min(COLUMNS, each) + 1)
    columns = max(n for n in widest if each % n == 0) if prompts else widest[-1]
    if below is not None:
        generator.set_state(start)
        theirs = in_batches(below, noise, asked, generator, batch)
        images = in_turn(images, theirs, columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as partial:
        Image.fromarray(tile(images, columns).numpy()).save(partial)


def below_of(source: Path, teacher: Teacher, steps: int, opening: Opening) -> Sampled:
    """A run's teacher in so many steps, guided as its student is told to be, or as the run says.
    Raises ConfigError where the run has none, and for steps that it cannot be asked in."""
    if RunFolder(source).read(opening.trusted).network is not None:
        raise ConfigError(f"--teacher: {source} was trained from data: it has no teacher")
    if opening.guidance is not None and isinstance(teacher.guided, Guided):
        teacher = replace(teacher, guided=replace(teacher.guided, w=opening.guidance))
    try:
        teacher_sampler(teacher).times(teacher.denoiser.process, steps)
    except ValueError as error:
        raise ConfigError(f"--teacher: {error}") from error
    return of_teacher(teacher, steps)


def in_turn(images: Tensor, others: Tensor, columns: int) -> Tensor:
    """Rows of so many images, each above the row of the others; what is missing is white."""
    rows = [
        torch.cat([part, part.new_ones(columns - len(part), *part.shape[1:])])
        for pair in zip(images.split(columns), others.split(columns))
        for part in pair
    ]
    return torch.cat(rows)


def asked_of(teacher: Teacher, count: int, prompts: tuple[str, ...]) -> Asked:
    """What `count` samples are asked for: each prompt as often, one after the other.

    Raises ConfigError where there are prompts and it takes none, or none and it takes some."""
    if prompts and not teacher.prompted:
        raise ConfigError("--prompt: this model takes no prompts")
    if not teacher.prompted:
        return teacher.asked(count)
    if not (prompts or teacher.prompts):
        raise ConfigError("--prompt: this model makes pictures of prompts: give one")
    if not prompts:
        return teacher.asked(count)
    if count % len(prompts):
        raise ConfigError(f"--count: {count} images are not as many of {len(prompts)} prompts each")
    each = count // len(prompts)
    return [prompts[i // each] for i in range(count)]


def student_of(source: Path, opening: Opening) -> tuple[Sampled, Teacher]:
    """The sampler of a run's student or of an exported pipeline, and its teacher or itself."""
    if not RunFolder(source).is_run:
        return of_folder(source, opening.steps, opening.guidance)
    trained = reopen(source, Accelerator(), trusted=opening.trusted)
    sampler = trained.run.sampler
    steps = opening.steps or min(sampler.steps or trained.run.evaluation.steps)
    if sampler.steps and steps not in sampler.steps:
        offered = ", ".join(map(str, sampler.steps))
        raise ConfigError(f"{source}: offered with {offered} steps, not {steps}")
    teacher = trained.teacher
    student = trained.student
    if opening.guidance is not None:
        student = with_guidance(student, teacher, opening.guidance, str(source))
    return of_student(STUDENT, student, sampler, steps, teacher), teacher


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (n, 1|3, h, w) in [−1, 1] as one uint8 picture (H, W) or (H, W, 3)."""
    zoom = max(1, SIDE // images.shape[-2])
    images = F.pad(images, (0, 1, 0, 1))  # a grey line between neighbours
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = torch.full((rows * columns, channels, height, width), 1.0)
    canvas[:n] = images
    picture = canvas.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    picture = picture.reshape(rows * height, columns * width, channels)
    picture = picture.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).squeeze(-1)
