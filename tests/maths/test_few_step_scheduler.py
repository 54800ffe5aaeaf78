"""The scheduler that travels with students, beside its equations and diffusers' schedulers."""

import inspect
from math import sqrt

import numpy as np
import pytest
import torch
from cases import scales
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Tensor, nn

from stepdistill.denoiser import Denoiser
from stepdistill.resources import pipeline_module
from stepdistill.solver import sample
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.schedulers import process_of

MODULE = pipeline_module("few_step_scheduler")
FewStepScheduler = MODULE.FewStepScheduler
FLOW = {"beta_schedule": None, "prediction_type": "flow_prediction"}
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = TABLE | {"rescale_betas_zero_snr": True}
KINDS = {
    "flow": FLOW,
    "flow, x0": FLOW | {"prediction_type": "sample"},
    "eps": TABLE | {"prediction_type": "epsilon"},
    "v": ZERO_SNR | {"prediction_type": "v_prediction"},
    "x0": ZERO_SNR | {"prediction_type": "sample"},
}
GAMMAS = [0.0, 0.3, 1.0]


def few(times: dict, gamma: float = 0.0, **config):
    return FewStepScheduler(times=times, gamma=gamma, **config)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_a_step_of_a_perfect_network(kind: str, gamma: float):
    """A network that knows x0 and ε: the state is theirs at s, and noise back to t′."""
    config = KINDS[kind]
    flow, table = config["beta_schedule"] is None, "vp-zero" if kind in ("v", "x0") else "vp"
    clean, times, name = (0.0, [1.0, 0.5], "rf") if flow else (-1.0, [999, 499.5], table)
    scheduler = few({"2": times}, gamma, **config)
    scheduler.set_timesteps(2)
    x0, eps, noise = drawn(3, 1, 4, 4, seed=1), drawn(3, 1, 4, 4, seed=2), drawn(3, 1, 4, 4)
    (alpha, sigma), (alpha_next, sigma_next) = (map(float, scales(name, t)) for t in times)
    output = {
        "flow_prediction": eps - x0,
        "epsilon": eps,
        "v_prediction": alpha * eps - sigma * x0,
        "sample": x0,
    }[config["prediction_type"]]
    x = alpha * x0 + sigma * eps
    found = scheduler.step(output, scheduler.timesteps[0], x, generator=seeded())
    s = clean + (1 - gamma) * (times[1] - clean)
    alpha_s, sigma_s = map(float, scales(name, s))
    keep = alpha_next / alpha_s
    spread = sqrt(max(sigma_next**2 - (keep * sigma_s) ** 2, 0))
    expected = keep * (alpha_s * x0 + sigma_s * eps) + spread * noise * (gamma > 0)
    exact = 1e-12 if flow else 1e-5  # diffusers' tables are float32
    assert float((found.prev_sample - expected).abs().max()) < exact
    assert float((found.pred_original_sample - x0).abs().max()) < exact
    final = scheduler.step(output, scheduler.timesteps[1], x, return_dict=False)
    assert len(final) == 2 and torch.equal(*final)  # clean


class Net(nn.Module):
    """Any function of x (b, …) and t (b,) or ()."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x).expand(len(x)).reshape(-1, *[1] * (x.ndim - 1)) / 1000
        return torch.tanh(1.3 * x.roll(1, -1) + t) - 0.4 * x + 0.2 * t


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("skip", [None, 0.7])
def test_it_is_the_trainers_sampler(kind: str, gamma: float, skip: float | None, monkeypatch):
    config = KINDS[kind]
    flow = config["beta_schedule"] is None
    times = [0.9, 0.52, 0.2] if flow else [981.5, 600, 13.25]
    scheduler = few({"3": times}, gamma, skip_sigma_data=skip, **config)
    process, prediction = process_of(scheduler)
    process.sigma_data = skip or 1.0
    unit = 1000.0 if flow else 1.0
    student = Denoiser(
        Net(), process, prediction, lambda net, x, t, *_: net(x, t), lambda t: t * unit,
        skip=skip is not None,
    )  # fmt: skip
    noise = drawn(2, 1, 4, 4)
    ours = sample(student, noise, torch.tensor(times).double(), {}, seeded(1), gamma)
    drawing = MODULE.randn_tensor  # the trainer draws single precision
    monkeypatch.setattr(MODULE, "randn_tensor", lambda *a, dtype, **kw: drawing(*a, **kw).to(dtype))
    generator = seeded(1)
    for _ in range(2):  # one object serves again
        generator.manual_seed(1)
        scheduler.set_timesteps(3)
        assert scheduler.init_noise_sigma == (times[0] if flow else 1)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(Net()(x, t), t, x, generator=generator).prev_sample
        assert float((x - ours).abs().max()) < 1e-6  # timesteps are float32


def walk(scheduler, x: Tensor, whole: bool = False, **settings) -> list[Tensor]:
    """The states after each step, from x, with the generator of seed 1."""
    generator, states = seeded(1), []
    for t in scheduler.timesteps:
        given = int(t) if whole else t
        x = scheduler.step(Net()(x, t), given, x, generator=generator, **settings)[0]
        states.append(x)
    return states


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_without_noise_it_is_ddim(kind: str, n: int):
    config = KINDS[kind] | {"timestep_spacing": "trailing", "clip_sample": False}
    ddim = DDIMScheduler(**config)
    ddim.set_timesteps(n)
    ours = few({str(n): ddim.timesteps.tolist()}, **KINDS[kind])
    ours.set_timesteps(n)
    x = drawn(2, 1, 4, 4)
    assert apart(walk(ours, x), walk(ddim, x, whole=True)) < 1e-6 * 10 ** (kind == "eps")


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_with_all_noise_it_is_lcm(kind: str, n: int):
    # The scaling switches off LCM's own boundary condition.
    lcm = LCMScheduler(**KINDS[kind], original_inference_steps=4, timestep_scaling=1e8)
    lcm.set_timesteps(n)
    ours = few({str(n): lcm.timesteps.tolist()}, 1.0, **KINDS[kind])
    ours.set_timesteps(n)
    x = drawn(2, 1, 4, 4)
    assert apart(walk(ours, x), walk(lcm, x)) < 1e-5


@pytest.mark.parametrize("gamma", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_with_some_noise_it_is_tcd(kind: str, gamma: float):
    """Where TCD's (1 − γ)t′ is whole; its last step ends at timestep 0, ours at clean data."""
    tcd = TCDScheduler(**KINDS[kind], original_inference_steps=4)
    tcd.set_timesteps(4)
    ours = few({"4": tcd.timesteps.tolist()}, gamma, **KINDS[kind])
    ours.set_timesteps(4)
    x = drawn(2, 1, 4, 4)
    theirs = walk(tcd, x, eta=gamma)
    assert apart(walk(ours, x)[:-1], theirs[:-1]) < 1e-5


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.5], [0.9, 0.61, 0.3]])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_of_a_flow_it_is_euler_or_lcm(sigmas: list[float], gamma: float):
    theirs = [FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler][int(gamma)]()
    theirs.set_timesteps(sigmas=sigmas)
    ours = few({str(len(sigmas)): sigmas}, gamma, **FLOW)
    ours.set_timesteps(len(sigmas))
    assert torch.allclose(ours.timesteps, theirs.timesteps)
    x = drawn(2, 1, 4, 4).float()
    torch.manual_seed(1)  # FlowMatchLCM takes its noise from there
    expected = walk(theirs, x)
    torch.manual_seed(1)
    assert apart(walk(ours, x), expected) < 1e-5


@pytest.mark.parametrize("config", [TABLE, ZERO_SNR])
def test_noise_is_added_as_ddpm_does(config: dict):
    x, noise, t = drawn(4, 1, 4, 4), drawn(4, 1, 4, 4, seed=1), torch.tensor([0, 10, 500, 999])
    theirs = DDPMScheduler(**config).add_noise(x, noise, t)
    ours = few({"1": [999]}, **config)
    assert float((ours.add_noise(x, noise, t) - theirs).abs().max()) < 1e-6
    assert torch.equal(ours.alphas_cumprod, DDPMScheduler(**config).alphas_cumprod)
    mixed = few({"1": [1.0]}, **FLOW).add_noise(x, noise, torch.full((4,), 250.0))
    assert float((mixed - (0.75 * x + 0.25 * noise)).abs().max()) < 1e-12


def test_only_trained_steps_and_times():
    scheduler = few({"16": [0.5], "2": [1.0, 0.5], "1": [1.0]}, **FLOW)
    with pytest.raises(ValueError, match="trained for 1, 2, 16 steps, not 3"):
        scheduler.set_timesteps(3)
    for settings in ({"timesteps": [999]}, {"sigmas": [1.0, 0.6]}):
        with pytest.raises(ValueError, match="times of its own"):
            retrieve_timesteps(scheduler, 2, "cpu", **settings)
    with pytest.raises(ValueError, match="unknown"):
        few({}, prediction_type="noise")


def test_what_pipelines_of_flows_pass_unasked_is_let_pass():
    scheduler = few({"4": [1.0, 0.9, 0.5, 0.2]}, **FLOW)
    for even in (np.linspace(1.0, 1 / 4, 4), np.linspace(1.0, 1 / 4, 4).tolist()):
        timesteps, n = retrieve_timesteps(scheduler, 4, "cpu", sigmas=even, mu=0.8)
        assert n == 4 and torch.allclose(timesteps, torch.tensor([1000.0, 900, 500, 200]))


def test_any_number_of_steps_walks_evenly():
    flow, table = FewStepScheduler(**FLOW), FewStepScheduler(**TABLE)
    flow.set_timesteps(4)
    table.set_timesteps(4)
    assert flow.timesteps.tolist() == [1000, 750, 500, 250]
    assert table.timesteps.tolist() == [999, 749, 499, 249]


def test_the_index_is_kept_as_stock_schedulers_keep_it():
    scheduler, x = few({"2": [999, 499]}), drawn(2, 1, 4, 4)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    assert scheduler.step_index is None and scheduler.begin_index is None
    from_the_middle = scheduler.step(x, 499, x).prev_sample
    assert scheduler.step_index == 2
    scheduler.set_timesteps(2)
    scheduler.set_begin_index(1)
    begun = scheduler.step(x, 999, x).prev_sample  # the index counts, not the timestep
    assert torch.equal(begun, from_the_middle)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="noise between steps"):
        scheduler.step(x, 999, x, eta=0.5)
    with pytest.raises(ValueError, match="not in list"):
        scheduler.step(x, 7, x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype):
    x, output = drawn(2, 1, 4, 4).to(dtype), drawn(2, 1, 4, 4, seed=1).to(dtype)
    scheduler = few({"2": [999, 499]}, 0.4)
    scheduler.set_timesteps(2)
    half = scheduler.step(output, 999, x, generator=seeded()).prev_sample
    scheduler.set_timesteps(2)
    whole = scheduler.step(output.float(), 999, x.float(), generator=seeded()).prev_sample
    assert half.dtype == dtype and torch.equal(half, whole.to(dtype))


def test_a_learned_variance_is_dropped():
    x, output = drawn(2, 3, 4, 4), drawn(2, 6, 4, 4)
    found = []
    for given in (output, output[:, :3]):
        scheduler = few({"1": [999]})
        scheduler.set_timesteps(1)
        found.append(scheduler.step(given, 999, x).prev_sample)
    assert torch.equal(*found)


def test_ddims_pipeline_takes_it_where_it_is_assigned():
    """Its constructor would make a DDIMScheduler of it."""
    net = load_pipeline("digits-vp").unet
    pipe = DDIMPipeline(net, DDIMScheduler())
    pipe.scheduler = few({"2": [999, 499]}, 1.0, **TABLE)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, seeded(), num_inference_steps=2, output_type="pt").images
    generator = seeded()
    x = torch.randn(2, 1, 8, 8, generator=generator)
    scheduler = few({"2": [999, 499]}, 1.0, **TABLE)
    scheduler.set_timesteps(2)
    with torch.no_grad():
        for t in (999, 499):
            x = scheduler.step(net(x, t).sample, t, x, generator=generator).prev_sample
    assert float((images - (x / 2 + 0.5).clamp(0, 1)).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="leave eta at 0"):
        pipe(2, eta=1.0, num_inference_steps=2)


@pytest.mark.parametrize("config", [TABLE, FLOW], ids=["table", "flow"])
def test_stable_diffusions_pipeline_takes_it(config: dict):
    """As it is: it passes eta and a generator, and multiplies the noise by init_noise_sigma."""
    torch.manual_seed(0)
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "sample_size": 8}
    net = UNet2DConditionModel(
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=8,
        attention_head_dim=4, layers_per_block=1, **small,
    ).eval().requires_grad_(False)  # fmt: skip
    times = [0.8, 0.3] if config == FLOW else [900, 420]
    scheduler = few({"2": times}, 1.0, **config)
    pipe = StableDiffusionPipeline(
        AutoencoderKL(latent_channels=4, **small), None, None, net, scheduler, None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    latents, prompt = drawn(1, 4, 8, 8).float(), drawn(1, 3, 8, seed=1).float()
    found = pipe(
        prompt_embeds=prompt, latents=latents, num_inference_steps=2, guidance_scale=1.0,
        generator=seeded(2), output_type="latent",
    ).images  # fmt: skip
    generator = seeded(2)
    scheduler.set_timesteps(2)
    x = latents * (0.8 if config == FLOW else 1)
    for t in scheduler.timesteps:
        output = net(x, t, prompt).sample
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    assert float((found - x).abs().max()) < 1e-5


def test_it_is_saved_with_its_own_source(tmp_path):
    scheduler = few({"2": [1.0, 0.25]}, 0.3, skip_sigma_data=0.5, **FLOW)
    scheduler.save_pretrained(tmp_path)
    saved = (tmp_path / "few_step_scheduler.py").read_text()
    assert saved == inspect.getsource(MODULE)
    again = FewStepScheduler.from_pretrained(tmp_path)
    kept = {k: v for k, v in again.config.items() if not k.startswith("_")}
    assert kept == {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
