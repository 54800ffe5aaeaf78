"""Right, wrong, or cannot tell: a rule for each trap, and what to change.

Some faults are faults whatever a network was trained for: a latent clipped to ±1, a flow that is
walked as a table of ᾱ, noise predictions where no signal is left, times that are not those of the
states. The others need to know what the student was trained for. The call that is judged is the
user's; if there is none, the one that the card shows; else the bare one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import advice
from .advice import FILE
from .case import CLEAN, NOISE, Case
from .evidence import OWN, published
from .opened import FLOW, TABLE
from .recording import Recording

RIGHT, WRONG, UNKNOWN = "right", "wrong", "cannot tell"
CLIPPING = ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "LCM")  # that heed clip_sample
NO_SIGNAL = 2.0**-23  # of ᾱ, which some schedulers put in the place of zero
SHOWN = 8  # times in a message


@dataclass(frozen=True)
class Fault:
    """What is wrong, and the setting that puts it right."""

    name: str
    what: str
    change: str


def family_is(case: Case, families: str) -> bool:
    kind = case.folder.network()[0].__name__
    return any(kind.startswith(name) for name in published()[families])


def clipped_latents(case: Case) -> Iterator[Fault]:
    """P1: DDIM and DDPM made from another's config clip x̂₀ to ±1 unless told not to."""
    kind = type(case.scheduler).__name__.removesuffix("Scheduler")
    config = case.scheduler.config
    if "vae" in case.folder.parts and kind in CLIPPING and config.get("clip_sample"):
        bound = config.get("clip_sample_range", 1.0)
        what = f"{kind}Scheduler clips latents to ±{bound:g} at every step"
        yield Fault("clipped latents", what, f"{FILE}: clip_sample: false")


def another_process(case: Case) -> Iterator[Fault]:
    """P2: a solver of flows made from another's config becomes one of a table, and back."""
    kind, name = case.folder.network()[0].__name__, type(case.scheduler).__name__
    if case.process == TABLE and family_is(case, "flows"):
        what = f"{kind} is a flow; {name} walks it as a table of ᾱ with noise predictions"
        yield Fault("another process", what, advice.flow(case))
    if case.process == FLOW and family_is(case, "tables"):
        what = f"{kind} was trained on a table of ᾱ; {name} walks it as a flow"
        yield Fault("another process", what, "take DDIMScheduler or another scheduler of tables")


def lost_shift(case: Case) -> Iterator[Fault]:
    """P2: FlowMatchEuler made from UniPC's config calls its shift by another name, and loses it."""
    config = case.scheduler.config
    if type(case.scheduler).__name__.startswith("FlowMatch") and "flow_shift" in config:
        said, used = config["flow_shift"], config.get("shift", 1.0)
        if said != used:
            what = f"flow_shift {said} is not read by this scheduler, whose shift is {used:g}"
            yield Fault("lost shift", what, f"{FILE}: shift: {said}")


def no_signal(case: Case) -> Iterator[Fault]:
    """P21: x̂₀ = (x − σ ε̂)/α of a noise prediction where α = 0."""
    config = case.scheduler.config
    predicts = config.get("prediction_type", "epsilon") == "epsilon"
    if case.process != TABLE or not predicts or not case.judged.times:
        return
    table, first = case.scheduler.alphas_cumprod, round(case.judged.times[0])
    if 0 <= first < len(table) and float(table[first]) <= NO_SIGNAL:
        what = f"noise is predicted at t = {first}, where no signal is left: x̂₀ is 0/0"
        right = "prediction_type: v_prediction if it was trained so, else "
        change = f"{FILE}: {right}rescale_betas_zero_snr: false"
        yield Fault("noise prediction without signal", what, change)


def another_time(case: Case) -> Iterator[Fault]:
    """P5: a time that is not that of the state."""
    for seen in case.seen:
        pairs = zip(seen.times, seen.sigmas)
        worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=(0.0, 0.0))
        if abs(worst[0] - worst[1]) > CLEAN:
            what = f"the network is told {worst[0]:.3g} where the state has σ = {worst[1]:.3g}"
            yield Fault("another time than the state's", what, "leave timesteps out of the call")
            return


def not_finite(case: Case) -> Iterator[Fault]:
    """P6: shift_terminal has no times for one step, and other divisions by zero."""
    wanted, terminal = case.trained.steps if case.trained else (), "shift_terminal"
    others = case.scheduler.config.get(terminal) and not all(seen.error for seen in case.seen)
    for seen in case.seen:
        asked = seen is case.judged or seen.call.get("num_inference_steps") in wanted
        fails = not seen.finite or (seen.error and others)
        if asked and fails:
            what = f"{named(seen.call)}: {seen.error or 'states or times are not finite'}"
            yield Fault("not finite", what, f"{FILE}: {terminal}: null")
            return


def wasted_step(case: Case) -> Iterator[Fault]:
    """P7: FlowMatchEuler without `sigmas` asks last at its smallest σ; "linspace" ends at 0."""
    seen = case.few
    if seen and seen.steps > 1 and seen.times[-1] < CLEAN * case.span:
        what = f"the last of {seen.steps} evaluations is at {seen.times[-1]:.3g}: clean already"
        yield Fault("wasted evaluation", what, advice.even(case, seen.steps))


def late_start(case: Case) -> Iterator[Fault]:
    """P4: leading timesteps begin half way, on states of pure noise."""
    seen = case.few
    if seen and seen.times[0] < NOISE * case.span:
        what = f"pure noise is called t = {seen.times[0]:.4g} of {case.span:g}"
        yield Fault("late start", what, advice.even(case, seen.steps))


def other_times(case: Case) -> Iterator[Fault]:
    """P4, P5, P7, a wrong shift, the base's scheduler: not the times it was trained at."""
    for seen in case.timed:
        expected = case.expected(seen)
        if case.apart(seen.times, expected):
            what = f"asked at {row(seen.times)}, trained at {row(expected)}"
            yield Fault(cause(case, seen, expected), what, advice.exact(case, expected))
            return


def cause(case: Case, seen: Recording, expected: tuple[float, ...]) -> str:
    """Why times are not the trained ones, by name."""
    config, given = case.scheduler.config, tuple(seen.call.get("sigmas", ()))
    if given and not case.apart(given, expected):
        return "sigmas shifted again"
    if config.get("use_dynamic_shifting") or config.get("shift_terminal"):
        return "the base's scheduler"
    if seen.times[0] < NOISE * case.span < expected[0]:
        return "late start"
    if seen.steps > 1 and seen.times[-1] < CLEAN * case.span < expected[-1]:
        return "wasted evaluation"
    return "wrong shift" if case.process == FLOW else "timestep spacing"


def further_passes(case: Case) -> Iterator[Fault]:
    """P10, and every student that is guided though guidance is in its weights."""
    if case.trained is None or case.trained.guidance not in ("none", "input"):
        return
    if case.judged.passes > 1:
        kind = case.folder.kind.__name__
        neutral = 0.0 if kind.startswith("ZImage") else 1.0
        name = "true_cfg_scale" if kind.startswith("QwenImage") else "guidance_scale"
        why = " (here w adds to 1: any above 0 guides)" if neutral == 0 else ""
        what = f"{case.judged.passes} passes a step, though guidance is in the weights{why}"
        yield Fault("guided twice", what, f"call: {name}={neutral:g}")


def other_steps(case: Case) -> Iterator[Fault]:
    """As many steps as it was never trained for."""
    steps, judged = case.trained.steps if case.trained else (), case.judged
    if steps and judged.steps and judged.steps not in steps:
        what = f"{judged.steps} steps, trained for {', '.join(map(str, steps))}"
        change = f"call: num_inference_steps={min(steps, key=lambda n: abs(n - 4))}"
        yield Fault("another number of steps", what, change)


def other_prediction(case: Case) -> Iterator[Fault]:
    """An output taken for something else, where a published student says what it predicts."""
    said = case.trained.set.get("prediction_type") if case.trained else None
    used = case.scheduler.config.get("prediction_type", "epsilon")
    if said and said != used and case.process == TABLE:
        what = f"its output is taken for {used}, but is {said}"
        yield Fault("another prediction", what, f"{FILE}: prediction_type: {said}")


RULES: tuple[Callable[[Case], Iterator[Fault]], ...] = (
    clipped_latents,
    another_process,
    lost_shift,
    no_signal,
    another_time,
    not_finite,
    other_prediction,
    other_steps,
    other_times,
    late_start,
    wasted_step,
    further_passes,
)


def faults(case: Case) -> list[Fault]:
    """All that is wrong, the gravest first; other faults of a wrong process are consequences."""
    found = [fault for rule in RULES for fault in rule(case)]
    grave = [fault for fault in found if fault.name == "another process"]
    return grave or found


def judge(case: Case, found: list[Fault]) -> tuple[str, str]:
    """The verdict, and why in a sentence."""
    if found:
        return WRONG, found[0].what
    judged = case.judged
    if judged.error and case.timed:
        seen = case.timed[0]
        return RIGHT, f"{named(seen.call)} asks at the trained times; {named(judged.call)} fails"
    if judged.error:
        return UNKNOWN, f"its pipeline did not run on stubs: {judged.error}"
    if case.trained is None:
        return UNKNOWN, "nothing here says that it is a few-step student, or at which times"
    if case.expected(judged) is not None:
        return RIGHT, f"asked at its trained times, {row(judged.times)}"
    if case.trained.grid == OWN:
        return keeps_settings(case)
    return UNKNOWN, "a student, but nothing says at which times it was trained"


def keeps_settings(case: Case) -> tuple[str, str]:
    """Of a student whose makers leave the times to a scheduler: whether this is that scheduler."""
    config = {"_class_name": type(case.scheduler).__name__, **case.scheduler.config}
    other = {k: v for k, v in case.trained.set.items() if config.get(k) != v}
    if not case.trained.set:
        return UNKNOWN, "a published student, whose times are told in its call alone"
    if other:
        return UNKNOWN, f"its makers' scheduler has {advice.settings(other)}"
    return RIGHT, "asked as its makers' scheduler asks it"


def row(times: tuple[float, ...]) -> str:
    return ", ".join(shortened(times))


def shortened(times: tuple[float, ...]) -> list[str]:
    """Times as a message shows them: the first, and the last of many."""
    texts = [f"{t:.4g}" for t in times]
    return texts if len(texts) <= SHOWN else [*texts[: SHOWN - 2], "…", texts[-1]]


def named(call: dict[str, Any]) -> str:
    return "pipe(" + ", ".join(f"{k}={v}" for k, v in call.items()) + ")"
