# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Processes and predictions
#
# A noise process is two functions of time, $x_t = \alpha_t x_0 + \sigma_t \varepsilon$. Whatever a
# network predicts is a linear form in the same two unknowns, so two equations give both: every
# conversion between predictions, under every process, is one 2×2 system.

# %%
import matplotlib.pyplot as plt
import torch

from stepdistill.process import RectifiedFlow, TrigFlow, VarianceExploding, VariancePreserving

betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
PROCESSES = {
    "rectified flow": RectifiedFlow(),
    "Stable Diffusion's table": VariancePreserving(torch.cumprod(1 - betas, 0)),
    "EDM": VarianceExploding(),
    "TrigFlow": TrigFlow(),
}

# %% [markdown]
# ## Four clocks, one quantity
#
# Processes differ in their clocks and in their units. What they have in common is the
# signal-to-noise ratio: where it is equal, a denoiser of one process serves another, after a change
# of scale (`stepdistill.denoiser.Rescheduled`).

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for name, process in PROCESSES.items():
    share = torch.linspace(0.001, 0.999, 400, dtype=torch.float64)
    t = process.t_min + share * (process.t_max - process.t_min)
    alpha, sigma = process.scales(t)
    left.plot(alpha / torch.hypot(alpha, sigma), sigma / torch.hypot(alpha, sigma), label=name)
    right.plot(share, process.log_snr(t).clamp(-8, 8), label=name)
left.set(xlabel="share of signal", ylabel="share of noise", title="the same quarter circle, …")
right.set(xlabel="share of the clock", ylabel="ln(α/σ)", title="… walked at different speeds")
right.legend()
plt.show()

# %% [markdown]
# ## Five predictions of one truth
#
# Take a sample and its noise, ask a perfect network of each kind, and solve. All give back both.

# %%
x0, eps = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
for name, process in PROCESSES.items():
    t = torch.linspace(0.2, 0.9, 5, dtype=torch.float64) * process.t_max
    x_t = process.add_noise(x0, eps, t)
    errors = {}
    for kind in ("x0", "eps", "v", "flow", "edm"):
        output = process.target(x0, eps, t, kind)
        found = process.estimate(x_t, output, t, kind)
        errors[kind] = float((found.x0 - x0).abs().max().maximum((found.eps - eps).abs().max()))
    print(f"{name:26}", {kind: f"{error:.0e}" for kind, error in errors.items()})

# %% [markdown]
# ## Where a prediction says nothing
#
# At pure noise, $\varepsilon$ is the state itself: predicting it tells nothing about $x_0$. The
# package refuses such a student before it trains, instead of dividing by zero later.

# %%
for name, process in PROCESSES.items():
    kinds = ("x0", "eps", "v", "flow")
    posed = [kind for kind in kinds if process.is_well_posed(kind, process.t_max)]
    print(f"{name:26} something: {posed}")

# %% [markdown]
# An error of a network is felt in $x_0$ by a factor that depends on the prediction: noise
# predictors are bad where there is much noise.

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
process = PROCESSES["Stable Diffusion's table"]
t = torch.linspace(5, 998, 300, dtype=torch.float64)
zeros = torch.zeros(300, 1, dtype=torch.float64)
for kind in ("x0", "eps", "v"):
    felt = process.estimate(zeros, torch.ones_like(zeros), t, kind).x0.abs()
    axes.plot(t, felt, label=kind)
axes.set(yscale="log", xlabel="timestep", ylabel="error of x̂₀ by an error of 1", ylim=(1e-2, 1e2))
axes.legend()
plt.show()
