"""Dropout: at work in training, one mask for student and target, and nowhere else."""

from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import torch
from accelerate import Accelerator
from cases import at, labels, normal
from rehearse import short
from torch.utils.checkpoint import CheckpointError
from toys import tiny_images, tiny_players, tiny_unet

from stepdistill.denoiser import Denoiser, Rescheduled
from stepdistill.losses.jvp import derivative
from stepdistill.method import Batch, Loss, Method, Passes, Players, Turn
from stepdistill.methods.consistency_training import ConsistencyTraining
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.methods.scm import Field
from stepdistill.networks.dropout import at_work, layers_of
from stepdistill.networks.lora import AdapterView, add_adapter, enable_checkpointing
from stepdistill.process import RectifiedFlow, TrigFlow
from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages
from stepdistill.training.health.monitor import averaged
from stepdistill.training.trainer import Trainer, Training

X, T, COND = normal(1, 4, 1, 8, 8).float(), at([0.2, 0.4, 0.6, 0.9]), labels(0, 1, 0, 2)


def dropping(net, p=0.5):
    """The network, all of whose dropout layers drop."""
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = p
    assert layers_of(net) or p == 0
    return net


def players(p=0.5) -> Players:
    """A student, its teacher, and averages that are the student still."""
    made = tiny_players()
    student = replace(made.student, net=dropping(made.student.net, p))
    target, initial = (replace(student, net=deepcopy(student.net)) for _ in range(2))
    teacher = replace(student, net=deepcopy(student.net))
    return replace(made, student=student, target=target, initial=initial, teacher=teacher)


@dataclass(frozen=True)
class Asking(Method):
    """Shows what everybody answers to one question."""

    paper = "none: a test"

    def turns(self):
        return (Turn("student", self.loss),)

    def loss(self, p, batch: Batch) -> Loss:
        guess = p.student(X, T, COND).x0
        with torch.no_grad():
            again = p.student(X, T, COND).x0
            others = {k: getattr(p, k)(X, T, COND).x0 for k in ("target", "initial", "teacher")}
        return Loss({"guess": guess.square().mean()}, {"own": guess, "again": again, **others})

    def passes(self, sampler) -> Passes:
        return Passes(trained=1, frozen=3, teacher=1)


class Regular(Asking):
    """The same without dropout."""

    dropout = False


ASKING = Asking()


def trainer(method=ASKING, p=0.5, **training) -> Trainer:
    training = Training(updates=50, batch=4, **training)
    return Trainer(method, players(p), tiny_images(), training, Accelerator(cpu=True), (5,))


def test_student_target_and_start_have_one_mask_and_the_teacher_none():
    made = trainer()
    plain = made.players.teacher(X, T, COND).x0.detach()
    before = torch.get_rng_state()
    seen = made.step().parts
    assert torch.equal(torch.get_rng_state(), before)  # others' randomness is left alone
    for name in ("again", "target", "initial"):
        assert torch.equal(seen[name], seen["own"]), name
    assert torch.equal(seen["teacher"], plain) and not torch.equal(seen["own"], plain)
    nets = [made.players.student.net, made.players.target.net, made.players.teacher.net]
    assert not any(part.training for net in nets for part in net.modules())
    assert not any(net._forward_pre_hooks or net._forward_hooks for net in nets)


def test_each_micro_batch_has_a_mask_of_its_own():
    seen, made = [], trainer(accumulation=2)
    made.players.student.net.register_forward_hook(lambda net, given, out: seen.append(out[0]))
    made.step()
    own = [out for out in seen if out.requires_grad]
    assert len(own) == 2 and not torch.equal(*own)


@pytest.mark.parametrize("method", [Regular(), Dmd2(gan=0.0, gan_critic=0.0)])
def test_methods_that_match_samples_have_none(method):
    """As the papers: what is matched are the samples of the student as it will be sampled."""
    found = []
    for p in (0.0, 0.5):
        made = trainer(method, p)
        for _ in made.turns[:2]:
            made.step()
        found.append(made.state().tensors)
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_resuming_is_bitwise():
    whole, first = (trainer(ConsistencyTraining()) for _ in range(2))
    steps = [whole.step() for _ in range(4)]
    for _ in range(2):
        first.step()
    second = trainer(ConsistencyTraining())
    second.restore(first.state())
    torch.manual_seed(99)
    assert [second.step() for _ in range(2)] == steps[2:]
    regular = trainer(ConsistencyTraining(), 0.0)
    assert float(regular.step().total) != float(steps[0].total)


def test_the_average_is_sampled_without():
    made = trainer(ConsistencyTraining())
    made.step()
    with averaged(made) as student, torch.no_grad():
        assert torch.equal(student(X, T, COND).x0, student(X, T, COND).x0)


def test_both_ends_of_a_derivative_have_one_mask():
    net = dropping(tiny_unet()).double()
    denoiser = Denoiser(net, RectifiedFlow(), "flow", call, lambda t: 1000 * t)
    field = Field(Rescheduled(denoiser, TrigFlow(1.0)), COND, TrigFlow(1.0))
    x, t = X.double(), T
    with at_work([net], 3):
        along = (normal(2, *X.shape), 1e-4 * torch.ones(4).double())
        exact = derivative(field, (x, t), along, "forward")
        near = derivative(field, (x, t), along, "difference")
    silent = derivative(field, (x, t), along, "forward")
    assert float((exact - near).norm() / exact.norm()) < 1e-3
    assert float((exact - silent).norm() / exact.norm()) > 0.1


def call(net, x, t, cond, w):
    return net(x, t, class_labels=cond["label"]).sample


@pytest.mark.parametrize("low_rank", [False, True])
def test_checkpointed_blocks_recompute_with_the_same_mask(low_rank):
    """The gradient of a network whose blocks are recomputed, and of one whose are not."""
    found = []
    for checkpointed in (False, True):
        net = dropping(tiny_unet())
        if low_rank:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                add_adapter(net, "student", rank=2)
            for name, part in net.named_parameters():
                part.data += 0.1 * (".lora_B" in name)
        if checkpointed:
            enable_checkpointing(net)
        view = AdapterView(net, "student") if low_rank else net.requires_grad_(True)
        with at_work([view], 3):
            answer = view(X, 500, class_labels=COND["label"]).sample
            base = net(X, 500, class_labels=COND["label"]).sample if low_rank else None
        try:
            (answer.square().mean()).backward()
        except CheckpointError as error:  # torch sees it, too
            raise AssertionError("recomputed otherwise") from error
        if low_rank:
            assert torch.equal(base, net(X, 500, class_labels=COND["label"]).sample)
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        assert len(grads) > 3 and not any(m.training for m in layers_of(net))
        found.append(grads)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_a_new_network_trains_with_the_dropout_that_its_config_asks_for(tmp_path):
    losses = []
    for dropout in (0.0, 0.5):
        run = short(read("digits-teacher", (f"network.unet.dropout={dropout}",)), batch=4)
        trainer = Stages.of(run, tmp_path, Accelerator(cpu=True)).trainer
        losses.append(float(trainer.step().total))
    assert losses[0] != losses[1]
