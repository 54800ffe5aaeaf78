"""What a method is: hyperparameters, the players it needs, and whose turn it is.

A method is a frozen dataclass. Its fields are its configuration; it holds no weights, no optimiser
and no step counter, so a loss is a pure function of (players, batch).

Randomness comes from the two streams a batch carries and from nowhere else: `shared`, equal on
all ranks, for whatever changes control flow (an exit step, a number of steps), and `local` for
everything else.

Two things reach beyond one micro-batch, and a loss stays a function of what it is given all the
same. What compares the samples of a whole turn says in `Turn.rows` what it must know of each, and
gets them, of all micro-batches and processes, from `batch.pool(rows)`. What is remembered from turn
to turn comes out as `Loss.kept`, the same on all processes, and comes back in `Players.kept`; it is
part of a checkpoint, and forgotten where the step was not finite.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .conditions import Cond
from .critic import Critic, Discriminator
from .denoiser import AnyDenoiser, Denoiser
from .process import NoiseProcess
from .resources import named
from .schema import check_fields
from .solver import Sampler, Trajectory


def alone(rows: Tensor) -> Tensor:
    """The rows of a turn that is one micro-batch of one process."""
    return rows


@dataclass(frozen=True)
class Batch:
    """What a loss is computed on.

    x0: clean samples (b, *event); methods without data read only its shape, dtype and device.
    progress: the share of the stage's updates that are done, in [0, 1). path: the trajectories
    whose ends x0 is, where the run has a cache. pool: rows (b, k), one a sample and without a
    graph, to those of all samples of the turn (B, k), in the order of micro-batches and ranks.
    """

    x0: Tensor
    cond: Cond
    shared: torch.Generator
    local: torch.Generator
    progress: float = 0.0
    path: Trajectory | None = None
    pool: Callable[[Tensor], Tensor] = alone

    def uniform(self, low: float, high: float) -> Tensor:
        """(b,) numbers between the two, from the local stream."""
        return low + (high - low) * torch.rand(len(self.x0), generator=self.local)

    def noise(self) -> Tensor:
        """Fresh standard normal noise like x0, from the local stream."""
        return torch.randn(self.x0.shape, generator=self.local).to(self.x0)


class Sample(NamedTuple):
    """What a student made, x (b, *event), from which condition, and by which of its steps.

    step: the time (b,) at which it was asked, None where nobody asks.
    """

    x: Tensor
    cond: Cond
    step: Tensor | None = None

    def detached(self) -> "Sample":
        """The same without a graph, as it is carried to later turns."""
        return self._replace(x=self.x.detach())


class Loss(NamedTuple):
    """terms: weighted scalars, minimised together. shown: what else to log. carry: for later turns.
    kept: what the method remembers, by name; equal for all micro-batches and processes of a turn.

    Every term keeps its graph, so that their gradients can be compared.
    """

    terms: dict[str, Tensor]
    shown: dict[str, Tensor] = {}
    carry: Sample | None = None
    kept: dict[str, Tensor] = {}

    @property
    def total(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


@dataclass
class Players:
    """The players of a stage; a method names those it needs.

    teacher is frozen and already guided; target is an average of the student, or the student;
    initial is the student as the stage found it; discriminator is a head on the teacher's network.
    sampler: how the student will be sampled, for methods that train on what it makes. kept: what
    the method's losses have kept so far.
    """

    student: Denoiser
    teacher: AnyDenoiser | None = None
    critic: Critic | None = None
    target: Denoiser | None = None
    initial: Denoiser | None = None
    discriminator: Discriminator | None = None
    carry: Sample | None = None
    sampler: Sampler = Sampler()
    kept: dict[str, Tensor] = field(default_factory=dict)

    def trained(self) -> dict[str, nn.Module]:
        """What each player that can move is trained in, by its name in a turn."""
        movers = {
            "student": self.student,
            "critic": self.critic,
            "discriminator": self.discriminator,
        }
        return {name: mover.net for name, mover in movers.items() if mover is not None}

    def at_guidance(self, w: Tensor) -> "Players":
        """The same players at guidance w (b,), of the teacher and as an input of the others."""
        student, teacher = replace(self.student, w=w), replace(self.teacher, w=w)
        target = None if self.target is None else replace(self.target, w=w)
        return replace(self, student=student, teacher=teacher, target=target)


class Turn(NamedTuple):
    """One optimiser step: the player that moves, and its loss.

    rows: what the loss pools of each sample, (b, k), as it would give it to `batch.pool`. Asked
    without a graph for every micro-batch before the first loss, where there are several.
    """

    player: str
    loss: Callable[[Players, Batch], Loss]
    rows: Callable[[Players, Batch], Tensor] | None = None


@dataclass(frozen=True)
class Needs:
    """What a method, as it is set, asks of a run.

    players: those it trains or asks. data: whether it looks at clean samples. trajectories: whether
    it is trained on the teacher's cached trajectories. initial: whether the student as the stage
    found it must be kept. guidance: the range from which it draws the teacher's guidance itself,
    None for the run's. discriminator: whose features its discriminator looks at, None for none.
    tap: path of the block these come from, None for the backbone's own choice. inputs: what the
    student's network needs beyond the teacher's, see `networks.inputs`. stepwise: whether the
    critic has the input s, the time of the student's step that made a sample. boundary: whether the
    student's x̂₀ must tend to x_t as σ → 0. batch: samples of a turn, of all micro-batches and
    processes, below which its loss means little.
    """

    players: tuple[str, ...] = ("student", "teacher")
    data: bool = True
    trajectories: bool = False
    initial: bool = False
    guidance: tuple[float, float] | None = None
    discriminator: Literal["critic", "teacher"] | None = None
    tap: str | None = None
    inputs: tuple[str, ...] = ()
    stepwise: bool = False
    boundary: bool = False
    batch: int = 1


class Method(ABC):
    """Base of all methods.

    needs: what it asks of a run; a property where that depends on its settings. paper: title and
    arXiv id. dropout: whether that of the student's network, if it has any, is at work in training,
    in the student, its target and its initial state with one mask a micro-batch.
    """

    needs: ClassVar[Needs] = Needs()
    paper: ClassVar[str]
    dropout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def turns(self) -> tuple[Turn, ...]:
        """One cycle of training. The trainer repeats it, one optimiser step per turn."""

    def trained_times(self, process: NoiseProcess, sampler: Sampler) -> Tensor | None:
        """The only times (n,) the student is ever asked at, or None for a continuum.

        Raises ValueError for a sampler the method cannot train."""
        return None

    def check_teacher(self, teacher: AnyDenoiser) -> None:
        """Raises ValueError for a teacher the method, as it is set, cannot learn from."""
        return None

    @abstractmethod
    def passes(self, sampler: Sampler) -> "Passes":
        """The network passes of one student update, counted by formula."""


class Passes(NamedTuple):
    """Network passes of one student update, per batch; means where chance decides.

    trained: forward and backward. frozen: forward only, by student-sized networks.
    teacher: calls of the teacher denoiser; guidance doubles each.
    """

    trained: float
    frozen: float
    teacher: float

    def work(self, nfe: int) -> float:
        """All passes in units of one forward, a backward as two; nfe: networks a teacher call."""
        return 3 * self.trained + self.frozen + nfe * self.teacher


def load(name: str) -> type[Method]:
    """The one Method of module `name`: a file of stepdistill/methods, or any importable one.

    Raises ValueError if there is no such module, or not exactly one method in it.
    """
    return named("methods", name, Method)
