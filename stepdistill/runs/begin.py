"""An earlier student, as what a run's first stage begins from in place of its teacher."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..networks.guidance_embedding import PROJECTION
from ..networks.inputs import KEPT_INPUTS
from ..process import NoiseProcess
from ..schema import ConfigError
from ..teachers.loading import load_pipeline, trained_settings
from ..teachers.lora_file import FILE, FOLDER, role_in
from ..teachers.teacher import Teacher
from ..training.players import Adapters
from .config import RunConfig
from .folder import RunFolder

PROBES = 9  # times at which two processes are compared


@dataclass(frozen=True)
class Beginning:
    """tensors: the student's own, by name. inputs: what its network has beyond the teacher's.
    skip: whether it has the boundary condition of consistency functions."""

    tensors: dict[str, Tensor]
    inputs: tuple[str, ...] = ()
    skip: bool = False


def beginning_of(run: RunConfig, teacher: Teacher) -> Beginning | None:
    """The student that `run` names, None where it names none.

    Raises ConfigError for a folder that is none, or that does not fit the teacher."""
    if run.student is None:
        return None
    if run.adapters is not None and "student" in run.adapters.roles:
        return role_of(Path(run.student), run.adapters, teacher)
    try:
        pipeline = load_pipeline(str(exported_in(Path(run.student))))
        earlier = Teacher.from_pipeline(pipeline)
    except ValueError as error:
        raise ConfigError(f"student: {error}") from error
    require_alike(earlier, teacher)
    tensors, inputs = dict(earlier.denoiser.net.state_dict()), ()
    if PROJECTION in tensors and not teacher.backbone.embedded:
        tensors["inputs.proj.weight"], inputs = tensors.pop(PROJECTION), ("w",)
    extra = pipeline.components.get("inputs")
    if extra is not None:
        inputs = tuple(extra.config.get("inputs", ("adapters",)))
        tensors |= {f"inputs.{name}": value for name, value in extra.state_dict().items()}
    if not {*inputs} <= {*KEPT_INPUTS}:
        raise ConfigError(f"student: {run.student}: adapters on a teacher: begin from the teacher")
    return Beginning(tensors, inputs, trained_settings(pipeline).get("skip_sigma_data") is not None)


def role_of(path: Path, adapters: Adapters, teacher: Teacher) -> Beginning:
    """The role in a LoRA file, or in that of a folder. Raises ConfigError."""
    places = path, path / FILE, exported_in(path) / FOLDER / FILE
    file = next((each for each in places if each.is_file()), None)
    if file is None:
        raise ConfigError(
            f"student: {path}: holds no {FILE}, and student is among adapters.roles: leave it out "
            "there, or begin from a LoRA"
        )
    try:
        role = role_in(teacher.pipeline, teacher.backbone.network, file)
    except ValueError as error:
        raise ConfigError(f"student: {error}") from error
    if role.rank != adapters.rank:
        raise ConfigError(f"student: {file}: has rank {role.rank}: set adapters.rank to that")
    scale = (adapters.alpha or adapters.rank) / adapters.rank
    halves = role.tensors.items()
    return Beginning({name: v / scale if ".lora_B." in name else v for name, v in halves})


def exported_in(folder: Path) -> Path:
    """The student of a run's folder, or the folder itself, as a path that no shipped name is."""
    place = RunFolder(folder)
    found = place.student if place.is_run else folder
    return found if found.is_absolute() else Path.cwd() / found


def require_alike(earlier: Teacher, teacher: Teacher) -> None:
    """Raise ConfigError unless a student means what one of this teacher would."""
    ours, theirs = teacher.denoiser, earlier.denoiser
    facts = {
        "has samples of": (earlier.event, teacher.event),
        "predicts": (theirs.prediction, ours.prediction),
        "has classes": (earlier.classes, teacher.classes),
    }
    for what, (there, here) in facts.items():
        if there != here:
            raise ConfigError(f"student: {what} {there}, and the teacher {here}: choose another")
    if not same_process(theirs.process, ours.process):
        raise ConfigError("student: has another noise schedule than the teacher: choose another")


def same_process(a: NoiseProcess, b: NoiseProcess) -> bool:
    """Whether two processes have equal scales at equal times."""
    if type(a) is not type(b) or (a.t_min, a.t_max) != (b.t_min, b.t_max):
        return False
    times = torch.linspace(a.t_min, a.t_max, PROBES, dtype=torch.float64)
    return all(torch.allclose(x, y) for x, y in zip(a.scales(times), b.scales(times)))
