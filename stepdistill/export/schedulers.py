"""Stock schedulers whose configuration alone yields a student's times."""

from diffusers import DDIMScheduler

from ..denoiser import Denoiser
from ..networks.inputs import WithInputs
from ..process import VariancePreserving
from ..solver import Sampler
from ..teachers.teacher import Teacher

ANY_STEPS = (1, 4)  # what is checked of a student that runs with any number of steps


def stock_scheduler(teacher: Teacher, student: Denoiser, sampler: Sampler) -> DDIMScheduler | None:
    """DDIM's scheduler if its configuration alone yields the student's times, else None."""
    table = isinstance(student.process, VariancePreserving) and teacher.classes is None
    noisy = sampler.gamma > 0 and sampler.steps != (1,)
    if not table or noisy or student.skip or isinstance(student.net, WithInputs):
        return None
    settings = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}
    scheduler = DDIMScheduler.from_config(dict(teacher.pipeline.scheduler.config) | settings)
    length = scheduler.config.num_train_timesteps
    for n in sampler.steps or ANY_STEPS:
        scheduler.set_timesteps(n)
        same = scheduler.timesteps.tolist() == sampler.times(student.process, n).tolist()
        # DDIM steps down by length // n, whatever its own timesteps say.
        if not same or length % n:
            return None
    return DDIMScheduler.from_config(scheduler.config)
