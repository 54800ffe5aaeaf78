"""The averaged student as a diffusers pipeline folder that works without this toolkit.

    stock pipeline and scheduler        where its configuration alone yields the trained times
    stock pipeline, own scheduler       `pipelines/few_step_scheduler.py` carries the times
    `pipelines/few_step.py`             where diffusers has no pipeline for the network

Own code travels with the weights, and with every copy that `save_pretrained` makes of them; loading
it needs `trust_remote_code=True`, and the model card says so.

Export runs the plain call `pipe(num_inference_steps=N)` in a clean process and compares its images
with the trainer's own sampler; a mismatch leaves nothing behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DiffusionPipeline,
    SchedulerMixin,
)
from safetensors.torch import load_file
from torch import Tensor

from ..conditions import move
from ..denoiser import Denoiser
from ..evaluation.report.report import read_results
from ..evaluation.rows import Row
from ..files import (
    LOCK,
    PARTIAL,
    SMALL,
    recover_folder,
    regular,
    remove,
    replace_folder,
    write_whole,
)
from ..networks.inputs import WithInputs
from ..networks.views import bare
from ..resources import PACKAGE
from ..runs.folder import alone
from ..runs.stages import TrainedRun
from ..schema import ConfigError
from ..solver import Sampler
from ..teachers.backbone import Asked
from ..teachers.loading import absent, few_step_class
from ..teachers.lora_file import FOLDER as LORA
from ..teachers.teacher import Teacher
from .lora import has_lora_files, write_lora
from .model_card import card
from .schedulers import (
    ANY_STEPS,
    few_step_scheduler,
    has_stock_pipeline,
    plain_scheduler,
    stock_scheduler,
    trained_as,
)

TOLERANCE = 1e-5  # largest difference of a pixel in [0, 1], float32
MAGNIFIED = 32  # times that errors of an output may grow in x̂₀ before more is allowed
CHECKED, CHECKED_PROMPTS = 20, 2  # images of the comparison


class ExportError(RuntimeError):
    """The exported folder does not do what the trained student does."""


def export(trained: TrainedRun, out: Path) -> float:
    """Write the student of a trained run to `out`; the largest pixel difference it was seen with.

    Raises ExportError if the plain call disagrees with the trainer's sampler, ConfigError if `out`
    is something else than an earlier export.
    """
    rows = scored(trained)
    out.parent.mkdir(parents=True, exist_ok=True)
    with alone(beside(out, LOCK), out):
        recover_folder(out)
        # In a run's own folder lies nothing else; what was torn there is made anew.
        if os.path.lexists(out) and out != trained.folder.student and not is_export(out):
            raise ConfigError(f"{out} exists and is not an earlier export: choose another folder")
        return write(trained, out, rows)


def write(trained: TrainedRun, out: Path, rows: list[Row]) -> float:
    """Make the folder and check it, under another name, then put it in the place of an earlier."""
    teacher, student, sampler = trained.teacher, trained.student, trained.run.sampler
    pipeline = pipeline_for(teacher, student, sampler)
    work = beside(out, PARTIAL)
    remove(work)  # of a process that was killed
    made = work / out.name
    made.mkdir(parents=True)
    try:
        pipeline.save_pretrained(made, safe_serialization=True)
        if trained.role is not None and has_lora_files(teacher.pipeline):
            write_lora(made / LORA, teacher.pipeline, teacher.backbone.network, trained.role)
        describe(trained, made, rows)
        difference = verify(made, teacher, student, sampler)
        readable(made)
        replace_folder(made, out)
    finally:
        remove(work)
    return difference


def beside(out: Path, suffix: str) -> Path:
    """A hidden name for what is needed while `out` is made."""
    return out.with_name(f".{out.name}{suffix}")


def is_export(folder: Path) -> bool:
    """Whether stepdistill made this folder: its model card says so."""
    try:
        text = regular(folder / "README.md", SMALL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "\ntags: [stepdistill, " in text


def scored(trained: TrainedRun) -> list[Row]:
    """The scores of a finished run; what was scored is the end of training alone."""
    folder = trained.folder
    known = trained.ended and folder.costs.is_file() and folder.results.is_file()
    return read_results(folder.results) if known else []


def describe(trained: TrainedRun, folder: Path, rows: list[Row]) -> None:
    """Write the model card of an exported folder, with these scores."""
    write_whole(folder / "README.md", card(trained, code_of(folder), rows))


def code_of(folder: Path) -> list[str]:
    """The files of code in an exported folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def readable(folder: Path) -> None:
    """The usual permissions, which safetensors' files lack."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


def pipeline_for(teacher: Teacher, student: Denoiser, sampler: Sampler) -> DiffusionPipeline:
    """The pipeline that samples `student` exactly as `sampler` does."""
    if teacher.size != teacher.backbone.size and not teacher.prompted:
        bare(student.net).register_to_config(sample_size=list(teacher.size))
    stock = stock_scheduler(teacher, student, sampler)
    if teacher.prompted:
        return prompted(teacher, student, stock, sampler)
    if stock is not None:
        kind = DDIMPipeline if isinstance(stock, DDIMScheduler) else DDPMPipeline
        return kind(student.net, stock)
    scheduler = teacher.pipeline.scheduler
    if has_stock_pipeline(teacher, student, sampler):
        return DDPMPipeline(student.net, few_step_scheduler(scheduler, student, sampler))
    return few_step_class()(
        bare(student.net),
        plain_scheduler(scheduler),
        student.net.inputs if isinstance(student.net, WithInputs) else None,
        guidance=teacher.w,
        **trained_as(student, sampler),
    )


def prompted(
    teacher: Teacher, student: Denoiser, stock: SchedulerMixin | None, sampler: Sampler
) -> DiffusionPipeline:
    """The teacher's own pipeline around the student. Raises ExportError for a network that it does
    not call as it was trained."""
    if not has_stock_pipeline(teacher, student, sampler):
        kind = type(teacher.pipeline).__name__
        raise ExportError(f"{kind} does not call such a network as it was trained")
    scheduler = stock or few_step_scheduler(teacher.pipeline.scheduler, student, sampler)
    pipeline, network = teacher.pipeline, teacher.backbone.network
    values = {**pipeline.config, **pipeline.components, network: student.net}
    values["scheduler"] = scheduler
    known = signature(type(pipeline).__init__).parameters
    return type(pipeline)(**{name: value for name, value in values.items() if name in known})


@torch.no_grad()
def verify(folder: Path, teacher: Teacher, student: Denoiser, sampler: Sampler) -> float:
    """The largest difference between plain calls in a clean process and the trainer's sampler.

    Raises ExportError if it exceeds `allowed`."""
    steps, seed = list(sampler.steps or ANY_STEPS), 20260101
    count = CHECKED_PROMPTS if teacher.prompted else CHECKED
    asked = teacher.asked(count)
    custom = bool(code_of(folder))
    request = {"folder": str(folder.resolve()), "custom": custom, "steps": steps, "seed": seed}
    request["absent"] = absent(teacher.pipeline)
    images = call_plainly(request | {"call": call_of(teacher, student, asked, count)})
    home = next(student.net.parameters()).device
    student.net.cpu()  # where the plain call runs: convolutions of other devices round differently
    teacher.to(torch.device("cpu"))
    cond = move(teacher.conditions(asked), "cpu")
    worst = 0.0
    for n in steps:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, *teacher.event, generator=generator)
        ours = teacher.codec.decode(sampler.draw(student, noise, n, cond, generator))
        ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        worst = max(worst, float((images[str(n)] - ours).abs().max()))
    student.net.to(home)
    teacher.to(home)
    most = allowed(student, sampler)
    if not worst <= most:
        raise ExportError(
            f"the exported pipeline differs from the trainer's sampler by {worst:.2g} "
            f"(at most {most:.2g} is allowed); nothing was written"
        )
    return worst


def call_of(teacher: Teacher, student: Denoiser, asked: Asked, count: int) -> dict[str, Any]:
    """What a plain call is given beside its steps, for labels, prompts or nothing."""
    if asked is None:
        return {"batch_size": count}
    if isinstance(asked, Tensor):
        return {"class_labels": asked.tolist()}
    height, width = teacher.size
    w = teacher.called_at(student.net)
    return {"prompt": list(asked), "guidance_scale": w, "height": height, "width": width}


def allowed(student: Denoiser, sampler: Sampler) -> float:
    """The largest difference of a pixel that rounding explains: TOLERANCE, and more where x̂₀ makes
    errors of the output larger, like 1/α = 157 times at the end of diffusers' linear table."""
    process, steps = student.process, sampler.steps or ANY_STEPS
    first = torch.cat([sampler.times(process, n)[:1] for n in steps])
    grown = float(process.magnification(student.prediction, first).max())
    return TOLERANCE * max(1.0, grown / MAGNIFIED)


def call_plainly(request: dict) -> dict[str, Tensor]:
    """Images of the plain calls of a request, made in a process without this toolkit.

    What it needs lies beside the folder; it ends with this process, however that ends."""
    with tempfile.TemporaryDirectory(dir=Path(request["folder"]).parent) as scratch:
        script, asked, answer = (Path(scratch) / name for name in ("call.py", "ask", "answer"))
        shutil.copy(PACKAGE / "export" / "check_call.py", script)
        asked.write_text(json.dumps(request))
        command = [sys.executable, str(script), str(asked), str(answer)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": scratch}
        where = {"cwd": scratch, "env": environment}
        until, ours = os.pipe()  # nothing is written: the system closes it when this process ends
        try:
            done = subprocess.run(command, stdin=until, capture_output=True, text=True, **where)
        finally:
            os.close(until)
            os.close(ours)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [ending(done.returncode)]
            raise ExportError(f"the exported pipeline does not run: {lines[-1]}")
        return load_file(answer)


def ending(code: int) -> str:
    """How a process ended that said nothing."""
    if code > 0:
        return f"its process ended with exit code {code}, and said nothing"
    more = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
    return f"its process was ended by {signal.Signals(-code).name}{more}"
