"""Which scheduler lets a stock pipeline of diffusers walk a student's times.

1. One of diffusers' own, if its configuration alone yields the times.
2. Else `pipelines/few_step_scheduler.py`, which carries them and travels beside its config.
3. None where no stock pipeline calls the network as it was trained: `pipelines/few_step.py` does.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from ..denoiser import Denoiser
from ..networks.inputs import WithInputs
from ..networks.views import bare
from ..process import RectifiedFlow, VariancePreserving
from ..solver import Sampler
from ..teachers.loading import few_step_scheduler_class
from ..teachers.schedulers import is_flow, table_of
from ..teachers.teacher import Teacher

Stock = DDIMScheduler | FlowMatchEulerDiscreteScheduler
ANY_STEPS = (1, 4)  # what is checked of a student that runs with any number of steps
TABLE = (
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def has_stock_pipeline(teacher: Teacher, student: Denoiser, sampler: Sampler) -> bool:
    """Whether diffusers' pixel pipelines call the network as `sampler` does.

    They know no labels and no further inputs, and start from unit noise.
    """
    process = student.process
    starts = [sampler.times(process, n)[:1] for n in sampler.steps or ANY_STEPS]
    unit = all(float(process.start_scale(t)) == 1 for t in starts)
    return teacher.classes is None and not isinstance(student.net, WithInputs) and unit


def stock_scheduler(teacher: Teacher, student: Denoiser, sampler: Sampler) -> Stock | None:
    """A scheduler of diffusers whose configuration alone yields the student's times, or None."""
    net = bare(student.net).config
    noisy = sampler.gamma > 0 and sampler.steps != (1,)
    beyond = noisy or student.skip or net.out_channels != net.in_channels
    if beyond or not has_stock_pipeline(teacher, student, sampler):
        return None
    scheduler = teacher.pipeline.scheduler
    if isinstance(student.process, RectifiedFlow):
        # With more steps Euler's last one starts at its smallest σ; pipelines of tables do not call
        # it at all.
        return (
            plain_scheduler(scheduler) if sampler.steps == (1,) and not teacher.prompted else None
        )
    return plain_scheduler(scheduler) if ddim_walks(scheduler, student, sampler) else None


def ddim_walks(scheduler: SchedulerMixin, student: Denoiser, sampler: Sampler) -> bool:
    """Whether DDIM on trailing timesteps asks the network at the times of `sampler`."""
    ddim = plain_scheduler(scheduler)
    for n in sampler.steps or ANY_STEPS:
        ddim.set_timesteps(n)
        same = ddim.timesteps.tolist() == sampler.times(student.process, n).tolist()
        # DDIM steps down by length // n, whatever its own timesteps say.
        if not same or ddim.config.num_train_timesteps % n:
            return False
    return True


def plain_scheduler(scheduler: SchedulerMixin) -> Stock:
    """diffusers' deterministic scheduler of the same process and prediction."""
    length = scheduler.config.num_train_timesteps
    if is_flow(scheduler):
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=length)
    # All by name: what is not, DDIMPipeline takes for a default when it makes its own of them.
    ddim = {"timestep_spacing": "trailing", "clip_sample": False}
    if scheduler.config.get("steps_offset"):  # without effect here, and missed by some pipelines
        ddim["steps_offset"] = scheduler.config["steps_offset"]
    return DDIMScheduler(num_train_timesteps=length, **settings_of(scheduler), **ddim)


def few_step_scheduler(
    scheduler: SchedulerMixin, student: Denoiser, sampler: Sampler
) -> SchedulerMixin:
    """A FewStepScheduler of the same process and prediction, with the student's times."""
    config = {"beta_schedule": None, "prediction_type": "flow_prediction"}
    if not is_flow(scheduler):
        config = settings_of(scheduler)
    length = scheduler.config.num_train_timesteps
    trained = trained_as(student, sampler)
    return few_step_scheduler_class()(num_train_timesteps=length, **config, **trained)


def trained_as(student: Denoiser, sampler: Sampler) -> dict[str, Any]:
    """What the files of pipelines/ are given of how a student was trained."""
    steps, process = sampler.steps, student.process
    trained = {
        "times": {str(n): sampler.times(process, n).tolist() for n in steps} or None,
        "gamma": sampler.gamma,
        "skip_sigma_data": process.sigma_data if student.skip else None,
    }
    late = isinstance(process, VariancePreserving) and process.t_max < len(process.angles) - 2
    return trained | ({"start": process.t_max} if late else {})


def settings_of(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What makes a DDIMScheduler of the same table of ᾱ and the same prediction: the settings by
    which the table is named, or its betas where DDIM makes another table of those."""
    config, table = scheduler.config, table_of(scheduler)
    kind = {"prediction_type": config.get("prediction_type", "epsilon")}
    named = {name: config[name] for name in TABLE if name in config}
    carried = {"trained_betas": betas_of(scheduler, table), "rescale_betas_zero_snr": False}
    for settings in (named, carried):
        if makes(settings, table):
            return settings | kind
    raise ValueError(f"scheduler {type(scheduler).__name__}: DDIM cannot be given its table")


def betas_of(scheduler: SchedulerMixin, table: Tensor) -> list[float]:
    """β of a table ᾱ, (T,): the scheduler's own where they make the table."""
    own = getattr(scheduler, "betas", None)
    if own is not None and makes({"trained_betas": own.tolist()}, table):
        return own.tolist()
    before = torch.cat([table.new_ones(1), table[:-1]])
    return (1 - table / before).tolist()


def makes(settings: dict[str, Any], table: Tensor) -> bool:
    """Whether a DDIMScheduler of these settings has this table (T,), as far as float32 can tell."""
    try:
        made = DDIMScheduler(num_train_timesteps=len(table), **settings).alphas_cumprod
    except (NotImplementedError, ValueError):
        return False
    return torch.allclose(made.double(), table, rtol=1e-5, atol=1e-12)
