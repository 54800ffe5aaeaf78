"""The players of a stage, made from the teacher's network: full copies of it, or roles on it.

With `Adapters`, student, critic and target are low-rank corrections of the teacher's own frozen
network, and the teacher is that network bit for bit; else each is a full copy.
"""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .adapters import (
    AdapterView,
    add_adapter,
    enable_checkpointing,
    load_own,
    own_tensors,
    without_roles,
)
from .critic import Critic
from .data import stream
from .denoiser import Denoiser
from .features import features
from .heads import Projections, head_for
from .informed import LASTING, Informed, LogVariance, bare
from .method import Method, Players
from .schema import Count, NotNegative
from .shipped import pipeline_class
from .solver import Sampler
from .teacher import Teacher

ROLES = ("student", "teacher", "critic", "target")
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
class Casting:
    """How players are made.

    adapters: None for full copies. checkpointing: recompute blocks in the backward. target: decay
    of the target player; at 0 it is the student itself. skip: whether the student gets the boundary
    condition of consistency functions. extras: of the student's network, see `informed`.
    start, critic: their own tensors to begin with, None for the teacher's; a realness head is
    always new. seed: of adapters', heads' and extras' first weights.
    """

    sampler: Sampler = Sampler()
    adapters: Adapters | None = None
    checkpointing: bool = False
    target: float = 0.95
    skip: bool = False
    extras: tuple[str, ...] = ()
    start: dict[str, Tensor] | None = None
    critic: dict[str, Tensor] | None = None
    seed: tuple[int, ...] = (0,)

    def is_low_rank(self, role: str) -> bool:
        """Whether a role is an adapter; the student's twins are what it is."""
        if self.adapters is None:
            return False
        return ("critic" if role == "critic" else "student") in self.adapters.roles


def cast(method: Method, teacher: Teacher, casting: Casting) -> Players:
    """The players `method` asks for. Adapters of an earlier stage leave the teacher's network.

    Raises ValueError for a role nobody plays, and for a network that lacks what it needs."""
    unknown = sorted(set(method.roles) - set(ROLES))
    if unknown:
        raise ValueError(f"method needs the role {unknown[0]}; there are {', '.join(ROLES)}")
    base = teacher.denoiser
    if casting.adapters is not None:
        without_roles(base.net.net)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(*casting.seed, 3).initial_seed())
        student = replace(base, net=student_of(teacher, casting), skip=casting.skip, w=teacher.w)
        if casting.start is not None:
            # What the last stage's student did not have stays as it was born.
            own = own_tensors(student.net)
            load_own(student.net, {name: casting.start.get(name, own[name]) for name in own})
        critic = critic_of(method, teacher, casting)
        target = target_of(student, casting) if "target" in method.roles else None
        origin = twin_of(student, "origin", casting) if method.needs_origin else None
    return Players(student, teacher.guided, critic, target, origin, sampler=casting.sampler)


def network(base: nn.Module, role: str, casting: Casting) -> nn.Module:
    """A network for `role`: a copy of the base, or a new adapter's view of it."""
    if not casting.is_low_rank(role):
        net = deepcopy(base) if casting.adapters is None else without_roles(deepcopy(base.net))
        if casting.checkpointing:
            enable_checkpointing(net)
        return net
    wanted, shared = casting.adapters, base.net
    alpha, targets = wanted.alpha or None, wanted.targets or None
    device = next(shared.parameters()).device
    add_adapter(shared, role, rank=wanted.rank, alpha=alpha, targets=targets)
    shared.to(device)
    if casting.checkpointing:
        enable_checkpointing(shared)
    return AdapterView(shared, role)


def student_of(teacher: Teacher, casting: Casting) -> nn.Module:
    """The student's network, with its extras. Raises ValueError if it has no place for them."""
    base, extras = teacher.denoiser.net, casting.extras
    device = next(base.parameters()).device
    if "adapters" in extras:
        return Informed(base, guidance_adapters(teacher), frozen=True).to(device)
    net = network(base, "student", casting)
    if not extras:
        return net
    logvar = LogVariance() if "logvar" in extras else None
    return Informed(net, extra_inputs(teacher, extras), logvar).to(device)


def extra_inputs(teacher: Teacher, extras: tuple[str, ...]) -> nn.Module | None:
    """Embeddings of what a student is told more; None for nothing."""
    names, denoiser = [name for name in extras if name in LASTING], teacher.denoiser
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


def target_of(student: Denoiser, casting: Casting) -> Denoiser:
    """The student itself, or a network of its own that starts where the student does."""
    return twin_of(student, "target", casting) if casting.target > 0 else student


def twin_of(student: Denoiser, role: str, casting: Casting) -> Denoiser:
    """A network of its own that starts where the student does."""
    net = student.net
    if not casting.is_low_rank(role):
        return frozen(replace(student, net=deepcopy(net)))
    if isinstance(net, Informed):
        twin = deepcopy(net, {id(net.net): network(net.net, role, casting)})
    else:
        twin = network(net, role, casting)
    load_own(twin, own_tensors(net))
    return frozen(replace(student, net=twin))


def critic_of(method: Method, teacher: Teacher, casting: Casting) -> Critic | None:
    """The teacher's twin or the last stage's critic, with a head if the method needs one; for a
    judge the teacher itself, with a head; None if the method wants neither."""
    denoiser, twin = teacher.denoiser, "critic" in method.roles
    if twin:
        denoiser = replace(denoiser, net=network(denoiser.net, "critic", casting))
        if casting.critic is not None:
            load_own(denoiser.net, casting.critic)
        if not method.needs_head:
            return Critic(denoiser)
    elif not method.needs_judge:
        return None
    paths = (method.block or denoiser.block,) if twin else denoiser.places
    purpose = "for a realness head to look at: train without a GAN"
    blocks = [part_of(denoiser, path, purpose) for path in paths]
    seen = features_of(denoiser, blocks, teacher)
    head = head_for(*seen) if twin else Projections(seen)
    return Critic(denoiser, head.to(seen[0].device), blocks, frozen=not twin)


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
