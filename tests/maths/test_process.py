"""Processes and the 2×2 algebra of predictions.

References: the conversion tables of the papers, written out in numpy; central differences; the
round trip target → estimate for whatever formula both directions share.
"""

import itertools
from math import inf, pi

import numpy as np
import pytest
import torch
from cases import PREDICTIONS, PROCESSES, SD_TABLE, TIMES, ZERO_TABLE, at, close, normal, scales

from stepdistill.process import (
    Estimate,
    RectifiedFlow,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
    exact,
    per_sample,
)

names = pytest.mark.parametrize("name", PROCESSES)
predictions = pytest.mark.parametrize("prediction", PREDICTIONS)

# Where a prediction says nothing about one of the unknowns, and nowhere else.
ILL_POSED = {
    ("rf", 0.0, "x0"),
    ("rf", 1.0, "eps"),
    ("trig", 0.0, "x0"),
    ("trig", pi / 2, "eps"),
    ("ve", 0.0, "x0"),
    ("vp", -1.0, "x0"),
    ("vp-zero", -1.0, "x0"),
    ("vp-linear", -1.0, "x0"),
    ("vp-short", -1.0, "x0"),
    ("vp-zero", 999.0, "eps"),
}


def triple(name, t, dtype=torch.float64):
    """x0, eps and x_t (n, 3), one row per time; x_t by numpy."""
    x0, eps = normal(1, len(t), 3, dtype=dtype), normal(2, len(t), 3, dtype=dtype)
    alpha, sigma = (torch.tensor(c).to(dtype)[:, None] for c in scales(name, t))
    return x0, eps, alpha * x0 + sigma * eps


@names
def test_scales_and_noising_are_the_textbook_ones(name):
    t = TIMES[name] + [PROCESSES[name].t_clean, PROCESSES[name].t_max]
    for ours, theirs in zip(PROCESSES[name].scales(at(t)), scales(name, t)):
        close(ours, theirs, rtol=1e-13, atol=1e-15)
    x0, eps, x_t = triple(name, t)
    close(PROCESSES[name].add_noise(x0, eps, at(t)), x_t, rtol=1e-12, atol=1e-13)


@names
@predictions
def test_the_weight_that_makes_an_error_one_of_a_velocity(name, prediction):
    """From estimates of two outputs a unit apart, v = αε − σx₀; 1 + 1/SNR of "eps" in vp."""
    process, t = PROCESSES[name], at(TIMES[name])
    x_t, output = triple(name, TIMES[name])[2], normal(3, len(t), 3)
    alpha, sigma = (torch.tensor(c)[:, None] for c in scales(name, TIMES[name]))
    velocities = []
    for each in (output, output + 1):
        estimate = process.estimate(x_t, each, t, prediction)
        velocities.append(alpha * estimate.eps - sigma * estimate.x0)
    square = (velocities[1] - velocities[0]).square()
    weight = process.velocity_weight(prediction, t)
    close(weight[:, None].expand_as(square), square, rtol=1e-6)
    if name.startswith("vp") and prediction == "eps":
        close(weight, (1 + (sigma / alpha) ** 2)[:, 0], rtol=1e-9)


@names
@predictions
def test_every_prediction_gives_both_unknowns_back(name, prediction):
    process, t = PROCESSES[name], at(TIMES[name])
    x0, eps, x_t = triple(name, TIMES[name])
    output = process.target(x0, eps, t, prediction)
    estimate = process.estimate(x_t, output, t, prediction)
    close(estimate.x0, x0, rtol=1e-12, atol=1e-12)
    close(estimate.eps, eps, rtol=1e-12, atol=1e-12)
    assert estimate.raw is output


@names
@predictions
def test_round_trip_in_float32(name, prediction):
    process, t = PROCESSES[name], at(TIMES[name][1:4])
    x0, eps, x_t = triple(name, TIMES[name][1:4], torch.float32)
    estimate = process.estimate(x_t, process.target(x0, eps, t, prediction), t, prediction)
    close(estimate.x0, x0, atol=1e-5)
    close(estimate.eps, eps, atol=1e-5)


@names
def test_conversions_are_those_of_the_papers(name):
    """x0, eps, v and EDM's raw F, by each paper's own formula, from an arbitrary output."""
    process, t = PROCESSES[name], np.array(TIMES[name])
    x, out = normal(3, len(t), 3).numpy(), normal(4, len(t), 3).numpy()
    alpha, sigma = (c[:, None] for c in scales(name, t))
    ratio, data = sigma / alpha, process.sigma_data
    skip, width = data**2 / (ratio**2 + data**2), np.sqrt(ratio**2 + data**2)
    expected = {
        "x0": out,
        "eps": (x - sigma * out) / alpha,
        "v": (alpha * x - sigma * out) / (alpha**2 + sigma**2),
        "edm": skip * x / alpha + ratio * data / width * out,
    }
    for prediction, x0 in expected.items():
        ours = process.estimate(torch.tensor(x), torch.tensor(out), at(t), prediction)
        close(ours.x0, x0, rtol=1e-11, atol=1e-12)
        close(ours.eps, (x - alpha * x0) / sigma, rtol=1e-9, atol=1e-11)


def test_velocities_are_those_of_the_papers():
    x, u = normal(3, 5, 3), normal(4, 5, 3)
    t = at(TIMES["rf"])[:, None]
    flow = PROCESSES["rf"].estimate(x, u, at(TIMES["rf"]), "flow")
    close(flow.x0, x - t * u, atol=1e-13)
    close(flow.eps, x + (1 - t) * u, atol=1e-13)
    t = at(TIMES["trig"])[:, None]
    trig = PROCESSES["trig"].estimate(x, 0.5 * u, at(TIMES["trig"]), "flow")  # dx/dt = σ_d F
    close(trig.x0, t.cos() * x - t.sin() * 0.5 * u, atol=1e-13)
    close(trig.eps, (t.sin() * x + t.cos() * 0.5 * u) / 0.5, atol=1e-13)


def test_trigflow_sees_other_teachers_by_closed_conversions():
    """F of TrigFlow is v under VP, −F of EDM, and a mix of state and velocity under RF."""
    tau, x0, eps = at([0.2, 0.7, 1.1, 1.4]), normal(1, 4, 2), normal(2, 4, 2)
    one, half = TrigFlow(1.0), TrigFlow(0.5)
    f_one = one.target(x0, eps, tau, "flow")
    close(f_one, one.target(x0, eps, tau, "v"), atol=1e-14)

    s = (tau.sin() / (tau.sin() + tau.cos()))[:, None]
    x_rf, u = (1 - s) * x0 + s * eps, eps - x0
    width = (s**2 + (1 - s) ** 2).sqrt()
    close(f_one, ((1 - 2 * s) * x_rf + (1 - 2 * s + 2 * s**2) * u) / width, atol=1e-13)

    edm, sigma = VarianceExploding(sigma_data=0.5), 0.5 * tau.tan()
    f_edm = edm.target(x0, eps, sigma, "edm")
    close(half.target(x0, eps, tau, "flow") / 0.5, -f_edm, atol=1e-13)
    x_ve, x_trig = edm.add_noise(x0, eps, sigma), half.add_noise(x0, eps, tau)
    c_in = edm.input_scale(sigma)[:, None]
    close(c_in * x_ve, half.input_scale(tau)[:, None] * x_trig, atol=1e-13)


@names
def test_networks_see_inputs_of_unit_scale_where_the_process_says_so(name):
    t = np.array(TIMES[name])
    expected = {"ve": 1 / np.sqrt(t**2 + 0.25), "trig": np.full_like(t, 2.0)}
    close(PROCESSES[name].input_scale(at(t)), expected.get(name, np.ones_like(t)))


@names
def test_losses_in_different_spaces_differ_by_known_factors(name):
    """For one x_t and an error d in x̂0: d_eps = −(α/σ) d, d_v = −(α²+σ²)/σ d, EDM's weight."""
    process, t = PROCESSES[name], at(TIMES[name])
    x0, eps, x_t = triple(name, TIMES[name])
    error = normal(5, len(t), 3)
    alpha, sigma = (torch.tensor(c)[:, None] for c in scales(name, TIMES[name]))
    wrong = Estimate(x0 + error, (x_t - alpha * (x0 + error)) / sigma)
    ratio, data = sigma / alpha, process.sigma_data
    factors = {
        "eps": (alpha / sigma) ** 2,
        "v": ((alpha**2 + sigma**2) / sigma) ** 2,
        "edm": 1 / ratio**2 + 1 / data**2,
    }
    if name == "rf":
        factors["flow"] = 1 / sigma**2
    for prediction, factor in factors.items():
        right = process.target(x0, eps, t, prediction)
        d = process.target(wrong.x0, wrong.eps, t, prediction) - right
        close(d**2, factor * error**2, rtol=1e-7, atol=1e-13)


@names
def test_rates_are_the_derivatives_of_the_scales(name):
    process, t = PROCESSES[name], np.array(TIMES[name])
    h = 1e-4 * np.minimum(t, 1)
    ahead, behind = (scales(name, t + d) for d in (h, -h))
    for ours, high, low in zip(process.rates(at(t)), ahead, behind):
        close(ours, (high - low) / (2 * h), rtol=2e-7, atol=1e-8)


@names
def test_flow_is_the_velocity_of_a_sample(name):
    process, t = PROCESSES[name], np.array(TIMES[name])
    h = 1e-4 * np.minimum(t, 1)
    x0, eps, _ = triple(name, TIMES[name])
    ahead, behind = (process.add_noise(x0, eps, at(t + d)) for d in (h, -h))
    difference = (ahead - behind) / torch.tensor(2 * h)[:, None]
    close(process.target(x0, eps, at(t), "flow"), difference, rtol=1e-6, atol=1e-8)


@names
def test_time_is_found_from_the_snr(name):
    process, t = PROCESSES[name], np.array(TIMES[name])
    alpha, sigma = scales(name, t)
    close(process.log_snr(at(t)), np.log(alpha / sigma), rtol=1e-12, atol=1e-13)
    close(process.time_at(at(np.log(alpha / sigma))), t, rtol=1e-10)


@names
def test_snr_is_infinite_at_clean_data_and_may_vanish_at_the_end(name):
    process = PROCESSES[name]
    assert float(process.log_snr(at([process.t_clean]))) == inf
    assert float(process.time_at(at([inf]))) == process.t_clean
    ends = float(process.log_snr(at([process.t_max])))
    assert (ends < -30) == (name in ("vp-zero", "rf", "trig"))
    if name in ("vp-zero", "rf", "trig"):
        assert float(process.time_at(at([-inf]))) == pytest.approx(process.t_max, abs=1e-12)


@names
@predictions
def test_ill_posed_exactly_where_the_determinant_vanishes(name, prediction):
    process = PROCESSES[name]
    for t in (process.t_clean, *TIMES[name], process.t_max):
        ill = (name, t, prediction) in ILL_POSED
        assert process.is_well_posed(prediction, t) != ill
        if ill:
            with pytest.raises(ValueError, match=f"'{prediction}' says nothing about x0 at t = "):
                process.require_well_posed(prediction, t)
        else:
            process.require_well_posed(prediction, t)


@names
@predictions
def test_stray_samples_stay_finite(name, prediction):
    process = PROCESSES[name]
    t = at([process.t_clean, process.t_max])
    estimate = process.estimate(normal(1, 2, 3), normal(2, 2, 3), t, prediction)
    assert torch.isfinite(estimate.x0).all() and torch.isfinite(estimate.eps).all()


@names
@predictions
def test_only_x0_networks_lack_the_identity_at_clean_data(name, prediction):
    process = PROCESSES[name]
    x, t = normal(1, 4, 3), at(process.t_clean, 4)
    estimate = process.estimate(x, normal(2, 4, 3), t, prediction)
    identical = torch.allclose(estimate.x0, x, rtol=0, atol=1e-12)
    assert identical == process.has_identity_at_clean(prediction) == (prediction != "x0")


@names
def test_unknown_predictions_are_refused(name):
    with pytest.raises(ValueError, match="unknown prediction 'score'"):
        PROCESSES[name].target(normal(1, 1, 2), normal(2, 1, 2), at([0.5]), "score")


@pytest.mark.parametrize("table, name", [(SD_TABLE, "vp"), (ZERO_TABLE, "vp-zero")])
def test_a_table_is_kept_exactly(table, name):
    process = PROCESSES[name]
    alpha, sigma = process.scales(torch.arange(1000))
    close(alpha, np.sqrt(table), rtol=1e-12, atol=1e-15)
    close(sigma, np.sqrt(1 - table), rtol=1e-12)
    assert [float(c) for c in process.scales(at([-1.0]))] == [1.0, 0.0]
    assert process.t_max == 999


def test_zero_terminal_snr_is_exactly_noise():
    noise = normal(1, 2, 3, dtype=torch.float32)
    assert torch.equal(PROCESSES["vp-zero"].add_noise(noise + 5, noise, at(999.0, 2)), noise)


@pytest.mark.parametrize(
    "table, message",
    [
        ([0.9, 0.9, 0.1], "strictly falling"),
        ([0.1, 0.5], "strictly falling"),
        ([0.5], "two or more"),
        ([[0.9, 0.5]], "strictly falling"),
        ([0.9, float("nan")], "strictly falling"),
        ([1.0, 0.5], r"lie in \[0, 1\)"),
        ([0.5, -0.1], r"lie in \[0, 1\)"),
    ],
)
def test_impossible_tables_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        VariancePreserving(torch.tensor(table))


def test_a_straight_step_keeps_the_line_of_its_process():
    """`through` keeps x_t, and ε̂ − x̂0 (rectified flow's frame) or, under VE, ε̂ (EDM's)."""
    for name, process in PROCESSES.items():
        t = at(TIMES[name])
        _, _, x_t = triple(name, TIMES[name])
        direction = Estimate(normal(5, len(t), 3), normal(6, len(t), 3))
        pair = process.along_frame(x_t, t, direction)
        close(process.add_noise(pair.x0, pair.eps, t), x_t, rtol=1e-11, atol=1e-11)
        if name == "ve":
            close(pair.eps, direction.eps, atol=1e-12)
        else:
            close(pair.eps - pair.x0, direction.eps - direction.x0, atol=1e-11)


def test_coefficients_are_float64_and_rounded_once():
    t = at([1 - 1e-9])  # 1 in float32
    (alpha,) = per_sample(torch.zeros(1, 2), RectifiedFlow().scales(t)[0])
    assert alpha.dtype == torch.float32
    assert float(alpha) == pytest.approx(1e-9, rel=1e-6)
    assert exact(torch.ones(2, dtype=torch.float16)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_states_are_at_least_float32(dtype):
    x = normal(1, 3, 2, 4, 4).to(dtype)
    coefficient, other = per_sample(x, at([0.1, 0.2, 0.3]), at([1.0, 2.0, 3.0]))
    expected = dtype if dtype == torch.float64 else torch.float32
    assert coefficient.dtype == other.dtype == expected
    assert coefficient.shape == (3, 1, 1, 1)
    estimate = RectifiedFlow().estimate(x, x, at([0.1, 0.5, 0.9]), "flow")
    assert estimate.x0.dtype == estimate.eps.dtype == expected


@pytest.mark.parametrize("name", PROCESSES)
def test_renoising_continues_the_forward_process(name):
    """Marginals: α and σ of x_t are the same by one jump from x0 and by a stop at s."""
    process = PROCESSES[name]
    for s, t in itertools.pairwise(TIMES[name]):
        (a_s, s_s), (a_t, s_t) = scales(name, s), scales(name, t)
        x_s = torch.tensor([[float(a_s), float(s_s), 0.0]], dtype=torch.float64)
        eps = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
        # Signal, old noise and new noise are kept apart in three components.
        signal, old, new = process.renoise(x_s, eps, at([s]), at([t]))[0].tolist()
        assert signal == pytest.approx(float(a_t), rel=1e-9)
        assert np.hypot(old, new) == pytest.approx(float(s_t), rel=1e-9)
        assert new > 0


def test_renoising_clean_data_is_adding_noise():
    for process in PROCESSES.values():
        x0, eps = normal(1, 3, 2), normal(2, 3, 2)
        t = torch.full((3,), 0.4 * process.t_max, dtype=torch.float64)
        clean = torch.full_like(t, process.t_clean)
        close(process.renoise(x0, eps, clean, t), process.add_noise(x0, eps, t), rtol=1e-12)
