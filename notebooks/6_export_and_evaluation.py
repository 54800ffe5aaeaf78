# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Export and evaluation
#
# One call trains, exports, evaluates and reports. The student is a diffusers pipeline that works
# where this package is not installed.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DiffusionPipeline

import stepdistill
from stepdistill.evaluation.moments import Moments, frechet_distance
from stepdistill.evaluation.suites.digits import KIND
from stepdistill.jobs.suites import load

torch.set_num_threads(2)
runs = Path(tempfile.mkdtemp())
run = stepdistill.read("smoke", ("stages.0.training.updates=150", "evaluation.n=200"))
result = stepdistill.distill(run, runs)
for row in result.rows:
    score = row.scores["frechet"]
    interval = f"({score.low:.3f} – {score.high:.3f})"
    print(f"{row.model:18}{row.steps:3} steps   {score.value:7.3f} {interval}")

# %% [markdown]
# ## What was exported
#
# Few-step students need their trained times, which no stock scheduler can hold: `model_index.json`
# has them, and one small file of code reads them. Export ran this very call in a clean process and
# compared it with the trainer's sampler.

# %%
index = json.loads((result.student / "model_index.json").read_text())
print({key: index[key] for key in ("_class_name", "times", "gamma")})
print("largest difference of a pixel:", result.difference)
pipe = DiffusionPipeline.from_pretrained(result.student, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
images = pipe(num_inference_steps=1, class_labels=list(range(10)), output_type="np").images
figure, panels = plt.subplots(1, 10, figsize=(10, 1.3), layout="constrained")
for axes, image in zip(panels, images):
    axes.imshow(image[..., 0], cmap="gray")
    axes.axis("off")
plt.show()

# %% [markdown]
# ## Why n is part of a score
#
# A Fréchet distance shrinks as more images are drawn, whatever made them: below, real digits
# against real digits. Two numbers at different n say nothing, so every table has one n, and a row
# `real` that says what cannot be beaten.

# %%
reference = load("digits", KIND).reference
space, features = reference.space("domain-cnn"), reference.features("domain-cnn")
real = Moments.of(features, space.identity)
sizes, means = [100, 200, 500, 1000, 2000, 5000], []
for n in sizes:
    scores = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(10, (n,), generator=generator)
        drawn = reference.draw(torch.zeros(n, 1, 8, 8), labels, generator)
        moments = Moments.of(space(drawn), space.identity)
        scores.append(frechet_distance(real, moments))
    means.append(sum(scores) / len(scores))
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.loglog(sizes, means, "o-")
axes.set(xlabel="images", ylabel="distance of real digits to real digits")
plt.show()
