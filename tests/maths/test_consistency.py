"""Consistency distillation: its optimum is the teacher's solver chain, and how it gets there.

With Gaussian data N(0.7, 1.3²) and the exact teacher every solver step is affine, so the chain of
steps that a perfect student must reproduce is a table of slopes and offsets. `Chain` computes it
in numpy, sharing no code with the package.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import MLP, PREDICTIONS, PROCESSES, at, check_gradient, close, labels, normal, scales
from pairs import pairs
from torch import nn

from stepdistill.conditions import NOTHING
from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import Gaussian, GaussianMixture
from stepdistill.method import Batch, Players
from stepdistill.methods.consistency import Consistency
from stepdistill.process import VarianceExploding
from stepdistill.solver import EVALUATIONS, Sampler, jump
from stepdistill.times import Grid

names = pytest.mark.parametrize("name", PROCESSES)
solvers = pytest.mark.parametrize("solver", ["ddim", "heun"])

M, S = 0.7, 1.3
WELL_POSED = [
    (name, prediction)
    for name, process in PROCESSES.items()
    for prediction in PREDICTIONS
    if process.is_well_posed(prediction, process.t_max)
]


def posterior(name, x, t):
    """x̂₀ and ε̂ of N(M, S²), in numpy."""
    alpha, sigma = scales(name, t)
    offset = (x - alpha * M) / ((alpha * S) ** 2 + sigma**2)
    return M + alpha * S**2 * offset, sigma * offset


def teacher_step(name, x, t, s, solver, clean):
    """One step of the exact teacher, in numpy: Euler, or Heun in the frame of the process."""
    (a, g), (a_s, g_s) = scales(name, t), scales(name, s)
    x0, eps = posterior(name, x, t)
    ahead = a_s * x0 + g_s * eps
    if solver == "ddim" or s == clean:
        return ahead
    x0_s, eps_s = posterior(name, ahead, s)
    if name == "ve":
        return x + (s - t) * (eps + eps_s) / 2
    velocity = (eps - x0 + eps_s - x0_s) / 2
    moved = x / (a + g) + (g_s / (a_s + g_s) - g / (a + g)) * velocity
    return moved * (a_s + g_s)


class Chain(nn.Module):
    """The consistency function that composes teacher steps, as a network of any prediction.

    `error` is added to its output, zero at the optimum.
    """

    def __init__(self, name, prediction, times, solver) -> None:
        super().__init__()
        self.process, self.prediction, self.times = PROCESSES[name], prediction, times
        self.error = nn.Parameter(torch.zeros(len(times), dtype=torch.float64))
        two = np.array([0.0, 1.0])
        ends = []
        for i in range(len(times) - 1):
            x = two
            for t, s in zip(times[i:].tolist(), times[i + 1 :].tolist()):
                x = teacher_step(name, x, t, s, solver, self.process.t_clean)
            ends.append(x)
        self.offset, self.slope = torch.tensor(np.array([[a, b - a] for a, b in ends])).T

    def forward(self, scaled, t, cond=None):
        i = (t[:, None] - self.times[:-1]).abs().argmin(1)
        x = scaled / self.process.input_scale(t)[:, None]
        x0 = self.slope[i][:, None] * x + self.offset[i][:, None]
        alpha, sigma = (c[:, None] for c in self.process.scales(t))
        output = self.process.target(x0, (x - alpha * x0) / sigma, t, self.prediction)
        return output + self.error[i][:, None]


def batch(n=64, seed=0, d=1, cond=NOTHING):
    shared, local = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
    return Batch(M + S * normal(seed, n, d), cond, shared, local)


def gauss(name, mean=M):
    return Gaussian(at([mean]), S, PROCESSES[name])


def of_chain(name, prediction, method):
    process = PROCESSES[name]
    net = Chain(name, prediction, method.times(process), method.solver)
    return Denoiser(net, process, prediction)


@pytest.mark.parametrize("name, prediction", WELL_POSED)
@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
@solvers
def test_the_chain_has_no_loss_and_no_gradient(name, prediction, solver, distance):
    method = Consistency(steps=6, grid=Grid("karras"), solver=solver, distance=distance, huber=0.1)
    student = of_chain(name, prediction, method)
    loss = method.loss(Players(student, gauss(name), target=student), batch()).total
    loss.backward()
    assert float(loss.detach()) < 1e-16
    assert float(student.net.error.grad.abs().max()) < 1e-8


@names
@solvers
def test_any_other_student_has_a_loss(name, solver):
    """Also the exact flow map: a discrete chain is not it."""
    method = Consistency(steps=6, grid=Grid("karras"), solver=solver, distance="l2")
    student = of_chain(name, "v", method)
    other = of_chain(name, "v", replace(method, solver="heun" if solver == "ddim" else "ddim"))
    assert method.loss(Players(other, gauss(name), target=other), batch()).total > 1e-5
    moved = Players(student, gauss(name, M + 0.1), target=student)
    assert method.loss(moved, batch()).total > 1e-5


def test_the_chain_of_a_guided_teacher():
    """Equal covariances: guidance w moves the teacher's mean to m_u + w (m_c − m_u)."""
    method = Consistency(steps=6, distance="l2")
    student = of_chain("rf", "flow", method)
    means = at([[M - 1.0], [M - 0.75]])
    teacher = Guided(Gaussian(means, S, PROCESSES["rf"]), 4.0, labels(0))
    players = Players(student, teacher, target=student)
    assert method.loss(players, batch(cond=labels(1, n=64))).total < 1e-16


class Table(nn.Module):
    """An affine function of x per time: x̂₀ = slope_i x + offset_i, starting at x̂₀ = x."""

    def __init__(self, times) -> None:
        super().__init__()
        self.times = times[:-1]
        n = len(self.times)
        self.slope = nn.Parameter(torch.ones(n, dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def forward(self, x, t, cond=None):
        i = (t[:, None] - self.times).abs().argmin(1)
        return self.slope[i][:, None] * x + self.offset[i][:, None]


@pytest.mark.parametrize("solver, ratio", [("ddim", 0.86432980), ("heun", 1.04139993)])
def test_training_reaches_the_golden_chain(solver, ratio):
    """18 Karras levels: the learnt slope at t = 80 over that of the exact map, s/v_80."""
    process = VarianceExploding(sigma_data=S)  # the table then sees inputs of unit variance
    method = Consistency(steps=18, grid=Grid("karras"), solver=solver, distance="l2")
    student = Denoiser(Table(method.times(process)), process, "x0")
    teacher = Gaussian(at([M]), S, process)
    optimiser = torch.optim.SGD(student.net.parameters(), lr=7.0)
    for k in range(400):
        optimiser.zero_grad()
        method.loss(Players(student, teacher, target=student), batch(256, k)).total.backward()
        optimiser.step()
    low, high = student(at([[0.0], [1.0]]), at(80.0, 2)).x0[:, 0].tolist()
    exact = S / np.hypot(S, 80)
    assert (high - low) / exact == pytest.approx(ratio, abs=1e-4)
    assert low + (high - low) * M == pytest.approx(M, abs=1e-4)


def mixture(name):
    means = torch.tensor([[-1.5, 0.3], [0.4, -1.0]], dtype=torch.float64)
    return GaussianMixture(means, 0.3, PROCESSES[name], at([0.4, 0.6]))


def network(name, prediction, seed=0):
    process = PROCESSES[name]
    return Denoiser(MLP(2, seed, process.t_max), process, prediction, skip=prediction == "x0")


GRIDS = ("uniform", "trailing", "karras", "shifted")


def has_times(case: tuple[str, str], grid: str, solver: str) -> bool:
    return grid != "trailing" or case[0] not in ("rf", "trig")


@pytest.mark.parametrize("name", ["rf", "trig"])
def test_trailing_times_are_those_of_a_table(name):
    with pytest.raises(ValueError):
        Grid("trailing").times(PROCESSES[name], 5)


EVERY = pairs(WELL_POSED, GRIDS, ("ddim", "heun"), allowed=has_times)


@pytest.mark.parametrize("case, grid, solver", EVERY)
def test_every_setting_has_a_finite_loss_and_gradient(case, grid, solver):
    name, prediction = case
    method = Consistency(steps=5, grid=Grid(grid, shift=3.0), solver=solver)
    student, target = network(name, prediction), network(name, prediction, seed=4)
    loss = method.loss(Players(student, mixture(name), target=target), batch(16, d=2))
    loss.total.backward()
    assert bool(torch.isfinite(loss.total)) and float(loss.total.detach()) > 0
    for parameter in student.net.parameters():
        assert bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().max()) > 0


@pytest.mark.parametrize("name, prediction", WELL_POSED)
def test_the_last_target_is_the_state_itself(name, prediction):
    process, x = PROCESSES[name], normal(1, 3, 2)
    target = network(name, prediction)
    s = at([process.t_clean, process.t_min * 1.5 + 0.5, process.t_clean])
    goal = jump(target, x, s, at(process.t_clean, 3))
    assert torch.equal(goal[[0, 2]], x[[0, 2]])
    close(goal[1], target(x[[1]], s[[1]]).x0[0], rtol=1e-12, atol=1e-14)
    assert bool(torch.isfinite(goal).all())


@pytest.mark.parametrize("name, prediction", WELL_POSED)
def test_the_student_tends_to_the_identity(name, prediction):
    process, x = PROCESSES[name], normal(1, 3, 2)
    student = network(name, prediction)
    for level, bound in ((1e-3, 2e-2), (1e-6, 2e-5)):
        t = process.time_at(at(-np.log(level), 3))
        close(student(x, t).x0, x, atol=bound)


@solvers
def test_only_the_student_gets_a_gradient(solver):
    student, target = network("rf", "flow"), network("rf", "flow", seed=4)
    teacher = network("rf", "v", seed=8)
    Consistency(steps=4, solver=solver).loss(
        Players(student, teacher, target=target), batch(16, d=2)
    ).total.backward()
    assert all(p.grad is not None for p in student.net.parameters())
    for frozen in (target, teacher):
        assert all(p.requires_grad and p.grad is None for p in frozen.net.parameters())


@solvers
@pytest.mark.parametrize("distance", ["l2", "l1", "pseudo_huber"])
def test_a_student_that_is_its_own_target_does_not_move_it(solver, distance):
    """The gradient with θ⁻ = θ is that with θ⁻ a copy of θ."""
    method = Consistency(steps=4, solver=solver, distance=distance)
    gradients = []
    for copied in (True, False):
        student = network("rf", "flow")
        target = replace(student, net=deepcopy(student.net)) if copied else student
        method.loss(Players(student, mixture("rf"), target=target), batch(16, d=2)).total.backward()
        gradients.append(student.net.first.grad)
    assert torch.equal(*gradients)


def answer(name, x, t, first, last):
    """x̂₀ of an MLP that predicts "flow" under rectified flow or "edm" under VE, in numpy."""

    def net(x, t):
        return np.tanh(np.concatenate([x, t], axis=1) @ first) @ last

    if name == "rf":
        return x - t * net(x, t)
    width = np.sqrt(t**2 + 0.25)
    return 0.25 / width**2 * x + t * 0.5 / width * net(x / width, t / 80)


def numpy_loss(name, solver, times, target, given, distance):
    """What the loss is in terms of the student's answer, and the x_t and t it is asked at."""
    index = torch.randint(len(times) - 1, (len(given.x0),), generator=given.local).numpy()
    noise = torch.randn(given.x0.shape, generator=given.local).numpy().astype(float)
    t, s = times[index][:, None], times[index + 1][:, None]
    alpha, sigma = scales(name, t)
    x_t = alpha * given.x0.numpy() + sigma * noise
    steps = [teacher_step(name, *row, solver, clean=0.0) for row in zip(x_t, t, s)]
    x_s = np.stack(steps)
    goal = np.where(s == 0, x_s, answer(name, x_s, s, *target))

    def loss(guess):
        d = guess - goal
        if distance == "l2":
            return (d**2).mean()
        return (np.sqrt((d**2).sum(1) + 0.03**2) - 0.03).mean()

    return loss, x_t, t


@pytest.mark.parametrize(
    "name, prediction, solver", [("rf", "flow", "ddim"), ("ve", "edm", "heun")]
)
@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_the_gradient_is_that_of_the_formula(name, prediction, solver, distance):
    """Every derivative by a complex step of a numpy loss, exact to rounding."""
    method = Consistency(5, Grid("karras"), solver, distance, huber=0.03)
    student, target = network(name, prediction), network(name, prediction, seed=4)
    teacher = Gaussian(at([M, M]), S, PROCESSES[name])
    loss = method.loss(Players(student, teacher, target=target), batch(32, d=2)).total
    loss.backward()

    fixed = [p.detach().numpy() for p in target.net.parameters()]
    times = method.times(PROCESSES[name]).numpy()
    expected, x_t, t = numpy_loss(name, solver, times, fixed, batch(32, d=2), distance)

    def value(*weights):
        return expected(answer(name, x_t, t, *weights))

    weights = [p.detach().numpy() for p in student.net.parameters()]
    assert loss.item() == pytest.approx(value(*weights), rel=1e-12)
    check_gradient(student.net, value, atol=1e-9)


@solvers
def test_the_loss_is_a_function_of_the_streams(solver):
    method, student = Consistency(steps=4, solver=solver), network("rf", "flow")
    players = Players(student, mixture("rf"), target=student)
    values = []
    for seed in (3, 3, 4):
        given = batch(16, seed=3, d=2)
        given.local.manual_seed(seed)
        torch.manual_seed(len(values))
        values.append(method.loss(players, given).total.item())
        assert torch.equal(given.shared.get_state(), batch(16, seed=3).shared.get_state())
    assert values[0] == values[1] != values[2]


class Counted:
    """A denoiser that counts its evaluations and keeps the conditions it was given."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.seen = denoiser, denoiser.process, []

    def __call__(self, x_t, t, cond=None):
        self.seen.append(cond)
        return self.denoiser(x_t, t)


@solvers
def test_passes_are_as_counted_by_formula(solver):
    method = Consistency(steps=4, solver=solver)
    student, target, teacher = (Counted(network("rf", "flow", seed)) for seed in (0, 2, 4))
    cond = torch.arange(8)
    method.loss(Players(student, teacher, target=target), batch(8, d=2, cond=cond))
    passes = method.passes(Sampler())
    assert (len(student.seen), len(target.seen)) == (passes.trained, passes.frozen) == (1, 1)
    assert len(teacher.seen) == passes.teacher == EVALUATIONS[solver]
    for player in (student, target, teacher):
        assert all(given is cond for given in player.seen)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="steps: must be at least 1, got 0"):
        Consistency(steps=0)
    with pytest.raises(ValueError, match="solver: 'dpmpp' is none of ddim, heun"):
        Consistency(solver="dpmpp")


def test_one_step_distils_the_teachers_own_answer():
    """N = 1: the only target is the teacher's x̂₀ of pure noise."""
    method = Consistency(steps=1, distance="l2")
    student, given = network("rf", "flow"), batch(16, d=2)
    loss = method.loss(Players(student, mixture("rf"), target=student), given).total
    local = batch(16, d=2).local
    torch.randint(1, (16,), generator=local)
    noise, t = torch.randn(16, 2, generator=local).double(), at(1.0, 16)
    expected = (student(noise, t).x0 - mixture("rf")(noise, t).x0).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
