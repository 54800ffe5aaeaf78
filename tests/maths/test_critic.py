"""The critic: `pull` and the KL gradient it makes, denoising and realness losses, hooks.

The score-distillation numbers are derived by hand for one Gaussian: data N(1, 0.5²), a student
x = −1 + 1.5 z, noised with α = 0.8, σ = 0.6.
"""

from dataclasses import dataclass
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import MLP, PREDICTIONS, PROCESSES, TIMES, at, close, normal, scales
from scipy import stats
from torch import nn
from torch.utils.checkpoint import checkpoint

from stepdistill.critic import Critic
from stepdistill.denoiser import Denoiser
from stepdistill.exact import Gaussian
from stepdistill.losses.denoising import denoising_error, denoising_loss, lag
from stepdistill.losses.gan import approximate_r1, discriminator_loss, generator_loss
from stepdistill.losses.score import project, pull
from stepdistill.networks.taps import Taps, collected
from stepdistill.process import VariancePreserving

names = pytest.mark.parametrize("name", PROCESSES)

ALPHA, SIGMA = 0.8, 0.6
PROCESS = VariancePreserving(torch.tensor([0.81, ALPHA**2], dtype=torch.float64))
NOISY = 1.0  # the time at which α = 0.8


def gauss(mean, std, d=1):
    return Gaussian(torch.full((d,), mean).double(), std, PROCESS)


def test_pull_has_the_gradient_it_is_given():
    x, g = normal(1, 4, 3, 5).requires_grad_(), normal(2, 4, 3, 5).requires_grad_()
    loss = pull(x, g)
    loss.backward()
    close(x.grad, g / 60, rtol=0, atol=1e-15)
    assert g.grad is None
    assert float(loss.detach()) == pytest.approx(float(g.detach().square().mean()) / 2, rel=1e-12)


def test_pull_keeps_small_gradients_of_half_precision_samples():
    """x − (x − 10⁻³) is 0 in bfloat16 at x = 1."""
    x = torch.full((2, 4), 1.0, dtype=torch.bfloat16, requires_grad=True)
    pull(x, torch.full((2, 4), 1e-3, dtype=torch.bfloat16)).backward()
    close(x.grad.double(), torch.full((2, 4), 1e-3 / 8).double(), rtol=5e-3)


def test_pulling_against_the_gradient_descends():
    x, g = normal(1, 4, 3).requires_grad_(), normal(2, 4, 3)
    for _ in range(200):
        (slope,) = torch.autograd.grad(pull(x, x - g), x)
        x = (x - 2 * slope).detach().requires_grad_()
    close(x, g, atol=1e-6)


def test_golden_denoisers_and_scores():
    x, t = at([[0.3]]), at([NOISY])
    teacher, fake = gauss(1.0, 0.5)(x, t), gauss(-1.0, 1.5)(x, t)
    ours = [teacher.x0, fake.x0, -teacher.eps / SIGMA, -fake.eps / SIGMA]
    close([float(v) for v in ours], [0.8076923, 0.1, 0.9615385, -0.6111111], atol=5e-8)


def closed_kl(mean, std):
    """KL of N(α mean, α² std² + σ²) from the noised data."""
    p, q = ALPHA**2 * 0.25 + SIGMA**2, ALPHA**2 * std**2 + SIGMA**2
    return 0.5 * (q / p - 1 - torch.log(q / p) + (ALPHA * (mean - 1)) ** 2 / p)


def test_the_closed_kl_gradient_is_golden():
    mean, std = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-1.0, 1.5))
    kl = closed_kl(mean, std)
    kl.backward()
    values = [float(v) for v in (kl.detach(), mean.grad, std.grad)]
    close(values, [3.0714511, -2.4615385, 1.3128205], atol=1e-7)


@pytest.mark.parametrize("d", [1, 3])
def test_pull_towards_the_teacher_descends_the_kl(d):
    """Monte Carlo, with an exact critic: d·α²/σ² times the gradient of `pull` is that of KL."""
    n = 400_000 // d
    z, eps, t = normal(1, n, d), normal(2, n, d), at(NOISY, n)
    mean, std = torch.full((d,), -1.0).double(), torch.tensor(1.5).double()
    x = mean.requires_grad_() + std.requires_grad_() * z
    with torch.no_grad():
        x_t = PROCESS.add_noise(x, eps, t)
        g = gauss(-1.0, 1.5, d)(x_t, t).x0 - gauss(1.0, 0.5, d)(x_t, t).x0
    pull(x, g).backward()
    close(mean.grad * d, np.full(d, -1.3846154), atol=4e-3 * d**0.5)  # in units of x₀
    assert float(std.grad) == pytest.approx(0.7384615, abs=4e-3)
    ratio = ALPHA**2 / SIGMA**2
    close(mean.grad * d * ratio, np.full(d, -2.4615385), atol=8e-3 * d**0.5)
    assert float(std.grad) * ratio == pytest.approx(1.3128205, abs=8e-3)


def test_no_pull_where_critic_and_teacher_agree():
    x, t = normal(1, 8, 2).requires_grad_(), at(NOISY, 8)
    teacher = gauss(1.0, 0.5, 2)
    pull(x, (teacher(x, t).x0 - teacher(x, t).x0).detach()).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_scores_are_proportional_to_the_difference_of_answers():
    """s_F − s_T = (α/σ²) Δ and ε_T − ε_F = (α/σ) Δ with Δ = D_F − D_T."""
    x, t = normal(1, 8, 1), at(NOISY, 8)
    teacher, fake = gauss(1.0, 0.5)(x, t), gauss(-1.0, 1.5)(x, t)
    delta = fake.x0 - teacher.x0
    close(teacher.eps - fake.eps, ALPHA / SIGMA * delta, rtol=1e-12)
    p, q = ALPHA**2 * 0.25 + SIGMA**2, ALPHA**2 * 2.25 + SIGMA**2
    scores = -(x + ALPHA) / q + (x - ALPHA) / p
    close(scores, ALPHA / SIGMA**2 * delta, rtol=1e-11)


def test_a_projected_descent_stays_at_the_edge_and_comes_back():
    """L = ½‖x − a‖²: from outside, inside and the very edge, to targets a beyond and within."""
    x = torch.tensor([-1.5, -1.0, -0.5, 1.5, 1.5, 0.2], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([-2.0, -2.0, -2.0, 2.0, 0.5, 2.0], dtype=torch.float64)
    kept = project(x)
    assert kept.tolist() == [-1.0, -1.0, -0.5, 1.0, 1.0, 0.2]
    (0.5 * (kept - a).square()).sum().backward()
    assert x.grad.tolist() == pytest.approx([0.0, 0.0, 1.5, 0.0, 0.5, -1.8])


def test_softplus_losses_at_their_ends():
    nothing, sure = torch.zeros(5), torch.full((5,), 50.0)
    assert float(discriminator_loss(nothing, nothing)) == pytest.approx(2 * log(2), abs=1e-6)
    assert float(discriminator_loss(-sure, sure)) == pytest.approx(0, abs=1e-12)
    assert float(discriminator_loss(sure, -sure)) == pytest.approx(100, abs=1e-5)
    assert float(generator_loss(nothing)) == pytest.approx(log(2), abs=1e-6)
    assert float(generator_loss(sure)) == pytest.approx(0, abs=1e-12)
    assert float(generator_loss(-sure)) == pytest.approx(50, abs=1e-5)


def test_hinge_losses_at_their_ends():
    """Nothing known: 1, with the half. Beyond the margins the critic has no slope."""
    nothing = torch.zeros(5)
    assert float(discriminator_loss(nothing, nothing, "hinge")) == 1
    close(generator_loss(torch.tensor([1.0, -4.0]), "hinge"), 1.5)
    assert float(discriminator_loss(torch.tensor([2.0]), torch.tensor([-4.0]), "hinge")) == 4
    fake, real = (torch.tensor([0.3, 1.4]) * sign for sign in (-1, 1))
    fake.requires_grad_(), real.requires_grad_()
    discriminator_loss(fake, real, "hinge").backward()
    assert fake.grad.tolist() == [0.25, 0] and real.grad.tolist() == [-0.25, 0]


def six_nodes(d):
    """Nodes of equal weight (6^d, d) whose mean of any polynomial of degree 5 is a normal's."""
    one = torch.tensor([-(3**0.5), 0, 0, 0, 0, 3**0.5], dtype=torch.float64)
    return torch.cartesian_prod(*[one] * d)


@pytest.mark.parametrize("width, measured", [(0.1, 2.1704), (0.5, 2.2256)])
def test_approximate_r1_of_a_quadratic_logit(width, measured):
    """E‖w + H x‖² + (width²/4) ((tr H)² + 2 tr H²), exactly, by quadrature over x and the noise.

    `measured` is the same from 2·10⁵ random x, whose E‖w + H x‖² came out as 2.1681.
    """
    w, h = at([0.3, -0.7, 1.1]), at([0.2, 0.5, -0.3])
    x, noise = six_nodes(6).split(3, dim=1)

    def logit(x):
        return x @ w + (h * x.square()).sum(1) / 2

    squared = float(w.square().sum() + h.square().sum())
    bias = width**2 / 4 * float(h.sum() ** 2 + 2 * h.square().sum())
    ours = float(approximate_r1(logit(x), logit(x + width * noise), width))
    assert ours == pytest.approx(squared + bias, rel=1e-12)
    assert squared == pytest.approx(2.1681, abs=2.5e-3)
    assert ours == pytest.approx(measured, abs=2.5e-3)


def best_judge(degree):
    """ℓ(x) that best tells p = N(1, 1) from q = N(−0.5, 1), at α = 0.6, σ = 0.8: a polynomial.

    Its coefficients, constant first."""
    levels = (np.arange(2000) + 0.5) / 2000
    real, fake = (torch.tensor(stats.norm(0.6 * m, 1).ppf(levels)) for m in (1.0, -0.5))
    judge = torch.zeros(degree + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([judge], max_iter=100, tolerance_grad=1e-9)

    def closure():
        optimiser.zero_grad()
        loss = discriminator_loss(polynomial(judge, fake), polynomial(judge, real))
        loss.backward()
        return loss

    optimiser.step(closure)
    return judge.detach()


def polynomial(judge, x):
    return sum(c * x**power for power, c in enumerate(judge))


def test_realness_is_the_log_ratio_at_its_optimum():
    """ℓ(x) = 0.9 x − 0.135."""
    close(best_judge(1), [-0.135, 0.9], atol=5e-3)


def test_the_gradient_of_a_judge_is_the_direction_of_a_critic():
    """T18: −(σ²/α) ∇ℓ = D_F − D_T = −0.96, of a quadratic judge too."""
    x = at([-0.5, 0.1, 0.8]).requires_grad_()
    (slopes,) = torch.autograd.grad(polynomial(best_judge(2), x).sum(), x)
    process = VariancePreserving(at([0.81, 0.36]))
    p, q = (Gaussian(at([m]), 1.0, process)(x[:, None], at(1.0, 3)).x0 for m in (1.0, -0.5))
    close((q - p)[:, 0], [-0.96] * 3, atol=1e-6)
    close(-(0.64 / 0.6) * slopes, (q - p)[:, 0], atol=0.02)


@names
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_happens_in_the_networks_own_space(name, prediction):
    """In units of x̂₀: min(SNR, 5), α²/σ² (eps), (α²+σ²)²/σ² (v), α²/σ² + 1/σ_d² (EDM)."""
    process, t = PROCESSES[name], at(TIMES[name])
    x0, eps = normal(1, len(t), 2), normal(2, len(t), 2)
    denoiser = Denoiser(MLP(2, slow=process.t_max), process, prediction)
    error = denoiser(process.add_noise(x0, eps, t), t).x0 - x0
    alpha, sigma = (torch.tensor(c)[:, None] for c in scales(name, TIMES[name]))
    rates = [c[:, None] for c in process.rates(t)]
    weight = {
        "x0": torch.clamp((alpha / sigma) ** 2, max=5),
        "eps": (alpha / sigma) ** 2,
        "v": ((alpha**2 + sigma**2) / sigma) ** 2,
        "edm": (alpha / sigma) ** 2 + 1 / process.sigma_data**2,
        "flow": (rates[0] - alpha / sigma * rates[1]) ** 2,
    }[prediction]
    ours = denoising_loss(denoiser, x0, eps, t, None)
    close(ours, float((weight * error.detach() ** 2).mean()), rtol=1e-6)


@names
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_has_no_denoising_loss(name, prediction):
    process, t = PROCESSES[name], at(TIMES[name])
    x0, eps = normal(1, len(t), 2), normal(2, len(t), 2)
    perfect = process.target(x0, eps, t, prediction)
    denoiser = Denoiser(lambda x, t, cond: perfect, process, prediction)
    assert float(denoising_loss(denoiser, x0, eps, t, None)) == 0


def test_the_posterior_mean_minimises_the_denoising_loss():
    """A linear critic of the noised student: slope α v²/(α² v² + σ²), for any weight at fixed t."""
    std, n = 0.5, 1_000_000
    x0, eps, t = 1 + std * normal(1, n, 1), normal(2, n, 1), at(NOISY, n)
    x_t = PROCESS.add_noise(x0, eps, t)
    for prediction in ("x0", "v"):
        target = PROCESS.target(x0, eps, t, prediction)
        fit = np.polyfit(x_t[:, 0].numpy(), target[:, 0].numpy(), 1)

        def line(x, t, cond, fit=fit):
            return fit[0] * x + fit[1]

        estimate = Denoiser(line, PROCESS, prediction)(at([[0.0], [1.0]]), t[:2])
        assert float(estimate.x0[1] - estimate.x0[0]) == pytest.approx(0.3846, abs=3e-3)
        assert float(estimate.x0[0]) == pytest.approx(0.6923, abs=3e-3)


@pytest.mark.parametrize("bias", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("n", [2, 4, 64])
def test_lag_compares_the_errors_mean_with_its_standard_error(n, bias):
    """Of n errors with mean b and variance s², E mean² = (1 + n b²/s²) s²/n, for few n too."""
    d = 3000
    error = 0.7 * normal(1, n, 3, d // 3) + 0.7 * bias
    assert float(lag(error)) == pytest.approx((1 + n * bias**2) ** 0.5, rel=0.05)
    assert not lag(error.requires_grad_()).requires_grad
    assert float(lag(torch.zeros(4, 3))) == 0
    assert float(lag(error[:1])) == 1


def test_a_critic_that_keeps_up_does_not_lag():
    """Denoising errors of the exact posterior mean, at all times at once; a shifted one lags."""
    process, n = PROCESSES["rf"], 256
    x0, eps, t = 1 + 0.5 * normal(1, n, 400), normal(2, n, 400), torch.linspace(0.02, 0.98, n)

    def lag_of(mean):
        exact = Gaussian(torch.full((400,), mean).double(), 0.5, process)

        def net(x, t, cond):
            estimate = exact(x, t)
            return estimate.eps - estimate.x0

        denoiser = Denoiser(net, process, "flow")
        estimate = denoiser(process.add_noise(x0, eps, t.double()), t.double())
        return float(lag(denoising_error(denoiser, estimate, x0, eps, t.double())))

    assert lag_of(1.0) == pytest.approx(1, abs=0.1)
    assert lag_of(1.5) > 3


class Trunk(nn.Module):
    """A block whose output is looked at, then a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(2, 6), nn.Tanh()).double()
        self.out = nn.Linear(6, 2).double()

    def forward(self, x, t, cond):
        return self.out(self.block(x) + t[:, None])


@dataclass
class Judged:
    """A critic under rectified flow, its trunk and its head."""

    trunk: Trunk
    head: nn.Linear
    critic: Critic


@pytest.fixture
def judged():
    torch.manual_seed(0)
    trunk, head = Trunk(), nn.Linear(6, 1).double()
    denoiser = Denoiser(trunk, PROCESSES["rf"], "flow")
    return Judged(trunk, head, Critic(denoiser, head, Taps(("block",))))


def test_a_critic_answers_and_judges_in_one_pass(judged):
    x, t = normal(1, 4, 2), at([0.1, 0.3, 0.6, 0.9])
    estimate, logits = judged.critic.discriminate(x, t)
    close(estimate.x0, judged.critic(x, t).x0, rtol=0)
    close(logits, judged.head(judged.trunk.block(x)).flatten(), rtol=1e-12)
    owned = {id(p) for p in judged.critic.net.parameters()}
    assert owned == {id(p) for m in (judged.trunk, judged.head) for p in m.parameters()}
    assert not judged.trunk.block._forward_hooks


def test_two_batches_are_judged_in_one_pass(judged):
    x, y, t = normal(1, 4, 2), normal(2, 4, 2), at([0.1, 0.3, 0.6, 0.9])
    estimate, fake, real = judged.critic.discriminate_both(x, y, t, {}, {})
    (alone, of_x), (_, of_y) = judged.critic.discriminate(x, t), judged.critic.discriminate(y, t)
    close(fake, of_x, rtol=1e-12)
    close(real, of_y, rtol=1e-12)
    for part, one in zip(estimate, alone, strict=True):
        close(part, one, rtol=1e-12)


def test_logits_are_at_least_float32(judged):
    judged.critic.net.bfloat16()
    x, t = normal(1, 4, 2, dtype=torch.bfloat16), at([0.1, 0.3, 0.6, 0.9])
    judged.critic.denoiser = Denoiser(Halved(judged.trunk), PROCESSES["rf"], "flow")
    judged.critic.taps = Taps(("net.block",))
    assert judged.critic.discriminate(x, t)[1].dtype == torch.float32


class Halved(nn.Module):
    """A network called in bfloat16, whatever it is given."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond):
        return self.net(x.bfloat16(), t.bfloat16(), cond)


def test_realness_reaches_the_sample_and_the_features_of_a_frozen_critic(judged):
    judged.critic.net.requires_grad_(False)
    x, t = normal(1, 4, 2).requires_grad_(), at([0.1, 0.3, 0.6, 0.9])
    generator_loss(judged.critic.discriminate(x, t)[1]).backward()
    hidden = judged.trunk.block(x)
    (by_hand,) = torch.autograd.grad(F.softplus(-judged.head(hidden)).mean(), x)
    close(x.grad, by_hand, rtol=1e-12)
    assert all(p.grad is None for p in judged.critic.net.parameters())


def test_features_are_deaf_to_recomputation():
    """A checkpointed block runs again during backward; what was seen stays as it was."""
    block, x = nn.Linear(2, 2).double(), normal(1, 3, 2).requires_grad_()
    with collected([block]) as seen:
        out = checkpoint(block, x, use_reentrant=False)
    assert len(seen) == 1
    out.sum().backward()
    assert len(seen) == 1 and x.grad is not None


def test_hooks_are_removed_after_an_error(judged):
    with pytest.raises(RuntimeError):
        judged.critic.discriminate(normal(1, 4, 3), at(0.5, 4))
    assert not judged.trunk.block._forward_hooks
