"""A self-contained diffusers pipeline for pixel-space students and teachers with class labels.

It carries the times its network was trained at, which no stock scheduler's configuration can.
Imports torch and diffusers only, so an exported folder runs without the toolkit that made it:

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipe(num_inference_steps=1, class_labels=[3, 7]).images
"""

import json
from pathlib import Path
from typing import Optional, Union

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class FewStepPipeline(DiffusionPipeline):
    """x_t = α x₀ + σ ε; one network evaluation (two with guidance) at each of the trained times.

    unet: UNet2DModel. scheduler: read for its noise process only (a FlowMatchEuler scheduler:
    α = 1 − t, σ = t; otherwise its table of ᾱ).
    times: {"N": [t, …]}, the trained times for N steps, in the process's own clock; None lets any N
    walk evenly from pure noise to clean data.
    gamma: how much noise is added between steps, from none (0: a chain of jumps) to all (1:
    consistency sampling).
    inputs: ExtraInputs or GuidanceAdapters, for a network with the target time of its step or
    the guidance to imitate as inputs; guidance: the one it was trained for.
    skip_sigma_data: σ_d of the consistency boundary c_skip/c_out, None for none.
    """

    source = Path(__file__).read_text(encoding="utf-8")
    model_cpu_offload_seq = "unet"
    _optional_components = ["inputs"]

    def __init__(
        self,
        unet,
        scheduler,
        inputs=None,
        times: Optional[dict] = None,
        gamma: float = 0.0,
        guidance: float = 1.0,
        skip_sigma_data: Optional[float] = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, inputs=inputs)
        self.register_to_config(
            times=times,
            gamma=gamma,
            guidance=guidance,
            skip_sigma_data=skip_sigma_data,
        )

    @torch.no_grad()
    def __call__(
        self,
        num_inference_steps: Optional[int] = None,
        class_labels: Union[int, list, torch.Tensor, None] = None,
        batch_size: int = 1,
        guidance_scale: Optional[float] = None,
        generator: Optional[torch.Generator] = None,
        latents: Optional[torch.Tensor] = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ):
        """Images of `class_labels` (one each), or `batch_size` images of random classes.

        guidance_scale: w in u + w(c − u). A network with the input "w" is given it, at no cost, by
        default what it was trained for; others are evaluated twice per step unless it is 1.
        latents: standard normal noise (b, c, h, w). output_type: "pil", "np" or "pt" in [0, 1].
        Raises ValueError for a number of steps the student was not trained for.
        """
        embedded = self.inputs is not None and "w" in self.inputs.config.get("inputs", ["w"])
        default = self.config.guidance if embedded else 1.0
        w = default if guidance_scale is None else guidance_scale
        if w != 1 and not embedded and self.unet.config.num_class_embeds is None:
            raise ValueError("guidance_scale needs a network with class labels: leave it at 1")
        labels = self._labels(class_labels, batch_size, generator)
        count = batch_size if labels is None else len(labels)
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (count, self.unet.config.in_channels, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device)
        times, clean = self._times(num_inference_steps), 0.0 if self._is_flow() else -1.0
        # A table's states have unit variance at every time, whatever its σ there; a flow's have σ.
        x = latents.to(self._execution_device, torch.float32) * (times[0] if self._is_flow() else 1)
        for i, t in enumerate(self.progress_bar(times)):
            after = clean if i + 1 == len(times) else times[i + 1]
            s = after - self.config.gamma * (after - clean)
            x0, eps = self._estimate(x, t, s, labels, w, embedded)
            if i + 1 == len(times):
                break
            alpha, sigma = self._scales(s)
            x = alpha * x0 + sigma * eps
            if self.config.gamma > 0:
                noise = randn_tensor(shape, generator=generator, device=x.device)
                keep = self._scales(after)[0] / alpha
                spread = max(self._scales(after)[1] ** 2 - (keep * sigma) ** 2, 0.0) ** 0.5
                x = keep * x + spread * noise
        images = (x0 / 2 + 0.5).clamp(0, 1)
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

    def _labels(self, class_labels, batch_size, generator):
        classes = self.unet.config.num_class_embeds
        if isinstance(generator, list):
            raise ValueError("give one generator, not a list: its stream serves the whole batch")
        if classes is None:
            return None
        if class_labels is None:
            device = "cpu" if generator is None else generator.device
            class_labels = torch.randint(
                classes - 1, (batch_size,), generator=generator, device=device
            )
        labels = torch.as_tensor(class_labels).reshape(-1)
        if labels.numel() == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(f"class_labels must lie in 0 … {classes - 1}, the last for no class")
        return labels.to(self._execution_device)

    def _times(self, steps):
        table = self.config.times
        if table is not None:
            steps = steps or int(min(table, key=int))
            if str(steps) not in table:
                raise ValueError(
                    f"this student was trained for {', '.join(table)} steps, not {steps}"
                )
            return [float(t) for t in table[str(steps)]]
        steps = steps or 32
        if self._is_flow():
            return [1 - i / steps for i in range(steps)]
        last = len(self.scheduler.alphas_cumprod)
        return [last * (1 - i / steps) - 1 for i in range(steps)]

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
        hooks = [] if self.inputs is None else self.inputs.attach(self.unet, t, s, w, labels)
        try:
            x = x.to(self.unet.dtype)
            output = self.unet(x, t, class_labels=labels, return_dict=False)[0]
            return output[:, : x.shape[1]].float()  # without a learned variance
        finally:
            for hook in hooks:
                hook.remove()
