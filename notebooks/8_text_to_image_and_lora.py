# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Text to image, and a LoRA of four steps
#
# The embedded teacher `shapes` is a Stable Diffusion in miniature: latents of a VAE, a text
# encoder, a U-Net under classifier-free guidance. Its captions are about coloured shapes, so that
# whether a picture shows what was asked for is no matter of taste.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils import logging

import stepdistill
from stepdistill.evaluation.features.objects import Objects
from stepdistill.evaluation.following import NAMEABLE, follows, seen_in
from stepdistill.teachers.loading import load_pipeline

torch.set_num_threads(2)
for library in (logging, transformers.utils.logging):
    library.set_verbosity_error()
    library.disable_progress_bar()
here = Path(tempfile.mkdtemp())
prompts = [
    "a big red ring at the top, on pale blue",
    "a small yellow cross in the middle, on pale green",
    "a purple square to the left of a green circle, on pale grey",
    "a blue triangle above an orange diamond, on pale pink",
]


def drawn(pipe: DiffusionPipeline, steps: int, w: float) -> torch.Tensor:
    """A picture (4, 3, 32, 32) in [−1, 1] of each prompt, always from the same noise."""
    pipe.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(5)
    call = {"num_inference_steps": steps, "guidance_scale": w, "generator": seeded}
    return pipe(prompts, output_type="pt", **call).images * 2 - 1


teacher = load_pipeline("shapes")
rows = {
    "teacher, 25 steps, w = 1": drawn(teacher, 25, 1.0),
    "teacher, 25 steps, w = 2.5": drawn(teacher, 25, 2.5),
    "teacher, 4 steps, w = 2.5": drawn(teacher, 4, 2.5),
}

# %% [markdown]
# ## What a picture holds
#
# The reader fits templates; nothing in it is learnt. It says of each attribute that a prompt names
# whether it is right. Guidance costs a second pass a step, and without it some are not.


# %%
def show(rows: dict[str, torch.Tensor]) -> None:
    """A row of pictures each, with a tick or a cross below each picture."""
    figure, panels = plt.subplots(len(rows), 4, figsize=(7, 1.9 * len(rows)), layout="constrained")
    for line, (name, images) in zip(panels, rows.items()):
        read = seen_in(Objects()(images), prompts)
        for axes, image, seen in zip(line, images, read):
            axes.imshow((image.permute(1, 2, 0) / 2 + 0.5).clamp(0, 1))
            wrong = [each for each in NAMEABLE if seen.right(each) is False]
            axes.set_xlabel("right" if follows(seen, None) else f"wrong: {', '.join(wrong)}")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(", ", "\n"))


show(rows)
plt.show()

# %% [markdown]
# ## Distilled from captions alone
#
# TDM walks the student's own four steps and matches what each makes to the guided teacher; no
# picture is ever looked at. The student is a LoRA on the teacher's own frozen network. This is
# `make demo-text` with fewer updates.

# %%
short = ("stages.0.training.updates=60", "stages.0.training.ema=0.8", "evaluation.n=40")
less = ("evaluation.teacher_steps=[4]", "trackers=[]", "validation.every=0")
run = stepdistill.read("demo-text", (*short, *less, "name=lora"))
result = stepdistill.distill(run, here)
for row in result.rows:
    if "follows" in row.scores:
        told = f"{row.model:18} {row.steps} steps  {row.nfe} passes"
        print(f"{told}  {row.value('follows'):.2f} of prompts followed")

# %% [markdown]
# ## Its files
#
# `student/` is a pipeline that diffusers opens by itself, called with `guidance_scale=1`. In it
# lies the LoRA alone, too, which turns the teacher into the same student.

# %%
merged = DiffusionPipeline.from_pretrained(result.student)
onto = load_pipeline("shapes")
onto.load_lora_weights(result.student / "lora", weight_name="pytorch_lora_weights.safetensors")
onto.scheduler = merged.scheduler
one, other = drawn(merged, 4, 1.0), drawn(onto, 4, 1.0)
print(f"largest difference of a pixel: {float((one - other).abs().max()) / 2:.0e}")
size = (result.student / "lora" / "pytorch_lora_weights.safetensors").stat().st_size
print(f"{size / 1e6:.2f} MB")
show({"teacher, 4 steps, w = 2.5": rows["teacher, 4 steps, w = 2.5"], "student, 4 steps": one})
plt.show()
