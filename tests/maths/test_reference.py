"""The same numbers as diffusers 0.42's schedulers, which share no code with the package.

Each test lets a scheduler and the package ask one random network and compares the states. Where
a scheduler's own convention differs (which times it visits, in what units it keeps its state),
the test says so.
"""

import numpy as np
import pytest
import torch
from cases import PROCESSES, SD_TABLE, at, close, normal
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from stepdistill.denoiser import Denoiser
from stepdistill.process import RectifiedFlow, VarianceExploding, VariancePreserving
from stepdistill.solver import ddim_step, sample, solve_ode
from stepdistill.solver import states as walk_of
from stepdistill.times import Grid

# Schedulers read their tables through numpy in a way NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
MIX = normal(9, 5, 5, dtype=torch.float32) / 5**0.5

x_start = normal(1, 3, 5, dtype=torch.float32)


def net(x, t=None, cond=None):
    """A network that knows no time: schedulers disagree on what they tell it."""
    return torch.tanh(x @ MIX.to(x.dtype))


def table(scheduler):
    return VariancePreserving(scheduler.alphas_cumprod)


def student(process, prediction):
    return Denoiser(net, process, prediction)


def walk(scheduler, x, ask=net, scale=False):
    """All states of a scheduler from x on."""
    states = [x]
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if scale else x
        x = scheduler.step(ask(seen), t, x, return_dict=False)[0]
        states.append(x)
    return states


def test_tables_are_those_of_diffusers():
    scheduler = DDIMScheduler(**SD)
    close(scheduler.alphas_cumprod.double(), SD_TABLE, rtol=2e-5)


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("spacing, offset", [("trailing", 0), ("leading", 0), ("leading", 1)])
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("n", [1, 4, 20])
def test_ddim(prediction, spacing, offset, to_one, n):
    """Clean data is our time −1; without `set_alpha_to_one` DDIM ends at time 0."""
    settings = {"timestep_spacing": spacing, "steps_offset": offset, "clip_sample": False}
    scheduler = DDIMScheduler(
        **SD, **settings, set_alpha_to_one=to_one, prediction_type=NAMES[prediction]
    )
    scheduler.set_timesteps(n)
    end = -1.0 if to_one else 0.0
    times = at([*scheduler.timesteps.tolist(), end])
    ours = list(solve_ode(student(table(scheduler), prediction), x_start, times))
    theirs = walk(scheduler, x_start)
    for a, b in zip(ours, theirs):
        close(a, b, atol=2e-5)


@pytest.mark.parametrize("prediction", NAMES)
def test_single_ddim_steps_of_linspace_grids(prediction):
    """These jump to t − T//n, which is not the next time of the grid."""
    scheduler = DDIMScheduler(
        **SD, timestep_spacing="linspace", clip_sample=False, prediction_type=NAMES[prediction]
    )
    scheduler.set_timesteps(7)
    denoiser = student(table(scheduler), prediction)
    for t in scheduler.timesteps:
        theirs = scheduler.step(net(x_start), t, x_start).prev_sample
        end = max(float(t) - 1000 // 7, -1.0)
        ours = ddim_step(denoiser.process, denoiser(x_start, at(float(t), 3)), at(end, 3))
        close(ours, theirs, atol=2e-5)


def test_ddim_at_zero_terminal_snr():
    scheduler = DDIMScheduler(
        **SD,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(8)
    process = table(scheduler)
    assert float(process.scales(at([999]))[0]) == 0
    *_, ours = solve_ode(student(process, "v"), x_start, Grid("trailing").times(process, 8))
    close(ours, walk(scheduler, x_start)[-1], atol=2e-5)


@pytest.mark.parametrize("length", [1000, 500])
def test_trailing_grids_round_as_diffusers_does(length):
    """For every number of steps, ties and representation errors included (16, 48, 80, 96 …)."""
    process = VariancePreserving(torch.linspace(0.99, 0.01, length, dtype=torch.float64))
    for n in range(1, length + 1):
        expected = np.round(np.arange(length, 0, -length / n)).astype(int)[:n] - 1
        assert Grid("trailing").times(process, n).tolist() == [*expected, -1]
    scheduler = DDIMScheduler(num_train_timesteps=length, timestep_spacing="trailing")
    for n in (1, 2, 3, 4, 7, 16, 48, 80, 96, 100):
        scheduler.set_timesteps(n)
        times = Grid("trailing").times(process, n)[:-1]
        assert times.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_flow_matching(shift, n):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
    times = Grid("shifted", shift=shift).times(RectifiedFlow(), n)
    close(times, scheduler.sigmas.double(), atol=1e-6)
    ours = list(solve_ode(student(RectifiedFlow(), "flow"), x_start, times))
    for a, b in zip(ours, walk(scheduler, x_start)):
        close(a, b, atol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("n", [2, 5, 12])
def test_dpm_solver(prediction, n):
    """DPM-Solver++(2M), midpoint, first order at the end, at timesteps of the table."""
    scheduler = DPMSolverMultistepScheduler(
        **SD,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        timestep_spacing="trailing",
        prediction_type=NAMES[prediction],
    )
    scheduler.set_timesteps(n)
    process = table(scheduler)
    times = at([*scheduler.timesteps.tolist(), -1])
    ours = list(solve_ode(student(process, prediction), x_start, times, solver="dpmpp"))
    for a, b in zip(ours, walk(scheduler, x_start)):
        close(a, b, atol=5e-5)


def test_karras_grid_of_edm():
    """EDMEulerScheduler's noise levels and states, which are those of VE."""
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(10)
    process = VarianceExploding()
    times = Grid("karras").times(process, 10)
    close(times, scheduler.sigmas.double(), rtol=1e-5, atol=1e-9)
    states = walk(scheduler, 80 * x_start, scale=True)
    ours = list(solve_ode(student(process, "edm"), 80 * x_start, times))
    for a, b in zip(ours, states):
        close(a, b, rtol=1e-4, atol=1e-4)


def test_karras_grid_of_stable_diffusion():
    """EulerDiscreteScheduler keeps x/α at noise levels σ/α."""
    scheduler = EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(9)
    process = PROCESSES["vp"]
    times = Grid("karras").times(process, 9)
    close(torch.exp(-process.log_snr(times)), scheduler.sigmas.double(), rtol=2e-5, atol=1e-9)
    alphas = process.scales(times)[0].float()
    theirs = walk(scheduler, x_start / alphas[0], scale=True)
    ours = solve_ode(student(process, "eps"), x_start, times)
    for a, b, alpha in zip(ours, theirs, alphas):
        close(a, alpha * b, atol=5e-4)


def test_heun_of_edm():
    """HeunDiscreteScheduler on Karras noise levels: Heun's method in EDM's frame, as under VE."""
    scheduler = HeunDiscreteScheduler(**SD, use_karras_sigmas=True)
    scheduler.set_timesteps(6)
    # It lists every level between the ends twice, and takes a call for each evaluation.
    levels = [*scheduler.sigmas[:1].tolist(), *scheduler.sigmas[1::2].tolist()]
    x = levels[0] * x_start
    states = walk(scheduler, x, scale=True)
    process = VarianceExploding(sigma_data=1.0)  # networks see x/√(σ²+1), as they do there
    ours = list(solve_ode(student(process, "eps"), x, at(levels), solver="heun"))
    assert len(ours) == 7 and levels[-1] == 0
    for a, b in zip(ours, [*states[::2], states[-1]]):
        close(a, b, rtol=1e-5, atol=2e-5)


def generator():
    return torch.Generator().manual_seed(3)


def noisy_walk(scheduler, x):
    """The answer of a stochastic scheduler, with a generator like `generator()`."""
    same = generator()
    for t in scheduler.timesteps:
        x = scheduler.step(
            net(scheduler.scale_model_input(x, t)), t, x, generator=same, return_dict=False
        )[0]
    return x


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_lcm(prediction, n):
    """LCM's sampler, but for its c_skip of 10⁻⁶ at its lowest times."""
    scheduler = LCMScheduler(
        **SD, original_inference_steps=50, prediction_type=NAMES[prediction], timestep_scaling=1e3
    )
    scheduler.set_timesteps(n)
    times = at(scheduler.timesteps.tolist())
    if n == 4:
        assert times.tolist() == [999, 759, 499, 259]
    ours = sample(student(table(scheduler), prediction), x_start, times, generator=generator())
    close(ours, noisy_walk(scheduler, x_start), atol=1e-4)


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_lcms_own_boundary_condition_is_almost_none(prediction, n):
    """With its timestep_scaling of 10, c_skip is 7e-6 or less where a network is asked."""
    scheduler = LCMScheduler(**SD, prediction_type=NAMES[prediction])
    scheduler.set_timesteps(n)
    times = at(scheduler.timesteps.tolist())
    ours = sample(student(table(scheduler), prediction), x_start, times, generator=generator())
    close(ours, noisy_walk(scheduler, x_start), atol=2e-4)


def tcd(prediction, timesteps, eta):
    """TCDScheduler's states from `x_start`, and its estimate of clean data in the last step."""
    scheduler = TCDScheduler(**SD, prediction_type=NAMES[prediction])
    scheduler.set_timesteps(timesteps=timesteps)
    x, states, same = x_start, [x_start], generator()
    for t in scheduler.timesteps:
        out = scheduler.step(net(x), t, x, eta=eta, generator=same)
        x = out.prev_sample
        states.append(x)
    return scheduler, states, out.pred_noised_sample


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("phases", [2, 4, 8])
def test_tcd_without_noise_is_the_chain_of_phases(prediction, phases):
    """PCM's chain is TCDScheduler(eta=0) at the phases' starts; it ends at time 0, not before."""
    edges = Grid("trailing", of=50, rounding="up").times(PROCESSES["vp"], phases)
    times = at([*edges[:-1].tolist(), 0.0])
    scheduler, states, _ = tcd(prediction, [int(t) for t in times[:-1]], 0.0)
    ours = list(solve_ode(student(table(scheduler), prediction), x_start, times))
    for a, b in zip(ours, states):
        close(a, b, atol=2e-5)


@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
def test_tcd_with_noise(prediction, eta):
    """From t to s = ⌊(1 − η) t′⌋ and back up to t′: our γ that leads to that whole s."""
    scheduler, states, _ = tcd(prediction, [999, 499], eta)
    process, s = table(scheduler), int((1 - eta) * 499)
    gamma = (499 - s) / (499 - process.t_clean)
    denoiser, times = student(process, prediction), at([999.0, 499.0])
    *_, ours = walk_of(denoiser, x_start, times, None, generator(), gamma)
    close(ours, states[1], atol=2e-5)
    last = ddim_step(process, denoiser(ours, at(499.0, 3)), at(0.0, 3))
    close(last, states[2], atol=2e-5)


def test_tcds_times_are_lcms():
    scheduler = TCDScheduler(**SD)
    for n in (1, 2, 4, 5, 8):
        scheduler.set_timesteps(n)
        ours = Grid("trailing", of=50).times(PROCESSES["vp"], n)[:-1]
        assert ours.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("indices", [[0], [0, 22], [0, 22, 30]])
def test_consistency_models(indices):
    """OpenAI's sampler with EDM's raw output. At σ_min → 0 its boundary condition is EDM's."""
    low = 2.0**-17  # exact in float32: the scheduler takes the root of σ² − σ_min²
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=low, sigma_max=80.0, clip_denoised=False
    )
    scheduler.set_timesteps(timesteps=indices[::-1])
    process = VarianceExploding(t_min=low)
    levels = Grid("karras").times(process, 40)[indices]
    close(levels, scheduler.sigmas[:-1].double(), rtol=1e-5)
    ours = sample(student(process, "edm"), x_start, levels, generator=generator())
    start = x_start * scheduler.sigmas[0]
    close(ours, noisy_walk(scheduler, start), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_stochastic_flow_matching(shift, n):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
    times = Grid("shifted", shift=shift).times(RectifiedFlow(), n)[:-1]
    ours = sample(student(RectifiedFlow(), "flow"), x_start, times, generator=generator())
    x, same = x_start, generator()
    for t in scheduler.timesteps:
        x = scheduler.step(net(x), t, x, generator=same, return_dict=False)[0]
    close(ours, x, atol=1e-5)
