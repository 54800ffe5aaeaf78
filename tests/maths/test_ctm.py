"""CTM: told where it goes, exact at its optimum, and sampled as stock schedulers do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import PROCESSES, at, close, normal
from diffusers import EulerDiscreteScheduler
from oracle import M, S, batch, informed, next_on, oracle

from stepdistill.denoiser import toward
from stepdistill.exact import Gaussian
from stepdistill.method import Players
from stepdistill.methods.ctm import Ctm
from stepdistill.solver import Sampler, jump, sample
from stepdistill.times import Grid

names = pytest.mark.parametrize("name", PROCESSES)
matches = pytest.mark.parametrize("match", ["clean", "end"])


@names
def test_where_it_goes_matters_and_nowhere_is_the_identity(name):
    student, x = informed(name), normal(1, 3, 2)
    t = at(PROCESSES[name].t_max * 0.9, 3)
    ends = [at(PROCESSES[name].t_max * share, 3) for share in (0.9, 0.5, 0.2)]
    here, half, far = (jump(student, x, t, s) for s in ends)
    assert torch.equal(here, x)
    asked = [toward(student, s)(x, t).x0 for s in ends]
    assert float((asked[1] - asked[2]).abs().max()) > 1e-3
    assert torch.equal(asked[0], student(x, t).x0)  # untold, it goes nowhere: a denoiser
    newborn = informed(name, born=True)
    assert torch.equal(toward(newborn, ends[2])(x, t).x0, newborn(x, t).x0)


@names
@matches
def test_exact_maps_have_no_loss(name, match):
    """C3: G* under a teacher whose steps are exact; λ = 0 here."""
    method = Ctm(steps=5, solver="ddim", distance="l2", match=match, denoising=0.0)
    teacher = oracle(name, towards=next_on(method.times(PROCESSES[name])))
    student = oracle(name)
    for seed in range(5):
        given = batch(64, seed)
        assert method.loss(Players(student, teacher, target=student), given).total < 1e-18
        moved = Players(oracle(name, shift=0.1), teacher, target=student)
        if match == "end":
            assert method.loss(moved, batch(64, seed)).total > 1e-4


@names
def test_the_posterior_mean_is_where_it_goes_nowhere(name):
    """g*(x, t, t) is the denoiser: the denoising term vanishes in expectation at x̂₀ alone."""
    student = oracle(name, towards=None)
    x, t = normal(1, 4, 1), at(PROCESSES[name].t_max * 0.6, 4)
    near = toward(student, t * (1 - 1e-6))(x, t).x0
    close(near, Gaussian(at([M]), S, PROCESSES[name])(x, t).x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["ve", "rf", "vp"])
@matches
def test_the_gradient_is_a_difference_of_the_loss(name, match):
    """Along a random direction, with everything that is not differentiated held fixed.

    The gradient passes the outer jump into θ, and the goal has none: θ's own, or at e θ⁻'s.
    """
    method = Ctm(steps=4, solver="ddim", match=match)
    student, target = informed(name), informed(name, 7)
    teacher = Gaussian(at([M, M]), S, PROCESSES[name])
    fixed = informed(name) if match == "clean" else target  # what the goal is made of
    given = batch(32, d=2)
    loss = method.loss(Players(student, teacher, target=target), given)
    loss.total.backward()
    assert all(p.grad is not None for p in student.net.parameters())
    direction = [normal(k, *p.shape) for k, p in enumerate(student.net.parameters())]

    def value(h):
        moved = informed(name)
        with torch.no_grad():
            for p, d in zip(moved.net.parameters(), direction):
                p += h * d
        local = batch(32, d=2).local
        p = Players(moved, teacher, target=target)
        path, end = method.draw(p, replace(batch(32, d=2), local=local))
        noise = torch.randn(32, 2, generator=local).double()
        x_t = moved.process.add_noise(given.x0, noise, path[0])
        with torch.no_grad():
            x_u = x_t
            for t, s in zip(path, path[1:]):
                at_t = teacher(x_u, t)
                x_u = moved.process.add_noise(at_t.x0, at_t.eps, s)
            guess = jump(moved, x_t, path[0], end)
            goal = jump(fixed, x_u, path[-1], end)
            if match == "clean":
                clean = torch.full_like(end, moved.process.t_clean)
                guess, goal = (jump(target, x, end, clean) for x in (guess, goal))
            error = ((guess - goal).square().sum(1) + 0.03**2).sqrt().mean() - 0.03
            t = method.time.draw(moved.process, 32, local)
            noise = torch.randn(32, 2, generator=local).double()
            answer = moved(moved.process.add_noise(given.x0, noise, t), t)
            wanted = moved.process.target(given.x0, noise, t, "v")
            return float(error + (answer.raw - wanted).square().mean())

    assert float(loss.total) == pytest.approx(value(0.0), rel=1e-9)
    slope = sum(float((p.grad * d).sum()) for p, d in zip(student.net.parameters(), direction))
    assert slope == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-4, abs=1e-8)


def test_the_target_gets_no_step_from_the_outer_jump():
    """The outer network may receive a gradient only if someone lets it: casting freezes it."""
    student, target = informed("rf"), informed("rf", 7)
    target.net.requires_grad_(False)
    p = Players(student, Gaussian(at([M, M]), S, PROCESSES["rf"]), target=target)
    Ctm(steps=4).loss(p, batch(16, d=2)).total.backward()
    assert all(w.grad is None for w in target.net.parameters())


def test_the_number_of_teacher_steps_is_drawn_in_proportion():
    """P(k) ∝ k, for the whole batch, from the shared stream."""
    method, p = Ctm(steps=4), Players(informed("ve"))
    counts = np.zeros(5)
    for seed in range(2000):
        path, end = method.draw(p, batch(2, seed, d=2))
        counts[len(path) - 1] += 1
        assert bool((path.diff(dim=0) < 0).all()) and bool((end <= path[-1]).all())
    assert counts[1:] / counts.sum() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.035)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_without_noise_it_is_eulers_scheduler(steps):
    """Bar 3: γ = 0 is EulerDiscreteScheduler(prediction_type="sample") on the trained sigmas."""
    student, noise = informed("ve"), normal(1, 4, 2)
    times = Grid("karras").times(PROCESSES["ve"], steps)
    with torch.no_grad():
        ours = sample(student, noise, times[:-1])
    scheduler = EulerDiscreteScheduler(prediction_type="sample", beta_schedule="scaled_linear")
    scheduler.set_timesteps(sigmas=times.tolist())
    scheduler.set_begin_index(0)
    x = 80.0 * noise
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        with torch.no_grad():
            g = toward(student, times[i + 1].expand(4))(x, times[i].expand(4)).x0
        x = scheduler.step(g, t, x, return_dict=False)[0]
    close(x, ours, rtol=1e-5, atol=1e-5)


def test_passes():
    method = Ctm(steps=4, solver="ddim")
    assert method.passes(Sampler())[:] == (3, 2, 3.0)
    assert Ctm(steps=4, match="end", denoising=0.0).passes(Sampler())[:] == (1, 1, 6.0)
    assert method.needs.inputs == ("s",)
