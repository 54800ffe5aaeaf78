"""More inputs for a finished network: the target time of a step, and a guidance.

Self-contained: imports torch and diffusers only, and lies beside the weights in an exported folder.
"""

from pathlib import Path
from typing import Optional

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

FEATURES = 128
W_SCALE = 1000.0  # of w − 1, as in diffusers' pipelines with `time_cond_proj_dim`


class ExtraInputs(ModelMixin, ConfigMixin):
    """An embedding that is added to a network's embedding of the time; zero at first.

    inputs: any of "s", the target time of a step, in the network's own units, and "w", the guidance
    in u + w(c − u), 1 neutral. width: of the network's embedding. path: its part that makes it.
    """

    # What model_index.json calls the module of a component: diffusers looks for it in its folder.
    __module__ = "extra_inputs"
    source = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(self, inputs: tuple = ("s", "w"), width: int = 128, path: str = "time_embedding"):
        super().__init__()
        self.features = Timesteps(FEATURES, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.embeddings = torch.nn.ModuleList([TimestepEmbedding(FEATURES, width) for _ in inputs])
        for embedding in self.embeddings:
            torch.nn.init.zeros_(embedding.linear_2.weight)
            torch.nn.init.zeros_(embedding.linear_2.bias)

    def forward(self, s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """s, w: (b,), looked at where there is an input for them. The embedding (b, width)."""
        values = {"s": s, "w": W_SCALE * (w - 1)}
        parts = [
            embedding(self.features(values[name]).to(embedding.linear_1.weight.dtype))
            for name, embedding in zip(self.config.inputs, self.embeddings)
        ]
        return sum(parts)

    def attach(self, net, t, s, w, labels: Optional[torch.Tensor] = None) -> list:
        """Hooks on `net`, to be removed after the call that they are for; t is not looked at."""
        extra = self(s, w)
        part = net.get_submodule(self.config.path)
        return [part.register_forward_hook(lambda _m, _i, out: out + extra.to(out.dtype))]

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """The config, and this file, without which it could not be loaded again."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.__module__}.py").write_text(self.source, encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)
