"""DMD2 on Gaussians: each row of the specification's tests that concerns it, and what a rollout is.

Data N(1, 0.5²), a student x = −1 + 1.5 z and, unless said otherwise, one noise level α = 0.8,
σ = 0.6. Teachers and critics are closed forms, written here; the references are numpy and scipy.
`PROVED` lists which test proves which row; the last test of this file checks that they exist.
"""

import ast
from collections import Counter
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from accelerate import Accelerator
from cases import MLP, PROCESSES, at, close, labels, normal
from scipy import integrate, special, stats
from torch import nn
from toys import tiny_images

from stepdistill.conditions import NOTHING
from stepdistill.critic import Critic
from stepdistill.data.loader import Drawn, stream
from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import Gaussian, GaussianMixture
from stepdistill.losses.score import matching_direction, pull
from stepdistill.method import Batch, Players, Sample, Turn
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.networks.taps import Taps
from stepdistill.process import RectifiedFlow, VariancePreserving
from stepdistill.solver import Sampler, rollout
from stepdistill.times import Grid, TimeLaw
from stepdistill.training.trainer import Optimiser, Trainer, Training

PROVED = {
    "T0": (
        "maths/test_process.py::test_every_prediction_gives_both_unknowns_back",
        "maths/test_process.py::test_conversions_are_those_of_the_papers",
    ),
    "T1": (
        "maths/test_dmd2.py::test_a_critic_that_agrees_with_the_teacher_leaves_the_student_alone",
        "units/test_players.py::test_newborn_roles_give_no_gradient_at_all",
    ),
    "T2": (
        "maths/test_critic.py::test_the_closed_kl_gradient_is_golden",
        "maths/test_critic.py::test_golden_denoisers_and_scores",
        "maths/test_dmd2.py::test_with_a_constant_normaliser_the_student_descends_the_kl",
        "maths/test_dmd2.py::test_the_expected_gradient_by_quadrature",
        "maths/test_dmd2.py::test_the_students_gradient_is_the_formulas",
        "maths/test_dmd2.py::test_any_gaussians_pull_descends_the_kl",
    ),
    "T3": (
        "maths/test_dmd2.py::test_a_critic_that_knows_the_noise_is_score_distillation_sampling",
    ),
    "T4": ("maths/test_critic.py::test_pull_has_the_gradient_it_is_given",),
    "T5": (
        "maths/test_dmd2.py::test_other_samples_do_not_matter_to_a_samples_gradient",
        "maths/test_dmd2.py::test_one_normaliser_for_the_whole_batch_would_be_noticed",
        "maths/test_dmd2.py::test_the_direction_does_not_depend_on_the_scale_of_errors",
    ),
    "T9": (
        "maths/test_critic.py::test_the_posterior_mean_minimises_the_denoising_loss",
        "maths/test_dmd2.py::test_the_critics_turn_is_least_at_the_posterior_mean",
    ),
    "T10": (
        "maths/test_denoiser.py::test_guiding_outputs_is_guiding_estimates",
        "maths/test_denoiser.py::test_guided_product_of_gaussians",
        "maths/test_dmd2.py::test_guidance_moves_the_teacher_and_not_the_critic",
    ),
    "T11": (
        "maths/test_critic.py::test_realness_is_the_log_ratio_at_its_optimum",
        "maths/test_critic.py::test_approximate_r1_of_a_quadratic_logit",
        "maths/test_dmd2.py::test_r1_perturbs_the_very_tensor_the_head_saw",
    ),
    "T13": (
        "maths/test_dmd2.py::test_a_turn_leaves_the_other_player_and_its_gradients_alone",
        "maths/test_dmd2.py::test_the_fooling_gradient_passes_through_a_frozen_critic",
    ),
    "T23": (
        "maths/test_dmd2.py::test_turns_and_updates_are_counted",
        "maths/test_dmd2.py::test_two_time_scales_overshoot_as_the_model_does",
    ),
    "T24": (
        "maths/test_times.py::test_shifted_grids",
        "maths/test_times.py::test_shift_moves_the_median_and_the_mean",
        "maths/test_times.py::test_edm_index_values",
        "maths/test_times.py::test_a_fifth_of_the_way_down_edms_levels",
    ),
    "T28": (
        "maths/test_solver.py::test_the_exact_posterior_mean_collapses_in_four_steps",
        "maths/test_dmd2.py::test_a_teacher_played_as_a_student_collapses",
    ),
    "T29": (
        "maths/test_critic.py::test_softplus_losses_at_their_ends",
        "maths/test_critic.py::test_hinge_losses_at_their_ends",
    ),
}

ALPHA, SIGMA = 0.8, 0.6
M, S, MU, V = 1.0, 0.5, -1.0, 1.5
PROCESS = VariancePreserving(torch.tensor([0.81, ALPHA**2], dtype=torch.float64))
NOISY = TimeLaw(low=1.0, high=1.0)  # always t = 1, where α = 0.8
PLAIN = {"gan": 0.0, "gan_critic": 0.0}
R = 1e6  # the ballast


@dataclass
class Call:
    """What a network was asked, and whether its answer carries a graph."""

    x: torch.Tensor
    t: torch.Tensor
    cond: object
    graph: bool

    def halves(self):
        """The two batches of a pass over both."""
        conds = self.cond.chunk(2) if self.cond is not None else (None, None)
        parts = self.x.chunk(2), self.t.chunk(2), conds
        return [Call(*part, self.graph) for part in zip(*parts, strict=True)]


class Watched(nn.Module):
    """A network that remembers its calls."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, x, t, cond=None):
        out = self.net(x, t, cond)
        label = cond.get("label") if cond else None
        self.calls.append(Call(x.detach().clone(), t.clone(), label, out.requires_grad))
        return out

    @property
    def conds(self):
        return [call.cond for call in self.calls]


class Affine(nn.Module):
    """x̂₀ = mean + std · input: a student of one step."""

    def __init__(self, mean=MU, std=V):
        super().__init__()
        self.mean, self.std = (nn.Parameter(at(value)) for value in (mean, std))

    def forward(self, x, t, cond=None):
        return self.mean + self.std * x


class Posterior(nn.Module):
    """x̂₀ = E[x₀ | x_t] of N(mean, std²)."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.slope = nn.Parameter(at(mean)), slope(std)

    def forward(self, x, t, cond=None):
        return self.mean + self.slope * (x - ALPHA * self.mean)


def slope(std):
    return ALPHA * std**2 / (ALPHA**2 * std**2 + SIGMA**2)


class Ballast(nn.Module):
    """Appends a coordinate with a constant; far from the teacher's, it makes N a constant.

    Of a sample of two coordinates N = (|x − D_T| + R) / 2, so that the first feels E[Δ]/R, up to
    |x − D_T|/R.
    """

    def __init__(self, net, constant):
        super().__init__()
        self.net, self.constant = net, constant

    def forward(self, x, t, cond=None):
        out = self.net(x[:, :-1], t, cond)
        return torch.cat([out, torch.full_like(out[:, :1], self.constant)], 1)


class Trunk(nn.Module):
    """A critic's network with a block to look at."""

    def __init__(self, d=2, width=5, seed=0):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(d, width), nn.Tanh()).double()
        self.out = nn.Linear(width, d).double()
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(normal(50 + 10 * seed + i, *p.shape) / 2)

    def forward(self, x, t, cond=None):
        return self.out(self.block(x))


def view(net, prediction="x0", process=PROCESS):
    return Denoiser(net, process, prediction)


def batch_of(shape, local=0, shared=0, cond=NOTHING, x0=None):
    x0 = torch.zeros(shape).double() if x0 is None else x0
    return Batch(x0, cond, stream(1, shared), stream(2, local))


def one_step(student, teacher, critic, **more):
    """Players of x₀ networks, sampled in one step."""
    players = (view(student), view(teacher), Critic(view(critic)))
    return Players(*players, sampler=Sampler((1,)), **more)


def gradients(loss, *parameters):
    return torch.autograd.grad(loss, parameters)


# --- the student's gradient -----------------------------------------------------------------------


def noises(student, critic, mean=MU, std=V):
    """z and ε of the student's turn as numpy saw them: from what the networks were asked."""
    z, x_t = student.calls[-1].x.numpy(), critic.calls[-1].x.numpy()
    return z, (x_t - ALPHA * (mean + std * z)) / SIGMA


def formula(z, eps):
    """g = (D_F − D_T)/N of the student's turn, in numpy."""
    x = MU + V * z
    x_t = ALPHA * x + SIGMA * eps
    fake = MU + slope(V) * (x_t - ALPHA * MU)
    real = M + slope(S) * (x_t - ALPHA * M)
    return (fake - real) / np.abs(x - real).mean(axis=1, keepdims=True)


def test_the_students_gradient_is_the_formulas():
    student, critic = Watched(Affine()), Watched(Posterior(MU, V))
    p = one_step(student, Posterior(M, S), critic)
    loss = Dmd2(**PLAIN, time=NOISY).student_loss(p, batch_of((6, 3)))
    ours = gradients(loss.total, student.net.mean, student.net.std)
    z, eps = noises(student, critic)
    g = formula(z, eps)
    close(torch.stack(ours), [g.mean(), (g * z).mean()], rtol=1e-12)
    assert set(loss.terms) == {"dmd"}
    assert float(loss.total.detach()) == pytest.approx(float((g**2).mean() / 2), rel=1e-12)
    close(loss.carry.x, MU + V * z, rtol=1e-12)
    assert not loss.carry.x.requires_grad


def test_the_students_gradient_is_that_of_finite_differences():
    """½ mean (x(θ) − (x − g))² with the bracket held, moved in the weights of a small network."""
    student, critic = Watched(MLP(2)), Watched(Posterior(MU, V))
    p = one_step(student, Posterior(M, S), critic)
    loss = Dmd2(**PLAIN, time=NOISY).student_loss(p, batch_of((5, 2)))
    weight, direction = student.net.last, normal(8, *student.net.last.shape)
    (ours,) = gradients(loss.total, weight)
    z, t = student.calls[-1].x, student.calls[-1].t

    def made(h):
        with torch.no_grad():
            hidden = torch.tanh(torch.cat([z, t[:, None]], 1) @ student.net.first)
            return (hidden @ (weight + h * direction)).numpy()

    x_t, x = critic.calls[-1].x.numpy(), made(0.0)
    fake = MU + slope(V) * (x_t - ALPHA * MU)
    real = M + slope(S) * (x_t - ALPHA * M)
    held = x - (fake - real) / np.abs(x - real).mean(axis=1, keepdims=True)
    ahead, behind = (0.5 * np.mean((made(h) - held) ** 2) for h in (1e-4, -1e-4))
    assert float((ours * direction).sum()) == pytest.approx((ahead - behind) / 2e-4, rel=1e-6)


def expected(d):
    """(E[Δ/N], E[z Δ/N]) for N the mean of d independent |ρ|, ρ = x − D_T, by quadrature.

    1/N = ∫₀^∞ e^{−λN} dλ makes the d coordinates factors; ρ, z and Δ are jointly normal.
    """
    real, fake = slope(S), slope(V)
    middle = (1 - ALPHA * real) * (MU - M)  # of ρ, and of Δ
    rho = np.array([(1 - ALPHA * real) * V, -real * SIGMA])  # along z and ε
    delta = np.array([(fake - real) * ALPHA * V, (fake - real) * SIGMA])
    width = np.sqrt(rho @ rho)
    u = np.linspace(-12, 12, 24_001)
    at_rho = middle + width * u
    mean_delta, mean_z = middle + delta @ rho / width * u, rho[0] / width * u
    both = mean_delta * mean_z + delta[0] - (delta @ rho) * rho[0] / width**2

    def integrand(lam, of):
        weight = stats.norm.pdf(u) * np.exp(-lam * np.abs(at_rho) / d)
        alone = np.trapezoid(weight, u)
        return np.trapezoid(weight * of, u) * alone ** (d - 1)

    return [integrate.quad(integrand, 0, np.inf, (of,), limit=200)[0] for of in (mean_delta, both)]


def test_the_expected_gradient_by_quadrature():
    """Monte Carlo with the normaliser of each sample, 8 coordinates, within 3.5 standard errors."""
    student = Affine()
    p, method = one_step(student, Posterior(M, S), Posterior(MU, V)), Dmd2(**PLAIN, time=NOISY)
    each = []
    for k in range(50):
        loss = method.student_loss(p, batch_of((800, 8), local=k)).total
        each.append(torch.stack(gradients(loss, student.mean, student.std)).numpy())
    mean, error = np.mean(each, 0), np.std(each, 0, ddof=1) / np.sqrt(len(each))
    wanted = np.array(expected(8))
    assert np.all(error < 0.005 * np.abs(wanted))
    assert np.all(np.abs(mean - wanted) < 3.5 * error), (mean, wanted, error)
    plain = np.array([-1.3846154, 0.7384615])  # without N, the mean is another by far
    assert np.all(np.abs(mean - plain) > 20 * error)


def test_with_a_constant_normaliser_the_student_descends_the_kl():
    """Numbers of one Gaussian: E[Δ] = −1.3846154, E[Δ z] = 0.7384615; times α²/σ² the KL's."""
    student = Affine()
    teacher, critic = (Ballast(Posterior(*c), 0.0) for c in ((M, S), (MU, V)))
    p = one_step(Ballast(student, R), teacher, critic)
    loss = Dmd2(**PLAIN, time=NOISY).student_loss(p, batch_of((400_000, 2))).total
    ours = torch.stack(gradients(loss, student.mean, student.std)) * R
    close(ours, [-1.3846154, 0.7384615], atol=4e-3)
    close(ours * ALPHA**2 / SIGMA**2, [-2.4615385, 1.3128205], atol=5e-3)


def test_any_gaussians_pull_descends_the_kl():
    """p = N(m, S), x = μ + A z: ∂μ = α² P⁻¹(μ − m), ∂A = α² (P⁻¹ − Q⁻¹) A; 4·10⁵ samples."""
    d, n, eye = 3, 400_000, np.eye(3)
    m, mu = np.array([1.0, -2.0, 0.5]), np.array([0.2, 0.3, -0.7])
    root, a = (normal(k, d, d).numpy() * 0.5 + eye for k in (3, 4))
    p = ALPHA**2 * root @ root.T + SIGMA**2 * eye
    q = ALPHA**2 * a @ a.T + SIGMA**2 * eye
    by_mu = ALPHA**2 * np.linalg.solve(p, mu - m)
    by_a = ALPHA**2 * (np.linalg.inv(p) - np.linalg.inv(q)) @ a

    def kl(mean, factor):
        noised, apart = ALPHA**2 * factor @ factor.T + SIGMA**2 * at(eye), ALPHA * (mean - at(m))
        volumes = torch.logdet(at(p)) - torch.logdet(noised)
        inverse = torch.linalg.inv(at(p))
        return 0.5 * (torch.trace(inverse @ noised) + apart @ inverse @ apart - d + volumes)

    mean, factor = at(mu).clone().requires_grad_(), at(a).clone().requires_grad_()
    closed = gradients(kl(mean, factor), mean, factor)
    close(closed[0], by_mu, rtol=1e-12, atol=1e-14)
    close(closed[1], by_a, rtol=1e-12, atol=1e-14)

    z, eps = normal(5, n, d), normal(6, n, d)
    x = mean + z @ factor.T
    x_t = (ALPHA * x + SIGMA * eps).detach().numpy()
    scores = [-np.linalg.solve(c, (x_t - ALPHA * k).T).T for c, k in ((q, mu), (p, m))]
    delta = SIGMA**2 / ALPHA * (scores[0] - scores[1])
    ours = gradients(pull(x, torch.tensor(delta)), mean, factor)
    close(ours[0] * d * ALPHA**2 / SIGMA**2, by_mu, atol=5e-3)
    close(ours[1] * d * ALPHA**2 / SIGMA**2, by_a, atol=5e-3)


def test_a_critic_that_agrees_with_the_teacher_leaves_the_student_alone():
    student = Affine()
    p = one_step(student, Posterior(M, S), Posterior(M, S))
    method = Dmd2(**PLAIN)
    loss = method.student_loss(p, batch_of((7, 3))).total
    assert [float(g) for g in gradients(loss, student.mean, student.std)] == [0, 0]
    with torch.no_grad():
        p.critic.denoiser.net.mean += 1e-3
    loss = method.student_loss(p, batch_of((7, 3))).total
    assert all(float(g) != 0 for g in gradients(loss, student.mean, student.std))


class ForwardNoise(nn.Module):
    """Answers with the very noise that made x_t from the student's sample."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x_t, t, cond=None):
        with torch.no_grad():
            x = self.student.net(self.student.calls[-1].x, None)
        return (x_t - ALPHA * x) / SIGMA


def test_a_critic_that_knows_the_noise_is_score_distillation_sampling():
    """One particle, v → 0: the exact critic answers x, so its ε̂ is the noise; g = (x − D_T)/N."""
    student = Watched(Affine(std=1e-8))
    p = one_step(student, Posterior(M, S), Posterior(MU, 1e-8))
    method = Dmd2(**PLAIN, time=NOISY)
    variational = method.student_loss(p, batch_of((50, 3))).total
    variational = gradients(variational, student.net.mean, student.net.std)
    p.critic = Critic(view(ForwardNoise(student), "eps"))
    watched = Watched(p.critic.denoiser.net)
    p.critic = Critic(view(watched, "eps"))
    sds = method.student_loss(p, batch_of((50, 3))).total
    sds = gradients(sds, student.net.mean, student.net.std)
    close(torch.stack(sds), torch.stack(variational), atol=1e-6)

    z, eps = noises(student, watched, std=1e-8)
    x = MU + 1e-8 * z
    x_t = ALPHA * x + SIGMA * eps
    guess = (x_t - ALPHA * (M + slope(S) * (x_t - ALPHA * M))) / SIGMA  # the teacher's ε̂
    size = np.abs(x - (x_t - SIGMA * guess) / ALPHA).mean(axis=1, keepdims=True)
    g = SIGMA / ALPHA * (guess - eps) / size
    close(torch.stack(sds), [g.mean(), (g * z).mean()], rtol=1e-6)


# --- the normaliser -------------------------------------------------------------------------------


class Particles(nn.Module):
    """A student whose samples are its parameters."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, x, t, cond=None):
        return self.x + 0 * x


def particle_gradients(x):
    """What the student's turn does to each particle, times their number."""
    student = Particles(x)
    p = one_step(student, Posterior(M, S), Posterior(MU, V))
    loss = Dmd2(**PLAIN, time=NOISY).student_loss(p, batch_of(x.shape)).total
    return gradients(loss, student.x)[0] * len(x)


def test_other_samples_do_not_matter_to_a_samples_gradient():
    x = normal(1, 6, 3)
    others = x.clone()
    others[1:] = 5 * normal(2, 5, 3)
    one, same = particle_gradients(x), particle_gradients(others)
    assert torch.equal(one[0], same[0])
    assert not torch.allclose(one[1:], same[1:], rtol=1e-2)


def test_one_normaliser_for_the_whole_batch_would_be_noticed():
    x, real, fake = (normal(k, 6, 3) for k in (1, 2, 3))
    far = torch.cat([x[:1], 5 * x[1:]])

    def whole_batch(x, real, fake):
        return (fake - real) / (x - real).abs().mean()

    for direction, same in ((matching_direction, True), (whole_batch, False)):
        assert torch.equal(direction(x, real, fake)[0], direction(far, real, fake)[0]) == same


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_the_direction_does_not_depend_on_the_scale_of_errors(scale):
    x, apart, delta = (normal(k, 4, 2, 3) for k in (1, 2, 3))
    one = matching_direction(x, x - apart, x - apart + delta)
    other = matching_direction(x, x - scale * apart, x - scale * apart + scale * delta)
    close(other, one, rtol=1e-7, atol=1e-10)
    size = apart.abs().mean(dim=(1, 2), keepdim=True)
    close(one, (delta / size), rtol=1e-12, atol=1e-14)


def test_a_teacher_that_agrees_to_the_bit_divides_by_no_zero():
    x = normal(1, 3, 2)
    close(matching_direction(x, x, x + 1e-6), torch.full_like(x, 0.1), rtol=1e-6)


# --- guidance -------------------------------------------------------------------------------------

MODES = np.array([[-1.0, 0.5], [1.5, 1.0], [0.2, -1.4]])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def mixture():
    return GaussianMixture(torch.tensor(MODES), S, PROCESS, torch.tensor(WEIGHTS))


def posterior_mean(x_t, k=None):
    """E[x₀ | x_t] of the mixture, or of component k (b,), in numpy."""
    var = ALPHA**2 * S**2 + SIGMA**2
    means = MODES + slope(S) * (x_t[:, None] - ALPHA * MODES)
    if k is not None:
        return means[np.arange(len(k)), k]
    log = np.log(WEIGHTS) - ((x_t[:, None] - ALPHA * MODES) ** 2).sum(-1) / (2 * var)
    return (special.softmax(log, axis=1)[..., None] * means).sum(1)


class Mixed(nn.Module):
    """The mixture's exact answers, as a network."""

    def forward(self, x, t, cond=None):
        return mixture()(x, t, cond).x0


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_guidance_moves_the_teacher_and_not_the_critic(w):
    """Its critic being the unguided teacher, the student feels (w − 1)(D_c − D_∅) alone."""
    student, real, fake = Watched(Affine()), Watched(Mixed()), Watched(Mixed())
    teacher = Guided(view(real), w, mixture().null)
    p = Players(view(student), teacher, Critic(view(fake)), sampler=Sampler((1,)))
    cond = labels(0, 1, 2, 0, 1)
    batch = batch_of((5, 2), cond=cond)
    ours = Dmd2(**PLAIN, time=NOISY).student_loss(p, batch).total
    ours = gradients(ours, student.net.mean, student.net.std)

    z, eps = noises(student, fake)
    x = MU + V * z
    x_t = ALPHA * x + SIGMA * eps
    given, free = posterior_mean(x_t, cond["label"].numpy()), posterior_mean(x_t)
    guided = free + w * (given - free)
    g = (given - guided) / np.abs(x - guided).mean(axis=1, keepdims=True)
    close(g * np.abs(x - guided).mean(axis=1, keepdims=True), -(w - 1) * (given - free), atol=1e-14)
    close(torch.stack(ours), [g.mean(), (g * z).mean()], rtol=1e-10, atol=1e-15)
    assert torch.equal(fake.conds[0], cond["label"]) and len(fake.conds) == 1
    null = torch.full_like(cond["label"], 3)
    assert torch.equal(torch.stack(real.conds), torch.stack([cond["label"], null][: 1 + (w > 1)]))
    assert not any(call.graph for call in real.calls)


def test_a_critic_is_trained_without_guidance():
    net = Watched(Mixed())
    p = Players(view(Affine()), None, Critic(view(net)), sampler=Sampler((1,)))
    cond = labels(2, 0, 1)
    Dmd2(**PLAIN).critic_loss(p, batch_of((3, 2), cond=cond))
    assert len(net.conds) == 1 and torch.equal(net.conds[0], cond["label"])


# --- the critic's turn ----------------------------------------------------------------------------


class Line(nn.Module):
    """x̂₀ = intercept + slope x_t, put out as `prediction`."""

    def __init__(self, prediction):
        super().__init__()
        self.line = nn.Parameter(at([0.1, 0.2]))
        self.prediction = prediction

    def forward(self, x, t, cond=None):
        x0 = self.line[0] + self.line[1] * x
        eps = (x - ALPHA * x0) / SIGMA
        return {"x0": x0, "eps": eps, "v": ALPHA * eps - SIGMA * x0}[self.prediction]


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_the_critics_turn_is_least_at_the_posterior_mean(prediction):
    """The loss is a parabola in (intercept, slope), least at 0.6923, 0.3846 for every weight."""
    net = Line(prediction)
    p = Players(view(Affine(M, S)), None, Critic(view(net, prediction)), sampler=Sampler((1,)))

    def slopes(point):
        with torch.no_grad():
            net.line.copy_(at(point))
        loss = Dmd2(**PLAIN, critic_time=NOISY).critic_loss(p, batch_of((400_000, 1)))
        return gradients(loss.total, net.line)[0].numpy()

    origin = slopes([0.0, 0.0])
    curvature = np.stack([slopes(e) - origin for e in ([1.0, 0.0], [0.0, 1.0])], 1)
    close(np.linalg.solve(curvature, -origin), [0.6923, 0.3846], atol=3e-3)


def test_clipped_samples_are_what_all_networks_see_and_the_box_is_never_left(judged):
    """By hand: of the pull's gradient, g/numel, no part that leads a clipped value further out."""
    process = judged.p.student.process
    method = Dmd2(gan=0.25, gan_critic=1.0, clip=True, time=NOISY)
    loss = method.student_loss(judged.p, batch_of((500, 2)))
    z, seen = judged.student.calls[0].x, judged.trunk.calls[0]
    made = judged.student.net(z, None)
    x = made.detach().clamp(-1, 1)
    stray = made.abs() >= 1
    assert 0.1 < float(stray.double().mean()) < 0.9
    close(loss.carry.x, x, rtol=1e-12)
    noise = (seen.x - ALPHA * x) / SIGMA
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 1).cdf).pvalue > 1e-3
    real = judged.p.teacher(seen.x, seen.t, None).x0
    fake = process.estimate(seen.x, judged.trunk.net(seen.x, None), seen.t, "eps").x0
    g = matching_direction(x, real, fake)
    outward = stray & (g.sign() == -made.sign())
    assert 20 < int(outward.sum()) < int(stray.sum()) - 20
    (ours,) = torch.autograd.grad(loss.terms["dmd"], judged.student.net.mean)
    close(ours, (g * ~outward).mean(), rtol=1e-9)


@dataclass
class Judged:
    """Players whose critic has a head, and its parts."""

    p: Players
    student: Watched
    trunk: Watched
    head: nn.Linear

    def logits(self, call):
        return self.head(self.trunk.net.block(call.x)).flatten()


@pytest.fixture
def judged():
    student, trunk = Watched(Affine()), Watched(Trunk())
    head = nn.Linear(5, 1).double()
    with torch.no_grad():
        head.weight.copy_(normal(9, 1, 5))
        head.bias.fill_(0.3)
    critic = Critic(view(trunk, "eps"), head, Taps(("net.block",)))
    p = Players(view(student), view(Posterior(M, S)), critic, sampler=Sampler((1,)))
    return Judged(p, student, trunk, head)


def test_the_critics_terms_are_the_formulas(judged):
    """Real samples are noised to the fake ones' times, each with noise of its own."""
    x, cond, fresh = normal(1, 6, 2), labels(*range(6)), labels(*range(10, 16))
    data = normal(2, 6, 2)
    judged.p.carry = Sample(x, cond)
    method = Dmd2(gan=0.1, gan_critic=0.7, r1=0.4, r1_width=0.05, critic_time=NOISY)
    batch = batch_of(None, cond=fresh, x0=data)
    loss = method.critic_loss(judged.p, batch, carried=True)
    assert not judged.student.calls
    both, there = judged.trunk.calls
    fake, real = both.halves()
    seen = (fake.cond, cond), (real.cond, fresh), (there.cond, fresh)
    assert all(torch.equal(given, wanted["label"]) for given, wanted in seen)
    assert torch.equal(fake.t, real.t)
    eps = (fake.x - ALPHA * x) / SIGMA
    other = (real.x - ALPHA * data) / SIGMA
    assert float((eps - other).abs().max()) > 0.1
    logits = [judged.logits(call) for call in (fake, real, there)]
    gan = F.softplus(logits[0]).mean() + F.softplus(-logits[1]).mean()
    close(loss.terms["denoising"], (judged.trunk.net(fake.x, None) - eps).square().mean())
    close(loss.terms["realness"], 0.7 * gan, rtol=1e-12)
    close(loss.terms["r1"], 0.4 * ((logits[2] - logits[1]) / 0.05).square().mean(), rtol=1e-10)
    close(loss.total, sum(term.detach() for term in loss.terms.values()), rtol=1e-12)
    close(loss.shown["real"], logits[1].mean(), rtol=1e-12)
    close(loss.shown["fake"], logits[0].mean(), rtol=1e-12)
    body, head = judged.trunk.net.block[0].weight, judged.head.weight
    assert all(g.abs().sum() > 0 for g in gradients(loss.terms["realness"], body, head))


def test_r1_perturbs_the_very_tensor_the_head_saw(judged):
    """Noised data plus noise of std `r1_width`: not noised data of perturbed data, 0.8 of it."""
    width, n = 0.1, 20_000
    batch = batch_of(None, x0=normal(3, n, 2))
    Dmd2(r1=1.0, r1_width=width, critic_time=NOISY).critic_loss(judged.p, batch)
    both, there = judged.trunk.calls
    _, real = both.halves()
    assert torch.equal(real.t, there.t)
    apart = ((there.x - real.x) / width).flatten()
    assert stats.kstest(apart.numpy(), stats.norm(0, 1).cdf).pvalue > 1e-3
    noise = (real.x - ALPHA * batch.x0) / SIGMA
    assert abs(float((apart * noise.flatten()).mean())) < 4 / np.sqrt(2 * n)


# --- the GAN in the student's turn ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["softplus", "hinge"])
def test_the_fooling_gradient_passes_through_a_frozen_critic(judged, kind):
    """Its networks ask for no gradient, the sample gets one: λ α dL/dx_t, by hand."""
    judged.p.critic.net.requires_grad_(False)
    method = Dmd2(gan=0.25, gan_critic=1.0, gan_loss=kind, time=NOISY)
    loss = method.student_loss(judged.p, batch_of((6, 2)))
    mean, std = judged.student.net.mean, judged.student.net.std
    ours = torch.autograd.grad(loss.terms["gan"], (mean, std), retain_graph=True)
    z, x_t = judged.student.calls[0].x, judged.trunk.calls[0].x.requires_grad_()
    logits = judged.head(judged.trunk.net.block(x_t)).flatten()
    fool = F.softplus(-logits).mean() if kind == "softplus" else -logits.mean()
    (by_x,) = gradients(fool, x_t)
    close(torch.stack(ours), 0.25 * ALPHA * np.array([by_x.sum(), (by_x * z).sum()]), rtol=1e-10)
    assert all(float(g) != 0 for g in ours)
    loss.total.backward()
    assert all(p.grad is None for p in judged.p.critic.net.parameters())
    assert len(judged.trunk.calls) == 1  # one pass denoises and judges


@dataclass(frozen=True)
class Points:
    """Exact data N(1, 0.5²) in two dimensions, float64; labels name the batch."""

    def batch(self, number, size, local):
        noise = torch.randn(size, 2, generator=local).double()
        return Drawn(M + S * noise, labels(number, n=size))


def trainer(method, players, batch=4, accumulation=1, **rates):
    """Plain gradient descent: rectified Adam without its averages never leaves its first phase."""
    optimisers = {
        name: Optimiser("radam", lr=lr, betas=(0.0, 0.0), clip=0.0) for name, lr in rates.items()
    }
    training = Training(updates=10**6, batch=batch, accumulation=accumulation, **optimisers)
    return Trainer(method, players, Points(), training, Accelerator(cpu=True))


def test_a_turn_leaves_the_other_player_and_its_gradients_alone(judged):
    made = trainer(Dmd2(ratio=2), judged.p, optimiser=0.1, critic_optimiser=0.1)
    seen = Counter()
    for _ in range(6):
        before = {
            name: [(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in moved]
            for name, moved in made.moved.items()
        }
        player = made.step().player
        seen[player] += 1
        for name, moved in made.moved.items():
            for p, (value, grad) in zip(moved, before[name], strict=True):
                if name == player:
                    assert not torch.equal(p, value) and p.grad.abs().sum() > 0
                    continue
                assert torch.equal(p, value)
                assert p.grad is None if grad is None else torch.equal(p.grad, grad)
        assert all((p.grad is None) == (not seen[n]) for n, ps in made.moved.items() for p in ps)
    assert seen == {"student": 2, "critic": 4}


@pytest.mark.parametrize("micro", [1, 2])
def test_the_carried_condition_belongs_to_the_carried_sample(judged, micro):
    """Through the trainer: the first critic turn judges the student's sample under its label,

    in each micro-batch the sample of that micro-batch.
    """
    rates = {"optimiser": 0.1, "critic_optimiser": 0.1}
    made = trainer(Dmd2(ratio=2), judged.p, accumulation=micro, **rates)
    for _ in range(6):
        judged.trunk.calls.clear()
        turn, step = made.turn, made.step()
        first = 3 * (turn // 3)
        turns = {0: [turn], 1: [first, turn], 2: [turn, turn]}[turn - first]
        wanted = [t * micro + k for k in range(micro) for t in turns]
        assert [int(c[0]) for cond in judged.trunk.conds for c in cond.split(4)] == wanted
        assert (step.player == "student") == (turn == first)


# --- two time scales ------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_turns_and_updates_are_counted(judged, ratio):
    turns = Dmd2(ratio=ratio).turns()
    assert [turn.player for turn in turns] == ["student"] + ["critic"] * ratio
    made = trainer(Dmd2(ratio=ratio), judged.p, optimiser=0.1, critic_optimiser=0.1)
    players = [made.step().player for _ in range(13)]
    for n in range(1, 14):
        assert players[:n].count("student") == -(-n // (1 + ratio))
        assert players[:n].count("critic") == n - players[:n].count("student")
    assert made.update == players.count("student")


def lag_model(eta, rate, n, iterations, carried=False):
    """Means of student and critic: μ ← μ − L(c − m) every n-th time, c ← c + η(μ − c) always.

    carried: right after the student's step the critic still follows where the student was.
    """
    mu, c, path = -1.0, -1.0, []
    for i in range(iterations):
        follows = mu
        if i % n == 0:
            mu -= rate * (c - M)
            follows = follows if carried else mu
        c += eta * (follows - c)
        path.append((mu, c))
    return np.array(path)


OVERSHOOTS = {0.02: (3.928, 2.356, 0.996, 0.364, 0.033), 0.1: (0.948, 0.335, 0.0008, 0, 0)}


class Uncarried(Dmd2):
    """Every critic turn on fresh samples."""

    def turns(self):
        critic = [Turn("critic", self.critic_loss)] * self.ratio
        return (Turn("student", self.student_loss), *critic)


class Level(nn.Module):
    """Everyone's answer is one number."""

    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(at(level))

    def forward(self, x, t, cond=None):
        return self.level.expand(x.shape)


@pytest.mark.parametrize("eta", OVERSHOOTS)
@pytest.mark.parametrize("kind", [Dmd2, Uncarried])
def test_two_time_scales_overshoot_as_the_model_does(eta, kind):
    """Point masses: Δ = c − m exactly; the ballast makes N a constant, so that L is one."""
    rate, weight = 0.15, (ALPHA / SIGMA) ** 2
    for n, overshoot in zip((1, 2, 5, 10, 20), OVERSHOOTS[eta]):
        model = lag_model(eta, rate, n, 4000)
        assert max(model[:, 0].max() - M, 0) == pytest.approx(overshoot, abs=6e-4)

        student, critic = Level(-1.0), Level(-1.0)
        p = one_step(Ballast(student, R), Ballast(Level(M), 0.0), Ballast(critic, 0.0))
        method = kind(ratio=n, **PLAIN, time=NOISY, critic_time=NOISY)
        rates = {"optimiser": rate * R, "critic_optimiser": eta / weight}
        made = trainer(method, p, batch=2, **rates)
        path = []
        for _ in range(60):
            if made.step().player == "critic":
                path.append((float(student.level.detach()), float(critic.level.detach())))
        wanted = lag_model(eta, rate, n, len(path), carried=kind is Dmd2)
        close(np.array(path), wanted, atol=1e-4)


# --- rollouts -------------------------------------------------------------------------------------

STEPS = [(1,), (4,), (1, 2, 4), (3, 5)]
every_steps = pytest.mark.parametrize("steps", STEPS)


def shares(steps):
    """The probability of each length of a rollout: n of `steps` at random, then one of 1 … n."""
    return {k: np.mean([(k <= n) / n for n in steps]) for k in range(1, max(steps) + 1)}


def alone(steps, gamma=1.0, process="rf", grid=None, net=None):
    """Players that are only a student, a small network on two numbers."""
    net = Watched(net or MLP(2, slow=PROCESSES[process].t_max))
    sampler = Sampler(steps, grid or Grid(), gamma)
    return Players(view(net, "flow", PROCESSES[process]), sampler=sampler), net


@every_steps
def test_a_rollout_stops_where_the_shared_stream_says(steps):
    p, net = alone(steps)
    process, lengths = p.student.process, Counter()
    for shared in range(60):
        net.calls.clear()
        Dmd2().generate(p, batch_of((2, 2), shared=shared))
        times = torch.stack([call.t[0] for call in net.calls])
        lengths[len(times)] += 1
        grids = [p.sampler.times(process, n)[: len(times)] for n in steps]
        assert any(len(grid) == len(times) and torch.equal(grid, times) for grid in grids)
        assert [call.graph for call in net.calls] == [False] * (len(times) - 1) + [True]
    assert set(lengths) == set(range(1, max(steps) + 1))


@every_steps
def test_numbers_of_steps_and_exits_are_equally_likely(steps):
    p, _ = alone(steps)
    n, wanted = 3000, shares(steps)
    drawn = (len(Dmd2().exit_times(p, batch_of((1, 1), shared=k))) for k in range(n))
    lengths = Counter(drawn)
    if len(wanted) > 1:
        found = [lengths[k] for k in wanted]
        assert stats.chisquare(found, n * np.array(list(wanted.values()))).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["backward", "noised_data"])
def test_only_the_shared_stream_decides_the_exit_and_only_the_local_one_the_noise(kind):
    p, net = alone((1, 2, 4))
    method, data = Dmd2(rollout=kind), normal(3, 3, 2)

    def ask(local, shared):
        net.calls.clear()
        method.generate(p, batch_of(None, local=local, shared=shared, x0=data))
        return list(net.calls)

    differ = 0
    for shared in range(12):
        one, other = ask(1, shared), ask(2, shared)  # two ranks
        assert [float(c.t[0]) for c in one] == [float(c.t[0]) for c in other]
        assert all(not torch.equal(a.x, b.x) for a, b in zip(one, other))
        elsewhere = ask(1, shared + 1)
        differ += [float(c.t[0]) for c in one] != [float(c.t[0]) for c in elsewhere]
        if kind == "backward":
            assert torch.equal(one[0].x, elsewhere[0].x)
    assert differ > 3


class Bank(nn.Module):
    """A parameter for each time."""

    def __init__(self, times):
        super().__init__()
        self.times, self.scale = times, nn.Parameter(torch.full((len(times),), 0.5).double())

    def forward(self, x, t, cond=None):
        return self.scale[(self.times - t[0]).abs().argmin()] * x


def test_only_the_last_evaluation_has_a_gradient():
    times = Grid().times(RectifiedFlow(), 4)[:-1]
    p, net = alone((4,), net=Bank(times))
    for shared in range(20):
        net.calls.clear()
        Dmd2().generate(p, batch_of((3, 2), shared=shared)).x.square().sum().backward()
        moved = net.net.scale.grad != 0
        assert moved.nonzero().flatten().tolist() == [len(net.calls) - 1]
        net.net.scale.grad = None


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("process, grid", [("rf", Grid("shifted", 3.0)), ("vp", Grid("trailing"))])
@pytest.mark.parametrize("steps", [(4,), (1, 2, 5)])
def test_the_student_is_trained_on_the_states_of_its_own_sampler(gamma, process, grid, steps):
    """Bit for bit, each number of steps and every exit."""
    p, net = alone(steps, gamma, process, grid)
    for shared in range(16):
        net.calls.clear()
        x = Dmd2().generate(p, batch_of((3, 2), shared=shared)).x
        mine, local = list(net.calls), stream(2, 0)
        times = torch.stack([call.t[0] for call in mine])
        grids = {n: p.sampler.times(p.student.process, n)[: len(times)] for n in steps}
        n = next(n for n, grid in grids.items() if torch.equal(grid, times))
        noise = torch.randn(3, 2, generator=local).double()
        net.calls.clear()
        whole = p.sampler.draw(p.student, noise, n, None, local)
        for a, b in zip(mine, net.calls):
            assert torch.equal(a.x, b.x) and torch.equal(a.t, b.t)
        assert torch.equal(x, whole) == (len(mine) == n)


def test_a_teacher_played_as_a_student_collapses():
    """Rectified flow at 1, .75, .5, .25: variance s² → k² (α² Var + σ²), ends at 0.0725521."""
    times, n = [1.0, 0.75, 0.5, 0.25], 200_000
    state = 1.0
    for t, s in zip(times, [*times[1:], 0.0]):
        keep = (1 - t) * S**2 / ((1 - t) ** 2 * S**2 + t**2)
        state = (1 - s) ** 2 * keep**2 * state + s**2
    assert state == pytest.approx(0.0725521, abs=5e-8)
    exact = Gaussian(torch.ones(1).double(), S, RectifiedFlow())
    sampler = Sampler((4,))
    assert sampler.times(exact.process, 4).tolist() == times
    p = Players(exact, sampler=sampler)
    shared = next(k for k in count() if len(Dmd2().exit_times(p, batch_of((1, 1), shared=k))) == 4)
    made = {
        "method": Dmd2().generate(p, batch_of((n, 1), shared=shared)).x,
        "draw": sampler.draw(exact, normal(1, n, 1), 4, None, stream(5)),
        "rollout": rollout(exact, normal(2, n, 1), at(times), generator=stream(6)),
    }
    for x in made.values():
        assert float(x.mean()) == pytest.approx(1, abs=3e-3)
        assert float(x.var()) == pytest.approx(0.0725521, rel=0.012)


def test_noised_data_is_what_the_student_gets_where_asked():
    """x_t = α x₀ + σ ε at the exit time, one call; pure noise at the first time."""
    p, net = alone((1, 4), process="vp", grid=Grid("trailing"))
    data, n = normal(4, 4000, 2) * 0.3 + 2.0, 4000
    seen = set()
    for shared in range(16):
        net.calls.clear()
        x = Dmd2(rollout="noised_data").generate(p, batch_of(None, shared=shared, x0=data)).x
        (call,) = net.calls
        assert call.graph and x.requires_grad
        t = float(call.t[0])
        angle = np.arccos(np.sqrt(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)))
        alpha, sigma = (0, 1) if t == 999 else (np.cos(angle[int(t)]), np.sin(angle[int(t)]))
        noise = (call.x.numpy() - alpha * data.numpy()) / sigma
        assert stats.kstest(noise.flatten(), stats.norm(0, 1).cdf).pvalue > 1e-3
        overlap = np.corrcoef(noise.flatten(), data.numpy().flatten())[0, 1]
        assert abs(overlap) < 4 / np.sqrt(2 * n)
        seen.add(t)
    assert seen == {999, 749, 499, 249}


@dataclass
class Followed:
    """Exact critics of samples N(m, S²) with an m for each step: of all together, or of one."""

    means: torch.Tensor
    shares: torch.Tensor
    times: list[float]
    process: RectifiedFlow = RectifiedFlow()
    step: torch.Tensor | None = None

    def toward(self, s):
        return replace(self, step=s)

    def __call__(self, x_t, t, cond=NOTHING):
        if self.step is None:
            means = self.means[:, None].expand(-1, x_t.shape[1])
            return GaussianMixture(means, S, self.process, self.shares)(x_t, t)
        (step,) = set(self.step.tolist())
        mean = self.means[self.times.index(step)].expand(x_t.shape[1])
        return Gaussian(mean, S, self.process)(x_t, t)


class Steps(nn.Module):
    """Makes N(m, S²) at each of its times, from pure noise and from what it made before."""

    def __init__(self, means, times):
        super().__init__()
        self.means, self.times = nn.Parameter(means.clone()), times

    def forward(self, x, t, cond=None):
        k = self.times.index(float(t[0]))
        before = (1 - self.times[k]) * self.means.detach()[max(k - 1, 0)]
        width = np.hypot((1 - self.times[k]) * S, self.times[k])
        return self.means[k] + S * (x - before) / width


@pytest.mark.parametrize("stepwise", [False, True])
def test_a_critic_of_all_steps_does_not_see_errors_that_cancel(stepwise):
    """Asked at t = 1 three times of four, at ½ else: errors d and −3 d leave the mean right."""
    times, d, n = [1.0, 0.5], 0.02, 16
    means, shares = torch.tensor([[d, -3 * d], [0.75, 0.25]], dtype=torch.float64)
    net, zeros = Steps(means, times), torch.zeros(n, dtype=torch.float64)
    p = Players(
        view(net, "x0", RectifiedFlow()),
        Gaussian(zeros, S, RectifiedFlow()),
        Followed(means, shares, times),
        sampler=Sampler((1, 2)),
    )
    method = Dmd2(**PLAIN, stepwise=stepwise, time=TimeLaw(low=0.5, high=0.5))
    # x̂₀ moves by σ² m / (α² S² + σ²) = 0.8 m; |x − x̂₀| has the mean √(2/π) S σ / √(α² S² + σ²).
    slope = 0.8 / (np.sqrt(2 / np.pi) * S * 0.5 / np.hypot(0.5 * S, 0.5))
    for k, mean in enumerate(means.tolist()):
        lengths = ((i, len(method.exit_times(p, batch_of((1, 1), shared=i)))) for i in count())
        shared = next(i for i, length in lengths if length == k + 1)
        method.student_loss(p, batch_of((4000, n), shared=shared)).total.backward()
        found = float(net.means.grad[k])
        if stepwise:
            assert found == pytest.approx(slope * mean, rel=0.08)
        else:
            assert abs(found) < 0.1 * slope * d
        net.means.grad = None


# --- what is carried, and what a cycle costs ------------------------------------------------------


@every_steps
@pytest.mark.parametrize("plain", [True, False])
def test_the_first_critic_turn_takes_the_carried_sample_and_the_others_fresh_ones(
    judged, steps, plain
):
    judged.p.sampler = Sampler(steps)
    method = Dmd2(ratio=3, **(PLAIN if plain else {}))
    for k, turn in enumerate(method.turns()):
        judged.student.calls.clear()
        batch = batch_of((4, 2), local=k, shared=k)
        length = len(method.exit_times(judged.p, batch_of((4, 2), shared=k)))
        loss = turn.loss(judged.p, batch)
        judged.p.carry = loss.carry or judged.p.carry
        assert len(judged.student.calls) == (0 if k == 1 else length)
        assert not any(call.graph for call in judged.student.calls[: None if k else -1])
        assert (loss.carry is None) == (k > 0)


class Passes:
    """Forwards of `batch` samples, and which of them a backward came through, at first layers."""

    def __init__(self, batch, *layers):
        self.batch, self.forwards, self.backwards = batch, 0, 0
        for layer in layers:
            layer.register_forward_hook(self.forward)

    def forward(self, _layer, _inputs, out):
        self.forwards += len(out) / self.batch
        if out.requires_grad:
            out.register_hook(self.backward)

    def backward(self, gradient):
        self.backwards += len(gradient) / self.batch


def tally(method, sampler):
    """Trained, frozen and teacher passes of one cycle, averaged over every length of rollouts."""
    student, trunk, teacher = Trunk(seed=1), Trunk(seed=2), Trunk(seed=3)
    head = nn.Linear(5, 1).double()
    flow = RectifiedFlow()
    critic = Critic(view(trunk, "flow", flow), head, Taps(("block",)))
    p = Players(view(student, "flow", flow), view(teacher, "flow", flow), critic, sampler=sampler)
    players = {"student": student, "critic": critic.net}
    total = np.zeros(3)
    for turn in method.turns():
        for length, share in shares(sampler.steps).items():
            shared = next(
                k for k in count()
                if len(Dmd2().exit_times(p, batch_of((1, 1), shared=k))) == length
            )  # fmt: skip
            for name, net in players.items():
                net.requires_grad_(name == turn.player)
            ours, others = Passes(2, student.block[0], trunk.block[0]), Passes(2, teacher.block[0])
            loss = turn.loss(p, batch_of((2, 2), shared=shared))
            loss.total.backward()
            p.carry = loss.carry or p.carry
            frozen = ours.forwards - ours.backwards
            total += share * np.array([ours.backwards, frozen, others.forwards])
            assert others.backwards == 0
            for net in (student, trunk, teacher):
                net.block[0]._forward_hooks.clear()
    return total


@pytest.mark.parametrize("steps", [(1,), (2, 4), (1, 2, 4)])
@pytest.mark.parametrize("kind", ["backward", "noised_data"])
@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize(
    "gan", [PLAIN, {}, {"r1": 0.1}], ids=["without GAN", "with GAN", "with R1"]
)
def test_passes_are_those_counted(steps, kind, ratio, gan):
    method, sampler = Dmd2(ratio=ratio, rollout=kind, **gan), Sampler(steps)
    close(tally(method, sampler), np.array(method.passes(sampler)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("turn", ["student", "critic"])
def test_in_bf16_networks_round_and_the_mathematics_does_not(turn):
    """Under autocast the terms are float32, and they and their gradient stay near float32's."""

    def outcome(rounding: bool) -> tuple[dict, torch.Tensor]:
        p, images = toys.tiny_players(), tiny_images().batch(0, 32, stream(1))[:2]
        batch, method = Batch(*images, stream(2), stream(3)), Dmd2(gan=0.1, gan_critic=0.1)
        net = p.critic.net if turn == "critic" else p.student.net
        with torch.autocast("cpu", torch.bfloat16, enabled=rounding):
            loss = getattr(method, f"{turn}_loss")(p, batch)
        loss.total.backward()
        return loss.terms, torch.cat([w.grad.flatten() for w in net.parameters()])

    (exact, slope), (rounded, bent) = outcome(False), outcome(True)
    assert all(term.dtype == torch.float32 for term in rounded.values())
    for name in exact:
        close(rounded[name], exact[name], rtol=0.03)
    assert not torch.equal(slope, bent)
    assert F.cosine_similarity(slope, bent, dim=0) > 0.98


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ratio": 0}, "ratio: must be at least 1"),
        ({"gan": 0.0}, "need one another"),
        ({"gan_critic": 0.0}, "need one another"),
        ({**PLAIN, "r1": 1.0}, "need one another"),
        ({"r1": -1.0}, "r1: must be at least 0"),
        ({"gan": -1e-3}, "gan: must be at least 0"),
        ({"r1_width": 0.0}, "r1_width: must be above 0"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Dmd2(**settings)


def test_every_time_of_the_sampler_is_trained_and_no_other():
    process, sampler = RectifiedFlow(), Sampler((1, 3))
    assert Dmd2().trained_times(process, sampler).tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3])
    with pytest.raises(ValueError, match="numbers of steps"):
        Dmd2().trained_times(process, Sampler(()))
    assert Dmd2().needs.discriminator and not Dmd2(**PLAIN).needs.discriminator


def test_every_named_test_exists():
    rows = {"T0", "T1", "T2", "T3", "T4", "T5", "T9", "T10", "T11", "T13", "T23", "T24", "T28"}
    assert PROVED.keys() == rows | {"T29"}
    named = {name for row in PROVED.values() for name in row}
    real = set()
    for file in {name.partition("::")[0] for name in named}:
        tree = ast.parse((Path(__file__).parents[1] / file).read_text())
        real |= {f"{file}::{n.name}" for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert named - real == set()
