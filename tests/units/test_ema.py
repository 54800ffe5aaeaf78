"""Averages against their closed forms."""

from math import prod

import pytest
import torch
from accelerate import Accelerator
from cases import MLP, PROCESSES, close, normal
from torch import nn
from toys import Labelled

from stepdistill.data.loader import InMemory, Loader
from stepdistill.denoiser import Denoiser
from stepdistill.method import Players
from stepdistill.methods.consistency import Consistency
from stepdistill.networks.ema import EMA
from stepdistill.networks.views import trainable
from stepdistill.training.trainer import Trainer, Training


def geometric(values, decay):
    """The average after each update with θ_1 … θ_n, as a sum over θ_0, θ_1 … θ_n, in float64."""
    kept = [min(decay, (1 + n) / (10 + n)) for n in range(len(values) - 1)]
    weights = [(1 - kept[i]) * prod(kept[i + 1 :]) for i in range(len(kept))]
    return sum(w * v.double() for w, v in zip([prod(kept), *weights], values))


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("updates", [1, 7, 60])
def test_the_average_is_a_geometric_sum(decay, updates):
    net = nn.Linear(3, 2, bias=False)
    values = [normal(i, 2, 3, dtype=torch.float32) for i in range(updates + 1)]
    net.weight.data = values[0].clone()
    average = EMA.of(net, decay)
    for value in values[1:]:
        net.weight.data = value.clone()
        average.update(trainable(net))
    close(average.averaged[0], geometric(values, decay), atol=1e-6)
    assert average.updates == updates


def test_the_first_update_keeps_a_tenth():
    """Decay 0.999 would keep nearly everything of the initial weights."""
    average = EMA([torch.ones(1)], 0.999)
    average.update([torch.zeros(1)])
    assert float(average.averaged[0]) == pytest.approx(0.1)
    average.update([torch.zeros(1)])
    assert float(average.averaged[0]) == pytest.approx(0.1 * 2 / 11)


def test_averages_are_float32_copies():
    net = nn.Linear(2, 2).bfloat16()
    before = net.weight.detach().clone()
    average = EMA.of(net, 0.99)
    assert {a.dtype for a in average.averaged} == {torch.float32}
    average.updates = 10**6  # warm-up over: steps of 1 % of 1/128, below bfloat16's resolution
    net.weight.data += 1 / 128
    for _ in range(300):
        average.update(trainable(net))
    close(average.averaged[0], net.weight.detach().float(), atol=1e-3)
    assert not torch.equal(net.weight, before)


def test_a_target_is_averaged_in_place():
    student, target = MLP(2, seed=0), MLP(2, seed=5)
    start = target.first.detach().clone()
    average = EMA(trainable(target), 0.95)
    average.update(trainable(student))
    close(target.first, 0.1 * start + 0.9 * student.first.detach(), atol=1e-12)
    assert target.first.requires_grad and target.first.grad_fn is None


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        EMA([torch.ones(1)], decay)


def test_averages_refuse_another_networks_tensors():
    with pytest.raises(ValueError):
        EMA.of(MLP(2), 0.9).update([torch.ones(1)])


def test_the_trainer_averages_after_the_step():
    """Both averages are geometric sums of the weights each update ended with."""
    student, target, teacher = (Denoiser(MLP(2, i), PROCESSES["rf"], "flow") for i in (0, 5, 9))
    initial = target.net.first.detach().clone()
    trainer = Trainer(
        Consistency(steps=3),
        Players(student, teacher, target=target),
        Loader(InMemory(normal(1, 64, 2), None), Labelled()),
        Training(updates=6, batch=8, ema=0.3, target_ema=0.2),
        Accelerator(cpu=True),
    )
    values = [student.net.first.detach().clone()]
    while not trainer.done:
        trainer.step()
        values.append(student.net.first.detach().clone())
    assert float((values[0] - values[-1]).abs().max()) > 1e-3
    close(trainer.ema.averaged[0].double(), geometric(values, 0.3), atol=1e-6)
    close(target.net.first, geometric([initial, *values[1:]], 0.2), atol=1e-12)
