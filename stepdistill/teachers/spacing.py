"""Where a teacher's own pipeline asks its network, and where it ends.

The times of n steps are those of the pipeline's scheduler: its timestep_spacing, steps_offset,
shift, Karras sigmas and so on. Between them, and from the last to clean data, we walk by DDIM,
which for a flow is Euler's step. As in diffusers, the walk ends at timestep 0 where
`set_alpha_to_one` is false or `final_sigmas_type` is "sigma_min", and DDIM under "linspace" steps
down by T // n though its timesteps are further apart. Not followed are noise between steps and,
under "trailing", a T // n that is smaller than the steps are, of an n that does not divide T.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from ..conditions import Cond
from ..denoiser import AnyDenoiser, toward
from ..process import NoiseProcess
from ..solver import Sampler, ddim_step, start
from ..times import Grid
from .schedulers import is_flow, kind_of

STRIDING = ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel")


@dataclass(frozen=True)
class OwnTimes(Grid):
    """The times of a scheduler of diffusers."""

    scheduler: SchedulerMixin | None = None

    def __post_init__(self) -> None:
        return None  # a scheduler is no setting

    def times(self, process: NoiseProcess, n: int) -> Tensor:
        """(n + 1,) float64, strictly falling to process.t_clean.

        Raises ValueError for a number of steps the scheduler does not have."""
        found = asked_at(self.scheduler, n)
        if len(found) != n and not is_flow(self.scheduler):
            found = asked_at(DDIMScheduler(**self.spacing()), n)
        last = 1.0 if is_flow(self.scheduler) else len(self.scheduler.alphas_cumprod) - 1.0
        times = torch.cat([found, found.new_tensor([process.t_clean])])
        if len(found) != n or not bool((times.diff() < 0).all()) or times[0] > last:
            raise ValueError(f"{type(self.scheduler).__name__}: has no times for {n} steps")
        return times

    def spacing(self) -> dict[str, Any]:
        """What DDIM's times depend on: for a walk that asks between its steps, too."""
        kept = ("num_train_timesteps", "timestep_spacing", "steps_offset")
        return {key: self.scheduler.config[key] for key in kept if key in self.scheduler.config}


def asked_at(scheduler: SchedulerMixin, n: int) -> Tensor:
    """Distinct times of n steps in the process's clock, as many as there are."""
    walk = deepcopy(scheduler)
    try:
        walk.set_timesteps(n)
    except ValueError:  # too many for it
        return torch.empty(0, dtype=torch.float64)
    found = walk.sigmas[:-1] if is_flow(scheduler) else walk.timesteps
    return torch.as_tensor(found).cpu().double().unique_consecutive()


@dataclass(frozen=True)
class OwnSampler(Sampler):
    """The teacher's walk.

    end: the time at which it ends. length: T of a walk that steps down by T // n, wherever the
    network is asked next; 0 for one that steps to the next time.
    """

    end: float = 0.0
    length: int = 0

    def draw(
        self,
        student: AnyDenoiser,
        noise: Tensor,
        n: int,
        cond: Cond,
        generator: torch.Generator | None,
    ) -> Tensor:
        times = self.times(student.process, n)
        x = start(student.process, noise, times[0])
        for t, s in zip(times, self.goals(times), strict=True):
            t, s = t.expand(len(x)), s.expand(len(x))
            x = ddim_step(student.process, toward(student, s)(x, t, cond), s)
        return x

    def goals(self, times: Tensor) -> Tensor:
        """Where the steps from `times` (n,) lead, (n,)."""
        end = times.new_tensor([self.end])
        if self.length:
            below = times - self.length // len(times)
            return torch.where(below < 0, end, below)
        return torch.cat([times[1:], end])


def own_sampler(scheduler: SchedulerMixin, process: NoiseProcess) -> OwnSampler:
    """Deterministic, in any number of steps that the scheduler has times for."""
    grid, config = OwnTimes(scheduler=scheduler), scheduler.config
    if is_flow(scheduler):
        return OwnSampler((), grid, gamma=0.0, end=process.t_clean)
    whole = config.get("set_alpha_to_one", True) and config.get("final_sigmas_type") != "sigma_min"
    end = process.t_clean if whole else 0.0
    apart = kind_of(scheduler) in STRIDING and config.get("timestep_spacing") == "linspace"
    length = config["num_train_timesteps"] if apart else 0
    return OwnSampler((), grid, gamma=0.0, end=end, length=length)
