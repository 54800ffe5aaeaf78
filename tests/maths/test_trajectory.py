"""Methods on a teacher trajectory: TCD, PCM, TSCD and LCM, beside consistency distillation.

Exact players make every loss vanish; the laws of (t, s, e) are those of the papers; gradients are
those of the formula, by complex steps of a numpy loss; and the golden slopes of the specification.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cases import MLP, PROCESSES, at, check_gradient, close, labels, normal, scales
from oracle import M, S, batch, ddim, next_on, oracle
from torch import nn

from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import Gaussian
from stepdistill.method import Players
from stepdistill.methods.consistency import Consistency
from stepdistill.methods.lcm import Lcm
from stepdistill.methods.pcm import Pcm, next_edge
from stepdistill.methods.tcd import Tcd
from stepdistill.methods.tscd import Tscd
from stepdistill.solver import Sampler, jump, sample
from stepdistill.times import Grid

names = pytest.mark.parametrize("name", PROCESSES)
METHODS = {
    "consistency": Consistency(steps=6, solver="ddim", distance="l2"),
    "lcm": Lcm(steps=6, distance="l2"),
    "tcd": Tcd(steps=6),
    "pcm": Pcm(steps=6, phases=2, distance="l2"),
    "tscd": Tscd(steps=6, segments=3),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@names
@methods
def test_exact_maps_have_no_loss(name, method):
    """C3: the flow map under a teacher whose steps are exact, and no other."""
    teacher = oracle(name, towards=next_on(method.times(PROCESSES[name])))
    student = oracle(name)
    given = batch(256)
    assert method.loss(Players(student, teacher, target=student), given).total < 1e-20
    moved = Players(oracle(name, shift=0.1), teacher, target=student)
    assert method.loss(moved, batch(256)).total > 1e-4
    moved = Players(student, replace(teacher, shift=0.1), target=student)
    assert method.loss(moved, batch(256)).total > 1e-5


def affine(name, prediction="flow"):
    process = PROCESSES[name]
    return Denoiser(MLP(2, 0, process.t_max), process, prediction)


class Noting:
    """A player that keeps the times it is asked at and told to go to."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.asked = denoiser, denoiser.process, []

    def __call__(self, x_t, t, cond=None):
        self.asked.append(t)
        return self.denoiser(x_t, t, cond)


def drawn(method, name, n=4000, monkeypatch=None):
    """(t, s, e) of a batch, as the loss handed them on."""
    seen = []
    module = __import__(type(method).__module__, fromlist=["agreement"])

    def note(p, given, times, solver, teacher=None):
        seen.append(times)
        return torch.zeros(1, 1), torch.zeros(1, 1)

    monkeypatch.setattr(module, "agreement", note)
    method.loss(Players(affine(name), affine(name), target=affine(name)), batch(n, d=2))
    return seen[0]


@names
@methods
def test_times_fall_along_the_trajectory(name, method, monkeypatch):
    t, s, end = drawn(method, name, monkeypatch=monkeypatch)
    grid = method.times(PROCESSES[name])
    assert bool((t > s).all()) and bool((s >= end).all())
    assert set(t.tolist()) == set(grid[:-1].tolist())
    close(s, next_on(grid)(t), rtol=1e-12, atol=1e-12)
    share = torch.stack([(t == g).double().mean() for g in grid[:-1]])
    assert float((share - 1 / 6).abs().max()) < 0.03


def test_the_law_of_tcds_ends(monkeypatch):
    """e is any grid time from s down to clean data, each equally likely."""
    method = METHODS["tcd"]
    t, s, end = drawn(method, "rf", 60_000, monkeypatch)
    grid = method.times(PROCESSES["rf"])
    for n in range(6):
        ends = end[t == grid[n]]
        for later in grid[n + 1 :]:
            share = float((ends == later).double().mean())
            assert share == pytest.approx(1 / (6 - n), abs=0.02)


def test_phases_are_those_of_the_paper():
    """C7: N = 50, M = 4 on Stable Diffusion's table."""
    method, process = Pcm(grid=Grid("trailing", rounding="up")), PROCESSES["vp"]
    assert method.edges(process).tolist() == [999, 739, 499, 239, -1]
    assert replace(method, phases=2).edges(process).tolist() == [999, 499, -1]
    eight = replace(method, phases=8).edges(process).tolist()
    assert eight == [999, 859, 739, 619, 499, 359, 239, 119, -1]
    ends = next_edge(at([999.0, 759.0, 739.0, 259.0, 239.0, 19.0]), method.edges(process))
    assert ends.tolist() == [739, 739, 499, 239, -1, -1]


def test_lcms_times_are_its_schedulers():
    grid = Grid("trailing", of=50)
    assert grid.times(PROCESSES["vp"], 4).tolist() == [999, 759, 499, 259, -1]


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_segments(k, monkeypatch):
    """C7: e lies between the low end of t's segment and s, which stays inside, for every k."""
    method = Tscd(steps=48, segments=k)
    t, s, end = drawn(method, "vp", 20_000, monkeypatch)
    width = 1000 / k
    low = torch.ceil((t + 1) / width - 1 - 1e-9) * width - 1
    close(method.segment_start(PROCESSES["vp"], t), low, rtol=0, atol=1e-9)
    assert bool((end >= low - 1e-9).all()) and bool((end <= s).all())
    inside = (end - low) / (s - low).clamp(min=1e-9)
    wide = s - low > 1
    if bool(wide.any()):
        assert float(inside[wide].mean()) == pytest.approx(0.5, abs=0.02)


def test_a_step_never_leaves_its_segment(monkeypatch):
    t, s, end = drawn(Tscd(steps=5, segments=3), "rf", 2000, monkeypatch)
    assert bool((s >= Tscd(segments=3).segment_start(PROCESSES["rf"], t) - 1e-12).all())
    assert 2 / 3 in s.tolist()  # 0.8's next time on the grid, 0.6, lies beyond


@names
def test_one_phase_or_one_segment_is_the_plain_method(name, monkeypatch):
    """PCM with one phase is consistency distillation; TSCD's law with one segment is TCD's."""
    teacher = Gaussian(at([M]), S, PROCESSES[name])
    p = Players(affine(name, "v"), teacher, target=affine(name, "v"))
    settings = {"steps": 6, "solver": "ddim", "distance": "l2"}
    one = Pcm(**settings, phases=1).loss(p, batch(64, d=2)).total
    plain = Consistency(**settings).loss(p, batch(64, d=2)).total
    assert float(one) == pytest.approx(float(plain), rel=1e-12)
    t, s, end = drawn(Tscd(steps=6, segments=1), name, 30_000, monkeypatch)
    clean = PROCESSES[name].t_clean
    assert float(((end - clean) / (s - clean))[s > clean].mean()) == pytest.approx(0.5, abs=0.01)


@names
def test_as_many_segments_as_steps_is_imitation(name):
    """Bar 3: the goal is the teacher's own step, x̂_s."""
    teacher, student = Gaussian(at([M]), S, PROCESSES[name]), affine(name, "v")
    p = Players(student, teacher, target=affine(name, "v"))
    for method in (Pcm(steps=6, phases=6, distance="l2"), Tscd(steps=6, segments=6)):
        given = batch(64, d=2)
        loss = method.loss(p, given).total
        grid, local = method.times(PROCESSES[name]), batch(64, d=2).local
        n = torch.randint(6, (64,), generator=local)
        if isinstance(method, Tscd):
            torch.rand(64, generator=local)
        noise = torch.randn(64, 2, generator=local).double()
        x_t = PROCESSES[name].add_noise(given.x0, noise, grid[n])
        step = ddim(name, x_t.numpy(), grid[n].numpy()[:, None], grid[n + 1].numpy()[:, None])
        guess = jump(student, x_t, grid[n], grid[n + 1])
        expected = (guess - torch.from_numpy(step)).square().mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-9)


# --- gradients --------------------------------------------------------------------------------


def numpy_jump(name, x, t, s, first, last):
    """The jump of an MLP that predicts "v" under the process, with its weights."""
    (a, g), (a_s, g_s) = scales(name, t.real), scales(name, s.real)
    slow = PROCESSES[name].t_max
    scale = PROCESSES[name].input_scale(torch.from_numpy(t.real[:, 0])).numpy()[:, None]
    out = np.tanh(np.concatenate([x * scale, t / slow], axis=1) @ first) @ last
    norm = a**2 + g**2
    x0, eps = (a * x - g * out) / norm, (g * x + a * out) / norm
    return np.where(t <= s, x, a_s * x0 + g_s * eps)


@pytest.mark.parametrize("name", ["rf", "vp", "ve"])
@methods
def test_the_gradient_is_that_of_the_formula(name, method, monkeypatch):
    times = drawn(method, name, 32, monkeypatch)
    monkeypatch.undo()
    process, teacher = PROCESSES[name], Gaussian(at([M, M]), S, PROCESSES[name])
    student = Denoiser(MLP(2, 0, process.t_max), process, "v")
    target = Denoiser(MLP(2, 4, process.t_max), process, "v")
    given = batch(32, d=2)
    loss = method.loss(Players(student, teacher, target=target), given).total
    loss.backward()

    local = batch(32, d=2).local
    torch.randint(6, (32,), generator=local)
    if isinstance(method, Tcd):
        torch.rand(32, generator=local, dtype=torch.float64)
    if isinstance(method, Tscd):
        torch.rand(32, generator=local)
    noise = torch.randn(32, 2, generator=local).numpy().astype(float)
    t, s, end = (u.numpy()[:, None] for u in times)
    alpha, sigma = scales(name, t)
    x_t = alpha * given.x0.numpy() + sigma * noise
    fixed = [w.detach().numpy() for w in target.net.parameters()]
    goal = numpy_jump(name, ddim(name, x_t, t, s), s, end, *fixed)

    def value(*weights):
        return ((numpy_jump(name, x_t, t, end, *weights) - goal) ** 2).mean()

    weights = [w.detach().numpy() for w in student.net.parameters()]
    assert loss.item() == pytest.approx(value(*weights), rel=1e-9)
    check_gradient(student.net, value)


@methods
def test_only_the_student_gets_a_gradient(method):
    student, target, teacher = affine("rf"), affine("rf"), affine("rf", "v")
    method.loss(Players(student, teacher, target=target), batch(16, d=2)).total.backward()
    assert all(p.grad is not None for p in student.net.parameters())
    for frozen in (target, teacher):
        assert all(p.grad is None for p in frozen.net.parameters())


# --- golden values ----------------------------------------------------------------------------


class Affine(nn.Module):
    """x̂₀ = slope x + offset at each time of a table."""

    def __init__(self, times, slopes, offsets):
        super().__init__()
        self.times, self.slopes, self.offsets = times, slopes, offsets

    def forward(self, x, t, cond=None):
        i = (t[:, None] - self.times).abs().argmin(1)
        return self.slopes[i][:, None] * x + self.offsets[i][:, None]


@dataclass(frozen=True)
class EndsAtZero(Tcd):
    """The paper's grid, whose last time is the table's first entry instead of clean data."""

    def times(self, process):
        return torch.cat([self.grid.times(process, self.steps)[:-1], at([0.0])])


def test_tcds_optimum_has_the_golden_slopes():
    """§4.8a: the network is not told e, so its optimum is a compromise.

    The optimum of each time, given the later ones: the least squares over e of affine jumps.
    """
    method, process = EndsAtZero(grid=Grid("trailing")), PROCESSES["vp"]
    grid = method.times(process)
    golden = {119.0: 1.01066, 419.0: 1.05325, 719.0: 1.00969, 999.0: 0.91467}
    slopes = at([0.0] * 50)
    for n in reversed(range(50)):
        t, s = grid[n].expand(50 - n), grid[n + 1].expand(50 - n)
        student = Denoiser(Affine(grid[:-1], slopes, torch.zeros(50)), process, "x0")
        (a, g), (a_t, g_t) = process.scales(grid[n + 1 :]), process.scales(t)
        # Where x_t − α_t M = 1 is carried to at e, by the teacher's step and then the student.
        unit = torch.ones(50 - n, 1, dtype=torch.float64)
        teacher = Gaussian(at([0.0]), S, process)
        x_s = process.add_noise(*teacher(unit, t)[:2], s)
        goal = jump(student, x_s, s, grid[n + 1 :])[:, 0]
        # J = α_e k + σ_e (1 − α_t k)/σ_t in the slope k.
        by_k, rest = a - g * a_t / g_t, g / g_t
        slopes[n] = float((by_k * (goal - rest)).sum() / by_k.square().sum())
        if float(grid[n]) in golden:
            assert float(slopes[n]) == pytest.approx(golden[float(grid[n])], abs=1e-5)


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_pcms_chain_has_the_golden_ratio(phases):
    """§4.9: 0.97636509 of the exact slope to ᾱ_0, whatever the number of phases.

    The optimal student of each phase composes the teacher's DDIM-50 steps to its end.
    """
    process = PROCESSES["vp"]
    grid = torch.cat([Grid("trailing").times(process, 50)[:-1], at([0.0])])
    edges = Pcm(grid=Grid("trailing", rounding="up"), phases=phases).edges(process)[:-1].tolist()
    slope = 1.0
    for start, end in zip(edges, [*edges[1:], 0.0]):
        inside = [u for u in grid.tolist() if end <= u <= start]
        for t, s in zip(inside, inside[1:]):
            one, zero = (ddim("vp", np.array([x]), t, s)[0] for x in (1.0, 0.0))
            slope *= one - zero
    (a_t, g_t), (a_s, g_s) = scales("vp", 999.0), scales("vp", 0.0)
    exact = np.hypot(a_s * S, g_s) / np.hypot(a_t * S, g_t)
    assert exact == pytest.approx(1.297689738, abs=1e-8)
    assert slope / exact == pytest.approx(0.97636509, abs=1e-8)


# --- guidance ---------------------------------------------------------------------------------


def test_lcm_draws_guidance_for_teacher_and_students_alike():
    """The chain of a teacher guided by w is the Gaussian chain of mean m_u + w(m_c − m_u)."""
    means = at([[M - 1.0], [M]])
    teacher = Guided(Gaussian(means, S, PROCESSES["rf"]), 7.0, labels(0))
    seen = []

    @dataclass(frozen=True)
    class Told(Denoiser):
        def __call__(self, x_t, t, cond=None):
            seen.append(self.w)
            mean = M - 1.0 + torch.as_tensor(self.w, dtype=torch.float64)[:, None]
            return Gaussian(mean, S, self.process)(x_t, t)

    told = Told(nn.Identity(), PROCESSES["rf"], "flow")
    method = Lcm(steps=1, distance="l2", guidance=(2.0, 5.0), embedding=True)
    p = Players(told, teacher, target=told)
    given = batch(200, cond=labels(1, n=200))
    assert method.loss(p, given).total < 1e-12
    (w,) = {id(x): x for x in seen}.values()
    assert 2 <= float(w.min()) < 2.2 and 4.8 < float(w.max()) <= 5
    assert method.needs.inputs == ("w",) and method.needs.guidance and not Lcm().needs.guidance


def test_an_embedding_needs_a_range():
    with pytest.raises(ValueError, match="range of guidance"):
        Lcm(embedding=True)


def test_phases_need_their_own_sampler():
    process, method = PROCESSES["rf"], Pcm(steps=8, phases=4)
    assert method.trained_times(process, Sampler((4,), gamma=0.0)).tolist() == [1, 0.75, 0.5, 0.25]
    with pytest.raises(ValueError, match="so many steps alone"):
        method.trained_times(process, Sampler((1, 4), gamma=0.0))
    with pytest.raises(ValueError, match="gamma 0"):
        method.trained_times(process, Sampler((4,)))
    with pytest.raises(ValueError, match="at most one a step"):
        Pcm(steps=3, phases=4)


# --- sampling ---------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_every_gamma_preserves_the_marginals_of_exact_maps(name, gamma):
    """C4: the flow map, re-noised by the exact transition, ends at N(M, S²)."""
    process, n = PROCESSES[name], 60_000
    times = Grid().times(process, 3)[:-1]
    noise = normal(3, n, 1)
    exact = np.hypot(*(np.asarray(c) * k for c, k in zip(scales(name, float(times[0])), (S, 1))))
    centre = float(scales(name, float(times[0]))[0]) * M
    noise = (centre + exact * noise) / process.start_scale(times[:1])  # its marginal, not N(0, σ²)
    generator = torch.Generator().manual_seed(4)
    made = sample(oracle(name), noise, times, None, generator, gamma).numpy()
    assert made.mean() == pytest.approx(M, abs=4 * S / n**0.5)
    assert made.std() == pytest.approx(S, abs=4 * S / (2 * n) ** 0.5)


@names
def test_a_jump_nowhere_is_the_identity_and_asks_nothing_of_the_answer(name):
    student, x = affine(name, "v"), normal(1, 3, 2)
    t = at([PROCESSES[name].t_max, PROCESSES[name].t_clean, PROCESSES[name].t_max / 2])
    assert torch.equal(jump(student, x, t, t), x)
