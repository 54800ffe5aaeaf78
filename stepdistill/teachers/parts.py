"""Parts of a pipeline's folder: diffusers' networks, transformers' text encoders and tokenizers.

Every parameter comes from safetensors; what is missing, left over, out of bounds or not finite is a
ValueError that names the folder or file.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import logging
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.utils import logging as transformers_logging

from ..schema import did_you_mean, shown
from . import bounds
from .folder import ENCODER_WEIGHTS, read_json, require_weights

N = TypeVar("N", bound=nn.Module)
OF_ENCODERS = ("model_type", "torch_dtype", "dropout")  # keys that older versions wrote
VOCABULARIES = ("tokenizer.json", "vocab.json")
TEXT_ENCODERS = {each.__name__: each for each in (CLIPTextModel, CLIPTextModelWithProjection)}


def load_network(folder: Path, kind: type[N], limits: Mapping[str, Any]) -> N:
    """A network of diffusers, in float32, every parameter from its safetensors.

    Raises ValueError for a configuration with unknown keys or out of bounds, and for weights that
    are missing, damaged, pickled only or not finite."""
    require_network(folder, kind, limits)
    return loaded(kind, folder, require_weights(folder))


def require_network(folder: Path, kind: type[nn.Module], limits: Mapping[str, Any]) -> None:
    """Raise ValueError for a configuration of a network with unknown keys or out of bounds."""
    file = folder / "config.json"
    config = read_json(file)
    require_keys(config, signature(kind.__init__).parameters, file)
    bounds.require_bounds(config, limits, f"{file}: ")


def load_text_encoder(folder: Path, kind: str) -> nn.Module:
    """A text encoder of transformers, of this class, in float32 and for inference. Raises
    ValueError as `load_network`."""
    require_text_encoder(folder)
    net = loaded(TEXT_ENCODERS[kind], folder, require_weights(folder, ENCODER_WEIGHTS))
    return net.eval().requires_grad_(False)


def require_text_encoder(folder: Path) -> None:
    """Raise ValueError for a configuration that is none of a known text encoder."""
    file = folder / "config.json"
    config = read_json(file)
    if config.get("model_type") != "clip_text_model":
        raise ValueError(
            f"{file}: model_type {shown(config.get('model_type'))}: no CLIP text model"
        )
    require_keys(config, {*signature(CLIPTextConfig.__init__).parameters, *OF_ENCODERS}, file)
    for key in config:
        if key.startswith("_attn"):
            raise ValueError(f"{file}: {shown(key)} chooses code: delete it")
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder / 'adapter_config.json'}: an adapter, no text encoder: merge it")
    bounds.require_bounds(config, bounds.CLIP_TEXT, f"{file}: ")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer of transformers. Raises ValueError where there is none."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ValueError(f"{folder}: no {' or '.join(VOCABULARIES)}")
    with foreign(folder):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def loaded(kind: type[N], folder: Path, variant: str | None) -> N:
    """A network of a library, in float32. Raises ValueError for weights that are missing, left over
    or not finite: libraries warn, and fill what is missing with random numbers."""
    with foreign(folder):
        net, found = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=variant,
        )
        net.float()
    for fault in ("missing_keys", "unexpected_keys"):
        if found[fault]:
            which, first = fault.partition("_")[0], sorted(found[fault])[0]
            raise ValueError(f"{folder}: {which} weights, like {first}: does config.json fit them?")
    require_finite(net, folder)
    return net


def require_finite(net: nn.Module, where: Path) -> None:
    """Raise ValueError for weights that are not finite, or not there."""
    for name, value in net.state_dict().items():
        if value.is_meta:
            raise ValueError(f"{where}: missing weights, like {name}: does config.json fit them?")
        if not torch.isfinite(value).all():
            raise ValueError(f"{where}: the weights {name} are not finite")


def require_keys(config: dict[str, Any], known: Iterable[str], file: Path) -> None:
    """Raise ValueError for the first key of a configuration that is not known: diffusers would
    drop it unsaid."""
    known = [*known]
    for key in config:
        if not key.startswith("_") and key not in known:
            advice = did_you_mean(key, known) or "; delete it if it means nothing"
            raise ValueError(f"{file}: {shown(key)} is no setting this diffusers knows{advice}")


@contextmanager
def foreign(where: Path | str) -> Iterator[None]:
    """diffusers and transformers at work: quiet, and whatever they raise is a ValueError that says
    where."""
    level, other = logging.get_verbosity(), transformers_logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # its log says less than our errors do, on more lines
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    logging.disable_progress_bar()  # the command line shows one bar of its own
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # its constructors check little: anything can come out of them
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise ValueError(f"{where}: {reason} ({type(error).__name__})") from error
    finally:
        logging.set_verbosity(level)
        transformers_logging.set_verbosity(other)
