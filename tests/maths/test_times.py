"""Grids and laws of times against the formulas of their papers and scipy's distributions."""

from math import log

import numpy as np
import pytest
import torch
from cases import PROCESSES, at, close
from scipy import stats

from stepdistill.process import RectifiedFlow, VarianceExploding
from stepdistill.times import Grid, TimeLaw, shift_fraction

names = pytest.mark.parametrize("name", PROCESSES)
GRIDS = ("uniform", "karras", "shifted")
N = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@names
@pytest.mark.parametrize("grid", GRIDS + ("trailing",))
@pytest.mark.parametrize("n", [1, 2, 3, 18, 80])
def test_grids_fall_from_noise_to_clean_data(name, grid, n):
    process = PROCESSES[name]
    if grid == "trailing" and name in ("rf", "trig") and (name, n) != ("rf", 1):
        with pytest.raises(ValueError, match="use 'uniform'"):
            Grid(grid).times(process, n)
        return
    times = Grid(grid, shift=3.0).times(process, n)
    assert times.dtype == torch.float64 and len(times) == n + 1
    assert float(times[0]) == process.t_max and float(times[-1]) == process.t_clean
    assert bool((times.diff() < 0).all())
    assert float(times[-2]) >= process.t_min * (1 - 1e-12)


@names
def test_a_grid_may_begin_below_pure_noise(name):
    process = PROCESSES[name]
    whole, part = Grid().times(process, 4), Grid(start=0.5).times(process, 2)
    assert torch.allclose(part, whole[2:], rtol=1e-12)
    with pytest.raises(ValueError, match="grid 'karras' begins at t_max"):
        Grid("karras", start=0.5)


def test_sids_first_noise_level_under_rectified_flow():
    (t, _) = Grid(start=0.7142857).times(PROCESSES["rf"], 1)
    assert float(t / (1 - t)) == pytest.approx(2.5, abs=1e-5)


@pytest.mark.parametrize("grid", GRIDS + ("trailing",))
def test_grids_without_steps_are_refused(grid):
    with pytest.raises(ValueError, match="at least one step, got 0"):
        Grid(grid).times(PROCESSES["vp"], 0)


def test_trailing_grids_stop_where_the_table_does():
    times = Grid("trailing").times(PROCESSES["vp"], 1000)
    assert times.tolist() == list(range(999, -2, -1))
    with pytest.raises(ValueError, match="spans 1000, which 1001"):
        Grid("trailing").times(PROCESSES["vp"], 1001)


@pytest.mark.parametrize("n, rho", [(18, 7.0), (40, 7.0), (10, 3.0)])
def test_karras_grid_under_ve_is_edms(n, rho):
    i = np.arange(n)
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    expected = (high + i / (n - 1) * (low - high)) ** rho
    times = Grid("karras", rho=rho).times(VarianceExploding(), n)
    close(times, np.append(expected, 0.0), rtol=1e-10)


@names
def test_karras_grid_has_the_same_noise_levels_in_every_process(name):
    """Equal steps of (σ/α)^(1/7) between the process's ends, 80 standing for infinity."""
    process = PROCESSES[name]
    times = Grid("karras").times(process, 12)
    ratio = torch.exp(-process.log_snr(times[:-1])).clamp(max=80) ** (1 / 7)
    close(ratio, np.linspace(float(ratio[0]), float(ratio[-1]), 12), rtol=1e-9)
    assert float(times[-2]) == pytest.approx(process.t_min, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "shift, expected",
    [(5, [0.9375, 5 / 6, 0.625]), (8, [0.96, 8 / 9, 8 / 11]), (1, [0.75, 0.5, 0.25])],
)
def test_shifted_grids(shift, expected):
    times = Grid("shifted", shift=shift).times(RectifiedFlow(), 4)
    close(times, [1, *expected, 0], rtol=1e-14)


@pytest.mark.parametrize("shift, mean", [(3, 0.676), (5, 0.747), (8, 0.803)])
def test_shift_moves_the_median_and_the_mean(shift, mean):
    u = (torch.arange(100_000).double() + 0.5) / 100_000
    shifted = shift_fraction(u, shift)
    closed = shift / (shift - 1) - shift * log(shift) / (shift - 1) ** 2
    assert float(shifted.mean()) == pytest.approx(closed, abs=1e-8)
    assert closed == pytest.approx(mean, abs=5e-4)
    assert float(shift_fraction(at(0.5), shift)) == pytest.approx(shift / (1 + shift), abs=1e-15)


def follows(sample, cdf):
    return stats.kstest(sample.numpy(), cdf).pvalue > 1e-3


@names
def test_uniform_law(name):
    process = PROCESSES[name]
    t = TimeLaw("uniform", low=0.02, high=0.98).draw(process, N, generator())
    span = process.t_max - process.t_min
    assert follows((t - process.t_min) / span, stats.uniform(0.02, 0.96).cdf)


@pytest.mark.parametrize("shift", [0.5, 3, 8])
def test_shifted_law(shift):
    process = RectifiedFlow()
    t = TimeLaw("shifted", shift=shift).draw(process, N, generator())
    u = (t - process.t_min) / (process.t_max - process.t_min)
    assert follows(u, lambda v: v / (shift + (1 - shift) * v))  # the inverse of the shift
    assert float(u.median()) == pytest.approx(shift / (1 + shift), abs=0.02)


def test_logit_normal_law():
    process = RectifiedFlow()
    t = TimeLaw("logit_normal", mean=-0.4, std=1.6).draw(process, N, generator())
    u = (t - process.t_min) / (process.t_max - process.t_min)
    assert follows(torch.logit(u), stats.norm(-0.4, 1.6).cdf)


@names
def test_log_normal_law(name):
    """ln(σ/α) is normal in every process, and clamped to the times networks know."""
    process = PROCESSES[name]
    law = TimeLaw("log_normal", mean=-0.5, std=0.5)
    assert follows(-process.log_snr(law.draw(process, N, generator())), stats.norm(-0.5, 0.5).cdf)
    wide = TimeLaw("log_normal", mean=0.0, std=9.0).draw(process, N, generator())
    close([wide.min(), wide.max()], [process.t_min, process.t_max], rtol=1e-9)


def test_edm_index_values():
    """Entries 20, 500, 980 and the last of DMD2's thousand noise levels."""
    levels = [
        float(TimeLaw("karras_index", low=i, high=i).draw(VarianceExploding(), 1, generator()))
        for i in (0.02, 0.5, 0.98, 1.0)
    ]
    close(levels, [0.00323, 2.53, 72.05, 80.0], rtol=2e-3)


def test_a_fifth_of_the_way_down_edms_levels():
    """(σ_min^⅐ (1 − u) + σ_max^⅐ u)⁷ at u = 0, 0.4, 0.8: SiD's largest level is the last."""
    levels = Grid("karras").times(VarianceExploding(), 6)
    close(levels[[5, 3, 1]], [0.002, 0.965, 24.408], rtol=5e-4)


@pytest.mark.parametrize(
    "low, high, first, last", [(0.02, 0.98, 20, 980), (0.0, 1.0, 0, 999), (0.995, 1.0, 995, 999)]
)
def test_karras_index_law_is_uniform_over_its_entries(low, high, first, last):
    levels = Grid("karras").times(VarianceExploding(), 1000)[:-1].flip(0)
    law = TimeLaw("karras_index", low=low, high=high)
    t = law.draw(VarianceExploding(), 200_000, generator())
    index = torch.searchsorted(levels, t)
    assert torch.equal(levels[index], t)
    counts = torch.bincount(index, minlength=1000)
    assert counts.nonzero().flatten()[[0, -1]].tolist() == [first, last]
    assert stats.chisquare(counts[first : last + 1]).pvalue > 1e-3


@names
@pytest.mark.parametrize(
    "law", ["uniform", "shifted", "logit_normal", "log_normal", "karras_index"]
)
def test_laws_stay_where_networks_are_asked_and_use_their_stream_alone(name, law):
    process = PROCESSES[name]
    t = TimeLaw(law, shift=3.0).draw(process, 500, generator(1))
    assert t.dtype == torch.float64 and t.shape == (500,)
    assert float(t.min()) >= process.t_min - 1e-9 and float(t.max()) <= process.t_max
    torch.manual_seed(5)
    again = TimeLaw(law, shift=3.0).draw(process, 500, generator(1))
    assert torch.equal(t, again)
    assert not torch.equal(t, TimeLaw(law, shift=3.0).draw(process, 500, generator(2)))


def test_a_karras_grid_keeps_a_finite_start_above_eighty():
    process = VarianceExploding(t_max=700.0)
    times = Grid("karras").times(process, 5)
    assert float(times[0]) == 700 and float(times[1]) > 80
