"""The players of a stage, made from the teacher's network: full copies of it, or roles on it.

With `Adapters`, student, critic and target are low-rank corrections of the teacher's own frozen
network, and the teacher is that network bit for bit; else each is a full copy.
"""

from copy import deepcopy
from dataclasses import dataclass, replace

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
from .critic import Critic, features
from .data import stream
from .denoiser import Denoiser
from .heads import head_for
from .method import Method, Players
from .schema import Count, NotNegative
from .solver import Sampler
from .teacher import Teacher

ROLES = ("student", "teacher", "critic", "target")


@dataclass(frozen=True)
class Adapters:
    """Low-rank roles: W + (alpha / rank)·B A on the layers `targets` names; by default on all
    attention projections, or on every layer of a network without attention. alpha: 0 for rank."""

    rank: Count = 16
    alpha: NotNegative = 0.0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Casting:
    """How players are made.

    adapters: None for full copies. checkpointing: recompute blocks in the backward. target: decay
    of the target player; at 0 it is the student itself. skip: whether the student gets the boundary
    condition of consistency functions. start, critic: their own tensors to begin with, None for the
    teacher's; a realness head is always new.
    seed: of adapters' and heads' first weights.
    """

    sampler: Sampler = Sampler()
    adapters: Adapters | None = None
    checkpointing: bool = False
    target: float = 0.95
    skip: bool = False
    start: dict[str, Tensor] | None = None
    critic: dict[str, Tensor] | None = None
    seed: tuple[int, ...] = (0,)


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
        student = replace(base, net=network(base.net, "student", casting), skip=casting.skip)
        if casting.start is not None:
            load_own(student.net, casting.start)
        critic = critic_of(method, teacher, casting) if "critic" in method.roles else None
        target = target_of(student, casting) if "target" in method.roles else None
    return Players(student, teacher.guided, critic, target, sampler=casting.sampler)


def network(base: nn.Module, role: str, casting: Casting) -> nn.Module:
    """A network for `role`: a copy of the base, or a new adapter's view of it."""
    if casting.adapters is None:
        net = deepcopy(base)
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


def target_of(student: Denoiser, casting: Casting) -> Denoiser:
    """The student itself, or a network of its own that starts where the student does."""
    if casting.target == 0:
        return student
    if casting.adapters is None:
        return replace(student, net=deepcopy(student.net))
    net = network(student.net, "target", casting)
    load_own(net, own_tensors(student.net))
    return replace(student, net=net)


def critic_of(method: Method, teacher: Teacher, casting: Casting) -> Critic:
    """The teacher's twin or the last stage's critic, with a head if the method needs one."""
    denoiser = replace(teacher.denoiser, net=network(teacher.denoiser.net, "critic", casting))
    if casting.critic is not None:
        load_own(denoiser.net, casting.critic)
    if not method.needs_head:
        return Critic(denoiser)
    block = block_of(denoiser)
    seen = features_of(denoiser, block, teacher)
    return Critic(denoiser, head_for(seen).to(seen.device), block)


def block_of(denoiser: Denoiser) -> nn.Module:
    """The part of the network that heads look at. Raises ValueError if it has none."""
    net = denoiser.net.net if isinstance(denoiser.net, AdapterView) else denoiser.net
    try:
        block = net.get_submodule(denoiser.block) if denoiser.block else None
    except AttributeError:
        block = None
    if block is None:
        raise ValueError(
            f"{type(net).__name__} has no block '{denoiser.block}' for a realness head to look at: "
            "train without a GAN"
        )
    return block


@torch.no_grad()
def features_of(denoiser: Denoiser, block: nn.Module, teacher: Teacher) -> Tensor:
    """What a block puts out for one sample of zeros."""
    device = next(denoiser.net.parameters()).device
    x, t = torch.zeros(1, *teacher.event, device=device), torch.tensor([denoiser.process.t_max])
    label = teacher.labels(1)
    with features(block) as seen:
        denoiser(x, t, None if label is None else label.to(device))
    return seen[0]
