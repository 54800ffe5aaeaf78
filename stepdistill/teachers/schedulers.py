"""A diffusers scheduler's configuration as a noise process, a prediction and a clip.

    scheduler                                  process               prediction
    FlowMatch…                                 rectified flow        flow
    FewStepScheduler                           whichever its student was trained in
    a table of ᾱ (DDPM, DDIM, Euler, …)        variance preserving   epsilon → eps,
                                                                     v_prediction → v, sample → x0

Any other is refused, and so are settings under which networks are asked in another clock or with
another sign, and steps that cannot be followed.

Under a table "eps" is asked no later than float32 can bear: x̂₀ = (x − σε̂)/α makes errors larger by
1/α: 157 at the end of diffusers' linear table, 20,000 at the last timestep of its cosine table and
640 at the last but one, where students start.
"""

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ..process import NoiseProcess, Prediction, RectifiedFlow, VariancePreserving
from ..schema import did_you_mean, shown

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FEW_STEP_SCHEDULER = "FewStepScheduler"  # of pipelines/few_step_scheduler.py
FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
TABLES = (
    *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "CogVideoXDDIM", "CogVideoXDPM", "LCM"),
    *("PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "TCD"),
    *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep"),
    *("DEISMultistep", "UniPCMultistep", "SASolver"),
)
# Settings of which one value alone is understood, and what others do.
ONLY = {
    "timestep_type": ("discrete", "asks the network in another clock"),
    "invert_sigmas": (False, "turns the network's clock round"),
    "use_flow_sigmas": (False, "is a flow: give it a FlowMatchEulerDiscreteScheduler"),
    "use_dynamic_shifting": (False, "needs a shift that pixel pipelines do not give: set shift"),
    "shift_terminal": (None, "has no times for one step"),
    "stochastic_sampling": (False, "adds noise between steps"),
    "scale_factors": (None, "changes the size between steps"),
    "thresholding": (False, "is not known here: set clip_sample"),
}
BEARABLE = 1e3  # magnification of errors
SMALLEST = 2.0**-23  # of ᾱ; some schedulers replace an exact zero by half of it


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler's process is rectified flow, whose networks see num_train_timesteps·t."""
    if type(scheduler).__name__ == FEW_STEP_SCHEDULER:
        return scheduler.config["beta_schedule"] is None
    return kind_of(scheduler) in FLOWS


def kind_of(scheduler: SchedulerMixin) -> str:
    """The name of its class, without "Scheduler"."""
    return type(scheduler).__name__.removesuffix("Scheduler")


def process_of(scheduler: SchedulerMixin) -> tuple[NoiseProcess, Prediction]:
    """The noise process and prediction a scheduler's configuration describes.

    Raises ValueError for a configuration that is not understood."""
    name, config = type(scheduler).__name__, scheduler.config
    kind = config.get("prediction_type", "epsilon")
    for key, (usual, why) in ONLY.items():
        if config.get(key, usual) != usual:
            raise ValueError(f"scheduler {name}: {key} {shown(config[key])} {why}")
    if is_flow(scheduler):
        few_step = name == FEW_STEP_SCHEDULER
        return RectifiedFlow(), PREDICTIONS.get(kind, "flow") if few_step else "flow"
    if kind_of(scheduler) not in (*TABLES, "FewStep"):
        raise ValueError(f"scheduler {name}: neither a flow nor a table of alphas_cumprod")
    if kind not in PREDICTIONS:
        raise ValueError(f"scheduler {name}: unknown prediction_type {shown(kind)}")
    process, prediction = VariancePreserving(table_of(scheduler)), PREDICTIONS[kind]
    process.require_well_posed(prediction, process.t_max)
    whole = torch.arange(process.t_max + 1)
    bearable = whole[process.magnification(prediction, whole) <= BEARABLE]
    if len(bearable) < 2:
        raise ValueError(f"scheduler {name}: its table of alphas_cumprod holds nothing but noise")
    process.t_max = float(bearable[-1])
    return process, prediction


def table_of(scheduler: SchedulerMixin) -> Tensor:
    """ᾱ of a scheduler, (T,) float64, zero at the end where its configuration says so.

    Raises ValueError for a table that is not what the configuration says."""
    name, config = type(scheduler).__name__, scheduler.config
    table = scheduler.alphas_cumprod.double().clone()
    if len(table) != config["num_train_timesteps"]:
        length = config["num_train_timesteps"]
        raise ValueError(f"scheduler {name}: {len(table)} betas for {length} num_train_timesteps")
    if config.get("rescale_betas_zero_snr", False):
        if table[-1] > SMALLEST:
            raise ValueError(f"scheduler {name}: takes no notice of rescale_betas_zero_snr")
        table[-1] = 0.0
    return table


def clip_of(scheduler: SchedulerMixin) -> float | None:
    """Where a scheduler clips x̂₀; None for nowhere. Raises ValueError for no such place."""
    config = scheduler.config
    if not config.get("clip_sample", False):
        return None
    bound = config.get("clip_sample_range", 1.0)
    if type(bound) not in (int, float) or not 0 < bound < float("inf"):
        name = type(scheduler).__name__
        raise ValueError(f"scheduler {name}: clip_sample_range {shown(bound)} is not above 0")
    return float(bound)


def scheduler_class(name: str) -> type[SchedulerMixin]:
    """A scheduler class of diffusers. Raises ValueError for any other name."""
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        advice = did_you_mean(name, [n for n in dir(diffusers) if n.endswith("Scheduler")])
        raise ValueError(f"{shown(name)} is not a scheduler of diffusers{advice}")
    return kind
