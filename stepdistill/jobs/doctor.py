"""What a pipeline's folder is really asked, and whether its student was trained for it."""

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from ..doctor.case import Case
from ..doctor.evidence import ARGUMENTS, believed, card_text, evidence, shown_call
from ..doctor.opened import FLOW, Opened, Unknown, accepted, opened
from ..doctor.recording import LISTS, MOST_STEPS, Recording, recordings
from ..doctor.verdict import UNKNOWN, WRONG, Fault, faults, judge, named, shortened
from ..schema import ConfigError, shown

STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Diagnosis:
    """verdict: "right", "wrong" or "cannot tell"; why: in a sentence; evidence: who says what it
    was trained for; recordings: what is asked, the judged call first."""

    verdict: str
    why: str
    faults: tuple[Fault, ...] = ()
    pipeline: str = ""
    scheduler: str = ""
    process: str = ""
    prediction: str = ""
    evidence: tuple[str, ...] = ()
    recordings: tuple[Recording, ...] = ()

    @property
    def is_wrong(self) -> bool:
        return self.verdict == WRONG

    def json(self) -> str:
        """As one line of JSON, which has no word for what is not finite."""
        values = asdict(self)
        for recording, written in zip(self.recordings, values["recordings"]):
            written |= {"steps": recording.steps, "guidance": recording.guidance}
            for row in ("times", "sigmas"):
                written[row] = [t if isfinite(t) else None for t in written[row]]
        return json.dumps(values, ensure_ascii=False)

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Of each recording its call, the number of its steps, its times, its guidance."""
        for seen in self.recordings:
            asked = seen.error or ", ".join(shortened(seen.times))
            yield named(seen.call), str(seen.steps), asked, seen.guidance

    def lines(self) -> Iterator[str]:
        """What stands below the table."""
        if self.pipeline:
            yield f"{self.pipeline} under {self.scheduler}: {self.process}, {self.prediction}"
        for source in self.evidence:
            yield f"trained for few steps, says: {source}"
        yield f"{self.verdict}: {self.why}"
        for fault in self.faults:
            yield f"  {fault.name}: {fault.what}"
            yield f"    change: {fault.change}"


def diagnose(source: str, call: str | None = None) -> Diagnosis:
    """Run a folder's pipeline on stubs and judge one call of it.

    call: its arguments as Python has them, like "num_inference_steps=4, guidance_scale=0"; else the
    call that its card shows, or the bare one. Raises ConfigError for what is no such folder."""
    try:
        folder = opened(source)
        return diagnosed(folder, judged_call(folder, call))
    except Unknown as error:
        return Diagnosis(UNKNOWN, str(error))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error


def diagnosed(folder: Opened, call: dict[str, Any]) -> Diagnosis:
    found = evidence(folder)
    trained, scheduler = believed(found), folder.scheduler()
    seen = recordings(folder, call, trained.steps if trained else ())
    case = Case(folder, scheduler, seen[0], seen, trained)
    wrong = faults(case)
    verdict, why = judge(case, wrong)
    velocity = "flow_prediction" if case.process == FLOW else "its network's own"
    return Diagnosis(
        verdict,
        why,
        tuple(wrong),
        folder.kind.__name__,
        type(scheduler).__name__,
        case.process,
        scheduler.config.get("prediction_type", velocity),
        tuple(each.source for each in found),
        tuple(seen),
    )


def judged_call(folder: Opened, call: str | None) -> dict[str, Any]:
    """The arguments of the call in question."""
    known = accepted(folder.kind.__call__)
    if call is None:
        told = shown_call(card_text(folder))
        return {k: v for k, v in told.items() if k in known and fits(k, v)}
    given = dict(arguments(call))
    for name, value in given.items():
        if name not in ARGUMENTS or name not in known:
            offered = ", ".join(name for name in ARGUMENTS if name in known)
            raise ConfigError(f"--call: {shown(name)}: {folder.kind.__name__} takes {offered}")
        if not fits(name, value):
            kind = f"1 to {MOST_STEPS} steps" if name in (*LISTS, STEPS) else "a number"
            raise ConfigError(f"--call: {name}: {shown(value)} is not {kind}")
    return given


def fits(name: str, value: object) -> bool:
    """Whether an argument is of its kind, and no more steps than can be waited for."""
    if name in LISTS:
        return isinstance(value, list) and 0 < len(value) <= MOST_STEPS and are_numbers(value)
    if name == STEPS:
        return type(value) is int and 0 < value <= MOST_STEPS
    return are_numbers([value])


def are_numbers(values: list) -> bool:
    return all(type(value) in (int, float) for value in values)


def arguments(call: str) -> Iterator[tuple[str, Any]]:
    """Names and values of "a=1, b=[1, 2]". Raises ConfigError for anything else."""
    try:
        parsed = ast.parse(f"f({call})", mode="eval").body
        if not isinstance(parsed, ast.Call) or parsed.args:
            raise ValueError("no names")
        for keyword in parsed.keywords:
            yield keyword.arg, ast.literal_eval(keyword.value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        example = "num_inference_steps=4, guidance_scale=0"
        raise ConfigError(f"--call: {shown(call)}: write it like '{example}'") from error
