"""The training loop. It knows turns, optimisers and averages, and names no method.

    pick the turn → only its player requires grad → loss → backward → mean over ranks → clip →
    step → averages → log

Gradients are averaged over processes once per optimiser step, explicitly, instead of by a wrapper
around each network: a turn may call any network any number of times, through hooks, checkpointing
and forward-mode derivatives, and synchronisation cannot be skipped or deadlock. Two processes
therefore equal one process with two accumulated micro-batches.

Every random number is keyed by (run seed, stage, turn) or (run seed, stage, turn, micro-batch):
resuming a run continues exactly where it stopped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..conditions import move
from ..data.loader import Data, Drawn, stream
from ..method import Batch, Loss, Method, Players, Sample, Turn
from ..networks.dropout import at_work
from ..networks.ema import EMA
from ..networks.views import load_own, own_tensors, trainable
from ..schema import Count, Decay, NotNegative, Positive, Whole
from .checkpoint import State


@dataclass(frozen=True)
class Optimiser:
    """How one player moves.

    lr: peak learning rate. warmup: updates of linear warm-up. schedule: from there to the last
    update. clip: largest norm of the gradient, 0 for none.
    """

    name: Literal["adamw", "adam", "radam"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    clip: NotNegative = 1.0
    warmup: Whole = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        settings = {"lr": self.lr, "betas": tuple(self.betas), "weight_decay": self.weight_decay}
        if self.name == "radam":
            return torch.optim.RAdam(trainable(net), **settings)
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        # One kernel for all tensors: tensor by tensor, the step is 3 % of a small network's update.
        return kind(trainable(net), **settings, fused=True)

    def lr_at(self, update: int, total: int) -> float:
        """The learning rate of update 0 … total − 1."""
        if update < self.warmup:
            return self.lr * (update + 1) / self.warmup
        left = 1 - (update - self.warmup) / max(total - self.warmup, 1)
        if self.schedule == "linear":
            return self.lr * left
        if self.schedule == "cosine":
            return self.lr * (1 - cos(pi * left)) / 2
        return self.lr


@dataclass(frozen=True)
class Training:
    """How a method is trained.

    updates: student updates. batch: samples per micro-batch and process. ema: decay of the exported
    average of the student. target_ema: decay of the target player, 0 for the student itself.
    optimiser: of the student; the other players that are trained have one each. skips: non-finite
    steps of a player in a row at which training stops.
    """

    updates: Count = 1000
    batch: Count = 128
    accumulation: Count = 1
    optimiser: Optimiser = Optimiser()
    critic_optimiser: Optimiser = Optimiser()
    discriminator_optimiser: Optimiser = Optimiser()
    ema: Decay = 0.999
    target_ema: Decay = 0.95
    skips: Count = 20

    renamed = {"average": "ema", "target": "target_ema"}

    def optimiser_of(self, player: str) -> Optimiser:
        """How a player moves."""
        others = {"critic": self.critic_optimiser, "discriminator": self.discriminator_optimiser}
        return others.get(player, self.optimiser)


class StepLog(NamedTuple):
    """What one turn did. update: student updates so far.

    total, parts, gradient_norm: scalars on the device, which whoever logs them reads.
    """

    turn: int
    update: int
    player: str
    total: Tensor
    parts: dict[str, Tensor]
    gradient_norm: Tensor
    lr: float
    skipped: bool


class TrainingFailed(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class Trainer:
    """Trains `players` by `method`. Call `step()` until `done`."""

    def __init__(
        self,
        method: Method,
        players: Players,
        data: Data,
        training: Training,
        accelerator: Accelerator,
        seed: tuple[int, ...] = (0,),
    ) -> None:
        self.method, self.players, self.data = method, players, data
        self.training, self.accelerator, self.seed = training, accelerator, seed
        self.turns = method.turns()
        self.skipped_in_a_row = {turn.player: 0 for turn in self.turns}
        self.turn = self.skipped = 0
        self.processes = accelerator.num_processes  # of whoever trained it so far
        trained = players.trained()
        self.nets = {name: trained[name] for name in sorted({t.player for t in self.turns})}
        self.moved = {name: trainable(net) for name, net in self.nets.items()}
        self.optimisers = {n: training.optimiser_of(n).build(net) for n, net in self.nets.items()}
        self.ema = EMA.of(self.nets["student"], training.ema)
        self.target = self._target_ema()
        self.carries: list[Sample | None] = [None] * training.accumulation

    @property
    def update(self) -> int:
        """Student updates so far."""
        return self._moved_so_far("student")

    @property
    def done(self) -> bool:
        return self.update >= self.training.updates

    def step(self, compare_terms: bool = False) -> StepLog:
        """One turn: one optimiser step of one player, or a skipped one if it is not finite.

        With `compare_terms` its log has the gradient norm of every term of the loss, "|∇ name|"
        (of this process's first micro-batch), at the price of one more backward a term.
        """
        turn = self.turns[self.turn % len(self.turns)]
        self._only(turn.player)
        optimiser = self.optimisers[turn.player]
        optimiser.zero_grad(set_to_none=True)
        total, parts, kept = self._accumulate(turn, compare_terms)
        norm = self._reduce_and_clip(turn.player)
        lr = self._set_lr(turn.player, optimiser)
        # The one number of a turn that the host waits for; several processes agree on stops too.
        finite = bool(torch.isfinite(norm) & torch.isfinite(total))
        if finite:
            optimiser.step()
            if turn.player == "student":
                self._update_averages()
            self.players.kept = {**self.players.kept, **kept}
        self._count_skips(turn.player, finite)
        self.turn += 1
        name = turn.player
        return StepLog(self.turn, self.update, name, total, parts, norm, lr, not finite)

    def averaged(self) -> dict[str, Tensor]:
        """The student's own tensors with its average in place of its weights."""
        own = own_tensors(self.nets["student"])
        moved = {id(p) for p in self.moved["student"]}
        names = [name for name, tensor in own.items() if id(tensor) in moved]
        return own | dict(zip(names, self.ema.averaged, strict=True))

    def state(self) -> State:
        """Everything a resumed run needs; randomness and data are keyed by `turn` alone.

        Called on every process: carried samples are gathered, in the order of ranks."""
        gather = self.accelerator.gather
        tensors: dict[str, Tensor] = {}
        for k, carried in enumerate(self.carries):
            if carried is not None:
                parts = {"x": carried.x} | {f"cond/{n}": v for n, v in carried.cond.items()}
                parts |= {} if carried.step is None else {"step": carried.step}
                tensors |= {f"carry/{k}/{name}": gather(part) for name, part in parts.items()}
        for player, net in self.nets.items():
            tensors |= {f"net/{player}/{k}": v for k, v in own_tensors(net).items()}
            slots = self.optimisers[player].state_dict()["state"]
            for i, slot in slots.items():
                tensors |= {f"optimiser/{player}/{i}/{k}": v for k, v in slot.items()}
        for name, average in self._averages().items():
            tensors |= {f"{name}/{i}": v for i, v in enumerate(average.averaged)}
        tensors |= {f"kept/{name}": value for name, value in self.players.kept.items()}
        updates = {name: average.updates for name, average in self._averages().items()}
        numbers = {"turn": self.turn, "skipped": self.skipped, "averages": updates}
        numbers |= {"processes": self.processes}
        return State(tensors, numbers | {"skipped_in_a_row": dict(self.skipped_in_a_row)})

    def restore(self, state: State) -> None:
        """Continue from `state`, bit for bit, on as many processes as it was saved from.

        On another number it can be looked at, but not go on: what is carried belongs to a rank."""
        tree = dict(state.tensors)
        for player, net in self.nets.items():
            load_own(net, {k: tree.pop(f"net/{player}/{k}") for k in own_tensors(net)})
            optimiser = self.optimisers[player]
            saved = optimiser.state_dict()
            prefix = f"optimiser/{player}/"
            saved["state"] = slots_of({k: v for k, v in tree.items() if k.startswith(prefix)})
            optimiser.load_state_dict(saved)
        for name, average in self._averages().items():
            for i, mean in enumerate(average.averaged):
                mean.data.copy_(tree[f"{name}/{i}"])
            average.updates = state.numbers["averages"][name]
        self.processes = state.numbers["processes"]
        if self.processes == self.accelerator.num_processes:
            self.carries = [self._carry(tree, k) for k in range(self.training.accumulation)]
        kept = {k.removeprefix("kept/"): v for k, v in tree.items() if k.startswith("kept/")}
        self.players.kept = {k: v.to(self.accelerator.device) for k, v in kept.items()}
        self.turn, self.skipped = state.numbers["turn"], state.numbers["skipped"]
        self.skipped_in_a_row = dict(state.numbers["skipped_in_a_row"])

    def _carry(self, tensors: dict[str, Tensor], k: int) -> Sample | None:
        prefix = f"carry/{k}/"
        own = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        own = {name: self._own_part(gathered) for name, gathered in own.items()}
        if not own:
            return None
        x, step = own.pop("x"), own.pop("step", None)
        return Sample(x, {n.removeprefix("cond/"): value for n, value in own.items()}, step)

    def _own_part(self, gathered: Tensor) -> Tensor:
        rank, size = self.accelerator.process_index, self.training.batch
        return gathered[rank * size : (rank + 1) * size].to(self.accelerator.device)

    def _averages(self) -> dict[str, EMA]:
        target = {} if self.target is None else {"target": self.target}
        return {"ema": self.ema, **target}

    def _target_ema(self) -> EMA | None:
        target = self.players.target
        if target is None or target.net is self.players.student.net:
            return None
        return EMA(trainable(target.net), self.training.target_ema)

    def _moves(self, player: str, turns: int | None = None) -> int:
        return sum(t.player == player for t in self.turns[:turns])

    def _moved_so_far(self, player: str) -> int:
        cycles, rest = divmod(self.turn, len(self.turns))
        return cycles * self._moves(player) + self._moves(player, rest)

    def _only(self, player: str) -> None:
        for name, parameters in self.moved.items():
            for parameter in parameters:
                parameter.requires_grad_(name == player)

    def _accumulate(
        self, turn: Turn, compare: bool
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        n, pool = self.training.accumulation, self._pool(turn)
        total, parts, kept = torch.zeros((), device=self.accelerator.device), {}, {}
        for k in range(n):
            with self._micro_batch(k, pool) as batch:
                loss = turn.loss(self.players, batch)
            if compare and k == 0:
                parts |= self._term_norms(turn.player, loss)
            (loss.total / n).backward()  # accelerate's own would divide by a number of its own
            self.carries[k], kept = loss.carry or self.carries[k], loss.kept
            total = total + loss.total.detach() / n
            for name, value in (loss.terms | loss.shown).items():
                parts[name] = parts.get(name, 0) + value.detach() / n
        reduce = self.accelerator.reduce
        here = self.accelerator.device  # NCCL reduces nothing that lies on the CPU
        parts = {k: reduce(v.to(here), "mean") for k, v in parts.items()}
        return reduce(total, "mean"), parts, kept

    def _pool(self, turn: Turn) -> Callable[[Tensor], Tensor]:
        """What gives a loss the rows of the whole turn; computed before, if that is in pieces."""
        gather, n = self.accelerator.gather, self.training.accumulation
        if turn.rows is None or n == 1:
            return gather
        rows = []
        for k in range(n):
            with torch.no_grad(), self._micro_batch(k, gather) as batch:
                rows.append(gather(turn.rows(self.players, batch)))
        whole = torch.cat(rows)
        return lambda own: whole

    @contextmanager
    def _micro_batch(self, k: int, pool: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
        """A batch, with its carried sample, in the run's precision and with its dropout."""
        self.players.carry = self.carries[k]
        p, dropping = self.players, {}
        if self.method.dropout:
            dropping = {d.net: None for d in (p.student, p.target, p.initial) if d is not None}
        seed = stream(*self.seed, 5, self.turn, self._number(k)).initial_seed()
        with self.accelerator.autocast(), at_work(dropping, seed):
            yield self._batch(k, pool)

    def _term_norms(self, player: str, loss: Loss) -> dict[str, Tensor]:
        moved, found = self.moved[player], {}
        for name, term in loss.terms.items():
            slopes = torch.autograd.grad(term, moved, retain_graph=True, allow_unused=True)
            found[f"|∇ {name}|"] = nn.utils.get_total_norm([s for s in slopes if s is not None])
        return found

    def _number(self, k: int) -> int:
        """Of this process's micro-batch k, among those of all processes in a turn."""
        return k * self.accelerator.num_processes + self.accelerator.process_index

    def _batch(self, k: int, pool: Callable[[Tensor], Tensor]) -> Batch:
        micro = self._number(k)
        per_turn = self.training.accumulation * self.accelerator.num_processes
        local = stream(*self.seed, 1, self.turn, micro)
        number, device = self.turn * per_turn + micro, self.accelerator.device
        drawn = Drawn(*self.data.batch(number, self.training.batch, local))
        cond = move(drawn.cond, device)
        path = None if drawn.path is None else drawn.path.to(device)
        shared, progress = stream(*self.seed, 0, self.turn), self.update / self.training.updates
        return Batch(drawn.x0.to(device), cond, shared, local, progress, path, pool)

    def _reduce_and_clip(self, player: str) -> Tensor:
        moved = [p for p in self.moved[player] if p.grad is not None]
        if self.accelerator.num_processes > 1:
            flat = nn.utils.parameters_to_vector([p.grad for p in moved])
            flat = self.accelerator.reduce(flat, "mean")
            for p, part in zip(moved, flat.split([p.numel() for p in moved]), strict=True):
                p.grad.copy_(part.view_as(p))
        clip = self.training.optimiser_of(player).clip
        return nn.utils.clip_grad_norm_(moved, clip if clip > 0 else float("inf"))

    def _set_lr(self, player: str, optimiser: torch.optim.Optimizer) -> float:
        all_cycles = self.training.updates / self._moves("student")
        total = int(all_cycles * self._moves(player))
        lr = self.training.optimiser_of(player).lr_at(self._moved_so_far(player), total)
        for group in optimiser.param_groups:
            group["lr"] = lr
        return lr

    def _update_averages(self) -> None:
        self.ema.update(self.moved["student"])
        if self.target is not None:
            self.target.update(self.moved["student"])

    def _count_skips(self, player: str, finite: bool) -> None:
        self.skipped += not finite
        in_a_row = 0 if finite else self.skipped_in_a_row[player] + 1
        self.skipped_in_a_row[player] = in_a_row
        if in_a_row >= self.training.skips:
            raise TrainingFailed(
                f"{in_a_row} steps of the {player} in a row were not finite (turn {self.turn}): "
                "lower the learning rate, raise the warm-up, or clip more"
            )


def slots_of(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """An optimiser's state by parameter, from names ending in `index/key`."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        *_, index, key = name.split("/")
        slots.setdefault(int(index), {})[key] = value
    return slots
