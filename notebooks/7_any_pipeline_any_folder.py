# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Any pipeline, any folder of images
#
# What is scored need not be ours: below stand a folder of images that somebody made, and a pipeline
# that was saved by diffusers alone. Both are measured against a folder of real images.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

import stepdistill
from stepdistill.data.shapes import Scenes
from stepdistill.evaluation.differences import difference

torch.set_num_threads(2)
here = Path(tempfile.mkdtemp())


def save(images: torch.Tensor, folder: Path) -> Path:
    """Images (n, 3, h, w) in [−1, 1] as PNG files."""
    folder.mkdir()
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


def drawn(n: int, seed: int) -> torch.Tensor:
    """Coloured shapes (n, 3, 16, 16), of 48 kinds."""
    generator = torch.Generator().manual_seed(seed)
    return Scenes.drawn(torch.randint(48, (n,), generator=generator), generator).images(16, 16)


real = save(drawn(400, seed=0), here / "real")
faded = save(0.8 * drawn(120, seed=1), here / "faded")  # another's images: right, but pale
few = save(drawn(6, seed=2).repeat(20, 1, 1, 1), here / "few")  # perfect, but always the same six

torch.manual_seed(0)
blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
unet = UNet2DModel(16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, **blocks)
DDPMPipeline(unet, DDPMScheduler()).save_pretrained(here / "untrained")

# %% [markdown]
# ## One call
#
# It calls the pipeline as its users do, keeps its images, scores all in the same seed blocks, and
# writes `results.json`, `report.md`, `report.html` and `table.tex`. `size` is images a block, and
# blocks; that many a folder must have.

# %%
sources = [faded, few, here / "untrained"]
out = here / "evaluation"
made = stepdistill.evaluate(sources, "folder", out, size=(40, 3), steps=4, reference=str(real))
rows = {Path(row.source).name or row.model: row for row in made}
shown = ("frechet_random", "precision", "recall")
for who, row in rows.items():
    print(f"{who:10}", end="")
    for name in shown:
        score = row.scores[name]
        print(f"  {name} {score.value:6.2f} ({score.ends[0]:6.2f} – {score.ends[1]:6.2f})", end="")
    print()

# %% [markdown]
# The row `real` resamples the real images and says what cannot be beaten at this n. Precision asks
# whether images look real, recall whether all that is real appears: the six images that come again
# and again have much of the one and little of the other.

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axes, name in zip(panels, shown):
    scores = [row.scores[name] for row in rows.values()]
    low, high = zip(*(score.ends for score in scores))
    values = [score.value for score in scores]
    reach = [[v - a for v, a in zip(values, low)], [b - v for v, b in zip(values, high)]]
    axes.errorbar(list(rows), values, reach, fmt="o")
    axes.set_title(name)
plt.show()

# %% [markdown]
# ## What a difference says
#
# All are measured in the same blocks, and two models are told apart only where the interval of
# their difference leaves out 0. By this the report says "better", and nothing else.

# %%
for first, second in (("untrained", "faded"), ("faded", "few"), ("few", "real")):
    found = difference(rows[first], rows[second], "frechet_random")
    words = "sure" if found.sure else "not distinguishable"
    print(f"{first} − {second}: {found.value:.2f} ({found.low:.2f} – {found.high:.2f}), {words}")
print(*(out / "report.md").read_text().splitlines()[:3], sep="\n")
