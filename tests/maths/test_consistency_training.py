"""Consistency training: laws of pairs, the golden fixed points, and what TCM freezes."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import MLP, PROCESSES, at, check_gradient, close, normal, scales
from oracle import M, S, batch
from scipy import integrate, stats

from stepdistill.denoiser import Denoiser
from stepdistill.families.pairs import Pairs
from stepdistill.method import Players
from stepdistill.methods.consistency_training import ConsistencyTraining
from stepdistill.process import VarianceExploding
from stepdistill.solver import Sampler
from stepdistill.times import Grid, TimeLaw, times_above

VE = PROCESSES["ve"]
names = pytest.mark.parametrize("name", PROCESSES)


def network(name, seed=0, prediction="v"):
    process = PROCESSES[name]
    return Denoiser(MLP(2, seed, process.t_max), process, prediction)


# --- pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 160])
def test_grid_weights_are_the_log_normals(n):
    """iCT: they sum to 1 and are the mass of each interval under ln σ ~ N(−1.1, 2²)."""
    pairs, times = Pairs("grid"), Grid("karras").times(VE, n)[:-1]
    weights = pairs.weights(VE, times)
    density = stats.norm(-1.1, 2.0).pdf
    mass = [integrate.quad(density, *np.log([s, t]))[0] for t, s in zip(times, times[1:])]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    close(weights, np.array(mass) / sum(mass), rtol=1e-7)


def test_the_grid_doubles():
    """K′ = K/(log₂⌊s1/s0⌋ + 1): 10, 20, …, 1280 in eight equal parts of training."""
    steps = [Pairs("grid").steps(k / 8) for k in range(8)]
    assert steps == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert Pairs("grid").steps(0.1249) == 10 and Pairs("grid").steps(0.9999) == 1280
    assert Pairs("grid", first=3, last=10).steps(0.9) == 6


@pytest.mark.parametrize("stage", range(8))
def test_the_ratio_is_ects(stage):
    """a ≤ 2 leaves small t to plain denoising, a ≥ 3 never; far out r/t → 1 − 2^−a."""
    pairs, t = Pairs(), at([1e-3, 0.1, 1.0, 80.0])
    s, u = pairs.before(VE, t, stage / 8), t.numpy()
    a = stage + 1
    expected = u * (1 - (1 + 8 / (1 + np.exp(u))) / 2.0**a)
    close(s, np.maximum(expected, 0), rtol=1e-12, atol=1e-15)
    assert (float(s[0]) == 0) == (a <= 2)
    assert float(s[-1] / t[-1]) == pytest.approx(1 - 2.0**-a, abs=1e-9)


@names
@pytest.mark.parametrize("kind", ["ratio", "grid"])
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_pairs_are_ordered_and_inside(name, kind, progress):
    process = PROCESSES[name]
    t, s = Pairs(kind).draw(process, 2000, progress, torch.Generator().manual_seed(1))
    assert bool((t > s).all()) and float(s.min()) >= process.t_clean
    assert float(t.max()) <= process.t_max and bool(torch.isfinite(s).all())


def test_times_above_the_cut_are_tcms():
    """§4.1d: quantiles of the truncated Student's t, df 0.01, scale 0.2."""
    t = times_above(VE, 1.0, 400_000, torch.Generator().manual_seed(1))
    assert float(t.min()) >= 1 and float(t.max()) <= 80 + 1e-9
    found = torch.quantile(t, at([0.25, 0.5, 0.75, 0.9])).tolist()
    assert found == pytest.approx([1.04, 1.22, 2.52, 10.4], rel=0.02)


# --- the loss ---------------------------------------------------------------------------------


def numpy_answer(name, x, t, first, last):
    """x̂₀ of an MLP that predicts "v", x itself at clean data."""
    process = PROCESSES[name]
    asked = np.maximum(t, process.t_min)
    a, g = scales(name, asked.real)
    scale = process.input_scale(torch.from_numpy(asked.real[:, 0])).numpy()[:, None]
    out = np.tanh(np.concatenate([x * scale, asked / process.t_max], axis=1) @ first) @ last
    return np.where(t <= process.t_clean, x, (a * x - g * out) / (a**2 + g**2))


@pytest.mark.parametrize("name", ["rf", "vp", "ve"])
@pytest.mark.parametrize("kind, distance", [("ratio", "pseudo_huber"), ("grid", "l2")])
def test_the_gradient_is_that_of_the_formula(name, kind, distance):
    method = ConsistencyTraining(Pairs(kind), distance, huber=0.1)
    student, given = network(name), batch(32, d=2, progress=0.4)
    loss = method.loss(Players(student, target=network(name, 4)), given).total
    loss.backward()

    local = batch(32, d=2).local
    noise = torch.randn(32, 2, generator=local).numpy().astype(float)
    pair = Pairs(kind).draw(PROCESSES[name], 32, 0.4, local)
    t, s = (u.numpy()[:, None] for u in pair)
    x_t, x_s = (scales(name, u)[0] * given.x0.numpy() + scales(name, u)[1] * noise for u in (t, s))
    fixed = [w.detach().numpy() for w in network(name, 4).net.parameters()]
    goal = numpy_answer(name, x_s, s, *fixed)

    def value(*weights):
        d = numpy_answer(name, x_t, t, *weights) - goal
        error = (d**2).mean(1) if distance == "l2" else np.sqrt((d**2).sum(1) + 0.01) - 0.1
        return (error / (t - s)[:, 0]).mean()

    weights = [w.detach().numpy() for w in student.net.parameters()]
    assert loss.item() == pytest.approx(value(*weights), rel=1e-9)
    check_gradient(student.net, value)


def test_at_first_it_is_denoising():
    """Where s is clean data the goal is x₀ itself: an l2-norm denoising loss over t."""
    method = ConsistencyTraining(Pairs(q=2.0, k=1e6))
    student, given = network("rf"), batch(64, d=2)
    loss = method.loss(Players(student, target=network("rf", 4)), given).total
    local = batch(64, d=2).local
    noise = torch.randn(64, 2, generator=local).double()
    t = method.law.time.draw(PROCESSES["rf"], 64, local)
    error = student(PROCESSES["rf"].add_noise(given.x0, noise, t), t).x0 - given.x0
    assert float(loss) == pytest.approx(float((error.norm(dim=1) / t).mean()), rel=1e-9)


@pytest.mark.parametrize("t, s", [(5.0, 1.0), (0.8, 0.3)])
def test_the_affine_fixed_point(t, s):
    """§4.1c: slope a(t) = a(s)(S² + ts)/(S² + t²), with the floor a(s)² S² (t − s)²/(S² + t²)."""
    n, goal_slope = 2_000_000, 0.6
    x0, noise = M + S * normal(1, n, 1), normal(2, n, 1)
    x_t, x_s = x0 + t * noise, x0 + s * noise
    goal = M + goal_slope * (x_s - M)
    slope = float(((x_t - M) * (goal - M)).mean() / (x_t - M).square().mean())
    assert slope == pytest.approx(goal_slope * (S**2 + t * s) / (S**2 + t**2), rel=5e-3)
    floor = float((M + slope * (x_t - M) - goal).square().mean())
    assert floor == pytest.approx(goal_slope**2 * S**2 * (t - s) ** 2 / (S**2 + t**2), rel=5e-3)


def test_the_target_gets_no_gradient():
    student = network("rf")
    other = replace(student, net=deepcopy(student.net))
    gradients = []
    for target in (other, student):
        student.net.zero_grad()
        ConsistencyTraining().loss(Players(student, target=target), batch(16, d=2)).total.backward()
        gradients.append(student.net.first.grad.clone())
    assert torch.equal(*gradients) and all(p.grad is None for p in other.net.parameters())


# --- TCM --------------------------------------------------------------------------------------

CUT = ConsistencyTraining(cut=1.0)


def test_the_cut_stage_goes_on_where_the_first_has_ended():
    """s/t = 1 − (1 + 8 sigmoid(−t))/1000, whatever the progress: the target is never x₀ itself."""
    t = at([1.0, 2.0, 80.0])
    wanted = 1 - (1 + 8 / (1 + np.exp(t.numpy()))) / 1000
    for progress in (0.0, 0.5, 0.999):
        close(CUT.law.before(VE, t, progress) / t, wanted, rtol=1e-12)
        drawn, s = CUT.draw(VE, batch(2000, progress=progress))
        assert float((s / drawn).min()) > 0.99 and float((s / drawn).median()) > 0.996
    # A first stage begins as a denoiser, and the law that is asked for is the law that is taken.
    assert ConsistencyTraining().law == Pairs()
    assert ConsistencyTraining(Pairs(q=4.0), cut=1.0).law == Pairs(q=4.0)


@pytest.mark.parametrize("pairs", [Pairs("grid"), Pairs(time=TimeLaw("uniform"))])
def test_a_cut_draws_its_own_times(pairs):
    assert ConsistencyTraining(pairs).law == pairs
    with pytest.raises(ValueError, match="pairs: with a cut, t has a law of its own"):
        ConsistencyTraining(pairs, cut=1.0)


@names
def test_a_quarter_of_the_pairs_straddles_the_cut(name):
    process, n = PROCESSES[name], 20_000
    t, s = CUT.draw(process, batch(n, progress=0.6))
    edge = CUT.cut_time(process)
    assert float(torch.exp(-process.log_snr(edge[None]))[0]) == pytest.approx(1, rel=1e-9)
    share = float((t <= edge).double().mean())
    assert share == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / n) ** 0.5)
    assert float(t.min()) >= float(edge) and bool((s[t <= edge] < edge).all())


def test_below_the_cut_the_goal_is_the_frozen_starts():
    """θ₁'s answer bit for bit, and never a gradient for it."""
    student, origin = network("ve"), network("ve", 4)
    p, given = Players(student, target=student, initial=origin), batch(64, d=2, progress=0.9)
    s = at(np.geomspace(0.02, 50, 64))
    x = normal(5, 64, 2)
    goal, below = CUT.goal(p, x, s, given.cond), s < 1
    assert torch.equal(goal[below], origin(x, s).x0[below])
    assert torch.equal(goal[~below], student(x, s).x0[~below])
    CUT.loss(p, given).total.backward()
    assert all(w.grad is None for w in origin.net.parameters())
    assert all(w.grad is not None for w in student.net.parameters())


def test_the_boundary_term_is_the_mean_over_its_pairs():
    student, given = network("ve"), batch(64, d=2, progress=0.9)
    p = Players(student, target=student, initial=network("ve", 4))
    loss = CUT.loss(p, given)
    local = batch(64, d=2).local
    noise = torch.randn(64, 2, generator=local).double()
    t, s = CUT.draw(VE, replace(batch(64, d=2, progress=0.9), local=local))
    x_t, x_s = (VE.add_noise(given.x0, noise, u) for u in (t, s))
    goal = torch.where((s < 1)[:, None], p.initial(x_s, s).x0, student(x_s, s).x0)
    error = (student(x_t, t).x0 - goal).norm(dim=1) / (t - s)
    at_edge = t <= 1
    above, boundary = error[~at_edge].mean(), 0.1 * error[at_edge].mean()
    assert float(loss.terms["consistency"]) == pytest.approx(float(above), rel=1e-9)
    assert float(loss.terms["boundary"]) == pytest.approx(float(boundary), rel=1e-9)


def test_a_sampler_stays_above_the_cut():
    """Two steps are fine while the second is asked at t′ or above; θ₁ is not shipped."""
    process = VarianceExploding()
    assert ConsistencyTraining().trained_times(process, Sampler((4,))) is None
    CUT.trained_times(process, Sampler((1, 2), Grid("uniform")))
    with pytest.raises(ValueError, match="below the cut"):
        CUT.trained_times(process, Sampler((4,), Grid("karras")))


def test_passes_and_players():
    assert ConsistencyTraining().passes(Sampler())[:] == (1, 1, 0)
    assert CUT.passes(Sampler())[:] == (1, 2, 0)
    assert CUT.needs.initial and not ConsistencyTraining().needs.initial
