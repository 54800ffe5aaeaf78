"""Moving along a process: one ODE step, a whole trajectory, and few-step sampling.

    DDIM      x_s = α_s x̂₀ + σ_s ε̂                       exact while the estimate is constant;
                                                         it is Euler's step in σ/α, in rectified
                                                         flow's clock, … (arXiv:2010.02502)
    Heun      DDIM along the mean direction of both ends  (arXiv:2206.00364, algorithm 1)
    DPM++     DDIM with x̂₀ extrapolated from the step before: DPM-Solver++(2M)  (2211.01095)
    jump      DDIM to any earlier time. Whatever a student predicts, this is the map that is called
              G_θ(x, t, s) = (σ_s/σ_t) x + (α_s − α_t σ_s/σ_t) x̂₀ in CTM (2310.02279), F(t → s) in
              TCD and PCM (2402.19159, 2405.18407), x − (t − s) ū in MeanFlow (2505.13447); at
              s = 0 it is a consistency function, and at s = t the identity.

All are differentiable functions. Times are (n,) tensors, descending, float64 on the CPU.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .conditions import NOTHING, Cond
from .denoiser import AnyDenoiser, toward
from .process import Estimate, NoiseProcess, per_sample
from .schema import Share, Steps
from .times import Grid

Solver = Literal["ddim", "heun", "dpmpp"]
OneStep = Literal["ddim", "heun"]  # those without a history
EVALUATIONS: dict[Solver, int] = {"ddim": 1, "heun": 2, "dpmpp": 1}  # of the network, per step


def ddim_step(process: NoiseProcess, at_t: Estimate, s: Tensor) -> Tensor:
    """x_s (b, *event) from the estimate at an earlier, noisier time; s is (b,)."""
    return process.add_noise(at_t.x0, at_t.eps, s)


def heun_step(
    denoiser: AnyDenoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond = NOTHING
) -> Tensor:
    """Two evaluations; samples whose step ends at clean data take a DDIM step, as EDM does."""
    process, here = denoiser.process, denoiser(x_t, t, cond)
    x_s = ddim_step(process, here, s)
    last = s <= process.t_clean
    there = denoiser(x_s, torch.where(last, t, s), cond)
    (ends,) = per_sample(x_t, last)
    mean = Estimate(x0=(here.x0 + there.x0) / 2, eps=(here.eps + there.eps) / 2)
    corrected = ddim_step(process, process.along_frame(x_t, t, mean), s)
    return torch.where(ends.bool(), x_s, corrected)


def ode_step(
    denoiser: AnyDenoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond, solver: OneStep
) -> Tensor:
    """x_s (b, *event): one step of the probability-flow ODE, from t (b,) to s (b,)."""
    if solver == "heun":
        return heun_step(denoiser, x_t, t, s, cond)
    return ddim_step(denoiser.process, denoiser(x_t, t, cond), s)


def jump(student: AnyDenoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Cond = NOTHING) -> Tensor:
    """x_s (b, *event) in one evaluation, from t (b,) to s ≤ t; x_t itself, exactly, where s = t."""
    asked = t.clamp(min=student.process.t_min)  # networks are not asked at clean data
    moved = ddim_step(student.process, toward(student, s)(x_t, asked, cond), s)
    (stays,) = per_sample(x_t, t <= s)
    return torch.where(stays.bool(), x_t, moved)


def dpmpp_step(
    process: NoiseProcess, x_t: Tensor, x0s: tuple[Tensor, Tensor], times: tuple[Tensor, ...]
) -> Tensor:
    """DPM-Solver++(2M) from times[1] to times[2].

    x0s: x̂₀ at times[0] and at times[1]; each time is (b,). First order where a log-SNR is infinite.
    """
    before, t, s = (process.log_snr(u) for u in times)
    ratio = torch.nan_to_num((s - t) / (2 * (t - before)), nan=0.0, posinf=0.0)
    ratio = torch.where(torch.isinf(s), torch.zeros_like(ratio), ratio)
    (ratio,) = per_sample(x_t, ratio)
    x0 = x0s[1] + ratio * (x0s[1] - x0s[0])
    return ddim_step(process, process.estimate(x_t, x0, times[1], "x0"), times[2])


def solve_ode(
    denoiser: AnyDenoiser, x: Tensor, times: Tensor, cond: Cond = NOTHING, solver: Solver = "ddim"
) -> Iterator[Tensor]:
    """Follow the probability-flow ODE through `times`, yielding x (b, *event) at each."""
    process, previous = denoiser.process, None
    yield x
    for t, s in pairwise(times):
        t, s = t.expand(len(x)), s.expand(len(x))
        if solver == "heun":
            x = heun_step(denoiser, x, t, s, cond)
        else:
            here = denoiser(x, t, cond)
            if solver == "dpmpp" and previous is not None:
                x = dpmpp_step(process, x, (previous[1], here.x0), (previous[0], t, s))
            else:
                x = ddim_step(process, here, s)
            previous = (t, here.x0)
        yield x


def start(process: NoiseProcess, noise: Tensor, t: Tensor) -> Tensor:
    """The state at which sampling starts at time t (), from standard normal noise."""
    (scale,) = per_sample(noise, process.start_scale(t.expand(len(noise))))
    return scale * noise


def sample(
    student: AnyDenoiser,
    noise: Tensor,
    times: Tensor,
    cond: Cond = NOTHING,
    generator: torch.Generator | None = None,
    gamma: float = 1.0,
) -> Tensor:
    """Few-step sampling (b, *event): one evaluation at each of `times`, clean data at the end.

    From t the student jumps to s = (1 − γ)t′, t′ the next time, and is re-noised from there to t′
    (strategic stochastic sampling, TCD, arXiv:2402.19159; the γ of CTM is √(1 − (1 − γ)²) in ours).
    γ = 1 is consistency models' algorithm 1 (arXiv:2303.01469); γ = 0, or no generator, a chain of
    jumps without noise.
    """
    (x,) = deque(states(student, noise, times, cond, generator, gamma), maxlen=1)
    return clean_end(student, x, times[-1], cond)


def rollout(
    student: AnyDenoiser,
    noise: Tensor,
    times: Tensor,
    cond: Cond = NOTHING,
    generator: torch.Generator | None = None,
    gamma: float = 1.0,
) -> Tensor:
    """`sample` with a gradient through its last evaluation only (b, *event).

    Backward simulation (DMD2, arXiv:2405.14867): give the first k of the student's times, with k
    from the shared stream, and the student is trained on the very states its own steps lead to.
    """
    with torch.no_grad():
        (x,) = deque(states(student, noise, times, cond, generator, gamma), maxlen=1)
    return clean_end(student, x, times[-1], cond)


def states(
    student: AnyDenoiser,
    noise: Tensor,
    times: Tensor,
    cond: Cond,
    generator: torch.Generator | None,
    gamma: float,
) -> Iterator[Tensor]:
    """The states (b, *event) that `sample` evaluates, one at each of `times`."""
    if len(times) == 0:
        raise ValueError("sampling needs at least one time")
    process, gamma = student.process, 0.0 if generator is None else gamma
    x = start(process, noise, times[0])
    yield x
    for t, after in pairwise(times):
        s = after - gamma * (after - process.t_clean)
        t, s, after = (u.expand(len(x)) for u in (t, s, after))
        x = ddim_step(process, toward(student, s)(x, t, cond), s)
        if gamma > 0:
            eps = torch.randn(noise.shape, generator=generator).to(noise)
            x = process.renoise(x, eps, s, after)
        yield x


def clean_end(student: AnyDenoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """x̂₀ (b, *event) from the state x at time t (), the last that is evaluated."""
    end = t.new_tensor(student.process.t_clean).expand(len(x))
    return toward(student, end)(x, t.expand(len(x)), cond).x0


@dataclass(frozen=True)
class Sampler:
    """How a student is sampled, in losses, in evaluation and in the exported pipeline.

    steps: the numbers of steps it is offered with; empty for any number (a teacher).
    gamma: how much noise is added between steps, from none (0) to all (1), see `sample`.
    grid: where the times of n steps lie.
    """

    steps: tuple[Steps, ...] = (1, 2, 4)
    grid: Grid = Grid()
    gamma: Share = 1.0

    def times(self, process: NoiseProcess, n: int) -> Tensor:
        """(n,) descending times at which the network is asked."""
        return self.grid.times(process, n)[:-1]

    def draw(
        self,
        student: AnyDenoiser,
        noise: Tensor,
        n: int,
        cond: Cond,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Clean samples (b, *event) in n steps from standard normal noise."""
        return sample(student, noise, self.times(student.process, n), cond, generator, self.gamma)


class Trajectory(NamedTuple):
    """Whole trajectories of a guided teacher's ODE, from the cache.

    times (n + 1,), falling; x (b, n + 1, *event), the states; x0 (b, n, *event), the guided x̂₀ at
    all but the last; w (b,), the guidance.
    """

    times: Tensor
    x: Tensor
    x0: Tensor
    w: Tensor

    def to(self, device: torch.device) -> "Trajectory":
        return Trajectory(self.times, *(v.to(device) for v in self[1:]))
