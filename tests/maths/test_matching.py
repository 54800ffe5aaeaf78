"""Distribution matching and variational methods beside DMD2: gradients, golden values, data-free.

The Gaussian student, teacher and critic are those of test_dmd2, at one noise level; z and ε are
taken from designs whose second moments are exact, so that means over them are expectations.
"""

from dataclasses import dataclass, field, replace
from itertools import count, product

import numpy as np
import pytest
import torch
from cases import at, close, labels, normal
from scipy import integrate, stats
from test_dmd2 import (
    ALPHA,
    MU,
    NOISY,
    PROCESS,
    SIGMA,
    Affine,
    M,
    Passes,
    Posterior,
    S,
    Trunk,
    V,
    Watched,
    batch_of,
    gradients,
    noises,
    one_step,
    slope,
    view,
)
from torch import nn

from eval.mixture import MLP
from stepdistill.critic import Critic, Discriminator
from stepdistill.data.loader import stream
from stepdistill.denoiser import Denoiser, Guided
from stepdistill.exact import GaussianMixture
from stepdistill.method import Batch, Players
from stepdistill.methods import sid as sid_module
from stepdistill.methods.diff_instruct import DiffInstruct
from stepdistill.methods.dmd import Dmd
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.methods.f_distill import FDistill, weight
from stepdistill.methods.ladd import Ladd
from stepdistill.methods.sid import Sid
from stepdistill.methods.tdm import Tdm
from stepdistill.methods.vsd import Vsd
from stepdistill.networks.taps import Taps
from stepdistill.process import RectifiedFlow, VarianceExploding, VariancePreserving
from stepdistill.solver import Sampler, Trajectory
from stepdistill.times import Grid, TimeLaw

DIVERGENCES = ("reverse_kl", "kl", "js", "softened_kl", "hellinger", "jeffreys", "neyman")


@dataclass(frozen=True)
class Designed(Batch):
    """A batch whose noises are given in turn."""

    draws: list = ()

    def noise(self):
        return self.draws.pop(0)


def design():
    """z, ε ∈ {±1}², each sample one of the four: means of squares and products are exact."""
    z, eps = at([list(pair) for pair in product((-1, 1), repeat=2)]).T
    shape = batch_of((4, 1))
    return Designed(shape.x0, {}, shape.shared, shape.local, draws=[z[:, None], eps[:, None]])


def both(z, eps):
    """(x, D_F, D_T) in numpy."""
    x = MU + V * z
    x_t = ALPHA * x + SIGMA * eps
    return x, MU + slope(V) * (x_t - ALPHA * MU), M + slope(S) * (x_t - ALPHA * M)


# --- one gradient each ------------------------------------------------------------------------


def test_diff_instructs_gradient_is_the_sum_over_elements():
    """T15: Δ/B for every element of x."""
    student, critic = Watched(Affine()), Watched(Posterior(MU, V))
    p = one_step(student, Posterior(M, S), critic)
    loss = DiffInstruct(time=NOISY).student_loss(p, batch_of((6, 3)))
    ours = gradients(loss.total, student.net.mean, student.net.std)
    z, eps = noises(student, critic)
    _, fake, real = both(z, eps)
    close(torch.stack(ours), [(fake - real).sum() / 6, ((fake - real) * z).sum() / 6], rtol=1e-12)


def test_vsds_gradient_has_the_weight_of_prolificdreamer():
    """σ² (ε_T − ε_F) = α σ Δ, over all elements, without a normaliser."""
    student, critic = Watched(Affine()), Watched(Posterior(MU, V))
    p = one_step(student, Posterior(M, S), critic)
    loss = Vsd(time=NOISY).student_loss(p, batch_of((6, 3)))
    ours = gradients(loss.total, student.net.mean, student.net.std)
    z, eps = noises(student, critic)
    _, fake, real = both(z, eps)
    g = ALPHA * SIGMA * (fake - real)
    close(torch.stack(ours), [g.mean(), (g * z).mean()], rtol=1e-10)


GOLDEN_SID = {
    0.5: (1.2994083, -0.9585799, 0.6589349),
    1.0: (0.0, -0.2769231, 0.2953846),
    1.2: (-0.5197634, -0.0042604, 0.1499645),
}


@pytest.mark.parametrize("a", GOLDEN_SID)
def test_sids_value_and_gradients_are_golden(a, monkeypatch):
    """T6, at N = 1: E L, ∂/∂μ and ∂/∂v of the student N(μ, v²)."""
    monkeypatch.setattr(sid_module, "normaliser", lambda x, real: torch.ones(1))
    student = Affine()
    p = one_step(student, Posterior(M, S), Posterior(MU, V))
    p.critic.net.requires_grad_(False)
    loss = Sid(a=a, time=NOISY).student_loss(p, design()).total
    found = (loss, *gradients(loss, student.mean, student.std))
    close([float(v.detach()) for v in found], GOLDEN_SID[a], atol=1e-7)


def test_sid_without_a_gradient_through_the_networks_is_noticed(monkeypatch):
    """T6: ∂/∂v would be .7384615 at a = 1, were x_t detached."""
    monkeypatch.setattr(sid_module, "normaliser", lambda x, real: torch.ones(1))
    student, given = Affine(), design()
    made, x_t, t = Sid(time=NOISY).noised(one_step(student, None, Posterior(MU, V)), given)
    x = made.x
    real, fake = (view(Posterior(*pair))(x_t.detach(), t).x0.detach() for pair in ((M, S), (MU, V)))
    (found,) = gradients(((real - fake) * ((real - x) - (real - fake))).mean(), student.std)
    assert float(found) == pytest.approx(0.7384615, abs=1e-7)
    assert abs(float(found) - GOLDEN_SID[1.0][2]) > 0.4


@pytest.mark.parametrize("a", GOLDEN_SID)
@pytest.mark.parametrize("override", [1.0, MU])
def test_sid_pulls_to_what_the_teacher_is_asked_instead(a, override, monkeypatch):
    """T16: of equal widths, −(m_o − m_f) (1 − α k)² whatever a; nothing once there."""
    monkeypatch.setattr(sid_module, "normaliser", lambda x, real: torch.ones(1))
    student = Affine(MU, S)
    p = one_step(student, Posterior(override, S), Posterior(MU, S))
    loss = Sid(a=a, time=NOISY).student_loss(p, design()).total
    (found,) = gradients(loss, student.mean)
    assert float(found) == pytest.approx(-(override - MU) * (1 - ALPHA * slope(S)) ** 2, abs=1e-12)


@pytest.mark.parametrize("a", GOLDEN_SID)
def test_sid_of_equal_widths_is_golden(a, monkeypatch):
    """T6: α = .7, σ² = .51, widths 1.3, means .8 and −.2: ∂/∂μ = −.1452657 whatever a."""
    monkeypatch.setattr(sid_module, "normaliser", lambda x, real: torch.ones(1))
    process = VariancePreserving(torch.tensor([0.81, 0.49], dtype=torch.float64))
    k = 0.7 * 1.3**2 / (0.49 * 1.3**2 + 0.51)

    class Exact(nn.Module):
        def __init__(self, mean):
            super().__init__()
            self.mean = mean

        def forward(self, x, t, cond=None):
            return self.mean + k * (x - 0.7 * self.mean)

    student = Affine(-0.2, 1.3)
    players = [view(net, process=process) for net in (student, Exact(0.8), Exact(-0.2))]
    p = Players(*players[:2], Critic(players[2]), sampler=Sampler((1,)))
    loss = Sid(a=a, time=NOISY).student_loss(p, design()).total
    (found,) = gradients(loss, student.mean)
    assert float(found) == pytest.approx(-0.1452657, abs=1e-7)


@pytest.mark.parametrize("h", [torch.sin, torch.square], ids=["sin", "square"])
def test_an_exact_critics_error_is_uncorrelated_with_all_that_is_seen(h):
    """T6, the score identity E[(D_F(x_t) − x) h(x_t)] = 0, by quadrature over z and ε."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, eps = (at(v.ravel().tolist()) for v in np.meshgrid(nodes, nodes))
    w = at((np.outer(weights, weights) / (2 * np.pi)).ravel().tolist())
    x = MU + V * z
    x_t = ALPHA * x + SIGMA * eps
    error = MU + slope(V) * (x_t - ALPHA * MU) - x
    assert abs(float((w * error * h(x_t)).sum())) < 1e-9
    assert abs(float((w * (error + 0.1) * h(x_t)).sum())) > 1e-3


def test_sids_normaliser_is_a_samples_own_and_has_no_gradient():
    student, critic = Watched(Affine()), Watched(Posterior(MU, V))
    p = one_step(student, Posterior(M, S), critic)
    loss = Sid(a=0.7, time=NOISY).student_loss(p, batch_of((5, 3))).total
    ours = gradients(loss, student.net.mean, student.net.std)
    z, eps = noises(student, critic)
    x, fake, real = both(z, eps)
    u, du = real - fake, ALPHA * (slope(S) - slope(V))
    size = np.abs(x - real).mean(1, keepdims=True)
    dx = ALPHA * slope(S) - 1  # of D_T − x
    g = (du * ((real - x) - 0.7 * u) + u * (dx - 0.7 * du)) / size
    close(torch.stack(ours), [g.mean(), (g * z).mean()], rtol=1e-10)


# --- f-divergences ----------------------------------------------------------------------------

GOLDEN_F = {
    "kl": 0.4,
    "reverse_kl": 0.4,
    "js": 0.0943287,
    "hellinger": 0.1940891,
    "softened_kl": 0.2113426,
    "jeffreys": 0.8,
    "neyman": 1.0169993,
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_weights_give_the_gradient_of_the_divergence(divergence):
    """T7: d/dμ D_f of q = N(μ, 1.5) from p = N(0, 1.5) at μ = .6 is −E_q[h(r)(s_p − s_q)]."""
    p, q = stats.norm(0, 1.5**0.5), stats.norm(0.6, 1.5**0.5)

    def integrand(x):
        r = torch.tensor(p.pdf(x) / q.pdf(x), dtype=torch.float64)
        return -q.pdf(x) * float(weight(divergence, r)) * (-x + (x - 0.6)) / 1.5

    found = integrate.quad(integrand, -15, 15, limit=200)[0]
    assert found == pytest.approx(GOLDEN_F[divergence], abs=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("bins", [0, 4])
def test_f_distills_gradient_is_the_weighted_direction(divergence, bins):
    """h/h̄ times DMD2's, with r from the logits of the very states the critic answered for."""
    torch.manual_seed(0)
    trunk = Watched(Trunk())
    head = nn.Linear(5, 1).double()
    nn.init.normal_(head.weight, std=0.5)
    nn.init.zeros_(head.bias)
    critic = Critic(view(trunk), head, Taps(("net.block",)))
    student = Watched(Affine())
    p = Players(view(student), view(Posterior(M, S)), critic, sampler=Sampler((1,)))
    method = FDistill(divergence=divergence, bins=bins, time=NOISY)
    loss = method.student_loss(p, batch_of((6, 2)))
    ours = gradients(loss.terms["f"], student.net.mean, student.net.std)
    z, x_t = student.calls[-1].x.numpy(), trunk.calls[-1].x
    x, _, real = both(z, (x_t.numpy() - ALPHA * (MU + V * z)) / SIGMA)
    with torch.no_grad():
        fake = trunk.net(x_t, None).numpy()
        logits = head(trunk.net.block(x_t)).flatten()
    assert float(logits.std()) > 0.1 and float(logits.abs().max()) < 2  # told apart, not clamped
    r = logits.exp()
    r = r / r.mean() if bins else r  # all at one time, thus in one bin
    h = weight(divergence, r).numpy()
    h = (h / h.mean())[:, None]
    g = h * (fake - real) / np.abs(x - real).mean(1, keepdims=True)
    close(torch.stack(ours), [g.mean(), (g * z).mean()], rtol=1e-9)
    assert divergence != "reverse_kl" or bool((h == 1).all())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_where_the_judge_knows_nothing_every_divergence_is_dmd2(divergence):
    """T8: r = 1."""
    found = []
    for method in (FDistill(divergence=divergence, time=NOISY), Dmd2(time=NOISY)):
        trunk, head, student = Trunk(), nn.Linear(5, 1).double(), Affine()
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        critic = Critic(view(trunk), head, Taps(("block",)))
        p = Players(view(student), view(Posterior(M, S)), critic, sampler=Sampler((1,)))
        loss = method.student_loss(p, batch_of((6, 2))).total
        found.append(torch.stack(gradients(loss, student.mean, student.std)))
    close(found[0], found[1], rtol=1e-12)


def test_ratios_are_compared_within_a_part_of_time():
    process, method = RectifiedFlow(), FDistill(divergence="kl", bins=2)
    t, logits = at([0.1, 0.2, 0.8, 0.9, 1.0]), at([1.0, 3.0, 2.0, 4.0, 6.0]).log()
    rows = method.ratios(logits, t, process)
    means = method.means(rows, None)
    close(means, [2.0, 4.0])
    close(method.weights(rows, means), [0.5, 1.5, 0.5, 1.0, 1.5], rtol=1e-9)
    whole = FDistill(divergence="kl", bins=0)
    rows = whole.ratios(at([20.0, -20.0, 0.0]), t[:3], process)
    close(whole.weights(rows, whole.means(rows, None)), [20.0, 0.1, 1.0])
    with pytest.raises(ValueError, match="memory: is that of the bins"):
        FDistill(bins=0, memory=0.5)
    with pytest.raises(ValueError, match="softplus GAN"):
        FDistill(gan=0, gan_critic=0)
    with pytest.raises(ValueError, match="softplus GAN"):
        FDistill(gan_loss="hinge")


def test_bins_remember_as_the_authors_do():
    """m ← ρ m + (1 − ρ) r̄ from m = 1, untouched where a turn has no sample in a part."""
    method, rows = FDistill(bins=3, memory=0.75), at([[2.0, 0.0], [4.0, 0.0], [9.0, 2.0]])
    once = method.means(rows, None)
    close(once, [0.75 + 0.25 * 3, 1.0, 0.75 + 0.25 * 9])
    close(method.means(rows, once), [0.75 * 1.5 + 0.25 * 3, 1.0, 0.75 * 3 + 0.25 * 9])
    assert FDistill(bins=3).means(rows, once).tolist() == [3.0, 1.0, 9.0]
    needed = [FDistill(bins=n).needs.batch for n in (0, 2, 10)]
    assert needed == [1, 8, 40] and FDistill().needs.discriminator == "critic"


@dataclass(frozen=True)
class Piece(Batch):
    """Samples `part` of a larger batch, whose times and noises are drawn for all of them."""

    part: slice = field(default_factory=lambda: slice(None))
    n: int = 0

    def noise(self):
        drawn = torch.randn((self.n, *self.x0.shape[1:]), generator=self.local)
        return drawn.to(self.x0)[self.part]


@dataclass(frozen=True)
class LawInPieces:
    """A law of time from both of whose parts a piece of a batch gets its own."""

    part: slice
    n: int

    def draw(self, process, n, generator):
        return TimeLaw(low=0.1, high=0.9).draw(process, self.n, generator)[self.part]


@pytest.mark.parametrize("memory", [0.0, 0.5])
@pytest.mark.parametrize("divergence", ["kl", "js", "neyman"])
def test_pieces_of_a_turn_have_the_gradient_of_the_whole(divergence, memory):
    """Two micro-batches, or processes, of 8 are one of 16: in every ratio, and in h̄."""
    flow, n = RectifiedFlow(), 16
    torch.manual_seed(0)
    trunk, head = Trunk(), nn.Linear(5, 1).double()
    nn.init.normal_(head.weight, std=0.5)
    critic = Critic(view(trunk, "flow", flow), head, Taps(("block",)))
    student = Affine()
    settings = {"divergence": divergence, "bins": 3, "memory": memory}

    def asked(what, part, **more):
        method = FDistill(**settings)
        object.__setattr__(method, "time", LawInPieces(part, n))
        teacher = view(Trunk(seed=1), "flow", flow)
        p = Players(view(student, "x0", flow), teacher, critic, sampler=Sampler((1,)))
        p.kept = {"bins": at([0.5, 1.0, 2.0])} if memory else {}
        whole = batch_of((n, 2))
        given = Piece(whole.x0[part], {}, stream(1), stream(2), part=part, n=n, **more)
        return getattr(method, what)(p, given)

    whole, parts = asked("student_loss", slice(0, n)), (slice(0, 8), slice(8, n))
    with torch.no_grad():
        rows = torch.cat([asked("rows", part) for part in parts])
    pooled = [asked("student_loss", part, pool=lambda own: rows) for part in parts]
    alone = [asked("student_loss", part) for part in parts]

    def slopes(loss):
        return torch.stack(gradients(loss.total, student.mean, student.std))

    wanted = slopes(whole)
    close(sum(map(slopes, pooled)) / 2, wanted, rtol=1e-9)
    assert float((sum(map(slopes, alone)) / 2 - wanted).abs().max()) > 1e-4  # pooling matters
    assert whole.kept.keys() == ({"bins"} if memory else set())
    for loss in pooled:
        assert all(torch.equal(loss.kept[k], whole.kept[k]) for k in whole.kept)


# --- fixed points, data, turns ----------------------------------------------------------------

PULLED = {
    "diff_instruct": DiffInstruct(time=NOISY),
    "dmd": Dmd(time=NOISY),
    "vsd": Vsd(time=NOISY),
    "sid": Sid(time=NOISY),
    "f_distill": FDistill(time=NOISY),
}


@pytest.mark.parametrize("name", PULLED)
def test_a_critic_that_agrees_with_the_teacher_leaves_the_student_alone(name):
    """T1: exactly no gradient, but for the GAN's."""
    trunk, student = Trunk(), Affine()
    critic = Critic(view(trunk), nn.Linear(5, 1).double(), Taps(("block",)))
    p = Players(view(student), view(Trunk()), critic, sampler=Sampler((1,)))
    loss = PULLED[name].student_loss(p, cached(6, normal(3, 6, 2), normal(4, 6, 2)))
    first = next(iter(loss.terms.values()))
    assert all(float(g) == 0 for g in gradients(first, student.mean, student.std))


@pytest.mark.parametrize("name", PULLED)
def test_only_the_student_gets_a_gradient(name):
    trunk, student, teacher = Trunk(), Affine(), Trunk(seed=1)
    critic = Critic(view(trunk), nn.Linear(5, 1).double(), Taps(("block",)))
    critic.net.requires_grad_(False)
    teacher.requires_grad_(False)
    p = Players(view(student), view(teacher), critic, sampler=Sampler((1,)))
    PULLED[name].student_loss(p, cached(6, normal(3, 6, 2), normal(4, 6, 2))).total.backward()
    assert student.mean.grad is not None
    assert all(q.grad is None for q in [*critic.net.parameters(), *teacher.parameters()])


# --- variational score: guidance and entropy ---------------------------------------------------


def views(weights=(0.5, 0.5)):
    """Two views N(∓, .5) of a marginal as x_t is distributed, at α = 1, σ = .5."""
    process = VarianceExploding()
    weights = torch.tensor(weights, dtype=torch.float64)
    return GaussianMixture(at([[-0.8], [1.1]]), 0.5, process, weights)


@pytest.mark.parametrize(
    "entropy, golden",
    [
        (0.0, (-0.4230769, 0.3076923)),
        (0.5, (-0.2987142, 0.1833295)),
        (1.0, (-0.1743514, 0.0589668)),
    ],
)
def test_entropy_mixes_the_scores_of_marginal_and_condition(entropy, golden):
    """T19: ∇J = −E[s_p − λ s_q − (1 − λ) s_{q|c}], with respect to the means of the two views."""
    mixture, sigma, t = views(), 0.5, at(0.5, 60)
    teacher = Guided(mixture, 7.0, mixture.null)
    critic = Vsd(entropy=entropy).alike(mixture, teacher)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    for c, (mean, wanted) in enumerate(zip((-0.8, 1.1), golden)):
        x = mean + torch.tensor(nodes)[:, None] * 0.5**0.5
        score = -critic(x, t, labels(c, n=60)).eps[:, 0] / sigma
        real = -(x[:, 0] - 0.3) / 1.3
        g = (score - real).numpy() @ weights / weights.sum()
        assert g / 2 == pytest.approx(wanted, abs=1e-6)


def test_the_critic_is_guided_as_the_teacher_is():
    mixture = views()
    teacher, other = Guided(mixture, 3.0, mixture.null), views((0.9, 0.1))
    assert Vsd().alike(other, teacher) == replace(teacher, denoiser=other)
    assert Vsd().alike(other, mixture) is other  # a teacher without guidance
    given = batch_of((500, 1), cond=labels(1, n=500))
    w = Vsd(guidance=(0.5, 4.0)).drawn(teacher, given).w
    assert 0.5 <= float(w.min()) < 0.6 and 3.9 < float(w.max()) <= 4.0
    assert Vsd(guidance=(0.5, 4.0)).needs.guidance and not Vsd().needs.guidance


def test_random_guidance_is_fixed_guidance_on_average():
    """T20: g is affine in w, so E_w g is g at the mean of the range, 2.25."""
    mixture, other = views(), views((0.9, 0.1))
    x, t, c = normal(1, 50, 1), at(0.5, 50), labels(*[0, 1] * 25)
    w = at([0.5, 4.0])

    def g(w):
        teacher = Guided(mixture, w, mixture.null)
        return teacher(x, t, c).eps - Vsd().alike(other, teacher)(x, t, c).eps

    close((g(float(w[0])) + g(float(w[1]))) / 2, g(2.25), rtol=1e-10, atol=1e-12)


class Exact:
    """An exact denoiser in a critic's place, without a network."""

    def __init__(self, denoiser):
        self.denoiser, self.process = denoiser, denoiser.process

    def __call__(self, x_t, t, cond):
        return self.denoiser(x_t, t, cond)


@pytest.mark.parametrize(
    "settings, w, critics",
    [
        ({}, 1.0, 1.0),
        ({}, 3.0, 3.0),
        ({"entropy": 0.4}, 3.0, 0.6),
        ({"guidance": (2.0, 5.0)}, 3.0, None),
    ],
    ids=["plain", "guided", "entropic", "at random guidance"],
)
def test_vsds_gradient_under_guidance_is_the_formulas(settings, w, critics):
    """σ² (ε_T^w − ε_F^w′), both mixed by hand from what the two know of x_t."""
    real, fake, method = views(), views((0.9, 0.1)), Vsd(**settings)
    student = Affine()
    teacher = Guided(real, w, real.null)
    student_view = view(student, "x0", real.process)
    critic = Exact(fake)
    p = Players(student_view, teacher, critic, sampler=Sampler((1,)))
    cond = labels(0, 1, 1, 0, 1, 0)
    loss = method.student_loss(p, batch_of((6, 1), cond=cond)).total
    ours = torch.stack(gradients(loss, student.mean, student.std))

    given = batch_of((6, 1), cond=cond)
    with torch.no_grad():
        made, x_t, t = method.noised(p, given)
        x = made.x
    drawn = given.uniform(2.0, 5.0).double() if "guidance" in settings else at(w, 6)
    w_fake = drawn if critics is None else at(critics, 6)
    none = labels(2, n=6)

    def mixed(mixture, w):
        c, u = (mixture(x_t, t, label).eps for label in (cond, none))
        return u + w[:, None] * (c - u)

    g = t[:, None] ** 2 * (mixed(real, drawn) - mixed(fake, w_fake))  # σ = t
    z = (x - MU) / V
    close(ours, torch.stack([g.mean(), (g * z).mean()]), rtol=1e-6)


def test_the_critic_is_not_told_a_share_of_conditions():
    mixture, n = views(), 20_000
    teacher, cond = Guided(mixture, 3.0, mixture.null), labels(1, n=n)
    told = Vsd(dropout=0.1).critic_cond(Players(None, teacher), cond, batch_of((n, 1)))["label"]
    assert float((told == 2).double().mean()) == pytest.approx(0.1, abs=0.01)
    assert set(told.tolist()) == {1, 2}
    assert Vsd().critic_cond(Players(None, mixture), {}, batch_of((n, 1))) == {}
    critic = Watched(Affine())
    p = one_step(Affine(), None, critic)
    p.teacher = teacher
    Vsd(dropout=0.5).critic_loss(p, batch_of((200, 1), cond=labels(1, n=200)))
    assert float((critic.conds[-1] == 2).double().mean()) == pytest.approx(0.5, abs=0.15)
    Vsd(dropout=0.0).check_teacher(Guided(mixture, 1.0, mixture.null))
    for settings, w in (({}, 3.0), ({"entropy": 0.5}, 1.0), ({"guidance": (1.0, 4.0)}, 1.0)):
        with pytest.raises(ValueError, match="dropout: a guided critic is asked without a label"):
            Vsd(dropout=0.0, **settings).check_teacher(Guided(mixture, w, mixture.null))
    with pytest.raises(ValueError, match="entropy: needs a class-conditional teacher"):
        Vsd(entropy=0.5).check_teacher(mixture)


def test_conditions_of_any_rank_are_left_out_as_a_whole():
    """Of as many samples as an embedding has entries, of some all of it and of others nothing."""
    n = 64
    null = {"text": normal(1, 1, 5, n), "mask": torch.zeros(1, 5).bool(), "size": normal(2, 1, 2)}
    cond = {"text": normal(3, n, 5, n), "mask": torch.ones(n, 5).bool(), "size": normal(4, n, 2)}
    p = Players(None, Guided(views(), 3.0, null))
    told = Vsd(dropout=0.5).critic_cond(p, cond, batch_of((n, 1)))
    left_out = ~told["mask"].any(1)
    assert 16 < int(left_out.sum()) < 48 and told.keys() == cond.keys()
    for name, value in told.items():
        wanted = torch.where(
            left_out.view(n, *[1] * (value.ndim - 1)), null[name].expand_as(value), cond[name]
        )
        assert torch.equal(value, wanted), name


# --- regression -------------------------------------------------------------------------------


def cached(n, z, y):
    times = at([1.0, 0.0])
    path = Trajectory(times, torch.stack([z, y], 1), y[:, None], torch.ones(n).double())
    return replace(batch_of((n, 2)), path=path)


def test_dmds_direction_is_that_of_dmd2():
    """T2, of the same noise and times."""
    found = []
    for method in (Dmd(time=NOISY, regression=0.0), Dmd2(time=NOISY, gan=0.0, gan_critic=0.0)):
        student = Affine()
        p = one_step(student, Posterior(M, S), Posterior(MU, V))
        loss = method.student_loss(p, cached(6, normal(3, 6, 2), normal(4, 6, 2))).total
        found.append(torch.stack(gradients(loss, student.mean, student.std)))
    close(found[0], found[1], rtol=1e-12)
    assert float(found[0].abs().min()) > 0.1


def test_dmds_regression_is_on_the_cached_pairs():
    """T27: none where the student is the teacher's map; gradients of the two terms add."""
    z = normal(3, 6, 2)
    student = Affine()
    p = Players(
        view(student), view(Posterior(M, S)), Critic(view(Posterior(MU, V))), sampler=Sampler((1,))
    )
    method = Dmd(time=NOISY, distance="l2", regression=0.25)
    exact = method.student_loss(p, cached(6, z, MU + V * z))
    assert float(exact.terms["regression"].detach()) < 1e-28
    loss = method.student_loss(p, cached(6, z, MU + V * z + 0.3))
    assert float(loss.terms["regression"].detach()) == pytest.approx(0.25 * 0.3**2)
    (mean,) = gradients(loss.terms["regression"], student.mean)
    assert float(mean) == pytest.approx(0.25 * 2 * -0.3)
    plain = replace(method, regression=0.0)
    alone = plain.student_loss(p, cached(6, z, z)).total
    (both_terms,) = gradients(
        method.student_loss(p, cached(6, z, MU + V * z + 0.3)).total, student.mean
    )
    assert float(both_terms) == pytest.approx(float(gradients(alone, student.mean)[0]) - 0.15)
    with pytest.raises(ValueError, match="one step"):
        method.trained_times(PROCESS, Sampler((1, 2)))
    with pytest.raises(ValueError, match="begin at pure noise"):
        method.trained_times(PROCESS, Sampler((1,), Grid(start=0.7)))


# --- adversarial only -------------------------------------------------------------------------


@dataclass
class Noting:
    """A discriminator of logits ⟨1, x⟩ that keeps what it is shown."""

    process: object

    def __post_init__(self):
        self.seen = []

    def discriminate(self, x, t, cond=None):
        self.seen.append((x.detach(), t, cond))
        return None, x.sum(1)

    def discriminate_both(self, x, y, t, x_cond, y_cond):
        logits = [self.discriminate(v, t, c)[1] for v, c in ((x, x_cond), (y, y_cond))]
        return None, *logits


def test_ladd_is_a_hinge_on_noised_samples_and_data():
    process, n = RectifiedFlow(), 64
    student, critic = Denoiser(MLP(32), process, "flow"), Noting(process)
    p = Players(student, None, discriminator=critic, sampler=Sampler((1,)))
    given = replace(batch_of((n, 2)), x0=normal(5, n, 2).float())
    loss = Ladd().student_loss(p, given)
    ((x_t, t, _),) = critic.seen
    assert float(loss.total.detach()) == pytest.approx(-float(x_t.sum(1).mean()), rel=1e-5)
    assert loss.total.requires_grad and torch.equal(loss.carry.x, loss.carry.x.detach())
    p.carry = loss.carry
    critic.seen.clear()
    judged = Ladd().discriminator_loss(p, given, carried=True)
    (fake, t, _), (real, s, _) = critic.seen
    assert torch.equal(t, s)
    by_hand = ((1 + fake.sum(1)).clamp(min=0) + (1 - real.sum(1)).clamp(min=0)).mean() / 2
    assert float(judged.total) == pytest.approx(float(by_hand), rel=1e-6)
    alpha, sigma = (c[:, None] for c in process.scales(t))
    for shown, clean in ((fake, loss.carry.x), (real, given.x0)):
        noise = (shown - alpha * clean) / sigma
        assert float(noise.mean()) == pytest.approx(0, abs=0.4)
        assert float(noise.std()) == pytest.approx(1, abs=0.3)
    eps = [(x - alpha * c) / sigma for x, c in ((fake, loss.carry.x), (real, given.x0))]
    assert float((eps[0] - eps[1]).abs().min()) > 1e-6  # noise of their own


# --- what a cycle asks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard(Denoiser):
    """A student that keeps where it is told to go."""

    heard: list = field(default_factory=list)

    def __call__(self, x_t, t, cond):
        self.heard.append(self.s)
        return super().__call__(x_t, t, cond)


MATCHING = {
    "dmd": Dmd(),
    "dmd2": Dmd2(ratio=2, rollout="noised_data"),
    "f_distill": FDistill(ratio=2),
    "diff_instruct": DiffInstruct(ratio=2),
    "sid": Sid(ratio=2),
    "tdm": Tdm(ratio=2),
    "ladd": Ladd(ratio=2),
    "vsd": Vsd(ratio=2),
    "vsd, guided": Vsd(ratio=2),
    "vsd, entropic": Vsd(ratio=2, entropy=0.3),
}


def cycle(method, guidance=1.0):
    """Players of every role, what they were asked in one cycle, and a batch for it."""
    flow = RectifiedFlow()
    nets = student, trunk, teacher = Trunk(seed=1), Trunk(seed=2), Trunk(seed=3)
    alone = method.needs.discriminator == "teacher"
    if alone:
        trunk = teacher
    head, taps = nn.Linear(5, 1).double(), Taps(("block",))
    follower = (Discriminator if alone else Critic)(view(trunk, "flow", flow), head, taps)
    sampler = Sampler((1,) if isinstance(method, Dmd) else (1, 2, 4), gamma=0.0)
    p = Players(
        Heard(student, flow, "flow"),
        Guided(view(teacher, "flow", flow), guidance, labels(0)),
        None if alone else follower,
        discriminator=follower if alone else None,
        sampler=sampler,
    )
    for net in nets:
        net.requires_grad_(net is student or (net is trunk and not alone))
    return p, nets


@pytest.mark.parametrize("name", MATCHING)
def test_a_student_is_always_told_where_its_step_goes(name):
    method = MATCHING[name]
    p, _ = cycle(method)
    for k, turn in enumerate(method.turns()):
        given = replace(cached(6, normal(3, 6, 2), normal(4, 6, 2)), shared=stream(1, k))
        loss = turn.loss(p, replace(given, cond=labels(1, n=6)))
        p.carry = loss.carry or p.carry
    assert len(p.student.heard) >= 1
    assert not any(to is None for to in p.student.heard)


@pytest.mark.parametrize("name", MATCHING)
def test_passes_are_those_counted(name):
    """All work of a cycle, a backward as two forwards, as seen at the networks' first layers."""
    method, w = MATCHING[name], 3.0 if name == "vsd, guided" else 1.0
    p, nets = cycle(method, w)
    p.sampler = Sampler((1,) if isinstance(method, Dmd) else (4,), gamma=0.0)
    lengths = range(1) if isinstance(method, Dmd) else range(4)
    total = 0.0
    for turn in method.turns():
        for length in lengths:
            shared = next(
                k for k in count()
                if len(method.exit_times(p, batch_of((1, 1), shared=k))) == length + 1
            )  # fmt: skip
            for net in nets:
                net.requires_grad_(False)
            moved = p.trained()[turn.player]
            moved.requires_grad_(True)
            seen = Passes(6, *(net.block[0] for net in nets))
            given = replace(cached(6, normal(3, 6, 2), normal(4, 6, 2)), shared=stream(1, shared))
            loss = turn.loss(p, replace(given, cond=labels(1, n=6)))
            loss.total.backward()
            p.carry = loss.carry or p.carry
            total += (seen.forwards + 2 * seen.backwards) / len(lengths)
            for net in nets:
                net.block[0]._forward_hooks.clear()
    nfe = 2 if w != 1 else 1
    assert total == pytest.approx(method.passes(p.sampler).work(nfe))
