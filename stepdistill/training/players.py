"""The players of a stage, made from the teacher's network: full copies of it, or roles on it.

With `Adapters`, student, critic and target are low-rank corrections of the teacher's own frozen
network, and the teacher is that network bit for bit; else each is a full copy.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..critic import Critic, Discriminator
from ..data.loader import stream
from ..denoiser import Denoiser
from ..method import Method, Needs, Players
from ..networks.discriminator import Projections, head_for
from ..networks.inputs import KEPT_INPUTS, LogVariance, WithInputs
from ..networks.lora import AdapterView, add_adapter, enable_checkpointing, without_roles
from ..networks.taps import Seen, Taps
from ..networks.views import bare, load_own, own_tensors
from ..resources import pipeline_class
from ..schema import Count, NotNegative, Whole
from ..solver import Sampler
from ..teachers.teacher import Teacher

PLAYERS = ("student", "teacher", "critic", "target")  # that a method may ask for by name
HEAD = "for a discriminator's head to look at: train without a GAN"
LowRank = Literal["student", "critic"]


@dataclass(frozen=True)
class Adapters:
    """Low-rank roles: W + (alpha / rank)·B A on the layers `targets` names; by default on all
    attention projections, or on every layer of a network without attention. rank: the student's.
    critic_rank: 0 for the student's. alpha: 0 for the rank of each. roles: which are low-rank, the
    target as the student; the others are full copies."""

    rank: Count = 16
    critic_rank: Whole = 0
    alpha: NotNegative = 0.0
    targets: tuple[str, ...] = ()
    roles: tuple[LowRank, ...] = ("student", "critic")

    def rank_of(self, role: str) -> int:
        """Of a player; those that come from the student have its own."""
        return self.critic_rank if role == "critic" and self.critic_rank else self.rank


@dataclass(frozen=True)
class PlayerSettings:
    """How players are made.

    adapters: None for full copies. checkpointing: recompute blocks in the backward. target: decay
    of the target player; at 0 it is the student itself. skip: whether the student gets the boundary
    condition of consistency functions. inputs: of the student's network, see `networks.inputs`.
    start, critic: their own tensors to begin with, None for the teacher's; a discriminator's head
    is always new. seed: of the first weights of adapters, heads and inputs.
    """

    sampler: Sampler = Sampler()
    adapters: Adapters | None = None
    checkpointing: bool = False
    target: float = 0.95
    skip: bool = False
    inputs: tuple[str, ...] = ()
    start: dict[str, Tensor] | None = None
    critic: dict[str, Tensor] | None = None
    seed: tuple[int, ...] = (0,)

    def is_low_rank(self, role: str) -> bool:
        """Whether a role is an adapter; the student's twins are what it is."""
        if self.adapters is None:
            return False
        return ("critic" if role == "critic" else "student") in self.adapters.roles


def make_players(method: Method, teacher: Teacher, settings: PlayerSettings) -> Players:
    """The players `method` asks for. Adapters of an earlier stage leave the teacher's network.

    Raises ValueError for a player there is not, and for a network that lacks what one needs."""
    needs, base = method.needs, teacher.denoiser
    unknown = sorted(set(needs.players) - set(PLAYERS))
    if unknown:
        raise ValueError(f"method needs the player {unknown[0]}; there are {', '.join(PLAYERS)}")
    if settings.adapters is not None:
        without_roles(base.net.net)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(*settings.seed, 3).initial_seed())
        student = replace(base, net=student_of(teacher, settings), skip=settings.skip, w=teacher.w)
        if settings.start is not None:
            load_known(student.net, settings.start)
        critic = critic_of(needs, teacher, settings) if "critic" in needs.players else None
        discriminator = None
        if needs.discriminator == "teacher":
            discriminator = discriminator_of(needs, teacher)
        target = target_of(student, settings) if "target" in needs.players else None
        initial = copy_of(student, "initial", settings) if needs.initial else None
    return Players(
        student,
        teacher.guided,
        critic,
        target,
        initial,
        discriminator,
        sampler=settings.sampler,
    )


def load_known(net: nn.Module, start: dict[str, Tensor]) -> None:
    """Begin with `start`; what whoever it is from did not have stays as it was made.

    Raises ValueError for a role on layers that the new one is not on."""
    own = own_tensors(net)
    other = next((name for name in start if ".lora_" in name and name not in own), None)
    if other is not None:
        raise ValueError(f"begins from a LoRA of {other}, a layer that adapters.targets leave out")
    load_own(net, {name: start.get(name, own[name]) for name in own})


def network(base: nn.Module, role: str, settings: PlayerSettings) -> nn.Module:
    """A network for `role`: a copy of the base, or a new adapter's view of it."""
    if not settings.is_low_rank(role):
        net = deepcopy(base) if settings.adapters is None else without_roles(deepcopy(base.net))
        if settings.checkpointing:
            enable_checkpointing(net)
        return net
    wanted, shared = settings.adapters, base.net
    alpha, targets = wanted.alpha or None, wanted.targets or None
    device = next(shared.parameters()).device
    add_adapter(shared, role, rank=wanted.rank_of(role), alpha=alpha, targets=targets)
    shared.to(device)
    if settings.checkpointing:
        enable_checkpointing(shared)
    return AdapterView(shared, role)


def student_of(teacher: Teacher, settings: PlayerSettings) -> nn.Module:
    """The student's network, with its inputs. Raises ValueError if it has no place for them."""
    base, inputs = teacher.denoiser.net, settings.inputs
    device = next(base.parameters()).device
    if "adapters" in inputs:
        return WithInputs(base, guidance_adapters(teacher), frozen=True).to(device)
    net = network(base, "student", settings)
    if not inputs:
        return net
    logvar = LogVariance() if "logvar" in inputs else None
    return WithInputs(net, extra_inputs(teacher, inputs), logvar).to(device)


def extra_inputs(teacher: Teacher, inputs: tuple[str, ...]) -> nn.Module | None:
    """Embeddings of a student's further inputs; None for none."""
    names, path = [name for name in inputs if name in KEPT_INPUTS], teacher.backbone.time_embedding
    if not names:
        return None
    own = teacher.backbone.guidance_input() if names == ["w"] else None
    if own is not None:
        return own
    taps = taps_of(teacher, (path,), "for more inputs: choose a method without")
    (seen,) = outputs_of(teacher, taps)
    return pipeline_class("extra_inputs", "ExtraInputs")(names, seen.shape[-1], path)


def guidance_adapters(teacher: Teacher) -> nn.Module:
    """New adapters for the teacher's network, at each of its blocks that the backbone names."""
    paths = teacher.backbone.taps()
    # One at a time, for several come in the order of the pass, not of their paths.
    taps_of(teacher, paths, "for an adapter")
    taps = [taps_of(teacher, (path,), "for an adapter") for path in paths]
    outputs = [outputs_of(teacher, each)[0] for each in taps]
    if not all(isinstance(output, Tensor) for output in outputs):
        raise ValueError("its blocks put out several streams, adapters know one: no such method")
    shapes = [tuple(output.shape[1:]) for output in outputs]
    labels = teacher.classes + 1 if "label" in teacher.null else 0
    return pipeline_class("guidance_adapters", "GuidanceAdapters")(paths, shapes, labels)


def target_of(student: Denoiser, settings: PlayerSettings) -> Denoiser:
    """The student itself, or a network of its own that starts where the student does."""
    return copy_of(student, "target", settings) if settings.target > 0 else student


def copy_of(student: Denoiser, role: str, settings: PlayerSettings) -> Denoiser:
    """A network of its own that starts where the student does."""
    net = student.net
    if not settings.is_low_rank(role):
        return frozen(replace(student, net=deepcopy(net)))
    if isinstance(net, WithInputs):
        copy = net.over(network(net.net, role, settings))
    else:
        copy = network(net, role, settings)
    load_own(copy, own_tensors(net))
    return frozen(replace(student, net=copy))


def critic_of(needs: Needs, teacher: Teacher, settings: PlayerSettings) -> Critic:
    """The teacher's copy or the last stage's critic, with a discriminator's head if needed."""
    denoiser = teacher.denoiser
    net = network(denoiser.net, "critic", settings)
    if needs.stepwise:
        net = WithInputs(net, extra_inputs(teacher, ("s",))).to(teacher.device)
    denoiser = replace(denoiser, net=net)
    if settings.critic is not None:
        load_known(net, settings.critic)
    if needs.discriminator != "critic":
        return Critic(denoiser)
    taps = taps_of(teacher, (needs.tap or teacher.backbone.tap,), HEAD)
    seen = features_of(teacher, taps)
    return Critic(denoiser, head_for(*seen).to(seen[0].device), taps)


def discriminator_of(needs: Needs, teacher: Teacher) -> Discriminator:
    """New heads on the teacher's frozen network, at the block asked for or at all it names."""
    paths = teacher.backbone.taps() if needs.tap is None else (needs.tap,)
    taps = taps_of(teacher, paths, HEAD)
    seen = features_of(teacher, taps)
    return Discriminator(teacher.denoiser, Projections(seen).to(seen[0].device), taps)


def frozen(player: Denoiser) -> Denoiser:
    """The player, none of whose own tensors asks for a gradient; others' on its base may."""
    for tensor in own_tensors(player.net).values():
        tensor.requires_grad_(False)
    return player


def taps_of(teacher: Teacher, paths: tuple[str, ...], purpose: str) -> Taps:
    """Taps at `paths`. Raises ValueError, with their purpose, for one the network has not."""
    net = bare(teacher.denoiser.net)
    if not paths:
        raise ValueError(f"{type(teacher.backbone).__name__} names no block {purpose}")
    parts = {name for name, _ in net.named_modules()} - {""}
    for path in paths:
        if path not in parts:
            raise ValueError(f"{type(net).__name__} has no block '{path}' {purpose}")
    return teacher.backbone.read(*paths)


def outputs_of(teacher: Teacher, taps: Taps) -> list[Any]:
    """What the blocks put out for one sample of zeros, in the order of the pass."""
    return _seen(teacher, taps)[0].outputs


def features_of(teacher: Teacher, taps: Taps) -> list[Tensor]:
    """The features (1, c, *positions) of one sample of zeros, in the order of the pass."""
    seen, x = _seen(teacher, taps)
    return seen.features(x)


@torch.no_grad()
def _seen(teacher: Teacher, taps: Taps) -> tuple[Seen, Tensor]:
    denoiser = teacher.denoiser
    x = torch.zeros(1, *teacher.event, device=teacher.device)
    with taps.open(denoiser.net) as seen:
        denoiser(x, torch.tensor([denoiser.process.t_max]), teacher.some(1))
    return seen, x
