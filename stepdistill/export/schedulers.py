"""Which scheduler lets a stock pipeline of diffusers walk a student's times.

1. One of diffusers' own, if its configuration alone yields the times.
2. Else `pipelines/few_step_scheduler.py`, which carries them and travels beside its config.
3. None where no stock pipeline calls the network as it was trained: `pipelines/few_step.py` does.
"""

from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from ..denoiser import Denoiser
from ..networks.inputs import WithInputs
from ..networks.views import bare
from ..process import RectifiedFlow
from ..solver import Sampler
from ..teachers.loading import few_step_scheduler_class
from ..teachers.schedulers import is_flow
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
DDIM_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


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
        # With more steps Euler's last one starts at its smallest σ.
        return plain_scheduler(scheduler) if sampler.steps == (1,) else None
    if scheduler.config.beta_schedule not in DDIM_SCHEDULES:
        return None
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
        return FlowMatchEulerDiscreteScheduler(length)
    config = table_of(scheduler) | {"timestep_spacing": "trailing", "clip_sample": False}
    return DDIMScheduler(length, **config)


def few_step_scheduler(
    scheduler: SchedulerMixin, student: Denoiser, sampler: Sampler
) -> SchedulerMixin:
    """A FewStepScheduler of the same process and prediction, with the student's times."""
    config = table_of(scheduler)
    if is_flow(scheduler):
        config = {"beta_schedule": None, "prediction_type": "flow_prediction"}
    return few_step_scheduler_class()(
        scheduler.config.num_train_timesteps, **config, **trained_as(student, sampler)
    )


def trained_as(student: Denoiser, sampler: Sampler) -> dict[str, Any]:
    """What the files of pipelines/ are given of how a student was trained."""
    steps = sampler.steps
    return {
        "times": {str(n): sampler.times(student.process, n).tolist() for n in steps} or None,
        "gamma": sampler.gamma,
        "skip_sigma_data": student.process.sigma_data if student.skip else None,
    }


def table_of(scheduler: SchedulerMixin) -> dict[str, Any]:
    """What the configuration says of a table of ᾱ and of the network's prediction."""
    config = scheduler.config
    kept = {name: config[name] for name in TABLE if name in config}
    return kept | {"prediction_type": config.get("prediction_type", "epsilon")}
