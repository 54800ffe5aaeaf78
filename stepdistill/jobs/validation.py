"""What is looked at while a student is trained: pictures of it and its teacher, always from the
same noise and for the same prompts or labels, and the metric by which a checkpoint is the best.

    validation/000500.png    after so many student updates of the run: in the first row the teacher
                             at most steps, below it the student at each number of steps; a column
                             shares its noise
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..denoiser import Denoiser
from ..evaluation.evaluate import Sampled, evaluate
from ..evaluation.gallery import at_once
from ..evaluation.metric import Metric
from ..evaluation.report.pictures import as_bytes, shown
from ..evaluation.report.report import TrajectoryStrip
from ..evaluation.rows import STUDENT
from ..evaluation.suite import Suite
from ..files import DiskError, unwritten, whole
from ..runs.config import RunConfig
from ..runs.stages import Stages, TrainedRun
from ..schema import ConfigError
from ..schema import shown as shown_text
from ..training.health.monitor import averaged
from .samplers import in_batches, label, of_student, of_teacher
from .suites import suite_for

FRAMES = 8  # of a strip, at most


class Validator:
    """Of the stages of a run, from wherever they are.

    Raises ConfigError for a metric that the run's suite has not."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.run = stages, stages.setup.run
        self.settings = self.run.validation
        self.place = self._place()
        self.metric = None if self.settings.metric is None else self._named(self.settings.metric)

    def look(self, position: int) -> None:
        """Draw the student as it is, where it is time to. position: for the trackers, growing.

        Raises DiskError."""
        place = self._place()
        if place > self.place and place[1] > 0 and self.stages.setup.accelerator.is_main_process:
            self.draw(position)
        self.place = place

    def _place(self) -> tuple[int, int]:
        every = self.settings.every
        return self.stages.stage, self.stages.trainer.update // every if every else 0

    def draw(self, position: int) -> None:
        """Write the pictures, and give them to the trackers."""
        rows = [self._of_teacher for _ in self._teacher]
        with averaged(self.stages.trainer) as student:
            rows += [self._images(sampler) for sampler in self._of(student)]
        tiled = torch.stack(rows).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
        before = sum(stage.training.updates for stage in self.run.stages[: self.stages.stage])
        folder = self.stages.folder.validation
        file = folder / f"{before + self.stages.trainer.update:06d}.png"
        try:
            folder.mkdir(exist_ok=True)
            with whole(file) as partial:
                Image.fromarray(tiled.squeeze(-1).numpy()).save(partial, "png")
        except OSError as error:
            raise DiskError(unwritten(file, error)) from error
        pictures = {"validation": tiled[None].expand(-1, -1, -1, 3).numpy()}
        for tracker in self.stages.setup.accelerator.trackers:
            form = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(pictures, step=position, **form)

    def score(self) -> float | None:
        """Of the student as it is, by the metric; smaller is better. None where there is none."""
        if self.metric is None:
            return None
        name, n = self.metric.name, self.settings.n
        only = replace(self._suite, metrics=(self.metric,), headline=(name,))
        with averaged(self.stages.trainer) as student:
            rows = [self._of(student)[0], *self._teacher]  # that metrics may be relative to
            try:
                row, *_ = evaluate(rows, only, n, 1, self.run.evaluation.seed)
            except ValueError:  # images that are not finite, or too few: the state is saved first
                return None
        return self.metric.loss(row.scores[name].value) if name in row.scores else None

    def _named(self, wanted: str) -> Metric:
        metric = next((each for each in self._suite.metrics if each.name == wanted), None)
        if metric is None:
            names = ", ".join(each.name for each in self._suite.metrics)
            raise ConfigError(f"validation.metric: {shown_text(wanted)}: the suite has {names}")
        return metric

    @cached_property
    def _suite(self) -> Suite:
        return suite_for(self.run, self.stages.setup.teacher)[0]

    @cached_property
    def _teacher(self) -> list[Sampled]:
        """The teacher at most steps; none where the run makes one, or scores none."""
        steps = self.run.evaluation.teacher_steps
        if self.run.network is not None or not steps:
            return []
        return [of_teacher(self.stages.setup.teacher, max(steps))]

    @cached_property
    def _of_teacher(self) -> Tensor:
        return self._images(self._teacher[0])

    def _of(self, student: Denoiser) -> list[Sampled]:
        """A student at each number of steps, the fewest first."""
        teacher, steps = self.stages.setup.teacher, sorted(self.run.evaluation.steps)
        return [of_student(STUDENT, student, self.run.sampler, n, teacher) for n in steps]

    def _images(self, sampler: Sampled) -> Tensor:
        """As bytes, (n, c, h, w)."""
        n, source = self.settings.samples, torch.Generator().manual_seed(self.run.seed)
        noise = torch.randn(n, *sampler.event, generator=source)
        teacher = self.stages.setup.teacher
        batch = at_once((teacher.codec.channels, *teacher.size))
        return as_bytes(shown(in_batches(sampler, noise, teacher.asked(n), source, batch)))


def as_trained(trained: TrainedRun) -> list[TrajectoryStrip]:
    """The student at each number of steps as it was trained, and at last the teacher; of pictures
    that were drawn by other settings, none."""
    run, steps = trained.run, sorted(trained.run.evaluation.steps)
    taught = run.network is None and bool(run.evaluation.teacher_steps)
    rows, (height, width) = len(steps) + taught, trained.teacher.size
    drawn = trained.folder.validation.glob("[0-9]*.png")
    files = sorted((file for file in drawn if file.stem.isdecimal()), key=lambda f: int(f.stem))
    size = run.validation.samples * width, rows * height
    files = [file for file in files if Image.open(file).size == size]
    if not files:
        return []
    places = np.linspace(0, len(files) - 1, min(len(files), FRAMES)).round().astype(int)
    chosen = [files[place] for place in places]
    frames = torch.stack([tiles(file, rows, run) for file in chosen])
    labels = [f"{int(file.stem):,} updates" for file in chosen]
    found = []
    for row, n in enumerate(steps, int(taught)):
        images = frames[:, row]
        if taught:
            images = torch.cat([images, frames[-1:, 0]])
        named = labels + ["teacher"] * taught
        found.append(TrajectoryStrip(label(STUDENT, n), images.transpose(0, 1), named))
    return found


def tiles(file: Path, rows: int, run: RunConfig) -> Tensor:
    """The images (rows, n, c, h, w) of a file, in [−1, 1]."""
    pixels = torch.from_numpy(np.array(Image.open(file)))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    apart = pixels.unflatten(1, (run.validation.samples, -1)).unflatten(0, (rows, -1))
    return apart.permute(0, 2, 4, 1, 3).float() / 127.5 - 1
