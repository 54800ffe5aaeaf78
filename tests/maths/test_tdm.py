"""TDM: a deterministic walk, states between its points, and what the critic learns of them."""

import numpy as np
import pytest
import torch
from cases import MLP, PROCESSES, at, close, normal
from oracle import M, S, batch

from stepdistill.critic import Critic
from stepdistill.denoiser import Denoiser
from stepdistill.exact import Gaussian
from stepdistill.method import Players
from stepdistill.methods.tdm import Rung, Tdm
from stepdistill.process import VariancePreserving
from stepdistill.solver import Sampler, ddim_step
from stepdistill.times import Grid

names = pytest.mark.parametrize("name", PROCESSES)
FOUR = Sampler((4,), gamma=0.0)


def player(name, seed=0):
    process = PROCESSES[name]
    return Denoiser(MLP(2, seed, process.t_max), process, "v")


@names
def test_a_point_lies_on_the_walk_and_is_noised_on_from_it(name):
    """x_s is the DDIM step to t_{k+1}, the state of the walk itself; τ keeps from both ends."""
    student, n = player(name), 4000
    p = Players(student, sampler=FOUR)
    point = Tdm().point(p, batch(n, d=2))
    times = Grid().times(PROCESSES[name], 4)
    place = (point.s[:, None] - times[1:]).abs().argmin(1)
    close(times[1:][place], point.s, rtol=1e-12)
    assert point.s.unique().numel() == 4
    share = (point.t - point.s) / (times[place] - point.s)
    inside = point.s > PROCESSES[name].t_clean  # else it may be raised to the least that is asked
    assert float(share[inside].min()) >= 0.05 - 1e-9 and float(share.max()) <= 0.95 + 1e-9
    assert float(share[inside].mean()) == pytest.approx(0.5, abs=0.02)
    # The walk by hand, from the same noise.
    with torch.no_grad():
        x = PROCESSES[name].start_scale(times[:1]) * noise_of(n)
        states = []
        for t, s in zip(times, times[1:]):
            at_t = student(x, t.expand(n))
            x = ddim_step(PROCESSES[name], at_t, s.expand(n))
            states.append((at_t.x0, x))
    for k, (x0, x_s) in enumerate(states):
        close(point.x0[place == k], x0[place == k], rtol=1e-9, atol=1e-9)
        close(point.x_s[place == k], x_s[place == k], rtol=1e-9, atol=1e-9)
    (a, g), (a_t, g_t) = PROCESSES[name].scales(point.s), PROCESSES[name].scales(point.t)
    beta = (g_t**2 - (a_t / a * g) ** 2).sqrt()[:, None]
    close(point.x_t, (a_t / a)[:, None] * point.x_s + beta * point.n, rtol=1e-9, atol=1e-9)
    assert point.x0.requires_grad and not point.x_t.requires_grad


def noise_of(n):
    local = batch(n, d=2).local
    torch.randint(4, (n,), generator=local)
    return torch.randn(n, 2, generator=local).double()


TABLE = VariancePreserving(torch.tensor([0.8**2, 0.5**2], dtype=torch.float64))


def slope_of(target, prediction):
    """§6's example: x̂₀ = .9 ε, x_s = (.9 α + σ) ε at α = .8, σ = .6; τ at α = .5.

    The best slope of the critic's x̂₀ on x_τ, over the exact law of ε and n by quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    e, n = (torch.tensor(v.ravel())[:, None] for v in np.meshgrid(nodes, nodes))
    w = torch.tensor(np.outer(weights, weights).ravel())[:, None]
    s, t = at(0.0, len(e)), at(1.0, len(e))
    x0, x_s = 0.9 * e, (0.8 * 0.9 + 0.6) * e
    point = Rung(x0, x_s, n, TABLE.renoise(x_s, n, s, t), s, t)

    def error(slope):
        guess = TABLE.estimate(point.x_t, slope * point.x_t, t, "x0")
        raw = TABLE.target(guess.x0, guess.eps, t, prediction)
        critic = Denoiser(None, TABLE, prediction)
        method = Tdm(critic_target=target)
        of = method.interval_error if target == "interval" else method.published_error
        return of(critic, point, guess._replace(raw=raw))

    zero, one = error(0.0), error(1.0)
    return float(-(w * zero * (one - zero)).sum() / (w * (one - zero).square()).sum())


@pytest.mark.parametrize("prediction", ["x0", "eps", "v", "flow"])
def test_the_interval_target_is_the_score_of_the_state(prediction):
    """T14: .8372, where a regression of x̂₀ would find .5756."""
    assert slope_of("interval", prediction) == pytest.approx(0.8372, abs=1e-4)


def test_the_published_target_is_another():
    """T14: .4252 with exact importance weights, which they are in one dimension."""
    assert slope_of("published", "x0") == pytest.approx(0.4252, abs=1e-3)


def test_what_the_student_makes_and_where_it_arrives_are_not_independent():
    """§6: Var x_s is 1.7424, not .8784; the plain regression of x̂₀ has the slope .5756."""
    e, n = normal(1, 400_000), normal(2, 400_000)
    x_s = (0.8 * 0.9 + 0.6) * e
    assert float(x_s.var()) == pytest.approx(1.7424, rel=0.01)
    independent = 0.8 * 0.9 * e + 0.6 * n
    assert float(independent.var()) == pytest.approx(0.8784, rel=0.01)
    s, t = at(0.0, len(e)), at(1.0, len(e))
    x_t = TABLE.renoise(x_s[:, None], n[:, None], s, t)[:, 0]
    assert float((0.9 * e * x_t).mean() / x_t.square().mean()) == pytest.approx(0.5756, abs=3e-3)


@pytest.mark.parametrize("target", ["interval", "published"])
@pytest.mark.parametrize("prediction", ["x0", "eps", "flow"])
def test_the_critics_loss_is_the_formulas(target, prediction):
    """Of three coordinates at several τ, written in numpy: weights as well as slopes."""
    process = PROCESSES["rf"]
    critic = Denoiser(MLP(3, 5), process, prediction)
    p = Players(Denoiser(MLP(3), process, "v"), None, Critic(critic), sampler=FOUR)
    method = Tdm(critic_target=target)
    loss = method.critic_loss(p, batch(32, d=3))
    point = method.point(p, batch(32, d=3))
    x0, x_s, n, x_t = (v.detach().numpy() for v in point[:4])
    s, t = (v.numpy()[:, None] for v in (point.s, point.t))
    with torch.no_grad():
        guess = critic(point.x_t, point.t)
    beta = np.sqrt(t**2 - ((1 - t) / (1 - s) * s) ** 2)  # α = 1 − t, σ = t
    if target == "interval":
        eps = t * n / beta
        clean = (x_t - t * eps) / (1 - t)
        goal = {"x0": clean, "eps": eps, "flow": eps - clean}[prediction]
        least = np.minimum(((1 - t) / t) ** 2, 5) if prediction == "x0" else 1.0
        by_hand = least * (beta / t) ** 2 * (guess.raw.numpy() - goal) ** 2
    else:
        mixed = (x_t - (1 - t) * x0) / t
        importance = np.exp((n**2 - mixed**2).sum(1, keepdims=True) / (2 * 3))
        weight = importance * np.minimum(((1 - t) / t) ** 2, 5)
        by_hand = weight * (guess.x0.numpy() - x0) ** 2
    assert float(loss.total.detach()) == pytest.approx(by_hand.mean(), rel=1e-9)
    assert ("lag" in loss.shown) == (target == "interval")


@pytest.mark.parametrize("name", ["rf", "vp", "ve"])
def test_the_students_gradient_is_the_formulas(name):
    """(D_F − D_T)/N on x̂₀, against a finite difference with the bracket held."""
    process = PROCESSES[name]
    student, other = player(name), player(name, 5)
    teacher = Gaussian(at([M, M]), S, process)
    p = Players(student, teacher, Critic(other), sampler=FOUR)
    method = Tdm()
    loss = method.student_loss(p, batch(16, d=2))
    loss.total.backward()
    held = method.point(p, batch(16, d=2))
    with torch.no_grad():
        real, fake = teacher(held.x_t, held.t).x0, other(held.x_t, held.t).x0
        g = (fake - real) / (held.x0 - real).abs().mean(1, keepdim=True)
        goal = held.x0 - g
    weight = student.net.last
    direction = normal(8, *weight.shape)

    def value(h):
        moved = player(name)
        with torch.no_grad():
            moved.net.last += h * direction
            k_times = {float(s): t for t, s in zip(*two(process))}
            t = at([float(k_times[float(s)]) for s in held.s])
            x_in = inputs(p, batch(16, d=2))
            return float((moved(x_in, t).x0 - goal).square().mean() / 2)

    slope = float((weight.grad * direction).sum())
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-5)


def two(process):
    times = Grid().times(process, 4)
    return times, times[1:]


def inputs(p, given):
    """The states the student is asked at in `point`, by hand."""
    process, n = p.student.process, len(given.x0)
    k = torch.randint(4, (n,), generator=given.local)
    noise = torch.randn(n, 2, generator=given.local).double()
    x = process.start_scale(at(process.t_max, 1)) * noise
    times, ends = two(process)
    states = []
    for t, s in zip(times, ends):
        states.append(x)
        with torch.no_grad():
            x = ddim_step(process, p.student(x, t.expand(n)), s.expand(n))
    return torch.stack(states)[k, torch.arange(n)]


@names
def test_a_critic_that_agrees_with_the_teacher_leaves_the_student_alone(name):
    other = player(name, 5)
    p = Players(player(name), other, Critic(other), sampler=FOUR)
    Tdm().student_loss(p, batch(16, d=2)).total.backward()
    assert all(float(w.grad.abs().max()) == 0 for w in p.student.net.parameters())


def test_turns_and_samplers():
    method = Tdm(ratio=2)
    assert [turn.player for turn in method.turns()] == ["student", "critic", "critic"]
    with pytest.raises(ValueError, match="gamma 0"):
        method.trained_times(PROCESSES["rf"], Sampler((4,)))
    assert method.trained_times(PROCESSES["rf"], FOUR).tolist() == [1, 0.75, 0.5, 0.25]
    assert not method.needs.data
    with pytest.raises(ValueError, match="margin: must be below 0.5"):
        Tdm(margin=0.5)
