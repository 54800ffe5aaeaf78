"""A self-contained diffusers pipeline for pixel-space students and teachers with class labels.

It carries the times its network was trained at, which no stock scheduler's configuration can.
Imports torch and diffusers only, so an exported folder runs without the toolkit that made it:

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipe(num_inference_steps=1, class_labels=[3, 7]).images
"""

import json
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Callable, Optional, Union

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

# Held while a network has hooks, which add what one call asks for: other threads wait.
HOOKED = Lock()


class FewStepPipeline(DiffusionPipeline):
    """x_t = α x₀ + σ ε; one network evaluation (two with guidance) at each of the trained times.

    unet: UNet2DModel. scheduler: read for its noise process only (a FlowMatchEuler scheduler:
    α = 1 − t, σ = t; otherwise its table of ᾱ).
    times: {"N": [t, …]}, the trained times for N steps, in the process's own clock; None lets any N
    walk evenly, after the shift of a flow's scheduler, to clean data from `start`, None for pure
    noise.
    gamma: how much noise is added between steps, from none (0: a chain of jumps) to all (1:
    consistency sampling).
    inputs: ExtraInputs or GuidanceAdapters, for a network with the target time of its step or
    the guidance to imitate as inputs; guidance: the one it was trained for.
    skip_sigma_data: σ_d of the consistency boundary c_skip/c_out, None for none.
    """

    source = Path(__file__).read_text(encoding="utf-8")
    model_cpu_offload_seq = "unet"
    _optional_components = ["inputs"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet,
        scheduler,
        inputs=None,
        times: Optional[dict] = None,
        gamma: float = 0.0,
        guidance: float = 1.0,
        skip_sigma_data: Optional[float] = None,
        start: Optional[float] = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, inputs=inputs)
        self.register_to_config(
            times=times,
            gamma=gamma,
            guidance=guidance,
            skip_sigma_data=skip_sigma_data,
            start=start,
        )

    @torch.no_grad()
    def __call__(
        self,
        num_inference_steps: Optional[int] = None,
        class_labels: Union[int, list, torch.Tensor, None] = None,
        batch_size: Optional[int] = None,
        guidance_scale: Optional[float] = None,
        generator: Union[torch.Generator, list, None] = None,
        latents: Optional[torch.Tensor] = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_images_per_prompt: int = 1,
        callback_on_step_end: Optional[Callable] = None,
        callback_on_step_end_tensor_inputs: tuple = ("latents",),
    ):
        """Images of `class_labels` (one each), or `batch_size` images of random classes.

        class_labels: one number, for all images, or a list. batch_size: one image if nothing else
        says how many. guidance_scale: w in u + w(c − u), 1 neutral. A network with the input "w" is
        given it, at no cost, by default what it was trained for; others are evaluated twice per
        step unless it is 1. generator: one for the batch, or a list with one for each image.
        latents: standard normal noise (b, c, h, w). output_type: "pil", "np" or "pt" in [0, 1].
        num_images_per_prompt: images of each label, one after the other. callback_on_step_end:
        called after every step with the pipeline, the number and the time of the step, and
        {"latents": x}, the state after it; "latents" in what it returns takes its place.
        Raises ValueError for a number of steps the student was not trained for, for labels that its
        network has no use for, and for arguments that contradict each other.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: pil, np or pt, not {output_type!r}")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs: latents only, not {unknown}")
        times, clean = self._times(num_inference_steps), 0.0 if self._is_flow() else -1.0
        w, embedded = self._guidance(guidance_scale)
        size = self.unet.config.sample_size
        event = (self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        count = self._count(batch_size, class_labels, latents, generator, num_images_per_prompt)
        shape = (count, *event)
        labels = self._labels(class_labels, count, generator, num_images_per_prompt)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents: needs the shape {shape}, not {tuple(latents.shape)}")
        # A table's states have unit variance at every time, whatever its σ there; a flow's have σ.
        x = latents.to(self._execution_device, torch.float32) * (times[0] if self._is_flow() else 1)
        for i, t in enumerate(self.progress_bar(times)):
            after = clean if i + 1 == len(times) else times[i + 1]
            s = after - self.config.gamma * (after - clean)
            x, eps = self._estimate(x, t, s, labels, w, embedded)
            if i + 1 < len(times):
                alpha, sigma = self._scales(s)
                x = alpha * x + sigma * eps
                if self.config.gamma > 0:
                    noise = randn_tensor(shape, generator=generator, device=x.device)
                    keep = self._scales(after)[0] / alpha
                    spread = max(self._scales(after)[1] ** 2 - (keep * sigma) ** 2, 0.0) ** 0.5
                    x = keep * x + spread * noise
            if callback_on_step_end is not None:
                seen = {name: x for name in callback_on_step_end_tensor_inputs}
                x = (callback_on_step_end(self, i, t, seen) or {}).get("latents", x)
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """model_index.json, and this file, without which the folder could not be loaded again."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pipeline.py").write_text(self.source, encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)

    def to_json_string(self):
        index = json.loads(super().to_json_string())
        index["_class_name"] = ["pipeline", type(self).__name__]
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    def _guidance(self, asked):
        """w, and whether it is an input of the network."""
        embedded = self.inputs is not None and "w" in self.inputs.config.get("inputs", ["w"])
        default = self.config.guidance if embedded else 1.0
        w = default if asked is None else float(asked)
        if not (isfinite(w) and w > 0):
            raise ValueError(f"guidance_scale {w:g}: 1 is without guidance here: leave it out")
        if w != 1 and not embedded and self.unet.config.num_class_embeds is None:
            raise ValueError("guidance_scale needs a network with class labels: leave it at 1")
        return w, embedded

    def _count(self, batch_size, class_labels, latents, generator, each):
        """How many images: all that say so must agree, and one label alone serves all."""
        labels = None if class_labels is None else torch.as_tensor(class_labels)
        if type(each) is not int or each < 1:
            raise ValueError(f"num_images_per_prompt: a whole number from 1, not {each!r}")
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f"batch_size: a whole number from 1, not {batch_size!r}")
        said = {
            "batch_size": None if batch_size is None else batch_size * each,
            "class_labels": len(labels) * each if labels is not None and labels.ndim else None,
            "latents": None if latents is None else len(latents),
            "generator": len(generator) if isinstance(generator, list) else None,
        }
        said = {name: n for name, n in said.items() if n is not None}
        if len(set(said.values())) > 1:
            counts = ", ".join(f"{name} {n}" for name, n in said.items())
            raise ValueError(f"one number of images, not {counts}")
        (count,) = set(said.values()) or {each}
        if count % each or count < 1:
            raise ValueError(f"{count} images are no multiple of num_images_per_prompt {each}")
        return count

    def _labels(self, class_labels, count, generator, each):
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ValueError("class_labels: this network knows no classes: leave them out")
            return None
        if class_labels is None:
            drawn = generator[::each] if isinstance(generator, list) else [generator]
            class_labels = torch.cat([
                torch.randint(
                    classes - 1,
                    (count // each // len(drawn),),
                    generator=g,
                    device=g.device if g else "cpu",
                ).cpu()
                for g in drawn
            ])  # fmt: skip
        labels = torch.as_tensor(class_labels)
        if labels.is_floating_point() or labels.ndim > 1:
            raise ValueError("class_labels: whole numbers, one for each image")
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(f"class_labels must lie in 0 … {classes - 1}, the last for no class")
        return labels.expand(count // each).repeat_interleave(each).to(self._execution_device)

    def _times(self, steps):
        table = self.config.times
        if steps is None:
            steps = 32 if table is None else int(min(table, key=int))
        if type(steps) is not int or steps < 1:
            raise ValueError(f"num_inference_steps: a whole number from 1, not {steps!r}")
        if table is not None:
            if str(steps) not in table:
                raise ValueError(
                    f"this student was trained for {', '.join(table)} steps, not {steps}"
                )
            return [float(t) for t in table[str(steps)]]
        even, start = [1 - i / steps for i in range(steps)], self.config.start
        if self._is_flow():
            shift = self.scheduler.config.get("shift", 1.0)
            return [shift * u / (1 + (shift - 1) * u) for u in even]
        span = len(self.scheduler.alphas_cumprod) if start is None else start + 1
        return [span * u - 1 for u in even]

    def _is_flow(self):
        return type(self.scheduler).__name__.startswith("FlowMatch")

    def _scales(self, t):
        if self._is_flow():
            return 1 - t, t
        # Between the table's entries the angle atan2(σ, α) is interpolated; −1 is clean data.
        table = self.scheduler.alphas_cumprod.double().clone()
        if self.scheduler.config.get("rescale_betas_zero_snr", False):
            table[-1] = 0.0  # some schedulers replace the exact zero by 2⁻²⁴
        angles = torch.cat([table.new_zeros(1), torch.atan2((1 - table).sqrt(), table.sqrt())])
        i = min(int(t + 1), len(angles) - 2)
        angle = angles[i] + (t + 1 - i) * (angles[i + 1] - angles[i])
        return float(angle.cos()), float(angle.sin())

    def _estimate(self, x, t, s, labels, w, embedded):
        output = self._network(x, t, s, labels, w)
        if w != 1 and not embedded:
            empty = torch.full_like(labels, self.unet.config.num_class_embeds - 1)
            output = output + (w - 1) * (output - self._network(x, t, s, empty, w))
        alpha, sigma = self._scales(t)
        kind = self.scheduler.config.get("prediction_type", "epsilon")
        if self._is_flow():
            return x - sigma * output, x + alpha * output
        if kind == "v_prediction":
            return alpha * x - sigma * output, sigma * x + alpha * output
        if kind == "epsilon":
            return (x - sigma * output) / alpha, output
        x0 = output
        if self.config.skip_sigma_data is not None:
            width = (sigma**2 + (alpha * self.config.skip_sigma_data) ** 2) ** 0.5
            keep = alpha * self.config.skip_sigma_data**2 / width**2
            x0 = keep * x + sigma / width * x0
        return x0, (x - alpha * x0) / sigma

    def _network(self, x, t, s, labels, w):
        scale = self.scheduler.config.num_train_timesteps if self._is_flow() else 1
        t, s, w = (
            torch.full((len(x),), value, device=x.device, dtype=torch.float32)
            for value in (t * scale, s * scale, w)
        )
        if self.inputs is None:
            return self._output(x, t, labels)
        with HOOKED:
            hooks = self.inputs.attach(self.unet, t, s, w, labels)
            try:
                return self._output(x, t, labels)
            finally:
                for hook in hooks:
                    hook.remove()

    def _output(self, x, t, labels):
        x = x.to(self.unet.dtype)
        output = self.unet(x, t, class_labels=labels, return_dict=False)[0]
        return output[:, : x.shape[1]].float()  # without a learned variance
