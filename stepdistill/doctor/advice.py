"""What to write into scheduler_config.json, or into a call, to ask at a student's times."""

import json
from typing import Any

from .case import Case
from .opened import FLOW, accepted

FILE = "scheduler_config.json"
EXACT = {"shift": 1.0, "use_dynamic_shifting": False, "shift_terminal": None}
TRAILING = {"timestep_spacing": "trailing"}


def even(case: Case, n: int) -> str:
    """Settings under which n steps are evenly spread from pure noise, before a flow's shift."""
    if case.trained is not None and case.trained.set:
        given = settings(case.trained.set)
    elif case.process != FLOW:
        given = settings(TRAILING)
    else:
        given = "the shift it was trained with"
    return f"{FILE}: {given}{even_call(case, n)}"


def even_call(case: Case, n: int) -> str:
    """What a flow's call needs beside its scheduler, which shifts evenly spread sigmas if it is
    given them, and else spreads them to its smallest σ."""
    kind = type(case.scheduler).__name__
    if case.trained is not None:
        kind = case.trained.set.get("_class_name", kind)
    if case.process != FLOW or not kind.startswith("FlowMatch") or spreads(case):
        return ""
    if "sigmas" in accepted(case.folder.kind.__call__):
        return f"; call: sigmas={[round(1 - i / n, 4) for i in range(n)]}"
    return f" under UniPCMultistepScheduler, which needs {settings(solver(case))}"


def flow(case: Case) -> str:
    """Settings under which a solver of tables walks a flow."""
    return f"{FILE}: {settings(solver(case))}"


def solver(case: Case) -> dict[str, Any]:
    known = case.trained is not None and bool(case.trained.grid)
    shift = case.trained.shift if known else case.scheduler.config.get("shift", 1.0)
    return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}


def spreads(case: Case) -> bool:
    """Whether a pipeline hands evenly spread sigmas to its scheduler unasked."""
    return not case.folder.kind.__name__.startswith(("StableDiffusion3", "Sana", "Wan"))


def exact(case: Case, times: tuple[float, ...]) -> str:
    """How a pipeline is brought to ask at these very times."""
    known = accepted(case.folder.kind.__call__)
    listed = [round(t, 6) for t in times]
    if case.trained.grid:
        return even(case, len(times))
    if case.process == FLOW and "sigmas" in known:
        return f"{FILE}: {settings(EXACT)}; call: sigmas={listed}"
    if case.process != FLOW and "timesteps" in known:
        return f"{FILE}: {settings({'_class_name': 'LCMScheduler'})}; call: timesteps={listed}"
    return even(case, len(times))


def settings(values: dict[str, Any]) -> str:
    """As they stand in a JSON; a class stands in two."""
    texts = {key: json.dumps(value) for key, value in values.items()}
    if "_class_name" in texts:
        texts["_class_name"] += " (and in model_index.json)"
    return ", ".join(f"{key}: {text}" for key, text in texts.items())
