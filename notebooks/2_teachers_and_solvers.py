# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Teachers and solvers
#
# A teacher is a diffusers pipeline; its process and prediction are read from its scheduler. Its
# samples are the ends of an ordinary differential equation, and a solver's steps are what
# distillation wants to save.

# %%
import matplotlib.pyplot as plt
import torch

from stepdistill.jobs.sample import tile
from stepdistill.solver import EVALUATIONS, solve_ode, start
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher, teacher_sampler

torch.set_num_threads(2)
teacher = Teacher.from_pipeline(load_pipeline("digits"))
process = teacher.denoiser.process
print(type(process).__name__, teacher.denoiser.prediction, teacher.event, teacher.classes)


# %%
@torch.no_grad()
def ends(steps: int, solver: str, n: int = 100) -> torch.Tensor:
    """Where the same noise ends, (n, 1, 8, 8)."""
    noise = torch.randn(n, *teacher.event, generator=torch.Generator().manual_seed(1))
    times = teacher_sampler(teacher).grid.times(process, steps)
    x = start(process, noise, times[0])
    *_, last = solve_ode(teacher.guided, x, times, teacher.some(n), solver)
    return last


# %% [markdown]
# ## What a few steps look like

# %%
figure, rows = plt.subplots(4, 1, figsize=(10, 4.6), layout="constrained")
for axes, steps in zip(rows, (1, 2, 4, 32)):
    axes.imshow(tile(ends(steps, "ddim", 20).clamp(-1, 1), 20), cmap="gray")
    axes.set_ylabel(f"{steps}", rotation=0, labelpad=14)
    axes.set(xticks=[], yticks=[])
figure.suptitle("Euler steps from the same noise")
plt.show()

# %% [markdown]
# ## Orders of convergence
#
# Of a smooth equation the distance to the exact end falls as $1/n$ for DDIM and as $1/n^2$ for Heun
# and DPM-Solver++, as notebook 3 prints it for Gaussian data. A trained network is not that smooth:
# DDIM falls more slowly here, and the others pull away from some 16 evaluations on. Heun pays twice
# a step. None of them gets to one step: there the equation itself has to be learnt.

# %%
exact = ends(128, "heun")
figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
for solver in ("ddim", "heun", "dpmpp"):
    steps = [2, 4, 8, 16, 32, 64]
    errors = [float((ends(n, solver) - exact).square().mean().sqrt()) for n in steps]
    axes.loglog([n * EVALUATIONS[solver] for n in steps], errors, "o-", label=solver)
axes.set(xlabel="network evaluations", ylabel="RMSE of a pixel, to the exact end")
axes.legend()
plt.show()

# %% [markdown]
# ## One trajectory
#
# The state (above) and what the network takes it for (below), from noise to data. Far out, the
# estimate is the mean of the class; the trajectory decides late.

# %%
noise = torch.randn(1, *teacher.event, generator=torch.Generator().manual_seed(7))
times, label = teacher_sampler(teacher).grid.times(process, 12), torch.tensor([3])
with torch.no_grad():
    states = list(solve_ode(teacher.guided, start(process, noise, times[0]), times, label))
    guesses = [teacher.guided(x, t[None], label).x0 for x, t in zip(states, times[:-1])]
figure, (above, below) = plt.subplots(2, 1, figsize=(10, 2.2), layout="constrained")
above.imshow(tile(torch.cat(states[:-1]).clamp(-1, 1), 12), cmap="gray")
below.imshow(tile(torch.cat(guesses).clamp(-1, 1), 12), cmap="gray")
for axes in (above, below):
    axes.axis("off")
plt.show()
