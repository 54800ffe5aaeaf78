"""Denoisers: (x_t, t, cond) ↦ Estimate(x̂₀, ε̂). Every model a method meets looks like this.

`Denoiser` is a network under a process; `Guided` adds classifier-free guidance,

    D_w(x_t | c) = D(c) + (w − 1)(D(c) − D(∅)),   w = 1 neutral  (arXiv:2207.12598),

on the network's raw outputs, as pipelines do; `Rescheduled` sees a denoiser through another process
at equal signal-to-noise ratio.

All are plain views: they own no weights and copy none. x_t is (b, *event), t is (b,) in the
process's own clock, and methods never look inside `cond`, see `conditions`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .conditions import NOTHING, Cond, move, repeat
from .networks.inputs import conditioned
from .networks.taps import Taps
from .process import Estimate, NoiseProcess, Prediction, per_sample

HALF = (torch.float16, torch.bfloat16)
Weight = float | Tensor  # guidance w, a number or one a sample (b,)


class AnyDenoiser(Protocol):
    """What solvers and methods ask of a denoiser."""

    process: NoiseProcess

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate: ...


def call_directly(net: nn.Module, x: Tensor, t: Tensor, cond: Cond, w: Weight) -> Tensor:
    """The calling convention net(x, t, cond) → output."""
    return net(x, t, cond)


def own_clock(t: Tensor) -> Tensor:
    """The time of a network that is asked in the process's own clock."""
    return t


def linear_guidance(given: Tensor, free: Tensor, w: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """given + (w − 1)(given − free) of two raw outputs (b, *event), w (b, 1, …)."""
    return given + (w - 1) * (given - free)


@dataclass(frozen=True)
class Denoiser:
    """A network that makes one kind of `prediction` under one `process`.

    call: the backbone's calling convention, (net, x, network time, cond, w) → output (b, *event).
    time: t of the process's clock in the network's units (1000 t for most flow networks).
    taps: the blocks whose features can be looked at.
    skip: adds the boundary condition a consistency function needs where the prediction lacks it,
        x̂₀ ← c_skip x_t/α + c_out x̂₀ with s = σ/α, c_skip = σ_d²/(s² + σ_d²),
        c_out = s/√(s² + σ_d²)  (arXiv:2310.04378, in every process).
    clip: x̂₀ is kept in [−clip, clip], ε̂ as it is, as diffusers' DDIM does; None for not at all.
    s, w: inputs of networks that have more of them, see `networks.inputs`: where a step goes (b,),
        in the process's clock, and the guidance to imitate, a number or (b,). Others do not look.
    """

    net: nn.Module
    process: NoiseProcess
    prediction: Prediction
    call: Callable[[nn.Module, Tensor, Tensor, Cond, Weight], Tensor] = call_directly
    time: Callable[[Tensor], Tensor] = own_clock
    taps: Taps = Taps()
    skip: bool = False
    clip: float | None = None
    s: Tensor | None = None
    w: Weight = 1.0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate:
        return self.solve(x_t, t, self.output(x_t, t, cond))

    def output(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Tensor:
        """The network's own output, (b, *event), in the dtype of x_t."""
        (scale,) = per_sample(x_t, self.process.input_scale(t))
        precise = torch.promote_types(x_t.dtype, torch.float32)
        net_t = self.time(t).to(x_t.device, precise)
        net_s = None if self.s is None else self.time(self.s).to(net_t)
        given, told = as_read(self.net, scale * x_t, cond)
        with conditioned(self.net, net_t, net_s, self.w, cond):
            return self.call(self.net, given, net_t, told, self.w).to(x_t.dtype)

    def solve(self, x_t: Tensor, t: Tensor, output: Tensor) -> Estimate:
        """The estimate that an output of the network means."""
        estimate = self.process.estimate(x_t, output, t, self.prediction)
        if self.skip:
            estimate = with_skip(self.process, x_t, t, estimate)
        if self.clip is None:
            return estimate
        return estimate._replace(x0=estimate.x0.clamp(-self.clip, self.clip))

    def log_variance(self, t: Tensor) -> Tensor:
        """u(t), (b,), of a network with the output "logvar"."""
        device = next(self.net.parameters()).device
        return self.net.logvar(self.time(t).to(device, torch.float32))


def as_read(net: nn.Module, x: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
    """A state and a condition in the numbers of a network in half precision; as they are of
    others."""
    like = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    if like is None or like.dtype not in HALF:
        return x, cond
    narrow = {k: v.to(like.dtype) if v.is_floating_point() else v for k, v in cond.items()}
    return x.to(like.dtype), narrow


def toward(denoiser: AnyDenoiser, s: Tensor) -> AnyDenoiser:
    """The denoiser with the target time s (b,) of its step, for networks with that input."""
    return replace(denoiser, s=s) if isinstance(denoiser, Denoiser) else denoiser


def with_skip(process: NoiseProcess, x_t: Tensor, t: Tensor, estimate: Estimate) -> Estimate:
    """The estimate whose x̂₀ tends to x_t at clean data, whatever the network says."""
    alpha, sigma = process.scales(t)
    width = torch.hypot(sigma, alpha * process.sigma_data)
    keep = alpha * process.sigma_data**2 / width**2  # c_skip / α, finite at α = 0
    keep, out = per_sample(x_t, keep, sigma / width)
    x0 = keep * x_t + out * estimate.x0
    rebased = process.estimate(x_t, x0, t, "x0")
    return Estimate(x0=x0, eps=rebased.eps, raw=estimate.raw)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance: two evaluations of `denoiser`, one where w is 1.

    w: a number, or one per sample (b,).  null: the empty condition, one row.  guide: how two raw
    outputs become one; estimates of exact denoisers, which have no network, are combined linearly.
    """

    denoiser: AnyDenoiser
    w: Weight
    null: Cond
    guide: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = linear_guidance

    @property
    def process(self) -> NoiseProcess:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate:
        if isinstance(self.w, float | int) and self.w == 1:
            return self.denoiser(x_t, t, cond)
        null = repeat(move(self.null, x_t.device), len(x_t))
        (w,) = per_sample(x_t, torch.as_tensor(self.w, dtype=torch.float64))
        if isinstance(self.denoiser, Denoiser):
            outputs = (self.denoiser.output(x_t, t, c) for c in (cond, null))
            return self.denoiser.solve(x_t, t, self.guide(*outputs, w, x_t, t))
        given, free = (self.denoiser(x_t, t, c) for c in (cond, null))
        return Estimate(*(linear_guidance(*pair, w, x_t, t) for pair in zip(given[:2], free[:2])))


@dataclass(frozen=True)
class Rescaled:
    """A rule of guidance, `guide`, whose outcome gets back a share of the spread that the
    conditional output has within each sample (arXiv:2305.08891, section 3.4):

        out · (1 + share · (std(given) / std(out) − 1))
    """

    guide: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    share: float

    def __call__(self, given: Tensor, free: Tensor, w: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        out = self.guide(given, free, w, x_t, t)
        whole = tuple(range(1, out.ndim))
        spread, found = (v.std(whole, keepdim=True) for v in (given, out))
        ratio = spread / found.clamp(min=torch.finfo(out.dtype).tiny)
        return out * (1 + self.share * (ratio - 1))


def evaluations(denoiser: AnyDenoiser) -> int:
    """Network evaluations of a call: guidance by two outputs counts twice, where it is not 1."""
    if not isinstance(denoiser, Guided):
        return 1
    return 1 if isinstance(denoiser.w, float | int) and denoiser.w == 1 else 2


def unguided(denoiser: AnyDenoiser) -> AnyDenoiser:
    """What guidance is made of: the conditional denoiser, or the one given if it is not guided."""
    return denoiser.denoiser if isinstance(denoiser, Guided) else denoiser


class Rescheduled:
    """`denoiser` under another process: match the SNR, rescale the input.

    Its t_max is the time at which the inner process starts; later times hold more noise than the
    inner network ever saw, and raise ValueError.
    """

    def __init__(self, denoiser: AnyDenoiser, process: NoiseProcess) -> None:
        self.denoiser, self.process = denoiser, process
        inner = denoiser.process
        start = inner.log_snr(torch.tensor([inner.t_max], dtype=torch.float64))
        self.t_max = min(process.t_max, float(process.time_at(start)))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond = NOTHING) -> Estimate:
        if float(t.max()) > self.t_max * (1 + 1e-9):
            raise ValueError(
                f"t = {float(t.max()):.4g} holds more noise than the teacher was trained on: "
                f"start at {self.t_max:.4g} or below"
            )
        inner, s = self.denoiser.process, self.inner_time(t)
        here, there = (torch.hypot(*p.scales(u)) for p, u in ((self.process, t), (inner, s)))
        (ratio,) = per_sample(x_t, there / here)
        return self.denoiser(x_t * ratio, s.to(t.device), cond)

    def inner_time(self, t: Tensor) -> Tensor:
        """The time (b,) of equal signal-to-noise ratio in the inner process's clock."""
        inner = self.denoiser.process
        return inner.time_at(self.process.log_snr(t)).clamp(inner.t_clean, inner.t_max)
