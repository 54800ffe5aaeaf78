"""sCM: its tangent is df/dt, vanishes at the exact consistency function, is found either way."""

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
    _, g = method.tangent_of(Field(Exact(), None, TRIG), x, T, velocity_of(x, T), r)
    assert float(g.abs().max()) < 1e-12
    _, off = method.tangent_of(Field(Exact(), None, TRIG), x, T, velocity_of(x, T) * 1.1, r)
    assert float(off.abs().max()) > 1e-2


@names
def test_the_tangent_is_that_of_the_consistency_function(name):
    """C2: at r = 1, g = cos t · df/dt along the ODE, by differences of the exact flow, to 1e-7."""
    student, x = Rescheduled(view(name), TRIG), normal(1, 5, 2)
    t = T if name not in ("vp",) else at([0.05, 0.3, 0.7, 1.0, 1.2])
    teacher = Rescheduled(Gaussian(at([M, M]), S, PROCESSES[name]), TRIG)
    velocity = 0.5 * Field(teacher, None, TRIG)(x, t)
    close(velocity, velocity_of(x, t), rtol=1e-6, atol=1e-9)
    _, g = Scm().tangent_of(Field(student, None, TRIG), x, t, velocity, 1.0)

    exact, h = Gaussian(at([M, M]), S, TRIG), 1e-5
    ahead, behind = (student(exact.flow_map(x, t, t + d), t + d).x0 for d in (h, -h))
    close(g, t.cos()[:, None] * (ahead - behind) / (2 * h), rtol=2e-4, atol=1e-6)


@names
def test_forward_mode_is_the_difference(name):
    """Bar 3: to 1e-4."""
    field, x = Field(Rescheduled(view(name), TRIG), None, TRIG), normal(1, 5, 2)
    t = at([0.05, 0.3, 0.7, 1.0, 1.2])
    along = (normal(2, 5, 2), at([0.1, 0.3, -0.4, 0.2, 0.3]))
    now, forward = derivative(field, (x, t), along, "forward")
    same, difference = derivative(field, (x, t), along, "difference")
    assert torch.equal(now, same) and torch.equal(now, field(x, t))
    assert float((forward - difference).abs().max() / forward.abs().max()) < 1e-4


def test_a_wide_difference_is_a_difference():
    x, t = normal(0, 4, 2), at(0.7, 4)
    _, d = derivative(
        lambda x, t: x + t[:, None] ** 3, (x, t), (2 * x, t**0), "difference", step=0.5
    )
    close(d, 2 * x + (3 * t**2 + 0.5**2)[:, None], 1e-12)


def test_without_a_tangent_it_matches_the_teacher():
    """r = 0: g = −cos² t (σ_d F − ẋ), as at the start of training."""
    student, x = Rescheduled(view("rf"), TRIG), normal(1, 5, 2)
    velocity = velocity_of(x, T)
    now, g = Scm().tangent_of(Field(student, None, TRIG), x, T, velocity, 0.0)
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


@names
def test_any_teacher_and_student_have_a_finite_loss(name):
    student = view(name)
    method = Scm(adaptive=False, time=TimeLaw("uniform"))
    loss = method.loss(Players(student, Gaussian(at([M, M]), S, PROCESSES[name])), batch(256, d=2))
    loss.total.backward()
    assert bool(torch.isfinite(loss.total))
    assert all(bool(w.grad.isfinite().all()) for w in student.net.parameters())
    limit = Rescheduled(student, TRIG).t_max - END
    assert limit < np.pi / 2


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
    assert Scm(tangent="difference").passes(Sampler()).frozen == 3
    assert Scm().needs.inputs == ("logvar",) and Scm(adaptive=False).needs.inputs == ()
