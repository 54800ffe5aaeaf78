"""Small modules that make a frozen network answer as classifier-free guidance would, in one pass.

Adapter guidance distillation (Jensen & Sadat 2025, arXiv:2503.07274). Self-contained: imports torch
and diffusers only, and lies beside the weights in an exported folder.
"""

from pathlib import Path
from typing import Optional

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

FEATURES = 16
W_SCALE = 100.0  # of w − 1, before its sines
T_SCALE = 1.0


class GuidanceAdapters(ModelMixin, ConfigMixin):
    """block(x) ← block(x) + (w − 1) · A(block(x); w, t, label), zero at first and at w = 1.

    A of features on planes is a narrow convolution that three tokens, w, t and the label, scale
    and shift; of other features, attention to the tokens. blocks: paths in the network. shapes: of
    what each puts out, channels first for planes. labels: how many there are, 0 for none. hidden:
    width of the tokens. narrow: of the convolutions.
    """

    # What model_index.json calls the module of a component: diffusers looks for it in its folder.
    __module__ = "guidance_adapters"
    source = Path(__file__).read_text(encoding="utf-8")

    @register_to_config
    def __init__(
        self, blocks: tuple, shapes: tuple, labels: int = 0, hidden: int = 16, narrow: int = 8
    ):
        super().__init__()
        self.features = Timesteps(FEATURES, flip_sin_to_cos=False, downscale_freq_shift=1)
        self.embed_w = TimestepEmbedding(FEATURES, hidden)
        self.embed_t = TimestepEmbedding(FEATURES, hidden)
        self.embed_label = nn.Embedding(labels, hidden) if labels else None
        self.adapters = nn.ModuleList(
            [
                Convolution(shape[0], narrow, hidden)
                if len(shape) in (3, 4)
                else Attention(shape[-1], hidden)
                for shape in shapes
            ]
        )

    def attach(self, net, t, s, w, labels: Optional[torch.Tensor] = None) -> list:
        """Hooks on `net`, to be removed after the call that they are for; s is not looked at."""
        tokens = self.tokens(t, w, labels)
        return [
            net.get_submodule(path).register_forward_hook(self._adding(adapter, tokens, w - 1))
            for path, adapter in zip(self.config.blocks, self.adapters)
        ]

    def tokens(self, t, w, labels):
        """What the adapters look at, (b, 2 or 3, hidden)."""
        dtype = self.embed_w.linear_1.weight.dtype
        found = [
            self.embed_w(self.features(W_SCALE * (w - 1)).to(dtype)),
            self.embed_t(self.features(T_SCALE * t).to(dtype)),
        ]
        if self.embed_label is not None:
            found.append(self.embed_label(labels))
        return torch.stack(found, 1)

    @staticmethod
    def _adding(adapter, tokens, scale):
        def add(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            first = first + adapter(first, tokens, scale).to(first.dtype)
            return (first, *output[1:]) if isinstance(output, tuple) else first

        return add

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """The config, and this file, without which it could not be loaded again."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.__module__}.py").write_text(self.source, encoding="utf-8")
        super().save_config(save_directory, push_to_hub, **kwargs)


class Convolution(nn.Module):
    """A narrow 3×3 convolution of features (b, c, [frames,] h, w), in the manner of the tokens."""

    def __init__(self, width: int, narrow: int, hidden: int):
        super().__init__()
        self.down = nn.Conv2d(width, narrow, 1, bias=False)
        self.mix = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False)
        self.manner = nn.Linear(hidden, 2 * narrow)
        self.up = nn.Conv2d(narrow, width, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x, tokens, scale):
        if x.ndim == 5:
            return self.per_frame(x, tokens, scale)
        gain, shift = self.manner(nn.functional.silu(tokens.sum(1)))[..., None, None].chunk(2, 1)
        mixed = self.mix(self.down(x.to(self.up.weight.dtype)))
        seen = nn.functional.silu((1 + gain) * mixed + shift)
        return scale.to(seen)[:, None, None, None] * self.up(seen)

    def per_frame(self, x, tokens, scale):
        frames = x.shape[2]
        planes = x.transpose(1, 2).flatten(0, 1)
        each = (given.repeat_interleave(frames, 0) for given in (tokens, scale))
        return self(planes, *each).unflatten(0, (len(x), frames)).transpose(1, 2)


class Attention(nn.Module):
    """Attention of features (b, n, c) or (b, c) to a few tokens (b, k, hidden)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.query = nn.Linear(width, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x, tokens, scale):
        rows = x.reshape(len(x), -1, x.shape[-1]).to(self.query.weight.dtype)
        seen = nn.functional.scaled_dot_product_attention(
            self.query(rows), self.key(tokens), self.value(tokens)
        )
        return (scale.to(rows)[:, None, None] * self.out(seen)).reshape(x.shape)
