"""A distance in what the teacher's own blocks see."""

import numpy as np
import pytest
import torch
from cases import PROCESSES, at, close, labels, normal
from oracle import M, S, batch, informed
from torch import nn

from stepdistill.conditions import NOTHING
from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import Gaussian
from stepdistill.losses.distances import apart, feature_distance
from stepdistill.method import Players
from stepdistill.methods.ctm import Ctm
from stepdistill.networks.taps import Taps
from stepdistill.solver import Sampler


class Blocks(nn.Module):
    """Two convolutions, whose outputs are looked at, and what they make an answer of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 3, 3, padding=1).double()
        self.second = nn.Conv2d(3, 4, 1).double()

    def forward(self, x, t, cond):
        return self.second(self.first(x)).mean(1, keepdim=True) * t[:, None, None, None]


def by_hand(a, b):
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    return ((a - b) ** 2).sum(1).mean((1, 2))


@pytest.mark.parametrize("name", ["rf", "vp", "ve"])
def test_it_is_the_formula(name):
    """Σ over blocks of the mean over positions of ‖x̂ − ŷ‖², of the scaled states."""
    net, process = Blocks(), PROCESSES[name]
    teacher = Denoiser(net, process, "eps", taps=Taps(("first", "second")))
    x, y = normal(1, 5, 1, 4, 4), normal(2, 5, 1, 4, 4)
    t = at([0.1, 0.2, 0.5, 0.7, 0.9]) * process.t_max
    found = feature_distance(teacher, x, y, t, NOTHING)
    scale = process.input_scale(t)[:, None, None, None]
    firsts = [net.first(scale * v) for v in (x, y)]
    seconds = [net.second(v) for v in firsts]
    expected = sum(by_hand(*(v.detach().numpy() for v in pair)) for pair in (firsts, seconds))
    close(found, expected, rtol=1e-10)
    assert float(feature_distance(teacher, x, x, t, NOTHING).detach().abs().max()) == 0


def test_it_sees_directions_and_no_lengths():
    a, b = normal(1, 3, 6, 2, 2), normal(2, 3, 6, 2, 2)
    close(apart(a, b), apart(7 * a, 0.1 * b), rtol=1e-10)
    assert apart(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)).tolist() == [0.0]
    assert apart(a.bfloat16(), b.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("match", ["clean", "end"])
def test_ctm_compares_in_the_unguided_teachers_features(match, monkeypatch):
    """SoundCTM: the student's two jumps, at the time where they meet."""
    import stepdistill.methods.ctm as module

    process, asked = PROCESSES["rf"], []
    inner = Gaussian(at([[M, M], [M, M]]), S, process)
    teacher = Guided(inner, 2.0, labels(0))

    def note(denoiser, x, y, t, cond):
        asked.append((denoiser, x, y, t))
        return (x - y).square().mean(1)

    monkeypatch.setattr(module, "feature_distance", note)
    student = informed("rf")
    method = Ctm(steps=4, solver="ddim", match=match, distance="teacher", denoising=0.0)
    cond = labels(1, n=16)
    p = Players(student, teacher, target=informed("rf", 7))
    loss = method.loss(p, batch(16, d=2, cond=cond))
    ((denoiser, guess, goal, t),) = asked
    assert denoiser is inner and guess.requires_grad and not goal.requires_grad
    if match == "clean":
        assert float(t.max()) == process.t_clean
    plain = Ctm(steps=4, solver="ddim", match=match, distance="l2", denoising=0.0)
    same = plain.loss(p, batch(16, d=2, cond=cond))
    assert float(loss.total) == pytest.approx(float(same.total), rel=1e-12)
    assert method.passes(Sampler()).trained == plain.passes(Sampler()).trained + 1
    assert method.passes(Sampler()).frozen == plain.passes(Sampler()).frozen + 1
