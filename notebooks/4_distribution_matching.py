# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Distribution matching and the critic
#
# Consistency asks for the same image; distribution matching only for the same distribution. A
# second denoiser, the critic, follows what the student makes. Where its answer $F(x_t)$ differs
# from the teacher's $T(x_t)$, the student's samples are too dense or too sparse, and $T - F$ points
# to where there should be more: it is $\sigma^2/\alpha$ times the slope of
# $\log p_{teacher}/p_{student}$.

# %%
import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator
from torch import nn

from stepdistill.critic import Critic
from stepdistill.data.loader import Drawn
from stepdistill.denoiser import Denoiser
from stepdistill.exact import GaussianMixture
from stepdistill.method import Players
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.process import RectifiedFlow
from stepdistill.solver import Sampler
from stepdistill.training.trainer import Optimiser, Trainer, Training

torch.set_num_threads(1)  # networks this small gain nothing from more
process = RectifiedFlow()
angle = torch.arange(5) * (2 * torch.pi / 5)
means = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
teacher = GaussianMixture(means, 0.25, process, torch.full((5,), 0.2))

# %% [markdown]
# ## The direction
#
# A student that makes one wide Gaussian, and its exact critic: arrows show $T - F$ at one noise
# level, from where samples are towards where they should be. They vanish where the two agree, for
# *every* sample, so nothing pulls a student that matches.

# %%
wide = GaussianMixture(torch.zeros(1, 2), 1.2, process, torch.ones(1))
axis = torch.linspace(-2.6, 2.6, 19)
x = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
for axes, level in zip(panels, (0.8, 0.5, 0.2)):
    t = torch.full((len(x),), level).double()
    arrows = teacher(x, t).x0 - wide(x, t).x0
    axes.quiver(*x.T, *arrows.T, arrows.norm(dim=1), cmap="viridis", scale=30)
    axes.scatter(*((1 - level) * means).T, color="tab:red", s=20)
    axes.set(title=f"t = {level}", aspect="equal")
plt.show()


# %% [markdown]
# ## Training, and what a lagging critic does
#
# Two students, one difference: how many turns the critic takes for each of the student's.


# %%
class Net(nn.Module):
    """Three layers on a point and sines of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(10, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )

    def forward(self, x, t, cond=None):
        phase = t.to(x)[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        return self.body(torch.cat([x, phase.sin(), phase.cos()], 1))


class Points:
    """Data only lend their shape: DMD2 without a GAN looks at none."""

    def batch(self, number, size, local):
        return Drawn(torch.zeros(size, 2), {})


def train(ratio: int, updates: int = 900):
    torch.manual_seed(0)
    student, fake = (Denoiser(Net(), process, "flow") for _ in range(2))
    players = Players(student, teacher, Critic(fake), sampler=Sampler((1,)))
    method = Dmd2(ratio=ratio, gan=0.0, gan_critic=0.0)
    rates = (Optimiser(lr=lr, schedule="cosine") for lr in (1e-2, 2e-3))
    training = Training(updates, 128, 1, *rates, ema=0.9)
    trainer = Trainer(method, players, Points(), training, Accelerator(cpu=True))
    lags, shown = [], []
    noise = torch.randn(1500, 2, generator=torch.Generator().manual_seed(1))
    while not trainer.done:
        log = trainer.step()
        if "lag" in log.parts:
            lags.append(log.parts["lag"])
        if log.player == "student" and log.update in (1, updates // 4, updates):
            with torch.no_grad():
                shown.append(players.sampler.draw(student, noise, 1, {}, None))
    return lags, shown


runs = {"ratio 5": train(5), "ratio 1": train(1)}

# %%
figure, rows = plt.subplots(2, 4, figsize=(13, 6), layout="constrained")
for axes, (name, (lags, shown)) in zip(rows, runs.items()):
    for panel, points, when in zip(axes, shown, ("at first", "a quarter", "at last")):
        panel.scatter(*points.T, s=2, alpha=0.4)
        panel.scatter(*means.T, color="tab:red", s=20)
        panel.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"{name}, {when}")
    window = torch.tensor(lags).unfold(0, 25, 25).mean(1)
    axes[3].plot(torch.linspace(0, 1, len(window)), window)
    axes[3].axhline(3, color="tab:red", linestyle=":")
    axes[3].set(title="lag: 1 keeps up, 3 is an alarm", xlabel="share of training", yscale="log")
plt.show()

# %% [markdown]
# `lag` is the size of the critic's mean error on the student's samples, in units of its standard
# error: the optimal critic has mean zero whatever the noise. With five turns it stays near 1, and
# the samples gather at all five modes. With one it never comes below the alarm: the direction tells
# of samples that the student no longer makes, it is driven about, and whole modes stay empty.
# Training health watches the lag in every run with a critic.
