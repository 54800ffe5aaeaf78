# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Guidance
#
# $u + w(c - u)$: extrapolate from the unconditional to the conditional answer, two evaluations a
# step. $w = 1$ is neutral here and everywhere in this package; papers that write $c + w(c - u)$
# mean our $w + 1$.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from stepdistill.denoiser import Guided
from stepdistill.exact import GaussianMixture
from stepdistill.jobs.sample import tile
from stepdistill.process import RectifiedFlow
from stepdistill.solver import solve_ode
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher, teacher_sampler
from stepdistill.times import Grid

torch.set_num_threads(2)
process, times = RectifiedFlow(), Grid().times(RectifiedFlow(), 48)

# %% [markdown]
# ## What it does to a distribution
#
# Four classes with one Gaussian each. Guided samples leave the class they were asked for: they move
# away from the others, and lie closer together. That is no sampling error, it is what the formula
# says.

# %%
means = torch.tensor([[1.2, 1.2], [-1.2, 1.2], [-1.2, -1.2], [1.2, -1.2]])
data = GaussianMixture(means, 0.5, process, torch.full((4,), 0.25))
noise = torch.randn(800, 2, generator=torch.Generator().manual_seed(0))
labels = torch.arange(800) % 4
figure, panels = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
for axes, w in zip(panels, (0.0, 1.0, 2.0, 5.0)):
    *_, ends = solve_ode(Guided(data, w, data.null), noise, times, {"label": labels})
    axes.scatter(*ends.T, c=labels, cmap="tab10", s=3)
    axes.scatter(*means.T, color="black", marker="+", s=60)
    axes.set(title=f"w = {w:g}", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
plt.show()

# %% [markdown]
# ## Digits
#
# The same noise and labels at $w$ = 1, 2, 4 and 8: classes get clearer, samples of a class alike,
# and pixels saturate. An evaluation sees all three: accuracy, diversity, distance.

# %%
teacher = Teacher.from_pipeline(load_pipeline("digits"))
noise = torch.randn(200, *teacher.event, generator=torch.Generator().manual_seed(1))
labels, clock = teacher.asked(200), teacher.denoiser.process
cond = teacher.conditions(labels)
grid = teacher_sampler(teacher).grid.times(clock, 16)
figure, rows = plt.subplots(4, 1, figsize=(10, 4.6), layout="constrained")
spread, saturated = [], []
for axes, w in zip(rows, (1.0, 2.0, 4.0, 8.0)):
    with torch.no_grad():
        *_, images = solve_ode(replace(teacher.guided, w=w), noise, grid, cond)
    axes.imshow(tile(images[:20].clamp(-1, 1), 20), cmap="gray")
    axes.set(xticks=[], yticks=[])
    axes.set_ylabel(f"w = {w:g}", rotation=0, labelpad=22)
    spread.append(float(torch.stack([images[labels == k].std(0).mean() for k in range(10)]).mean()))
    saturated.append(float((images.abs() > 1.05).float().mean()))
plt.show()
print("spread within a class:", [f"{v:.2f}" for v in spread])
print("pixels beyond ±1.05:  ", [f"{v:.2f}" for v in saturated])

# %% [markdown]
# ## In one pass
#
# `methods/guidance.py` distils the two evaluations into one network that is told $w$;
# `methods/agd.py` into small adapters on the frozen network, from the teacher's cached *guided*
# trajectories. The reason for those: at large $w$ a guided sampler visits states that noised data
# never show.

# %%
with torch.no_grad():
    states = list(solve_ode(replace(teacher.guided, w=8.0), noise, grid, cond))
    plain = list(solve_ode(replace(teacher.guided, w=1.0), noise, grid, cond))
figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for name, walk in (("w = 8", states), ("w = 1", plain)):
    axes.plot(grid, [float(x.square().mean().sqrt()) for x in walk], "o-", markersize=3, label=name)
axes.set(xlabel="t", ylabel="root mean square of the state")
axes.invert_xaxis()
axes.legend()
plt.show()
