"""sCM: its tangent is df/dt, vanishes at the exact consistency function, is found either way."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import MLP, PROCESSES, at, close, normal
from diffusers import SCMScheduler
from oracle import M, S, batch
from torch import nn

from stepdistill.denoiser import Denoiser, Rescheduled
from stepdistill.exact import Gaussian
from stepdistill.losses.jvp import derivative
from stepdistill.method import Players
from stepdistill.methods.scm import END, Field, Scm
from stepdistill.networks.inputs import LogVariance, WithInputs
from stepdistill.process import Estimate, TrigFlow
from stepdistill.solver import Sampler, sample
from stepdistill.times import TimeLaw

names = pytest.mark.parametrize("name", PROCESSES)
TRIG = TrigFlow(0.5)
T = at([0.05, 0.3, 0.7, 1.1, 1.3])


def view(name, seed=0, prediction="v"):
    process = PROCESSES[name]
    return Denoiser(MLP(2, seed, process.t_max), process, prediction)


class Exact:
    """The exact consistency function under TrigFlow: f = M + S/v (x − cos t M), and its x̂₀ is f."""

    process = TRIG

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = (c[:, None].to(x_t) for c in TRIG.scales(t))
        v = torch.sqrt((alpha * S) ** 2 + sigma**2)
        f = M + S / v * (x_t - alpha * M)
        return Estimate(f, (x_t - alpha * f) / sigma)


def velocity_of(x, t):
    """dx/dt of the exact ODE (§3.1), in torch."""
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    v2 = (cos * S) ** 2 + (0.5 * sin) ** 2
    return -sin * M + sin * cos * (0.25 - S**2) / v2 * (x - cos * M)


@pytest.mark.parametrize("r", [1.0])
def test_the_tangent_vanishes_at_the_exact_consistency_function(r):
    """C2, to 1e-12."""
    x = normal(1, 5, 2)
    method = Scm()
    field = Field(Exact(), None, TRIG)
    g = method.tangent_of(field, (x, T), field(x, T), velocity_of(x, T), r)
    assert float(g.abs().max()) < 1e-12
    off = method.tangent_of(field, (x, T), field(x, T), velocity_of(x, T) * 1.1, r)
    assert float(off.abs().max()) > 1e-2


@names
def test_the_tangent_is_that_of_the_consistency_function(name):
    """C2: at r = 1, g = cos t · df/dt along the ODE, by differences of the exact flow, to 1e-7."""
    student, x = Rescheduled(view(name), TRIG), normal(1, 5, 2)
    t = T if name not in ("vp",) else at([0.05, 0.3, 0.7, 1.0, 1.2])
    teacher = Rescheduled(Gaussian(at([M, M]), S, PROCESSES[name]), TRIG)
    velocity = 0.5 * Field(teacher, None, TRIG)(x, t)
    close(velocity, velocity_of(x, t), rtol=1e-6, atol=1e-9)
    field = Field(student, None, TRIG)
    g = Scm().tangent_of(field, (x, t), field(x, t), velocity, 1.0)

    exact, h = Gaussian(at([M, M]), S, TRIG), 1e-5
    ahead, behind = (student(exact.flow_map(x, t, t + d), t + d).x0 for d in (h, -h))
    close(g, t.cos()[:, None] * (ahead - behind) / (2 * h), rtol=2e-4, atol=1e-6)


@names
def test_forward_mode_is_the_difference(name):
    """Bar 3: to 1e-4."""
    field, x = Field(Rescheduled(view(name), TRIG), None, TRIG), normal(1, 5, 2)
    t = at([0.05, 0.3, 0.7, 1.0, 1.2])
    along = (normal(2, 5, 2), at([0.1, 0.3, -0.4, 0.2, 0.3]))
    forward = derivative(field, (x, t), along, "forward")
    difference = derivative(field, (x, t), along, "difference")
    assert float((forward - difference).abs().max() / forward.abs().max()) < 1e-4


def test_a_wide_difference_is_a_difference():
    x, t = normal(0, 4, 2), at(0.7, 4)
    d = derivative(lambda x, t: x + t[:, None] ** 3, (x, t), (2 * x, t**0), "difference", step=0.5)
    close(d, 2 * x + (3 * t**2 + 0.5**2)[:, None], 1e-12)


def test_without_a_tangent_it_matches_the_teacher():
    """r = 0: g = −cos² t (σ_d F − ẋ), as at the start of training."""
    student, x = Rescheduled(view("rf"), TRIG), normal(1, 5, 2)
    velocity = velocity_of(x, T)
    field = Field(student, None, TRIG)
    now = field(x, T)
    g = Scm().tangent_of(field, (x, T), now, velocity, 0.0)
    close(g, -(T.cos()[:, None] ** 2) * (0.5 * now - velocity), rtol=1e-12)
    assert Scm(warmup=0.2).ramp(0.05) == 0.25 and Scm(warmup=0.2).ramp(0.7) == 1.0
    assert Scm(warmup=0.0).ramp(0.0) == 1.0


class Output(nn.Module):
    """A network whose outputs are its parameters."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, x, t, cond=None):
        return self.values + 0 * x


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_gradient_with_respect_to_the_network_is_the_formulas(adaptive):
    """−(2/D) e^{−u} ĝ per sample at the current weights; F of TrigFlow is its own "flow"/σ_d."""
    n, values = 6, normal(3, 6, 2)
    net = Output(values)
    if adaptive:
        net = WithInputs(net, None, LogVariance().double())
        nn.init.normal_(net.logvar.linear.weight, generator=torch.Generator().manual_seed(1))
    student = Denoiser(net, TRIG, "flow")
    method = Scm(adaptive=adaptive, time=TimeLaw("uniform", low=0.1, high=0.9), warmup=0.0)
    teacher, given = Gaussian(at([M, M]), S, TRIG), batch(n, d=2)
    loss = method.loss(Players(student, teacher), given)
    loss.total.backward()

    local = batch(n, d=2).local
    t = method.time.draw(TRIG, n, local)
    noise = torch.randn(n, 2, generator=local).double()
    x = TRIG.add_noise(given.x0, noise, t)
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    F = values / 0.5  # its derivative is zero: the outputs depend on nothing
    g = -(cos**2) * (0.5 * F - velocity_of(x, t)) - cos * sin * x
    g = g / (g.norm(dim=1, keepdim=True) + 0.1)
    u = student.log_variance(t).detach().double() if adaptive else torch.zeros(n)
    expected = -2 / 2 * torch.exp(-u)[:, None] * g / n / 0.5
    got = (net.net if adaptive else net).values.grad
    close(got, expected, rtol=1e-6, atol=1e-9)
    square = g.square().mean(1)
    assert float(loss.total) == pytest.approx(float((square * (-u).exp() + u).mean()), rel=1e-6)


TANGENTS = {
    "forward": Scm(adaptive=False, time=TimeLaw("uniform")),
    "narrow": Scm(adaptive=False, time=TimeLaw("uniform"), tangent="difference"),
    "wide": Scm(adaptive=False, time=TimeLaw("uniform"), tangent="difference", step=0.1),
    "widest": Scm(adaptive=False, time=TimeLaw("uniform"), tangent="difference", step=1.0),
}


@names
@pytest.mark.parametrize("tangent", TANGENTS)
def test_any_teacher_and_student_have_a_finite_loss(name, tangent):
    """Under a table, too, which ends below π/2, where sin t cos t does not vanish."""
    student, method = view(name), TANGENTS[tangent]
    teacher = Gaussian(at([M, M]), S, PROCESSES[name])
    loss = method.loss(Players(student, teacher), batch(256, d=2))
    loss.total.backward()
    assert bool(torch.isfinite(loss.total))
    assert all(bool(w.grad.isfinite().all()) for w in student.net.parameters())


@names
@pytest.mark.parametrize("tangent", TANGENTS)
def test_no_network_is_asked_for_more_noise_than_it_knows(name, tangent):
    """The last time is the one whose difference just reaches t_max."""
    method, limit = TANGENTS[tangent], Rescheduled(view(name), TRIG).t_max
    last = method.latest(limit)
    if tangent == "forward":
        assert last == limit - END < np.pi / 2
        return
    reach = last + method.step * np.cos(last) * np.sin(last)
    assert reach <= limit and reach == pytest.approx(limit, rel=1e-9)
    assert last < limit - 1e-6 or limit > 1.5707


def tangents(net, precision, mode):
    """A network's derivative in a dtype, under autocast to bfloat16 or without."""
    dtype, half = precision
    field = Field(Denoiser(net.to(dtype), TRIG, "flow"), None, TRIG)
    x, along = (normal(seed, 4, 1, 8, 8).to(dtype) for seed in (1, 2))
    t = at([0.2, 0.6, 0.9, 1.2])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        return derivative(field, (x, t), (along, t.cos() * t.sin()), mode).double()


class Attending(nn.Module):
    """Convolutions around an attention that runs in the kernel torch chooses."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv2d(1, 48, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1)
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x, t, cond=None):
        wave = torch.sin(t)[:, None, None, None]
        q, k, v = (self.before(x) + wave).flatten(2).transpose(1, 2).chunk(3, dim=2)
        heads = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return self.after(mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (8, 8)))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mode, bound", [("forward", 1e-5), ("difference", 2e-2)])
def test_attention_and_half_precision_have_the_exact_derivative(mode, bound, half):
    """Against float64; under autocast a difference of 1e-3 would be off by its own size."""
    exact = tangents(Attending(), (torch.float64, False), "forward")
    ours = tangents(Attending(), (torch.float32, half), mode)
    assert float((ours - exact).norm() / exact.norm()) < bound


@pytest.mark.parametrize("tangent", ["forward", "narrow"])
def test_half_precision_moves_along_the_same_tangent(tangent):
    """The loss is that of ĝ alone, F_θ − F⁻ exactly 0, and its gradient near that in float32."""
    found = []
    for half in (False, True):
        net = Attending()
        teacher = Denoiser(deepcopy(net), TRIG, "flow")
        nn.init.normal_(teacher.net.after.bias, generator=torch.Generator().manual_seed(1))
        given = batch(8)
        given = replace(given, x0=normal(3, 8, 1, 8, 8).float(), progress=0.5)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = TANGENTS[tangent].loss(Players(Denoiser(net, TRIG, "flow"), teacher), given)
        loss.total.backward()
        size = float(loss.shown["|g|"])
        assert float(loss.total) <= 1 / 64 and size > 1
        found.append((float(loss.total), torch.cat([p.grad.flatten() for p in net.parameters()])))
    (exact, slope), (ours, other) = found
    assert ours == pytest.approx(exact, rel=0.02)
    assert float(torch.cosine_similarity(slope, other, dim=0)) > 0.99


@pytest.mark.parametrize("times", [[1.57080, 1.3], [1.57080]])
def test_sampling_is_the_schedulers(times):
    """SCMScheduler, fed σ_d F and latents of standard deviation σ_d."""
    student, noise = view("trig"), normal(1, 4, 2).float()
    student = Denoiser(student.net.float(), TRIG, "v")
    times = [min(u, np.pi / 2) for u in times]
    with torch.no_grad():
        ours = sample(student, noise, at(times), None, torch.Generator().manual_seed(5), 1.0)
    scheduler = SCMScheduler(sigma_data=0.5)
    scheduler.set_timesteps(
        len(times), timesteps=[*times, 0.0], max_timesteps=None, intermediate_timesteps=None
    )
    x, generator = 0.5 * noise, torch.Generator().manual_seed(5)
    for t in times:
        with torch.no_grad():
            F = Field(student, None, TRIG)(x, at(t, 4))
        x, clean = scheduler.step(0.5 * F, t, x, generator=generator, return_dict=False)
    close(clean, ours, rtol=1e-5, atol=1e-5)


def test_a_step_without_a_difference_is_refused():
    with pytest.raises(ValueError, match="step: belongs to the tangent 'difference'"):
        Scm(step=0.1)
    assert Scm(step=0.1, tangent="difference").step == 0.1


def test_passes():
    assert Scm().passes(Sampler())[:] == (1, 2, 1)
    assert Scm(tangent="difference").passes(Sampler())[:] == (1, 2, 1)
    assert Scm().needs.inputs == ("logvar",) and Scm(adaptive=False).needs.inputs == ()
