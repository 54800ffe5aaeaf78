"""Steps, trajectories and few-step sampling.

References: the steps as their papers write them, in numpy; exact flow maps; the step factors of
Gaussian data, which are golden values.
"""

from math import atan2, cos, sqrt

import numpy as np
import pytest
import torch
from cases import MLP, PROCESSES, SD_TABLE, TIMES, at, close, normal, scales
from scipy import stats

from stepdistill.denoiser import Denoiser
from stepdistill.exact import Gaussian, GaussianMixture
from stepdistill.process import Estimate, RectifiedFlow, VarianceExploding
from stepdistill.solver import (
    EVALUATIONS,
    Sampler,
    ddim_step,
    dpmpp_step,
    heun_step,
    rollout,
    sample,
    solve_ode,
    start,
    states,
)
from stepdistill.times import Grid

names = pytest.mark.parametrize("name", PROCESSES)
M, S = 0.7, 1.3
MEAN = torch.tensor([M], dtype=torch.float64)


def gauss(name):
    return Gaussian(MEAN, S, PROCESSES[name])


def mixture(name):
    means = torch.tensor([[-1.5, 0.3], [0.4, -1.0], [2.0, 1.0]], dtype=torch.float64)
    return GaussianMixture(means, 0.3, PROCESSES[name], at([0.3, 0.5, 0.2]))


class Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.calls = denoiser, denoiser.process, 0

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.denoiser(x_t, t, cond)


@names
def test_ddim_is_one_map_under_many_names(name):
    """Euler in σ/α, Euler in rectified flow's frame, the exponential integrator of order one."""
    process = PROCESSES[name]
    x, x0 = normal(1, 4, 2).numpy(), normal(2, 4, 2).numpy()
    t, s = np.array(TIMES[name][1:]), np.array(TIMES[name][:-1])
    (a, g), (a_s, g_s) = ([c[:, None] for c in scales(name, u)] for u in (t, s))
    eps = (x - a * x0) / g
    ours = ddim_step(process, Estimate(torch.tensor(x0), torch.tensor(eps)), at(s))
    in_sigma = x / a + (g_s / a_s - g / a) * eps
    close(ours, a_s * in_sigma, rtol=1e-11, atol=1e-12)
    straight = x / (a + g) + (g_s / (a_s + g_s) - g / (a + g)) * (eps - x0)
    close(ours, (a_s + g_s) * straight, rtol=1e-11, atol=1e-12)
    h = np.log(a_s / g_s) - np.log(a / g)
    close(ours, g_s / g * x - a_s * np.expm1(-h) * x0, rtol=1e-11, atol=1e-12)


def test_ddim_is_eulers_step_of_rectified_flow_and_trigflows_rotation():
    x, u = normal(1, 4, 2), normal(2, 4, 2)
    for name, step in (
        ("rf", lambda t, s: x + (s - t) * u),
        ("trig", lambda t, s: (t - s).cos() * x - (t - s).sin() * u),  # u = σ_d F
    ):
        t, s = at(TIMES[name][1:]), at(TIMES[name][:-1])
        estimate = PROCESSES[name].estimate(x, u, t, "flow")
        ours = ddim_step(PROCESSES[name], estimate, s)
        close(ours, step(t[:, None], s[:, None]), rtol=1e-12, atol=1e-13)


def slope(step, t, s):
    """How far apart a step from t to s takes two points one apart."""
    x = at([[0.0], [1.0]])
    low, high = step(x, at(t, 2), at(s, 2))[:, 0].tolist()
    return high - low


def spread(name, t):
    alpha, sigma = scales(name, t)
    return float(np.sqrt((alpha * S) ** 2 + sigma**2))


def euler(name):
    teacher = gauss(name)
    return lambda x, t, s: ddim_step(teacher.process, teacher(x, t), s)


def heun(name):
    return lambda x, t, s: heun_step(gauss(name), x, t, s)


@names
def test_euler_contracts_by_a_cosine(name):
    """(v_s/v_t) cos(θ_t − θ_s), θ = atan2(σ, α s)."""
    for t, s in zip(TIMES[name][1:], TIMES[name]):
        (a, g), (a_s, g_s) = scales(name, t), scales(name, s)
        turn = cos(atan2(g, a * S) - atan2(g_s, a_s * S))
        expected = spread(name, s) / spread(name, t) * turn
        assert slope(euler(name), t, s) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "n, by_euler, by_heun",
    [
        (18, 0.86432980, 1.04139993),
        (40, 0.93841591, 1.00739124),
        (120, 0.97938370, 1.00076867),
        (1281, 0.99806516, 1.00000655),
    ],
)
def test_golden_chains_on_karras_grids(n, by_euler, by_heun):
    """The product of the step factors over the exact flow map's, n noise levels down to t_min."""
    times = Grid("karras").times(VarianceExploding(), n)[:-1].tolist()
    exact = spread("ve", times[-1]) / spread("ve", times[0])
    for step, expected in ((euler("ve"), by_euler), (heun("ve"), by_heun)):
        chain = np.prod([slope(step, t, s) for t, s in zip(times, times[1:])])
        assert chain / exact == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("steps, expected", [(50, 0.97636509), (100, 0.98802921)])
def test_golden_chains_on_stable_diffusions_ddim_grids(steps, expected):
    """LCM's grid k − 1, 2k − 1, …, 999, which ends at ᾱ_0."""
    k = 1000 // steps
    times = [*range(999, 0, -k), 0]
    chain = np.prod([slope(euler("vp"), t, s) for t, s in zip(times, times[1:])])
    assert chain / (spread("vp", 0) / spread("vp", 999)) == pytest.approx(expected, abs=1e-8)


def edm_heun(denoise, x, t, s):
    """EDM's algorithm 1 without churn, in numpy: x at σ = t to σ = s."""
    d = (x - denoise(x, t)) / t
    ahead = x + (s - t) * d
    if s == 0:
        return ahead
    return x + (s - t) * (d + (ahead - denoise(ahead, s)) / s) / 2


def flow_heun(velocity, x, t, s):
    """Heun's method for dx/dt = velocity."""
    d = velocity(x, t)
    ahead = x + (s - t) * d
    return ahead if s == 0 else x + (s - t) * (d + velocity(ahead, s)) / 2


def test_heun_under_ve_is_edms():
    teacher = mixture("ve")

    def denoise(x, t):
        return teacher(torch.tensor(x), at(t, 3)).x0.numpy()

    for t, s in ((60.0, 9.0), (1.7, 0.3), (0.3, 0.0)):
        x = normal(1, 3, 2) * (1 + t)
        ours = heun_step(teacher, x, at(t, 3), at(s, 3))
        close(ours, edm_heun(denoise, x.numpy(), t, s), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["vp", "vp-zero", "rf", "trig"])
def test_heun_elsewhere_is_rectified_flows(name):
    """The state rescaled to x/(α+σ) at time σ/(α+σ) moves as under rectified flow."""
    teacher, straight = mixture(name), mixture("rf")

    def velocity(x, t):
        estimate = straight(torch.tensor(x), at(t, 3))
        return (estimate.eps - estimate.x0).numpy()

    ends = (TIMES[name][2], TIMES[name][1]), (TIMES[name][0], PROCESSES[name].t_clean)
    for t, s in ends:
        x = normal(1, 3, 2).numpy()
        (a, g), (a_s, g_s) = scales(name, t), scales(name, s)
        expected = flow_heun(velocity, x / (a + g), g / (a + g), g_s / (a_s + g_s)) * (a_s + g_s)
        ours = heun_step(teacher, torch.tensor(x), at(t, 3), at(s, 3))
        close(ours, expected, rtol=1e-9, atol=1e-10)


@names
def test_heun_decides_per_sample_where_it_ends(name):
    process, x = PROCESSES[name], normal(1, 3, 2)
    t = at([TIMES[name][4], TIMES[name][0], TIMES[name][2]])
    s = at([TIMES[name][3], process.t_clean, TIMES[name][1]])
    together = heun_step(mixture(name), x, t, s)
    for i in range(3):
        alone = heun_step(mixture(name), x[[i]], t[[i]], s[[i]])
        close(together[i], alone[0], rtol=1e-12, atol=1e-13)


def dpm_plus_plus(denoise, x, times, scale):
    """DPM-Solver++(2M), the midpoint form of its algorithm 2, in numpy; first order at the ends."""
    previous = last_h = None
    for t, s in zip(times, times[1:]):
        (a, g), (a_s, g_s) = scale(t), scale(s)
        x0 = denoise(x, t)
        if g_s == 0:
            return x0
        h = np.log(a_s / g_s) - np.log(a / g)
        d = x0 if previous is None else x0 + (x0 - previous) * h / (2 * last_h)
        x, previous, last_h = g_s / g * x - a_s * np.expm1(-h) * d, x0, h
    return x


@names
def test_dpm_solver_plus_plus(name):
    teacher, x = mixture(name), normal(1, 3, 2)
    times = [*TIMES[name][::-1], PROCESSES[name].t_clean]

    def denoise(x, t):
        return teacher(torch.tensor(x), at(t, 3)).x0.numpy()

    *_, ours = solve_ode(teacher, x, at(times), solver="dpmpp")
    expected = dpm_plus_plus(denoise, x.numpy(), times, lambda t: scales(name, t))
    close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["rf", "vp-zero"])
def test_dpm_solver_is_first_order_where_the_snr_vanishes(name):
    """From pure noise the log-SNR step is infinite: no extrapolation, and no NaN."""
    process, t_max = PROCESSES[name], PROCESSES[name].t_max
    x, x0s = normal(1, 2, 2), (normal(2, 2, 2), normal(3, 2, 2))
    times = (at(t_max, 2), at(TIMES[name][3], 2), at(TIMES[name][1], 2))
    ours = dpmpp_step(process, x, x0s, times)
    first_order = ddim_step(process, process.estimate(x, x0s[1], times[1], "x0"), times[2])
    close(ours, first_order, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name, high, low", [("ve", 9.0, 0.3), ("rf", 0.9, 0.2), ("trig", 1.3, 0.2)]
)
@pytest.mark.parametrize("solver, order", [("ddim", 1), ("heun", 2), ("dpmpp", 2)])
def test_orders_of_convergence(name, high, low, solver, order):
    teacher, x = gauss(name), normal(1, 4, 1)
    exact = teacher.flow_map(x, at(high, 4), at(low, 4))

    def error(n):
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        times = high * (low / high) ** u
        *_, end = solve_ode(teacher, x, times, solver=solver)
        return float((end - exact).norm())

    assert np.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


@names
@pytest.mark.parametrize("solver", EVALUATIONS)
def test_trajectories_start_at_their_start_and_cost_what_is_said(name, solver):
    teacher, x = Counted(mixture(name)), normal(1, 3, 2)
    times = at([*TIMES[name][::-1], PROCESSES[name].t_clean])
    states = list(solve_ode(teacher, x, times, solver=solver))
    assert len(states) == len(times) and torch.equal(states[0], x)
    assert teacher.calls == EVALUATIONS[solver] * (len(times) - 1)
    close(states[-1], mixture(name)(states[-2], times[-2].expand(3)).x0, atol=1e-12)


def start_scale(name, t):
    """σ_t, but 1 under VP: diffusers' pipelines start from unit noise there."""
    return 1.0 if name.startswith("vp") else float(scales(name, t)[1])


@names
def test_sampling_starts_from_noise_of_its_process(name):
    noise = normal(1, 3, 2)
    for t in (*TIMES[name][3:], PROCESSES[name].t_max):
        ours = start(PROCESSES[name], noise, at(t))
        close(ours, start_scale(name, t) * noise, rtol=1e-12)


class Exact:
    """The perfect consistency function of Gaussian data: x̂₀ is the end of the trajectory."""

    def __init__(self, name):
        self.process, self.gauss = PROCESSES[name], gauss(name)

    def __call__(self, x_t, t, cond=None):
        x0 = self.gauss.flow_map(x_t, t, torch.full_like(t, self.process.t_clean))
        return self.process.estimate(x_t, x0, t, "x0")


@pytest.mark.parametrize("name", ["vp", "vp-zero", "ve", "rf", "trig"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_stochastic_sampling_preserves_the_marginal(name, steps):
    """With the exact map every x̂₀ is distributed as the data, so re-noising it is exact."""
    process, n = PROCESSES[name], 40_000
    times = at(TIMES[name][::-1][:steps])
    alpha = float(scales(name, float(times[0]))[0])
    marginal = alpha * M + spread(name, float(times[0])) * normal(1, n, 1)
    noise = marginal / start_scale(name, float(times[0]))
    x = sample(Exact(name), noise, times, generator=torch.Generator().manual_seed(3))
    assert abs(float(x.mean()) - M) < 3.5 * S / sqrt(n)
    assert abs(float(x.std()) - S) < 3.5 * S / sqrt(2 * n)
    assert stats.kstest(x[:, 0].numpy(), stats.norm(M, S).cdf).pvalue > 1e-3
    assert process.t_clean < float(times[-1])


def test_the_exact_posterior_mean_collapses_in_four_steps():
    """Why a teacher is no student: N(1, 0.5²) becomes variance 0.0725521 in 1, .75, .5, .25."""
    teacher = Gaussian(torch.ones(1).double(), 0.5, RectifiedFlow())
    generator = torch.Generator().manual_seed(1)
    x = sample(teacher, normal(1, 200_000, 1), at([1.0, 0.75, 0.5, 0.25]), generator=generator)
    assert float(x.mean()) == pytest.approx(1, abs=3e-3)
    assert float(x.var()) == pytest.approx(0.0725521, rel=0.012)


def student(name, prediction="v"):
    process = PROCESSES[name]
    return Denoiser(MLP(2, slow=process.t_max), process, prediction)


@names
def test_stochastic_sampling_by_hand(name):
    """x ← α f + σ z with the generator's numbers in order, and none drawn after the last step."""
    net, noise = student(name), normal(1, 3, 2)
    times = TIMES[name][::-1][:3]
    generator, same = (torch.Generator().manual_seed(7) for _ in range(2))
    ours = sample(net, noise, at(times), generator=generator)

    x = start_scale(name, times[0]) * noise
    for t, s in zip(times, times[1:]):
        alpha, sigma = (float(c) for c in scales(name, s))
        z = torch.randn(3, 2, generator=same).double()  # drawn in float32 for every state
        x = alpha * net(x, at(t, 3)).x0 + sigma * z
    close(ours, net(x, at(times[-1], 3)).x0, rtol=1e-9, atol=1e-10)
    assert torch.equal(generator.get_state(), same.get_state())


@names
def test_deterministic_sampling_is_ddim(name):
    net, noise, times = student(name), normal(1, 3, 2), at(TIMES[name][::-1])
    clean = at([PROCESSES[name].t_clean])
    *_, end = solve_ode(net, start(net.process, noise, times[0]), torch.cat([times, clean]))
    close(sample(net, noise, times), end, rtol=1e-12, atol=1e-12)


@names
def test_one_step_is_the_answer_to_pure_noise(name):
    net, noise, t = student(name), normal(1, 3, 2), at([PROCESSES[name].t_max])
    generator = torch.Generator().manual_seed(7)
    before = generator.get_state()
    expected = net(start_scale(name, float(t)) * noise, t.expand(3)).x0
    assert torch.equal(sample(net, noise, t, generator=generator), expected)
    assert torch.equal(sample(net, noise, t), expected)
    assert torch.equal(generator.get_state(), before)


def test_sampling_without_times_is_refused():
    with pytest.raises(ValueError, match="at least one time"):
        sample(student("rf"), normal(1, 3, 2), at([]))


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_sampler_asks_the_grid_for_its_times(stochastic):
    net, noise = student("vp"), normal(1, 3, 2)
    sampler = Sampler((1, 4), Grid("trailing"), stochastic)
    assert sampler.times(net.process, 4).tolist() == [999, 749, 499, 249]
    drawn = sampler.draw(net, noise, 4, None, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2) if stochastic else None
    expected = sample(net, noise, at([999, 749, 499, 249]), generator=generator)
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("stochastic", [True, False])
def test_sampling_is_differentiable(stochastic):
    """Along a direction in the weights, against central differences."""
    net, noise, times = student("rf"), normal(1, 3, 2), at([1.0, 0.6, 0.3])
    weight, direction = net.net.first, normal(5, 3, 16)

    def total(h):
        weight.data += h * direction
        generator = torch.Generator().manual_seed(1) if stochastic else None
        value = sample(net, noise, times, generator=generator).square().sum()
        weight.data -= h * direction
        return value

    total(0.0).backward()
    difference = (total(1e-5) - total(-1e-5)).item() / 2e-5
    assert float((weight.grad * direction).sum()) == pytest.approx(difference, rel=1e-6)


def test_the_table_of_stable_diffusion():
    """ᾱ_999 = 0.004660: an error in ε̂ is 14.6 times larger in x̂₀."""
    assert SD_TABLE[999] == pytest.approx(0.004660, abs=5e-7)
    alpha, sigma = (float(c) for c in PROCESSES["vp"].scales(at([999])))
    assert (alpha, sigma) == (pytest.approx(0.068265, abs=1e-6), pytest.approx(0.997667, abs=1e-6))
    assert sigma / alpha == pytest.approx(14.6, abs=0.02)


class Watched:
    """A denoiser that notes whether each call carries a gradient."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.process, self.calls = denoiser, denoiser.process, []

    def __call__(self, x_t, t, cond=None):
        self.calls.append(torch.is_grad_enabled())
        return self.denoiser(x_t, t, cond)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_rollout_is_the_sampler_with_a_gradient_through_its_last_call(seed):
    net, noise, times = student("rf"), normal(1, 4, 2), at([1.0, 0.75, 0.5])

    def stream():
        return None if seed is None else torch.Generator().manual_seed(seed)

    watched = Watched(net)
    rolled = rollout(watched, noise, times, generator=stream())
    assert watched.calls == [False, False, True]
    sampled = sample(net, noise, times, generator=stream())
    assert torch.equal(rolled, sampled)
    parameters = list(net.net.parameters())
    one, all_calls = (torch.autograd.grad(x.sum(), parameters) for x in (rolled, sampled))
    assert any(float((a - b).abs().max()) > 1e-6 for a, b in zip(one, all_calls))
    *_, last = states(net, noise, times, None, stream(), 1.0)
    alone = net(last.detach(), times[-1].expand(4)).x0
    for a, b in zip(one, torch.autograd.grad(alone.sum(), parameters)):
        assert torch.equal(a, b)
