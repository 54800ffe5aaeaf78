"""The players of a stage, made from the teacher's network: full copies of it, or roles on it.

With `Adapters`, student, critic and target are low-rank corrections of the teacher's own frozen
network, and the teacher is that network bit for bit; else each is a full copy.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..critic import Critic, Discriminator
from ..data.loader import stream
from ..denoiser import Denoiser
from ..method import Method, Needs, Players
from ..networks.discriminator import Projections, head_for
from ..networks.inputs import KEPT_INPUTS, LogVariance, WithInputs
from ..networks.lora import AdapterView, add_adapter, enable_checkpointing, without_roles
from ..networks.taps import features
from ..networks.views import bare, load_own, own_tensors
from ..resources import pipeline_class
from ..schema import Count, NotNegative
from ..solver import Sampler
from ..teachers.teacher import Teacher

PLAYERS = ("student", "teacher", "critic", "target")  # that a method may ask for by name
LowRank = Literal["student", "critic"]


@dataclass(frozen=True)
class Adapters:
    """Low-rank roles: W + (alpha / rank)·B A on the layers `targets` names; by default on all
    attention projections, or on every layer of a network without attention. alpha: 0 for rank.
    roles: which are low-rank, the target as the student; the others are full copies."""

    rank: Count = 16
    alpha: NotNegative = 0.0
    targets: tuple[str, ...] = ()
    roles: tuple[LowRank, ...] = ("student", "critic")


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
            # What the last stage's student did not have stays as it was made.
            own = own_tensors(student.net)
            load_own(student.net, {name: settings.start.get(name, own[name]) for name in own})
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
    add_adapter(shared, role, rank=wanted.rank, alpha=alpha, targets=targets)
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
    names, denoiser = [name for name in inputs if name in KEPT_INPUTS], teacher.denoiser
    if not names:
        return None
    part = part_of(denoiser, denoiser.embedding, "for more inputs: choose a method without")
    (seen,) = features_of(denoiser, [part], teacher)
    return pipeline_class("extra_inputs", "ExtraInputs")(names, seen.shape[-1], denoiser.embedding)


def guidance_adapters(teacher: Teacher) -> nn.Module:
    """New adapters for the teacher's network, at each of its blocks that the backbone names."""
    denoiser = teacher.denoiser
    parts = [part_of(denoiser, path, "for an adapter") for path in denoiser.places]
    # One at a time, for several come in the order of the pass, not of their paths.
    shapes = [tuple(features_of(denoiser, [part], teacher)[0].shape[1:]) for part in parts]
    labels = 0 if teacher.classes is None else teacher.classes + 1
    kind = pipeline_class("guidance_adapters", "GuidanceAdapters")
    return kind(denoiser.places, shapes, labels)


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
    denoiser = replace(denoiser, net=network(denoiser.net, "critic", settings))
    if settings.critic is not None:
        load_own(denoiser.net, settings.critic)
    if needs.discriminator != "critic":
        return Critic(denoiser)
    blocks, seen = seen_by(denoiser, (needs.tap or denoiser.block,), teacher)
    return Critic(denoiser, head_for(*seen).to(seen[0].device), blocks)


def discriminator_of(needs: Needs, teacher: Teacher) -> Discriminator:
    """New heads on the teacher's frozen network, at the block asked for or at all it names."""
    denoiser = teacher.denoiser
    paths = denoiser.places if needs.tap is None else (needs.tap,)
    blocks, seen = seen_by(denoiser, paths, teacher)
    return Discriminator(denoiser, Projections(seen).to(seen[0].device), blocks)


def seen_by(
    denoiser: Denoiser, paths: Sequence[str], teacher: Teacher
) -> tuple[list[nn.Module], list[Tensor]]:
    """The blocks at `paths`, and what each makes of one sample."""
    purpose = "for a discriminator's head to look at: train without a GAN"
    blocks = [part_of(denoiser, path, purpose) for path in paths]
    return blocks, features_of(denoiser, blocks, teacher)


def frozen(player: Denoiser) -> Denoiser:
    """The player, none of whose own tensors asks for a gradient; others' on its base may."""
    for tensor in own_tensors(player.net).values():
        tensor.requires_grad_(False)
    return player


def part_of(denoiser: Denoiser, path: str, purpose: str) -> nn.Module:
    """The part of the network at `path`. Raises ValueError, with its purpose, if it has none."""
    net = bare(denoiser.net)
    try:
        part = net.get_submodule(path) if path else None
    except AttributeError:
        part = None
    if part is None:
        raise ValueError(f"{type(net).__name__} has no block '{path}' {purpose}")
    return part


@torch.no_grad()
def features_of(denoiser: Denoiser, blocks: list[nn.Module], teacher: Teacher) -> list[Tensor]:
    """What the blocks put out for one sample of zeros, in the order of the pass."""
    device = next(denoiser.net.parameters()).device
    x, t = torch.zeros(1, *teacher.event, device=device), torch.tensor([denoiser.process.t_max])
    label = teacher.labels(1)
    with features(blocks) as seen:
        denoiser(x, t, None if label is None else label.to(device))
    return seen
