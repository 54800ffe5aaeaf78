"""Denoisers: exact ones against closed forms and quadrature, networks, guidance, rescheduling.

The golden values are those of x₀ ~ N(0.7, 1.3²) at x = 1, derived by hand in float64.
"""

from dataclasses import dataclass
from math import cos, pi, sin, sqrt

import numpy as np
import pytest
import torch
from cases import MLP, PREDICTIONS, PROCESSES, TIMES, at, close, labels, normal, scales
from scipy import integrate, optimize, stats

from stepdistill.conditions import repeat
from stepdistill.denoiser import Denoiser, Guided, Rescheduled
from stepdistill.exact import Gaussian, GaussianMixture
from stepdistill.process import (
    Estimate,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
)
from stepdistill.solver import ddim_step, jump

names = pytest.mark.parametrize("name", PROCESSES)

M, S = 0.7, 1.3
MEAN = torch.tensor([M], dtype=torch.float64)
TWO_STEPS = VariancePreserving(torch.tensor([0.81, 0.36], dtype=torch.float64))
# process, t, s, then v_t, x̂₀, ε̂, the consistency function, Φ_{t→s} and the DDIM step to s
GOLDEN = [
    (VarianceExploding(), 5, 1)
    + (5.1662365412, 0.7189958786, 0.0562008243, 0.7754901555, 0.7952408160, 0.7751967029),
    (TWO_STEPS, 1, 0)
    + (1.1173182179, 1.1710990067, 0.3716757450, 1.3748301316, 1.2781271913, 1.2159988073),
    (RectifiedFlow(), 0.9, 0.4)
    + (0.9093404203, 0.8900713508, 1.0122142944, 2.0295350927, 1.3164996631, 0.9389285282),
    (TrigFlow(0.5), 1.2, 0.5)
    + (0.6626284968, 1.7409415261, 0.7921477618, 2.1642510065, 1.9273682697, 1.7177078582),
]


def one(x):
    return torch.tensor([[x]], dtype=torch.float64)


@pytest.mark.parametrize("process, t, s, v, x0, eps, end, flow, ddim", GOLDEN)
def test_golden_values(process, t, s, v, x0, eps, end, flow, ddim):
    gauss, t, s, clean = Gaussian(MEAN, S, process), at([t]), at([s]), at([process.t_clean])
    estimate = gauss(one(1.0), t)
    ours = [estimate.x0, estimate.eps, gauss.flow_map(one(1.0), t, clean)]
    ours += [gauss.flow_map(one(1.0), t, s), ddim_step(process, estimate, s)]
    close([float(value) for value in ours], [x0, eps, end, flow, ddim], atol=1e-9)
    # v_t is the standard deviation that the flow map takes to that of the data
    stretch = gauss.flow_map(one(2.0), t, clean) - gauss.flow_map(one(1.0), t, clean)
    assert float(S / stretch) == pytest.approx(v, abs=1e-9)


def test_golden_velocities():
    def flow(process, t):
        estimate = Gaussian(MEAN, S, process)(one(1.0), at([t]))
        return float(process.target(estimate.x0, estimate.eps, at([t]), "flow"))

    assert flow(RectifiedFlow(), 0.9) == pytest.approx(0.1221429435, abs=1e-9)
    assert flow(TrigFlow(0.5), 1.2) == pytest.approx(-1.4791051066, abs=1e-9)
    jump = Gaussian(MEAN, S, RectifiedFlow()).flow_map(one(1.0), at([0.9]), at([0.4]))
    assert (1 - float(jump)) / 0.5 == pytest.approx(-0.6329993262, abs=1e-9)
    end = Gaussian(MEAN, S, TrigFlow(0.5)).flow_map(one(1.0), at([1.2]), at([0.0]))
    assert (cos(1.2) - float(end)) / (0.5 * sin(1.2)) == pytest.approx(-3.8665615620, abs=1e-9)
    jump = Gaussian(MEAN, S, VarianceExploding()).flow_map(one(1.0), at([5.0]), at([1.0]))
    assert (float(jump) - 0.2) / 0.8 == pytest.approx(0.7440510200, abs=1e-9)


def runge_kutta(denoiser, x, times):
    """Follow dx/dt of the denoiser by the classical method, with the package's `flow` alone."""

    def velocity(x, t):
        t = t.expand(len(x))
        estimate = denoiser(x, t)
        return denoiser.process.target(estimate.x0, estimate.eps, t, "flow")

    for t, s in zip(times[:-1], times[1:]):
        h = s - t
        a = velocity(x, t)
        b = velocity(x + h / 2 * a, t + h / 2)
        c = velocity(x + h / 2 * b, t + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c, t + h))
    return x


@pytest.mark.parametrize(
    "process, start, end",
    [
        (TWO_STEPS, 0.95, 0.05),  # within one piece of the table
        (VarianceExploding(), 5, 0.3),
        (RectifiedFlow(), 0.9, 0.1),
        (TrigFlow(0.5), 1.5, 0.1),
    ],
)
def test_gaussian_flow_map_solves_the_ode(process, start, end):
    gauss, x = Gaussian(MEAN, S, process), normal(1, 5, 1) * 3
    times = torch.linspace(start, end, 401, dtype=torch.float64)
    exact = gauss.flow_map(x, at(start, 5), at(end, 5))
    close(runge_kutta(gauss, x, times), exact, atol=1e-7)


@names
def test_gaussian_flow_maps_compose(name):
    gauss, x = Gaussian(MEAN, S, PROCESSES[name]), normal(1, 3, 1)
    t, r, s = (at(TIMES[name][i], 3) for i in (4, 2, 0))
    direct = gauss.flow_map(x, t, s)
    close(gauss.flow_map(gauss.flow_map(x, t, r), r, s), direct, rtol=1e-11)


WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MODES = torch.tensor([[-1.5], [0.4], [2.0]], dtype=torch.float64)


def mixture(name, std=0.3):
    return GaussianMixture(MODES, std, PROCESSES[name], WEIGHTS)


@pytest.mark.parametrize("name, t", [("vp", 499.2), ("ve", 1.7), ("rf", 0.5), ("trig", 0.9)])
def test_mixture_is_the_posterior_mean(name, t):
    """E[x₀ | x_t] by numerical integration over x₀."""
    alpha, sigma = scales(name, t)

    def density(x0, x):
        prior = sum(float(w) * stats.norm.pdf(x0, m, 0.3) for w, m in zip(WEIGHTS, MODES[:, 0]))
        return prior * stats.norm.pdf(x, alpha * x0, sigma)

    for x in (-1.2, 0.1, 0.9):
        mass, _ = integrate.quad(density, -6, 6, args=(x,), limit=200, epsabs=1e-13)
        first, _ = integrate.quad(lambda y, x=x: y * density(y, x), -6, 6, limit=200, epsabs=1e-13)
        estimate = mixture(name)(one(x), at([t]))
        assert float(estimate.x0) == pytest.approx(first / mass, abs=1e-8)
        assert float(estimate.eps) == pytest.approx((x - alpha * first / mass) / sigma, abs=1e-7)


def test_mixture_ode_is_quantile_transport():
    """In one dimension the flow map is F_s⁻¹ ∘ F_t of the marginals."""

    def cdf(x, t):
        width = np.sqrt((0.3 * (1 - t)) ** 2 + t**2)
        parts = stats.norm.cdf((x - (1 - t) * MODES[:, 0].numpy()) / width)
        return float(WEIGHTS.numpy() @ parts)

    def transported(x):
        return optimize.brentq(lambda y: cdf(y, 0.15) - cdf(x, 0.95), -9, 9, xtol=1e-14)

    x = np.linspace(-2, 2, 9)
    times = torch.linspace(0.95, 0.15, 1001, dtype=torch.float64)
    ours = runge_kutta(mixture("rf"), torch.tensor(x)[:, None], times)
    close(ours[:, 0], [transported(v) for v in x], atol=1e-10)


@names
def test_a_condition_names_one_component(name):
    mix, x, t = mixture(name), normal(1, 4, 1), at(TIMES[name][2], 4)
    k = labels(0, 1, 2, 0)
    alone = Gaussian(MODES, 0.3, PROCESSES[name])(x, t, k)
    close(mix(x, t, k).x0, alone.x0, atol=1e-13)
    close(mix(x, t, k).eps, alone.eps, atol=1e-12)
    assert torch.equal(mix(x, t, repeat(mix.null, 4)).x0, mix(x, t).x0)
    assert not torch.allclose(mix(x, t).x0, alone.x0, atol=1e-3)


def test_mixture_samples_follow_the_mixture():
    x, k = mixture("rf").sample(40_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(k, minlength=3)
    assert stats.chisquare(counts, 40_000 * WEIGHTS).pvalue > 1e-3
    for i in range(3):
        assert stats.kstest(x[k == i, 0], stats.norm(float(MODES[i, 0]), 0.3).cdf).pvalue > 1e-3


def student(name, prediction, **settings):
    process = PROCESSES[name]
    return Denoiser(MLP(3, slow=process.t_max), process, prediction, **settings)


@names
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("skip", [False, True])
def test_both_estimates_belong_to_the_sample(name, prediction, skip):
    """α x̂₀ + σ ε̂ = x_t whatever the network says."""
    x, t = normal(7, 5, 3), at(TIMES[name])
    estimate = student(name, prediction, skip=skip)(x, t)
    again = PROCESSES[name].add_noise(estimate.x0, estimate.eps, t)
    close(again, x, rtol=1e-10, atol=1e-10)


@names
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_skip_is_the_boundary_condition_of_the_papers(name, prediction):
    x, t, process = normal(7, 5, 3), at(TIMES[name]), PROCESSES[name]
    alpha, sigma = (torch.tensor(c)[:, None] for c in scales(name, TIMES[name]))
    ratio, data = sigma / alpha, process.sigma_data
    c_skip, c_out = data**2 / (ratio**2 + data**2), ratio / (ratio**2 + data**2).sqrt()
    plain = student(name, prediction)(x, t)
    skipped = student(name, prediction, skip=True)(x, t)
    close(skipped.x0, c_skip * x / alpha + c_out * plain.x0, rtol=1e-11, atol=1e-11)
    assert torch.equal(skipped.raw, plain.raw)
    clean = at(process.t_clean, 5)
    close(student(name, prediction, skip=True)(x, clean).x0, x, atol=1e-12)


def test_boundary_maps_are_those_of_the_papers():
    """Consistency functions of CM (EDM's form), TrigFlow, CTM, TCD, MeanFlow and CTMSR."""
    x, t, s = normal(7, 5, 3), at([0.3, 0.5, 0.6, 0.8, 0.9]), at([0.0, 0.1, 0.5, 0.2, 0.9])
    column, target = t[:, None], s[:, None]
    # B1: c_skip x + c_out F, at σ_min → 0.
    f = student("ve", "edm")(x, t)
    skip, root = 0.25 / (column**2 + 0.25), (column**2 + 0.25).sqrt()
    close(f.x0, skip * x + 0.5 * column / root * f.raw, rtol=1e-10)
    # B3: cos t x − sin t σ_d F, F = (dx/dt)/σ_d.
    f = student("trig", "flow")(x, t)
    close(f.x0, column.cos() * x - column.sin() * f.raw, rtol=1e-10)
    # B4: (s/t) x + (1 − s/t) g under VE.
    g = student("ve", "x0")(x, t).x0
    close(jump(student("ve", "x0"), x, t, s), target / column * x + (1 - target / column) * g)
    # B5: α_s x̂₀ + σ_s ε̂ on Stable Diffusion's table.
    eps, (a, b) = student("vp", "eps"), scales("vp", 999 * t)
    a_s, b_s = scales("vp", 999 * s)
    noise = eps(x, 999 * t).raw.detach().numpy()
    x0 = (x.numpy() - b[:, None] * noise) / a[:, None]
    moved = a_s[:, None] * x0 + b_s[:, None] * noise
    close(jump(eps, x, 999 * t, 999 * s), moved, rtol=1e-9, atol=1e-9)
    # B6: x − (t − s) u under rectified flow.
    u = student("rf", "flow")(x, t).raw
    close(jump(student("rf", "flow"), x, t, s), x - (column - target) * u, rtol=1e-10, atol=1e-12)
    # B7: EDM's skip with σ/0.1 in place of σ is that of a tenth of σ_d.
    process = VarianceExploding(sigma_data=0.05)
    narrow = Denoiser(student("ve", "x0").net, process, "x0", skip=True)
    plain = Denoiser(student("ve", "x0").net, process, "x0")
    ratio = column / 0.1
    skip, out = 0.25 / (ratio**2 + 0.25), ratio / (ratio**2 + 0.25).sqrt()
    close(narrow(x, t).x0, skip * x + out * plain(x, t).x0, rtol=1e-10)
    for name in PROCESSES:
        end = at(PROCESSES[name].t_clean, 5)
        close(jump(student(name, "v"), x, end, end), x, rtol=0)


def test_a_network_sees_the_scaled_state_and_its_own_time():
    seen = []

    def call(net, x, t, cond, w):
        seen.append((x, t, cond))
        return net(x, t)

    for dtype in (torch.float32, torch.float64):
        x = normal(1, 2, 3).to(dtype)
        process, asked = VarianceExploding(), labels(0, 1)
        denoiser = Denoiser(lambda x, t: x, process, "edm", call, time=lambda t: 250 * t)
        estimate = denoiser(x, at([3.0, 1.0]), asked)
        scaled, t, cond = seen.pop()
        close(scaled, x / at([[9.25], [1.25]]).sqrt(), rtol=1e-6)
        assert t.dtype == scaled.dtype == estimate.x0.dtype == dtype and cond is asked
        assert t.tolist() == [750.0, 250.0]


def test_half_precision_networks_leave_float32_estimates():
    x, t = normal(1, 2, 3, dtype=torch.float32), at([0.3, 0.8])
    denoiser = Denoiser(lambda x, t, cond: x.bfloat16(), RectifiedFlow(), "flow")
    estimate = denoiser(x, t)
    assert estimate.x0.dtype == estimate.eps.dtype == torch.float32
    rounded = x.bfloat16().float()
    close(estimate.x0, x - t[:, None].float() * rounded, atol=1e-6)


@names
@pytest.mark.parametrize("prediction, skip", [(p, False) for p in PREDICTIONS] + [("x0", True)])
def test_forward_mode_derivatives_pass_through(name, prediction, skip):
    """torch.func.jvp in (x, t) against central differences."""
    denoiser, x, t = student(name, prediction, skip=skip), normal(7, 4, 3), at(TIMES[name][1:])
    dx, dt = normal(8, 4, 3), normal(9, 4) * 0.1 * PROCESSES[name].t_max
    dt = torch.minimum(dt.abs(), t.ceil() - t) / 2  # within one piece of a table
    pair, rates = torch.func.jvp(lambda x, t: denoiser(x, t)[:2], (x, t), (dx, dt))
    close(pair[0], denoiser(x, t).x0, atol=1e-12)
    h = 1e-5
    ahead, behind = (denoiser(x + d * dx, t + d * dt) for d in (h, -h))
    for rate, high, low in zip(rates, ahead, behind):
        difference = (high - low) / (2 * h)
        close(rate, difference, rtol=1e-5, atol=1e-6 * float(rate.detach().abs().max()))


@dataclass(frozen=True)
class Pair:
    """Two denoisers as the conditional and the unconditional side of one; counts its calls."""

    given: object
    free: object
    calls: list

    @property
    def process(self):
        return self.given.process

    def __call__(self, x_t, t, cond):
        (label,) = cond["label"].unique().tolist()
        self.calls.append(label)
        return (self.free if label else self.given)(x_t, t)


def pair(name, std_c=S, std_u=S, mean_c=2.0):
    process = PROCESSES[name]
    given = Gaussian(torch.tensor([mean_c], dtype=torch.float64), std_c, process)
    return Pair(given, Gaussian(MEAN, std_u, process), [])


EMPTY = labels(1)


def asked(x):
    """The condition of the given side."""
    return labels(0, n=len(x))


@names
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.7])
def test_guidance_extrapolates_means(name, w):
    """Equal covariances: the guided Gaussian has mean m_u + w (m_c − m_u); w = 1 is neutral."""
    x, t = normal(1, 5, 1), at(TIMES[name])
    guided = Guided(pair(name), w, EMPTY)(x, t, asked(x))
    moved = torch.tensor([M + w * (2.0 - M)], dtype=torch.float64)
    expected = Gaussian(moved, S, PROCESSES[name])(x, t)
    close(guided.x0, expected.x0, rtol=1e-10, atol=1e-10)
    close(guided.eps, expected.eps, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_other_convention_counts_from_zero(name):
    """c + w (c − u), of CausVid and Self-Forcing, is our w + 1."""
    x, t, two = normal(1, 5, 1), at(TIMES[name]), pair(name)
    c, u = (two(x, t, cond).x0 for cond in (asked(x), labels(1, n=5)))
    close(
        Guided(pair(name), 2.5, EMPTY)(x, t, asked(x)).x0, c + 1.5 * (c - u), rtol=1e-12, atol=1e-12
    )


def test_guidance_costs_two_evaluations_and_one_where_neutral():
    x, t, two = normal(1, 2, 1), at([0.3, 0.8]), pair("rf")
    Guided(two, 3.0, EMPTY)(x, t, asked(x))
    assert two.calls == [0, 1]
    Guided(two, 1, EMPTY)(x, t, asked(x))
    assert two.calls == [0, 1, 0]


def test_guidance_may_differ_per_sample():
    x, t = normal(1, 3, 1), at([0.3, 0.8, 0.5])
    w = torch.tensor([1.0, 4.0, 0.0])
    together = Guided(pair("rf"), w, EMPTY)(x, t, asked(x))
    for i in range(3):
        alone = Guided(pair("rf"), float(w[i]), EMPTY)(x[i : i + 1], t[i : i + 1], labels(0))
        close(together.x0[i], alone.x0[0], atol=1e-14)
        close(together.eps[i], alone.eps[0], atol=1e-14)


def test_guided_product_of_gaussians():
    """Noised variances 2 and 0.7, means 0 and 1, w = 3: variance 0.304348, mean 1.304348."""
    process, t = VarianceExploding(), at([0.5, 0.5])
    sides = [
        Gaussian(torch.tensor([m], dtype=torch.float64), sqrt(v - 0.25), process)
        for m, v in ((1.0, 0.7), (0.0, 2.0))
    ]
    guided = Guided(Pair(*sides, []), 3.0, EMPTY)
    at_0, at_1 = (-guided(at([[0.0], [1.0]]), t, labels(0, n=2)).eps / 0.5)[:, 0].tolist()
    precision = at_0 - at_1
    assert 1 / precision == pytest.approx(0.304348, abs=1e-6)
    assert at_0 / precision == pytest.approx(1.304348, abs=1e-6)


@names
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guiding_outputs_is_guiding_estimates(name, prediction):
    """Every conversion is affine with one x_t, so guidance commutes with it."""
    x, t, process = normal(7, 5, 3), at(TIMES[name]), PROCESSES[name]
    c, u = (Denoiser(MLP(3, seed, process.t_max), process, prediction) for seed in (0, 10))

    def net(x, t, cond):
        return (u if cond["label"].any() else c).net(x, t)

    guided = Guided(Denoiser(net, process, prediction), 3.5, EMPTY)(x, t, asked(x))
    apart = Guided(Pair(c, u, []), 3.5, EMPTY)(x, t, asked(x))
    close(guided.x0, apart.x0, rtol=1e-9, atol=1e-10)
    close(guided.eps, apart.eps, rtol=1e-9, atol=1e-10)
    raw = u(x, t).raw + 3.5 * (c(x, t).raw - u(x, t).raw)
    mixed = process.estimate(x, raw, t, prediction)
    close(guided.x0, mixed.x0, rtol=1e-9, atol=1e-10)
    close(guided.eps, mixed.eps, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("inner", ["vp", "vp-zero", "ve", "rf", "trig"])
@pytest.mark.parametrize("outer", ["vp", "vp-zero", "ve", "rf", "trig"])
def test_a_rescheduled_denoiser_is_the_denoiser_of_the_other_process(inner, outer):
    """The data law does not depend on the process, so exact denoisers must agree."""
    seen = Rescheduled(mixture(inner), PROCESSES[outer])
    x, t = normal(7, 4, 1), at(TIMES[outer][:4])
    expected = mixture(outer)(x, t)
    close(seen(x, t).x0, expected.x0, rtol=1e-8, atol=1e-9)
    close(seen(x, t).eps, expected.eps, rtol=1e-8, atol=1e-8)
    assert seen.process is PROCESSES[outer]


def test_rescheduling_matches_snr_and_rescales_the_state():
    """VP at ᾱ seen from rectified flow: t = σ/(α+σ), x_rf = x/(α+σ)."""
    asked = []

    class Spy:
        process = PROCESSES["vp"]

        def __call__(self, x_t, t, cond=None):
            asked.append((x_t, t))
            return Estimate(x_t, x_t)

    alpha, sigma = scales("vp", 600.0)
    x = normal(1, 2, 3)
    Rescheduled(Spy(), RectifiedFlow())(x / (alpha + sigma), at(sigma / (alpha + sigma), 2))
    (inner_x, inner_t) = asked.pop()
    close(inner_x, x, rtol=1e-12)
    close(inner_t, 600.0, rtol=1e-10)


def test_a_teacher_is_not_asked_about_more_noise_than_it_knows():
    """Stable Diffusion's table ends at rectified flow's t = 0.936."""
    seen = Rescheduled(mixture("vp"), RectifiedFlow())
    assert seen.t_max == pytest.approx(0.99767 / (0.99767 + 0.06826), abs=1e-4)
    assert seen.t_max == pytest.approx(0.936, abs=5e-4)
    assert torch.isfinite(seen(one(0.3), at([seen.t_max])).x0).all()
    with pytest.raises(ValueError, match="start at 0.936 or below"):
        seen(normal(1, 2, 1), at([0.2, 0.95]))
    assert Rescheduled(mixture("vp-zero"), RectifiedFlow()).t_max == pytest.approx(1.0)
    assert Rescheduled(mixture("rf"), PROCESSES["trig"]).t_max == pytest.approx(pi / 2)


def test_rescheduled_denoisers_answer_at_clean_data():
    for inner in PROCESSES:
        seen = Rescheduled(mixture(inner), RectifiedFlow())
        close(seen(one(0.3), at([0.0])).x0, 0.3, atol=1e-9)


def test_forward_mode_derivatives_pass_through_rescheduling():
    seen = Rescheduled(mixture("vp"), RectifiedFlow())
    x, t, dx, dt = normal(7, 3, 1), at([0.2, 0.5, 0.8]), normal(8, 3, 1), at([1.0, -0.4, 0.2])
    rate = torch.func.jvp(lambda x, t: seen(x, t).x0, (x, t), (dx, dt))[1]
    ahead, behind = (seen(x + h * dx, t + h * dt).x0 for h in (1e-6, -1e-6))
    close(rate, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)
