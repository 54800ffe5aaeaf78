"""What every scored model costs that can be called: which call is measured, and of what parts.

Runs and our students are called as they are scored, other pipelines as their users call them;
images that exist already cost nothing that anyone knows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..evaluation.costs import ByPart, Maker, Parts, measure
from ..evaluation.evaluate import Sampled
from ..evaluation.rows import Row
from ..evaluation.suite import Suite
from ..networks.views import parameter_count

NETWORKS = ("transformer", "unet", "prior", "decoder")  # names of the part that is distilled
OURS = "inputs"  # of a network that takes more than it was made for
CODERS = ("vae", "movq", "vqgan")  # in names of the part that makes pixels
TEXT = "text_encoder"


def with_costs(
    rows: Sequence[Row],
    samplers: Sequence[Sampled],
    suite: Suite,
    observe: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """The rows of these samplers, in order, with what they cost; real images, at the end, as they
    are. A measurement that fails says so, and leaves the scores alone."""
    found = []
    for row, sampler in zip(rows, samplers):
        call = sampler.call or drawing(sampler, suite)
        if call is not None:
            costs = measure(call, sampler.parts, row.n, suite.batch)
            row = replace(row, costs=replace(costs, parameters=parameters_of(sampler.parts)))
        found.append(row)
        observe(len(found), len(samplers))
    return [*found, *rows[len(found) :]]


def drawing(sampler: Sampled, suite: Suite) -> Maker | None:
    """The call of a sampler that is given its noise, None for one that is not."""
    if sampler.sample is None:
        return None

    @torch.no_grad()
    def call(count: int) -> None:
        source = torch.Generator().manual_seed(0)
        noise = torch.randn(count, *sampler.event, generator=source)
        asked = sampler.asked(suite.reference.asked(count), 0, count)
        sampler.sample(noise, asked, source)

    return call


def parameters_of(parts: Parts) -> ByPart:
    """How many there are in each part."""
    return ByPart(**{name: sum(map(parameter_count, nets)) for name, nets in parts.items()})


def parts_of(pipeline: DiffusionPipeline) -> Parts:
    """The networks of a pipeline, by what they are for."""
    parts = {"network": [], "vae": [], "text_encoder": [], "other": []}
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            parts[part_of(name)].append(component)
    return parts


def part_of(name: str) -> str:
    """What a component is for, by the name that pipelines give it."""
    if TEXT in name:
        return "text_encoder"
    if any(coder in name for coder in CODERS):
        return "vae"
    return "network" if name.startswith((*NETWORKS, OURS)) else "other"
