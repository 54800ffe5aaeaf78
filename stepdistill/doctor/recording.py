"""What a network is asked: the unmodified pipeline is run on stubs, and every call written down.

A network is told a time in units of its own, in which pipelines of one process differ:

    told = t            SD, SDXL, DiT, SD3, Wan: t = 1000 σ of a flow, or the index of a table of ᾱ
    told = t / 1000     FLUX, Qwen-Image: σ
    told = 1 − t/1000   Z-Image, Lumina 2: the other way round

Which it is, is seen from the scheduler's timesteps. Beside it stands the σ that the scheduler takes
the state to have: where the two differ, the network is given a wrong time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from ..teachers.loading import foreign
from .opened import FLOW, Opened, Unknown, accepted, process_of

COUNTS = (1, 2, 4, 8)  # steps of the calls that are recorded beside the user's own
MOST = 8  # of the numbers of steps that a student was trained for
MOST_STEPS = 1000  # of a call
LISTS = ("sigmas", "timesteps")  # arguments that say the number of steps, too
UNITS: dict[str, Callable[[float, float], float]] = {
    "t": lambda t, length: t,
    "t / T": lambda t, length: t / length,
    "1 − t / T": lambda t, length: 1 - t / length,
}
BACK: dict[str, Callable[[float, float], float]] = {
    "t": lambda told, length: told,
    "t / T": lambda told, length: told * length,
    "1 − t / T": lambda told, length: (1 - told) * length,
}


@dataclass(frozen=True)
class NetworkCall:
    """One call of a network. told: its time; step: of the scheduler; rows: states in it.

    timestep: the scheduler's own; sigma: what it takes the state to have, of a flow; w: a guidance
    that the network is given."""

    told: float
    step: int
    rows: int
    timestep: float | None = None
    sigma: float | None = None
    w: float | None = None


@dataclass(frozen=True)
class Recording:
    """One call of a pipeline.

    call: its arguments; times: where the network is asked, σ of a flow or the index of a table;
    sigmas: what the scheduler takes the states to have, of a flow; passes: evaluations a step; w:
    the guidance that is an input; unit: what the network is told of t; finite: whether every state,
    time and sample is; error: why the call failed."""

    call: dict[str, Any]
    times: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()
    passes: int = 0
    w: float | None = None
    unit: str = ""
    finite: bool = True
    error: str = ""

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def guidance(self) -> str:
        """How guidance reaches the sample: in further passes, as an input of the network, not."""
        further = [f"{self.passes} passes"] if self.passes > 1 else []
        told = [] if self.w is None else [f"w = {self.w:g} is an input"]
        return ", ".join(further + told) or "none"


class Recorder:
    """Writes down what networks are asked while a pipeline runs."""

    def __init__(self) -> None:
        self.calls: list[NetworkCall] = []
        self.steps, self.finite, self.w = 0, True, None
        self.pipe: DiffusionPipeline | None = None

    def follow(self, pipe: DiffusionPipeline) -> None:
        """Count its scheduler's steps; pipelines look at the signature of `step`, which stays."""
        step, self.pipe = pipe.scheduler.step, pipe

        @wraps(step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            after = step(*args, **kwargs)
            self.steps += 1
            return after

        pipe.scheduler.step = counted

    @property
    def scheduler(self) -> SchedulerMixin:
        return self.pipe.scheduler

    def __call__(self, asked: dict[str, Any]) -> None:
        if set(asked) == {"guidance"}:  # of an exported student's extra inputs
            self.w = number(asked["guidance"])
            return
        x = next(asked[key] for key in ("sample", "hidden_states", "x") if key in asked)
        states = x if isinstance(x, list | tuple) else [x]
        told = number(asked["timestep"] if "timestep" in asked else asked["t"])
        self.finite &= all(bool(torch.isfinite(each).all()) for each in states)
        self.finite &= told - told == 0
        w = self.w if asked.get("guidance") is None else number(asked["guidance"])
        if asked.get("timestep_cond") is not None:
            w = float(self.pipe.guidance_scale)  # what is embedded there
        at = timestep_of(self.scheduler, self.steps), sigma_of(self.scheduler, self.steps)
        self.calls.append(NetworkCall(told, self.steps, len(x), *at, w=w))


def timestep_of(scheduler: SchedulerMixin, step: int) -> float | None:
    times = getattr(scheduler, "timesteps", ())
    return float(times[step]) if step < len(times) else None


def sigma_of(scheduler: SchedulerMixin, step: int) -> float | None:
    """σ of the state before a step of a flow, as the scheduler will take it."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or process_of(scheduler) != FLOW:
        return None
    index = step if scheduler.step_index is None else scheduler.step_index
    return float(sigmas[index]) if index < len(sigmas) else None


def number(told: Any) -> float:
    """A time, of all the states or tokens that have one."""
    return float(told.detach().double().max()) if torch.is_tensor(told) else float(told)


def record(folder: Opened, call: dict[str, Any]) -> Recording:
    """Run one call of a folder's pipeline. Raises Unknown where it needs more than words."""
    recorder = Recorder()
    pipe = folder.pipeline(recorder)
    recorder.follow(pipe)
    pipe.set_progress_bar_config(disable=True)
    arguments = plain_arguments(folder, pipe) | call
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            with foreign(folder.path.name), torch.no_grad():
                made = pipe(**arguments)[0]
        except ValueError as error:
            return Recording(call, error=str(error))
    finite = recorder.finite and bool(torch.isfinite(torch.as_tensor(made)).all())
    return written(call, recorder, finite)


def plain_arguments(folder: Opened, pipe: DiffusionPipeline) -> dict[str, Any]:
    """What every call has: a text or a class, and latents for an answer where there are any."""
    known = accepted(folder.kind.__call__)
    latents = getattr(pipe, "vae", None) is not None
    given = {"prompt": "a photo", "output_type": "latent" if latents else "np"}
    given["generator"] = torch.Generator().manual_seed(0)
    needed = [k for k, p in known.items() if p.default is p.empty]
    if "class_labels" in needed:
        given["class_labels"] = [0]
    missing = [k for k in needed if k not in given]
    if missing:
        raise Unknown(f"a call of {folder.kind.__name__} needs {', '.join(missing)}")
    return {k: v for k, v in given.items() if k in known}


def written(call: dict[str, Any], recorder: Recorder, finite: bool) -> Recording:
    """What was recorded, one entry for each step of the scheduler."""
    steps = [list(g) for _, g in groupby(recorder.calls, lambda c: (c.step, c.told))]
    if not steps:
        raise Unknown("its pipeline asked no network that is known")
    first = [calls[0] for calls in steps]
    length = recorder.scheduler.config.get("num_train_timesteps", 1000)
    unit = unit_of(first, length) if recorder.steps else "t"
    times = [BACK[unit](c.told, length) for c in first]
    if process_of(recorder.scheduler) == FLOW:
        times = [t / length for t in times]
    # Our own pipeline walks by itself: its scheduler stands still.
    sigmas = tuple(c.sigma for c in first if c.sigma is not None and recorder.steps)
    passes = max(sum(c.rows for c in calls) for calls in steps)
    return Recording(call, tuple(times), sigmas, passes, first[0].w, unit, finite)


def unit_of(calls: Iterable[NetworkCall], length: float) -> str:
    """What a network is told of the scheduler's timestep t: the unit that is nearest."""
    known = [c for c in calls if c.timestep is not None]

    def error(unit: str) -> float:
        return sum(abs(c.told - UNITS[unit](c.timestep, length)) for c in known)

    return min(UNITS, key=error)


def recordings(
    folder: Opened, call: dict[str, Any], steps: tuple[int, ...] = ()
) -> list[Recording]:
    """The call as it is, and with COUNTS and `steps` steps where its pipeline can be told."""
    kept = {k: v for k, v in call.items() if k not in LISTS}
    tells = "num_inference_steps" in accepted(folder.kind.__call__)
    trained = [n for n in steps[:MOST] if n <= MOST_STEPS]
    counts = sorted({*COUNTS, *trained}) if tells else ()
    others = [{**kept, "num_inference_steps": n} for n in counts]
    return [record(folder, each) for each in [call, *(o for o in others if o != call)]]
