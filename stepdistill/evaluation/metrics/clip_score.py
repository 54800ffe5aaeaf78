"""The CLIP score (Hessel et al. 2021, arXiv 2104.08718): the mean cosine of an image and its prompt
in CLIP's space. Elsewhere it is written × 100, or × 2.5 and not below zero.

Numbers of different models, or prefixes, do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..extractor import CLIP
from ..metric import Made, Metric
from ..reference import Reference, prompts_in


@dataclass
class ClipScore(Metric):
    """model: ViT-B/32, ViT-L/14, ViT-L/14-336, ViT-g/14, or a folder of transformers' CLIPModel.
    prefix: stands before each prompt, as "A photo depicts "."""

    about = "the mean cosine of an image and its prompt in CLIP's space."
    lower_is_better = False
    decimals = 4
    needs_asked = True
    model: str = "ViT-L/14"
    prefix: str = ""
    clip: CLIP = field(init=False, repr=False)
    known: dict[str, Tensor] = field(init=False, repr=False)
    cosines: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.space = f"clip-image:{self.model}"

    def open(self, reference: Reference) -> None:
        if not prompts_in(reference.asked(1)):
            raise ValueError("the task asks for no prompts")
        self.clip, self.known = reference.space(self.space).network, {}

    def reset(self) -> None:
        self.cosines = []

    def update(self, made: Made) -> None:
        if made.prompts:
            images = made.features(self.space)
            self.cosines.append((images * self.texts(made.prompts)).double().sum(1))

    def merge(self, other: ClipScore) -> None:
        self.cosines += other.cosines

    def compute(self) -> list[float]:
        return [torch.cat(self.cosines).mean().item()] if self.cosines else []

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Of n prompts (n, d). Each is read once, whoever is asked for it: all samplers share."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            read = self.clip.texts([self.prefix + prompt for prompt in new])
            self.known.update(zip(new, read))
        return torch.stack([self.known[prompt] for prompt in prompts])
