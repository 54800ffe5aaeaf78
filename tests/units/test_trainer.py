"""The loop: resuming, skipping, accumulating, schedules; nothing here names a shipped method."""

from dataclasses import dataclass, replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from toys import AdversarialCycle, Labelled, tiny_images, tiny_players

from stepdistill.data.loader import InMemory, Loader, stream
from stepdistill.method import Batch, Loss
from stepdistill.networks.views import trainable
from stepdistill.runs.config import RunConfig
from stepdistill.runs.setup import accelerator_of
from stepdistill.training.checkpoint import CheckpointError, State, latest, read_state, save
from stepdistill.training.trainer import Optimiser, Trainer, Training, TrainingFailed

TRAINING = Training(updates=6, batch=4, optimiser=Optimiser(lr=1e-3, schedule="cosine", warmup=2))


def trainer(training: Training = TRAINING, method=None, seed: int = 3) -> Trainer:
    accelerator = Accelerator(cpu=True)
    return Trainer(
        method or AdversarialCycle(), tiny_players(), tiny_images(), training, accelerator, (seed,)
    )


def tensors(made: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in made.state().tensors.items()}


@pytest.mark.parametrize("stop", [1, 3, 5])  # inside a cycle of three turns, and between cycles
def test_resuming_is_bitwise(tmp_path, stop):
    whole, first = trainer(), trainer()
    steps = [whole.step() for _ in range(8)]
    for _ in range(stop):
        first.step()
    save(tmp_path, stop, first.state())
    second = trainer()
    second.restore(latest(tmp_path)[0])
    again = [second.step() for _ in range(8 - stop)]
    assert again == steps[stop:]
    mine, wanted = tensors(second), tensors(whole)
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[k], wanted[k]) for k in wanted)
    assert second.state().numbers == whole.state().numbers


@dataclass(frozen=True)
class Remembering(AdversarialCycle):
    """Weighs the student's loss by a memory of the sizes of all samples of its turns."""

    def turns(self):
        student, *critic = super().turns()
        return (student._replace(rows=self.rows), *critic)

    def rows(self, p, batch):
        return self.student_loss(p, batch, pooled=False).carry.x.abs().mean((1, 2, 3))[:, None]

    def student_loss(self, p, batch, pooled=True) -> Loss:
        loss = super().student_loss(p, batch)
        if not pooled:
            return loss
        sizes = batch.pool(loss.carry.x.abs().mean((1, 2, 3))[:, None])
        memory = 0.5 * p.kept.get("size", torch.zeros(())) + 0.5 * sizes.mean()
        return poisoned(loss, memory)._replace(kept={"size": memory}, shown={"n": sizes.sum() * 0})


def test_what_is_kept_goes_on_bit_for_bit():
    training = replace(TRAINING, accumulation=2, optimiser=Optimiser(lr=1e-2))
    whole, first, second, fresh = (trainer(training, Remembering()) for _ in range(4))
    steps = [whole.step() for _ in range(4)]
    for _ in range(3):
        first.step()
    state = first.state()
    second.restore(state)
    assert second.step() == steps[3]
    kept = whole.state().tensors["kept/size"]
    assert torch.equal(second.state().tensors["kept/size"], kept) and float(kept) > 0
    fresh.restore(
        state._replace(tensors={k: state.tensors[k] for k in state.tensors if "kept" not in k})
    )
    assert fresh.step() != steps[3]


ENVIRONMENT = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_DOWNCAST_BF16": "true",
}


def test_the_environment_of_a_launcher_changes_nothing(monkeypatch, tmp_path):
    """Not the size of gradients, which are clipped and logged, nor the run's precision."""
    found = []
    for environment in ({}, *({name: value} for name, value in ENVIRONMENT.items())):
        for name in ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        accelerator = accelerator_of(RunConfig(trackers=()), tmp_path)
        data = tiny_images()
        made = Trainer(AdversarialCycle(), tiny_players(), data, TRAINING, accelerator, (3,))
        found.append([float(v) for step in [made.step()] for v in (step.total, step.gradient_norm)])
        AcceleratorState._reset_state(reset_partial_state=True)
    assert all(each == found[0] for each in found), dict(zip(["none", *ENVIRONMENT], found))


def test_cycles_turns_and_updates_are_counted():
    made = trainer()
    seen = [(s.player, s.update) for s in (made.step() for _ in range(7))]
    assert seen == [
        ("student", 1), ("critic", 1), ("critic", 1),
        ("student", 2), ("critic", 2), ("critic", 2), ("student", 3),
    ]  # fmt: skip
    while not made.done:
        made.step()
    assert made.update == TRAINING.updates


def test_learning_rates():
    o = Optimiser(lr=1.0, warmup=4, schedule="linear")
    assert [o.lr_at(k, 14) for k in (0, 1, 3, 4, 9, 13)] == pytest.approx(
        [0.25, 0.5, 1.0, 1.0, 0.5, 0.1]
    )
    o = replace(o, schedule="cosine")
    assert [o.lr_at(k, 14) for k in (4, 9)] == pytest.approx([1.0, 0.5])
    assert replace(o, schedule="constant").lr_at(13, 14) == 1.0


def poisoned(loss: Loss, factor: float) -> Loss:
    return loss._replace(terms={name: term * factor for name, term in loss.terms.items()})


@dataclass(frozen=True)
class Poisoned(AdversarialCycle):
    """Every second student turn is not a number."""

    def student_loss(self, p, batch) -> Loss:
        loss = super().student_loss(p, batch)
        bad = bool(torch.rand((), generator=batch.shared) < 0.5)
        return poisoned(loss, float("nan")) if bad else loss


def test_a_step_that_is_not_finite_moves_nothing():
    made, skips = trainer(method=Poisoned()), 0
    for _ in range(12):
        before = tensors(made)
        step = made.step()
        after = tensors(made)
        if step.skipped:
            skips += 1
            assert all(torch.equal(before[k], after[k]) for k in before if k[:5] != "carry")
    assert made.skipped == skips > 0
    assert all(bool(v.isfinite().all()) for k, v in tensors(made).items() if k[:5] != "carry")


@dataclass(frozen=True)
class AlwaysPoisoned(AdversarialCycle):
    def student_loss(self, p, batch) -> Loss:
        loss = super().student_loss(p, batch)
        return poisoned(loss, float("inf"))

    def turns(self):
        return super().turns()[:1]


def test_a_run_of_bad_steps_stops_training():
    made = trainer(replace(TRAINING, skips=3), AlwaysPoisoned())
    with pytest.raises(TrainingFailed, match="3 steps of the student in a row"):
        for _ in range(10):
            made.step()
    assert made.turn <= 3


def test_healthy_turns_of_another_player_do_not_hide_bad_steps():
    @dataclass(frozen=True)
    class BadStudent(AlwaysPoisoned):
        def turns(self):
            return AdversarialCycle.turns(self)

    made = trainer(replace(TRAINING, updates=100, skips=3), BadStudent())
    with pytest.raises(TrainingFailed, match="3 steps of the student in a row"):
        for _ in range(40):
            made.step()
    assert made.skipped == 3 and made.turn == 6  # two cycles, then the third student's turn


def test_accumulated_micro_batches_are_one_larger_batch():
    # The gradient norm is of the mean gradient: two micro-batches of the same data change nothing.
    class Same:
        def batch(self, number, size, local):
            return tiny_images().batch(0, size, stream(1))

    def norm(accumulation: int) -> float:
        method = _Fixed()
        training = replace(TRAINING, accumulation=accumulation)
        made = Trainer(method, tiny_players(), Same(), training, Accelerator(cpu=True))
        return float(made.step().gradient_norm)

    assert norm(3) == pytest.approx(norm(1), rel=1e-5)


@dataclass(frozen=True)
class _Fixed(AdversarialCycle):
    """Ignores the batch's own stream."""

    def student_loss(self, p, batch) -> Loss:
        fixed = replace(batch, shared=stream(1), local=stream(2))
        return super().student_loss(p, fixed)


def test_a_turn_in_pieces_pools_all_of_its_samples():
    """In the order of micro-batches, before the first loss; each loss sees the same."""
    seen = []

    @dataclass(frozen=True)
    class Numbered(_Fixed):
        def turns(self):
            return (super().turns()[0]._replace(rows=self.rows),)

        def rows(self, p, batch):
            assert not torch.is_grad_enabled()
            return batch.x0.flatten(1)[:, :1]

        def student_loss(self, p, batch):
            seen.append((self.rows_of(batch), batch.pool(self.rows_of(batch))))
            return super().student_loss(p, batch)

        def rows_of(self, batch):
            return batch.x0.flatten(1)[:, :1]

    trainer(replace(TRAINING, accumulation=3), Numbered()).step()
    own, pooled = zip(*seen)
    assert len(seen) == 3 and all(torch.equal(rows, torch.cat(own)) for rows in pooled)
    seen.clear()
    trainer(TRAINING, Numbered()).step()
    assert torch.equal(*seen[0])


def test_what_a_bad_step_would_keep_is_forgotten():
    @dataclass(frozen=True)
    class Bad(AlwaysPoisoned):
        def student_loss(self, p, batch) -> Loss:
            return super().student_loss(p, batch)._replace(kept={"m": torch.tensor(torch.nan)})

    made = trainer(method=Bad())
    assert made.step().skipped and made.players.kept == {}


def test_every_image_is_seen_once_an_epoch_whatever_the_batch():
    images = torch.arange(10.0).reshape(10, 1, 1, 1)
    data = Loader(InMemory(images, None), Labelled(), seed=4)
    for size in (3, 5, 10):
        seen = torch.cat([data.batch(k, size, stream(0))[0].flatten() for k in range(30 // size)])
        for epoch in seen.split(10):
            assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:20])


def test_dropped_labels_become_the_empty_one():
    samples = InMemory(torch.zeros(1000, 1), torch.zeros(1000, dtype=torch.int64))
    labels = Loader(samples, Labelled(7), dropout=0.3).batch(0, 1000, stream(0)).cond["label"]
    assert set(labels.tolist()) == {0, 7}
    assert abs(float((labels == 7).double().mean()) - 0.3) < 0.045  # three standard errors


def test_streams_differ_by_every_part_of_their_key():
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0)]
    draws = {tuple(torch.randn(2, generator=stream(*k)).tolist()) for k in keys}
    assert len(draws) == len(keys)


STATE = State({"a": torch.arange(5.0)}, {"turn": 3})


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path):
    save(tmp_path, 1, STATE)
    bad = save(tmp_path, 2, State({"a": torch.zeros(5)}, {"turn": 4})) / "state.safetensors"
    data = bytearray(bad.read_bytes())
    data[-1] ^= 1
    bad.write_bytes(data)
    state, warnings = latest(tmp_path)
    assert torch.equal(state.tensors["a"], STATE.tensors["a"]) and state.numbers == {"turn": 3}
    assert len(warnings) == 1 and "000002" in warnings[0] and "altered" in warnings[0]
    bad.write_bytes(data[:20])
    assert latest(tmp_path)[0].numbers == {"turn": 3}


def test_no_readable_checkpoint_is_an_error_and_none_is_not(tmp_path):
    assert latest(tmp_path) == (None, [])
    path = save(tmp_path, 1, STATE)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="000001"):
        latest(tmp_path)
    with pytest.raises(CheckpointError):
        read_state(path)


def test_only_the_newest_are_kept_and_an_interrupted_write_is_invisible(tmp_path):
    for step in (5, 50, 500):
        save(tmp_path, step, STATE, keep=2)
    (tmp_path / ".000600.partial").mkdir()
    assert sorted(p.name for p in tmp_path.glob("[0-9]*")) == ["000050", "000500"]
    assert latest(tmp_path)[0].numbers == {"turn": 3}
    for step in (999_500, 1_000_000):  # seven digits come after six
        save(tmp_path, step, State({}, {"turn": step}), keep=1)
    assert latest(tmp_path)[0].numbers == {"turn": 1_000_000}


class Reads(TorchDispatchMode):
    """Counts how often a number of a tensor is read by the host: where a device is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_host_waits_for_one_number_a_turn(clip):
    """Whether the step is finite; losses, norms and lags are read by whoever logs them."""
    made = trainer(replace(TRAINING, optimiser=Optimiser(lr=1e-3, clip=clip)))
    made.step()  # the optimiser makes its state in the first
    for player in ("critic", "critic", "student"):
        with Reads() as reads:
            step = made.step()
        # Numbers of steps come from the CPU's shared stream, which no device computes.
        drawn = 1 if player == "student" else 0
        assert (step.player, reads.count - drawn) == (player, 1)
        assert all(isinstance(value, torch.Tensor) for value in step.parts.values())
    with Reads() as reads:
        float(step.total)
    assert reads.count == 1


def test_a_loop_of_one_s_own_is_the_trainers():
    """Plain torch around a method's losses, as the README shows it: the same weights, bit for bit.

    With the same streams, rates and no clipping."""
    rate = Optimiser(lr=1e-3, clip=0.0)
    made = trainer(replace(TRAINING, optimiser=rate, critic_optimiser=rate))
    players, data, method = tiny_players(), tiny_images(), AdversarialCycle()
    moved = {name: trainable(net) for name, net in players.trained().items()}
    settings = {"lr": 1e-3, "weight_decay": 0.0, "fused": True}
    optimisers = {name: torch.optim.AdamW(own, **settings) for name, own in moved.items()}
    for number in range(6):
        turn = method.turns()[number % 3]
        for name, own in moved.items():
            for parameter in own:
                parameter.requires_grad_(name == turn.player)
        local = stream(3, 1, number, 0)
        drawn = data.batch(number, 4, local)
        loss = turn.loss(players, Batch(drawn.x0, drawn.cond, stream(3, 0, number), local))
        optimisers[turn.player].zero_grad()
        loss.total.backward()
        optimisers[turn.player].step()
        players.carry = loss.carry or players.carry
        assert float(made.step().total) == float(loss.total.detach())
    for name, own in moved.items():
        assert all(torch.equal(p, q) for p, q in zip(own, made.moved[name], strict=True)), name
