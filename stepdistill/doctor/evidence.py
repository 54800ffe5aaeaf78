"""What a folder says it was trained for.

In this order, the first that knows a thing is believed:

1. the times of our own exports, in the config of their pipeline or scheduler
2. `distilled_sigmas` and `is_distilled` of model_index.json or modular_model_index.json
3. `students.yaml`: published students, by the names that a folder bears
4. its configuration: FLUX.1 without guidance as input, a network with w as input, LCM's scheduler
5. its card: ours says the steps, and most show a call
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..files import SMALL, regular
from ..schema import shown
from ..teachers.folder import INDEX, read_json
from ..teachers.loading import FEW_STEP, few_step_settings
from ..teachers.schedulers import FEW_STEP_SCHEDULER
from .opened import FLOW, MODULAR, Opened, process_of

OWN = "own"  # the grid of a student whose makers leave its times to a scheduler
FEW = 8  # steps that nobody but a student makes do with
LCM_GRID = 50
LONGEST = 200  # characters of a name that is looked at
SAMPLERS = ("LCMScheduler", "TCDScheduler", "SCMScheduler", "FlowMatchLCMScheduler")
ARGUMENTS = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "sigmas", "timesteps")
Table = dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class Trained:
    """What a student was trained for, as far as it is known.

    source: who says so; steps: numbers of steps, () for any; times: of some of them; grid and
    shift: what makes those of the others; guidance: "none", "input", "any"; set: settings of the
    scheduler, as advice. All as in students.yaml."""

    source: str
    steps: tuple[int, ...] = ()
    times: Table = field(default_factory=dict)
    grid: str = ""
    shift: float = 1.0
    guidance: str = "any"
    set: dict[str, Any] = field(default_factory=dict)

    def at(self, n: int, length: int) -> tuple[float, ...] | None:
        """The times of n steps under a table of `length`, or of a flow; None if nobody says."""
        if self.times or (self.steps and n not in self.steps):
            return self.times.get(n)
        share = [i / n for i in range(n)]
        if self.grid == "trailing":
            return tuple(round(length * (1 - u)) - 1.0 for u in share)
        if self.grid == "lcm":
            apart = length // LCM_GRID
            return tuple(apart * (LCM_GRID - int(LCM_GRID * u)) - 1.0 for u in share)
        if self.grid == "even":
            return tuple(self.shift * (1 - u) / (1 + (self.shift - 1) * (1 - u)) for u in share)
        return None

    @property
    def has_times(self) -> bool:
        return bool(self.times) or bool(self.grid)


def evidence(folder: Opened) -> list[Trained]:
    """All that says what a folder was trained for, the most reliable first."""
    found = (own_times, distilled, known, structure, card)
    return [trained for find in found if (trained := find(folder)) is not None]


def believed(found: list[Trained]) -> Trained | None:
    """One of many: of each thing what the first says that knows it; None if there is nothing."""
    if not found:
        return None
    timed = next((each for each in found if each.has_times), None)
    stepped = next((each for each in found if each.steps), found[0])
    guided = next((each for each in found if each.guidance != "any"), found[0])
    told = timed or stepped
    source = "; ".join(each.source for each in found)
    steps = tuple(timed.times) if timed and timed.times else stepped.steps
    return Trained(source, steps, told.times, told.grid, told.shift, guided.guidance, told.set)


def own_times(folder: Opened) -> Trained | None:
    config = folder.parts["scheduler"][1]
    if folder.kind.__name__ == FEW_STEP:
        values, file = folder.index, INDEX
    elif folder.parts["scheduler"][0].__name__ == FEW_STEP_SCHEDULER:
        values, file = config, "scheduler/scheduler_config.json"
    else:
        return None
    settings = few_step_settings(values, folder.path / file)
    if not settings.get("times"):
        return None
    times = {int(n): tuple(map(float, row)) for n, row in settings["times"].items()}
    inputs = folder.parts.get("inputs", (None, {}))[1].get("inputs", ())
    guidance = "input" if "w" in inputs else "any"
    return Trained(f"times in {file}", tuple(times), times, guidance=guidance)


def distilled(folder: Opened) -> Trained | None:
    file = folder.path / MODULAR
    more = read_json(file) if file.is_file() else {}
    values = {k: v for k, v in (more | folder.index).items() if k.startswith(("is_dist", "distil"))}
    sigmas = values.get("distilled_sigmas")
    if sigmas is not None:
        fit = isinstance(sigmas, list) and all(isinstance(s, int | float) for s in sigmas)
        if not (fit and sigmas):
            raise ValueError(f"{folder.path}: distilled_sigmas is {shown(sigmas)}, not numbers")
        row = tuple(float(s) for s in sigmas if s > 0)  # some end with the clean sample
        return Trained(
            f"distilled_sigmas {list(row)}", (len(row),), {len(row): row}, guidance="none"
        )
    if values.get("is_distilled") is True:
        return Trained("is_distilled", guidance="none")
    return None


def known(folder: Opened) -> Trained | None:
    """Of `students.yaml` the first whose name the folder bears."""
    names = [name[:LONGEST] for name in names_of(folder)]
    for student in published()["students"]:
        alien = student.get("not_in")
        kind = folder.kind.__name__
        if not kind.startswith(student["in"]) or (alien and kind.startswith(alien)):
            continue
        for name in names:
            if found := re.search(student["match"], name, re.IGNORECASE):
                return as_published(student, name, found)
    return None


def as_published(student: dict[str, Any], name: str, found: re.Match) -> Trained:
    stated = re.search(r"(\d+)[-_ ]?steps?(?![a-z])", name[found.start() :], re.IGNORECASE)
    steps = (int(stated[1]),) if stated else tuple(student["steps"])
    times = {n: tuple(map(float, row)) for n, row in student.get("times", {}).items()}
    return Trained(
        source=f"{student['name']}, for {shown(name)} ({student['says']})",
        steps=steps,
        times=times,
        grid=student.get("grid", ""),
        shift=student.get("shift", 1.0),
        guidance=student["guidance"],
        set=student["set"],
    )


@cache
def published() -> dict[str, Any]:
    """The file students.yaml."""
    return yaml.safe_load(Path(__file__).with_name("students.yaml").read_text(encoding="utf-8"))


def names_of(folder: Opened) -> Iterator[str]:
    """The names a folder bears: what it was made of, its files of weights, its own."""
    configs = [folder.index, *(config for _, config in folder.parts.values())]
    for config in configs:
        if isinstance(config.get("_name_or_path"), str):
            yield config["_name_or_path"]
    text = card_text(folder)
    for line in re.findall(r"^(?:base_model:|  ?- |# )(.*)$", text, re.MULTILINE):
        yield line.strip(" -\"'")
    yield from sorted(file.stem for file in folder.path.glob("*.safetensors"))
    yield folder.path.resolve().name


def structure(folder: Opened) -> Trained | None:
    kind, config = folder.network()
    scheduler = folder.parts["scheduler"][0].__name__
    if kind.__name__ == "FluxTransformer2DModel" and not config.get("guidance_embeds", False):
        source = "a FLUX.1 network without guidance as input, like schnell's"
        even = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
        return Trained(source, (1, 2, 3, 4), grid="even", guidance="none", set=even)
    if config.get("time_cond_proj_dim"):
        source = "a network with the guidance as input, as LCM's (time_cond_proj_dim)"
        return Trained(source, (1, 2, 3, 4, 5, 6, 7, 8), grid="lcm", guidance="input")
    if scheduler in SAMPLERS:
        return Trained(f"{scheduler}, which samples students")
    return None


def card(folder: Opened) -> Trained | None:
    """Our own cards say for which steps; of others the call that they show."""
    text = card_text(folder)
    ours = re.search(r"^Steps it was trained for: ([\d, ]+)\.$", text, re.MULTILINE)
    if ours and "Made with stepdistill" in text:
        # Under a scheduler of diffusers export writes what walks the trained times, and no other.
        grid = "even" if process_of(folder.scheduler()) == FLOW else "trailing"
        return Trained("its card", tuple(map(int, ours[1].split(","))), grid=grid, guidance="none")
    steps = shown_call(text).get("num_inference_steps")
    if isinstance(steps, int) and 0 < steps <= FEW:
        return Trained(f"its card, which calls it in {steps} steps", (steps,))
    return None


def card_text(folder: Opened) -> str:
    file = folder.path / "README.md"
    if not file.is_file():
        return ""
    return regular(file, SMALL).read_text(encoding="utf-8", errors="replace")


def shown_call(text: str) -> dict[str, Any]:
    """Arguments of the first call in a card's Python that are about steps and guidance."""
    for block in text.split("```")[1::2]:
        if not block.lower().startswith("py"):
            continue
        found = {}
        for name in ARGUMENTS:
            match = re.search(rf"\b{name} *= *(\[[^\]]*\]|[\d.]+)", block)
            if match and (value := literal(match[1])) is not None:
                found[name] = value
        if found:
            return found
    return {}


def literal(text: str) -> Any:
    """A number or a list of numbers; None for anything else."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    rows = value if isinstance(value, list) else [value]
    return value if all(type(each) in (int, float) for each in rows) else None
