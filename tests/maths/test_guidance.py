"""Guidance in one pass: w-conditioned distillation and adapters, on Gaussians and on networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from cases import PROCESSES, at, close, labels, normal
from oracle import S, batch
from torch import nn

from stepdistill.data.loader import stream
from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import Gaussian
from stepdistill.method import Batch, Players
from stepdistill.methods.agd import Agd
from stepdistill.methods.guidance import Guidance
from stepdistill.networks.inputs import WithInputs
from stepdistill.networks.views import own_tensors, parameter_count, trainable
from stepdistill.resources import pipeline_class
from stepdistill.solver import Sampler, Trajectory
from stepdistill.times import TimeLaw

names = pytest.mark.parametrize("name", PROCESSES)
MEANS = at([[0.2, -0.5], [1.0, 0.4]])  # without a condition, and with it


def pair(name, w=1.0):
    """A guided Gaussian: label 1 is the condition, 0 none."""
    return Guided(Gaussian(MEANS, S, PROCESSES[name]), w, labels(0))


class Shifted(nn.Module):
    """A network that answers with the conditional eps plus a learnable multiple of (w − 1)."""

    def __init__(self, name, w):
        super().__init__()
        self.name, self.w = name, w
        self.gain = nn.Parameter(at([0.0, 0.0]))

    def forward(self, x, t, cond=None):
        process = PROCESSES[self.name]
        x = x / process.input_scale(t)[:, None]
        eps = Gaussian(MEANS, S, process)(x, t, labels(1, n=len(x))).eps
        return eps + (self.w - 1)[:, None] * self.gain


@names
def test_the_needed_correction_is_golden(name):
    """T2: in eps space −(w − 1)(α σ/V)(m_c − m_u), linear in w and constant in x."""
    process, w = PROCESSES[name], at([1.0, 2.5, 6.0])
    x, t = normal(1, 3, 2), at(process.t_max * 0.4, 3)
    given = labels(1, n=3)
    alpha, sigma = (c[:, None] for c in process.scales(t))
    V = (alpha * S) ** 2 + sigma**2
    plain, guided = (pair(name, v)(x, t, given).eps for v in (1.0, w))
    expected = -(w - 1)[:, None] * alpha * sigma / V * (MEANS[1] - MEANS[0])
    close(guided - plain, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["rf", "vp", "ve"])
def test_the_gradient_is_the_formulas(name):
    """Guidance: of the mean square of (w − 1)(gain − the golden correction), at gain 0."""
    process, n = PROCESSES[name], 64
    method = Guidance(guidance=(1.0, 5.0), time=TimeLaw("uniform", low=0.2, high=0.8))
    given, local = batch(n, d=2, cond=labels(1, n=n)), batch(n, d=2).local
    w = 1 + 4 * torch.rand(n, generator=local)
    net = Shifted(name, w.double())
    p = Players(Denoiser(net, process, "eps"), pair(name))
    loss = method.loss(p, given)
    loss.total.backward()

    t = method.time.draw(process, n, local)
    alpha, sigma = (c[:, None].numpy() for c in process.scales(t))
    excess = (w.double().numpy() - 1)[:, None]
    needed = -excess * alpha * sigma / ((alpha * S) ** 2 + sigma**2) * (MEANS[1] - MEANS[0]).numpy()
    assert loss.total.item() == pytest.approx((needed**2).mean(), rel=1e-6)
    gradient = (2 * -needed * excess).mean(0) / 2
    close(net.gain.grad, gradient, rtol=1e-5, atol=1e-9)


# --- adapters ---------------------------------------------------------------------------------


def adapted(seed=0, silent=False):
    """A tiny UNet with adapters, and its base."""
    base = toys.tiny_denoiser(seed)
    paths = base.taps.paths
    shapes = [(8, 8, 8)] * len(paths)
    torch.manual_seed(seed)
    adapters = pipeline_class("guidance_adapters", "GuidanceAdapters")(paths, shapes, 3)
    if not silent:
        for adapter in adapters.adapters:
            nn.init.normal_(adapter.up.weight, std=0.3)
    net = WithInputs(base.net.requires_grad_(False), adapters, frozen=True)
    return replace(base, net=net), base


def images(n=6):
    x0, cond = toys.tiny_images().batch(0, n, stream(1))[:2]
    return x0, cond, at(0.6, n)


def test_new_adapters_change_nothing_and_neutral_guidance_never_does():
    """T1 bitwise; and at w = 1 trained adapters are silent too."""
    x, cond, t = images()
    for silent, w, same in ((True, 4.0, True), (False, 1.0, True), (False, 4.0, False)):
        student, base = adapted(silent=silent)
        with torch.no_grad():
            told = replace(student, w=w)(x, t, cond).raw
        assert torch.equal(told, base(x, t, cond).raw) == same


def test_adapters_leave_nothing_behind():
    """T5: after a call the base answers as before, bit for bit, and none of its weights moved."""
    student, base = adapted()
    x, cond, t = images()
    with torch.no_grad():
        before = base(x, t, cond).raw
        replace(student, w=5.0)(x, t, cond)
        assert torch.equal(base(x, t, cond).raw, before)
    assert not any(m._forward_hooks for m in base.net.modules())
    assert all(name.startswith("inputs.") for name in own_tensors(student.net))
    assert len(trainable(student.net)) > 0
    share = sum(p.numel() for p in trainable(student.net)) / parameter_count(base.net)
    assert 0 < share


def test_adapters_hear_guidance_time_and_label():
    student, _ = adapted()
    x, cond, t = images()
    with torch.no_grad():
        answers = [
            replace(student, w=w)(x, at(u, 6), c).raw
            for w, u, c in (
                (3.0, 0.6, cond),
                (3.5, 0.6, cond),
                (3.0, 0.5, cond),
                (3.0, 0.6, {"label": (cond["label"] + 1) % 3}),
            )
        ]
    for other in answers[1:]:
        assert not torch.allclose(answers[0], other, atol=1e-5)


def test_adapters_serve_another_checkpoint_of_the_same_base():
    """Transfer: the same modules on other weights, found by their paths."""
    student, _ = adapted()
    other = toys.tiny_denoiser(5)
    moved = replace(other, net=WithInputs(other.net, student.net.inputs, frozen=True))
    x, cond, t = images()
    with torch.no_grad():
        plain, told = other(x, t, cond).raw, replace(moved, w=3.0)(x, t, cond).raw
    assert not torch.allclose(plain, told, atol=1e-4)


def test_agds_loss_is_over_the_cached_states():
    """Each pair (trajectory, step) of the guided path, in the network's own prediction space."""
    name, n, steps = "rf", 40, 5
    process, guided = PROCESSES[name], pair(name, at(np.linspace(1, 5, n)))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x, cond = normal(1, n, 2), labels(1, n=n)
    states, guesses = [x], []
    for t, s in zip(times, times[1:]):
        at_t = guided(states[-1], t.expand(n), cond)
        guesses.append(at_t.x0)
        states.append(process.add_noise(at_t.x0, at_t.eps, s.expand(n)))
    path = Trajectory(times, torch.stack(states, 1), torch.stack(guesses, 1), guided.w)

    net = Shifted(name, guided.w)
    given = Batch(path.x[:, -1], cond, stream(1), stream(2), path=path)
    p = Players(Denoiser(net, process, "eps"), pair(name))
    loss = Agd().loss(p, given)
    loss.total.backward()

    j = torch.randint(steps, (n,), generator=stream(2))
    alpha, sigma = (c[:, None].numpy() for c in process.scales(times[j]))
    excess = (guided.w.numpy() - 1)[:, None]
    needed = -excess * alpha * sigma / ((alpha * S) ** 2 + sigma**2) * (MEANS[1] - MEANS[0]).numpy()
    assert loss.total.item() == pytest.approx((needed**2).mean(), rel=1e-9)
    close(net.gain.grad, (-needed * excess).mean(0), rtol=1e-9, atol=1e-12)


def test_settings_and_costs():
    assert Guidance().needs.guidance and Guidance().needs.inputs == ("w",)
    assert Guidance().passes(Sampler())[:] == (1, 0, 1)
    assert Agd().needs.trajectories and Agd().needs.inputs == ("adapters",) and not Agd().needs.data
    assert Agd().passes(Sampler())[:] == (1, 0, 0)
