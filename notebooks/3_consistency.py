# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Consistency
#
# All states of one trajectory have one clean end. A student that says so is a one-step sampler:
# $f(x_t, t) = f(x_s, s)$ and $f(x, \text{clean}) = x$.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator

import stepdistill
from stepdistill.exact import Gaussian, GaussianMixture
from stepdistill.jobs.sample import tile
from stepdistill.process import RectifiedFlow
from stepdistill.runs.stages import Stages
from stepdistill.solver import solve_ode
from stepdistill.times import Grid

torch.set_num_threads(2)
process = RectifiedFlow()
times = Grid().times(process, 64)

# %% [markdown]
# ## The exact one, on a line
#
# Two modes at ±1: the posterior mean of a state far out lies between them, its trajectory's end
# does not. One step of a denoiser makes averages, one step of a consistency function makes samples.

# %%
data = GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.15, process, torch.tensor([0.5, 0.5]))
x = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]
trajectory = torch.stack(list(solve_ode(data, x, times)))[:, :, 0]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.plot(times, trajectory, color="tab:blue", linewidth=0.7)
left.set(xlabel="t", ylabel="x", title="trajectories, noise on the right")
right.plot(x, data(x, torch.ones(41)).x0, label="posterior mean at t = 1")
right.plot(x, trajectory[-1], label="end of the trajectory")
right.set(xlabel="state at t = 1")
right.legend()
plt.show()

# %% [markdown]
# ## Discrete distillation has a chain for its fixed point
#
# With one solver step between neighbours, a perfect student is not the exact flow map but the chain
# of the teacher's steps. For Gaussian data both are known; this is what the tests hold the loss to.

# %%
gauss, start = Gaussian(torch.tensor([0.7]), 1.3, process), torch.tensor([[1.0]])
exact = float(gauss.flow_map(start, torch.tensor([1.0]), torch.tensor([0.0])))
for solver in ("ddim", "heun"):
    gaps = []
    for n in (4, 8, 16, 32):
        *_, end = solve_ode(gauss, start, Grid().times(process, n), None, solver)
        gaps.append(f"{n}: {float(end) - exact:+.5f}")
    print(f"{solver}: chain minus exact, by steps  ", "  ".join(gaps))

# %% [markdown]
# ## A student of the digits teacher
#
# Three hundred updates of `configs/demo.yaml`'s first stage, in batches of half the size, and what
# one step makes before, on the way and after.

# %%
run = stepdistill.read("demo", ("stages.0.training.updates=300", "stages.0.training.batch=64"))
session = Stages.of(replace(run, stages=run.stages[:1]), Path("."), Accelerator(cpu=True))


@torch.no_grad()
def samples(steps: int) -> torch.Tensor:
    noise = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    source, cond = torch.Generator().manual_seed(4), {"label": torch.arange(20) % 10}
    return run.sampler.draw(session.student(), noise, steps, cond, source).clamp(-1, 1)


shown, losses = {0: samples(1)}, []
while not session.trainer.done:
    losses.append(float(session.trainer.step().total))
    if session.trainer.update in (50, 300):
        shown[session.trainer.update] = samples(1)

# %%
figure, rows = plt.subplots(len(shown) + 1, 1, figsize=(10, 4.4), layout="constrained")
rows[0].plot(losses, linewidth=0.6)
rows[0].set(ylabel="loss", yscale="log")
for axes, (update, images) in zip(rows[1:], shown.items()):
    axes.imshow(tile(images, 20), cmap="gray")
    axes.set(xticks=[], yticks=[], ylabel=f"{update}")
plt.show()

# %% [markdown]
# The loss is no measure of quality: it compares the student with itself. Samples, and the distances
# of an evaluation, are.
