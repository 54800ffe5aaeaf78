"""A diffusers scheduler's configuration as a noise process and a prediction.

    scheduler                                  process               prediction
    FlowMatch…                                 rectified flow        flow
    FewStepScheduler                           whichever its student was trained in
    a table of ᾱ (DDPM, DDIM, Euler, …)        variance preserving   epsilon → eps,
                                                                     v_prediction → v, sample → x0

Any other configuration is refused.
"""

import diffusers
from diffusers import SchedulerMixin

from ..process import NoiseProcess, Prediction, RectifiedFlow, VariancePreserving
from ..schema import did_you_mean, shown

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FEW_STEP_SCHEDULER = "FewStepScheduler"  # of pipelines/few_step_scheduler.py


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler's process is rectified flow, whose networks see num_train_timesteps·t."""
    name = type(scheduler).__name__
    few_step = name == FEW_STEP_SCHEDULER and scheduler.config["beta_schedule"] is None
    return few_step or name.startswith("FlowMatch")


def process_of(scheduler: SchedulerMixin) -> tuple[NoiseProcess, Prediction]:
    """The noise process and prediction a scheduler's configuration describes.

    Raises ValueError for a configuration that is not understood."""
    name, config = type(scheduler).__name__, scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if is_flow(scheduler):
        return RectifiedFlow(), PREDICTIONS.get(
            kind, "flow"
        ) if name == FEW_STEP_SCHEDULER else "flow"
    # Multistep solvers carry a table even when they integrate a flow.
    if config.get("use_flow_sigmas", False) or kind == "flow_prediction":
        raise ValueError(f"scheduler {name}: give the flow a FlowMatchEulerDiscreteScheduler")
    if "beta_schedule" not in config:
        raise ValueError(f"scheduler {name}: neither a flow nor a table of alphas_cumprod")
    if kind not in PREDICTIONS:
        raise ValueError(f"scheduler {name}: unknown prediction_type '{kind}'")
    table = scheduler.alphas_cumprod.double().clone()
    if config.get("rescale_betas_zero_snr", False):
        table[-1] = 0.0  # some schedulers replace the exact zero by 2⁻²⁴
    process = VariancePreserving(table)
    process.require_well_posed(PREDICTIONS[kind], process.t_max)
    return process, PREDICTIONS[kind]


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """A scheduler class of diffusers. Raises ValueError for any other name."""
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        advice = did_you_mean(name, [n for n in dir(diffusers) if n.endswith("Scheduler")])
        raise ValueError(f"{shown(name)} is not a scheduler of diffusers{advice}")
    return kind
