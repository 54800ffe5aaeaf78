"""Parts of a pipeline that hold their configuration and no weights, so that it runs in moments.

A stub of a network or a VAE is of the very class that the pipeline asks for, made without its
`__init__`: no layer is built, however large the configuration says it is. Networks tell who listens
what they are asked, and answer a ramp of the right shape; texts become zeros of the right length.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn
from transformers import BatchEncoding

WIDTH = 16  # of embedded texts: no network reads them
LENGTH = 77  # of texts whose length nobody says
CPU, FLOAT = torch.device("cpu"), torch.float32
Observe = Callable[[dict[str, Any]], None]


class Answer(tuple):
    """What networks and VAEs return, called with `return_dict` or without."""

    @property
    def sample(self) -> Any:
        return self[0]


def hollow(kind: type, config: Mapping[str, Any], acts: dict[str, Callable]) -> nn.Module:
    """An instance of a class of diffusers with a configuration and no layers.

    acts: what it does, in the place of the class's own methods."""
    known = signature(kind.__init__).parameters
    default = {k: p.default for k, p in known.items() if p.default is not Parameter.empty}
    said = {k: v for k, v in config.items() if k in known}
    place = {"__module__": kind.__module__, "device": CPU, "dtype": FLOAT}
    made = type(kind.__name__, (kind,), place | acts)
    part = made.__new__(made)
    nn.Module.__init__(part)
    part._internal_dict = FrozenDict(default | said)
    return part


def network(kind: type, config: Mapping[str, Any], observe: Observe) -> nn.Module:
    """A network that tells `observe` the arguments of every call, by name, and answers a ramp."""
    names = signature(kind.forward)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Answer:
        asked = dict(names.bind(self, *args, **kwargs).arguments)
        observe(asked)
        x = asked[[*names.parameters][1]]
        return Answer(([ramp(each.shape) for each in x] if listed(x) else answer(self, x),))

    net = hollow(kind, config, {"forward": forward})
    if "addition_time_embed_dim" in net.config:  # SDXL's pipelines look at this layer
        width = WIDTH + 6 * (net.config.addition_time_embed_dim or 0)
        net.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
    return net


def listed(x: Any) -> bool:
    return isinstance(x, list | tuple)


def answer(net: nn.Module, x: Tensor) -> Tensor:
    """An output for states x: pictures may have other channels, tokens have not."""
    out = net.config.get("out_channels")
    if x.ndim < 4 or out is None or x.shape[1] != net.config.get("in_channels"):
        return ramp(x.shape)
    return ramp((x.shape[0], out, *x.shape[2:]))


def ramp(shape: Sequence[int]) -> Tensor:
    """−1 … 1: neither zero nor constant, as guidance may divide by norms and deviations."""
    return torch.linspace(-1, 1, prod(shape)).reshape(tuple(shape))


def autoencoder(kind: type, config: Mapping[str, Any]) -> nn.Module:
    """A VAE that decodes to nothing: pipelines that can leave their latents alone do so."""

    def decode(self: nn.Module, z: Tensor, *args: Any, **kwargs: Any) -> Answer:
        return Answer((torch.zeros(len(z), 3, 8, 8) * z.mean(),))

    part = hollow(kind, config, {"decode": decode})
    scaling = part.config.get("spatio_temporal_scaling")
    if scaling:  # LTX's pipelines look at what its VAE makes of these
        part.spatial_compression_ratio = part.config.patch_size * 2 ** sum(scaling)
        part.temporal_compression_ratio = part.config.patch_size_t * 2 ** sum(scaling)
    return part


class Tokens:
    """A tokenizer, or a processor: every text is zeros, as long as was asked for."""

    model_max_length, padding_side, pad_token_id = LENGTH, "right", 0
    eos_token = bos_token = pad_token = ""

    def __call__(
        self, text: Any = "", max_length: int | None = None, **other: Any
    ) -> BatchEncoding:
        count, length = len(text) if listed(text) else 1, max_length or LENGTH
        ids = torch.zeros(count, length, dtype=torch.long)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def apply_chat_template(
        self, messages: Any, tokenize: bool = True, max_length: int | None = None, **other: Any
    ) -> Any:
        several = listed(messages) and listed(messages[0])
        return self(["a"] * len(messages) if several else "a", max_length) if tokenize else "a"

    def tokenize(self, text: str) -> list[str]:
        return []

    def encode(self, text: str) -> list[int]:
        return [0] * LENGTH

    def batch_decode(self, ids: Tensor, **other: Any) -> list[str]:
        return [""] * len(ids)


class Encoded:
    """Embedded texts: zeros, whichever layer is asked for; the first item is a class's own."""

    def __init__(self, ids: Tensor, pooled: bool) -> None:
        self.last_hidden_state = torch.zeros(*ids.shape, WIDTH)
        self.pooler_output = self.text_embeds = torch.zeros(len(ids), WIDTH)
        self.first = self.text_embeds if pooled else self.last_hidden_state
        self.hidden_states = AnyLayer(self.last_hidden_state)

    def __getitem__(self, item: Any) -> Any:
        return self.first if item == 0 else AnyLayer(self.last_hidden_state)


class AnyLayer:
    """The same tensor at every index."""

    def __init__(self, states: Tensor) -> None:
        self.states = states

    def __getitem__(self, item: Any) -> Tensor:
        return self.states


class Words(nn.Module):
    """A text encoder. pooled: whether its first output is one vector for a text."""

    device, dtype = CPU, FLOAT

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.config = FrozenDict(projection_dim=WIDTH, hidden_size=WIDTH, use_attention_mask=False)

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Encoded:
        return Encoded(input_ids, self.pooled)


class Inputs(nn.Module):
    """The extra inputs of an exported student: tells which guidance its network is given."""

    device, dtype = CPU, FLOAT

    def __init__(self, config: Mapping[str, Any], observe: Observe) -> None:
        super().__init__()
        self.config, self.observe = FrozenDict(config), observe

    def attach(self, net: nn.Module, t: Tensor, s: Tensor, w: Tensor, labels: Any = None) -> list:
        if "w" in self.config.get("inputs", ["w"]):
            self.observe({"guidance": w})
        return []
