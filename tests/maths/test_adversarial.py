"""The discriminator of pairs: a head on the teacher's frozen features, and the student's term."""

from dataclasses import dataclass

import pytest
import torch
import toys
from accelerate import Accelerator
from cases import PROCESSES, at, close, normal
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler
from oracle import M, S, batch

from stepdistill.exact import Gaussian
from stepdistill.families.adversarial import StatePair, pair_logits
from stepdistill.method import Players
from stepdistill.methods.pcm import Pcm
from stepdistill.methods.tscd import Tscd
from stepdistill.networks.lora import AdapterView
from stepdistill.process import Estimate
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.players import Adapters, PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training

names = pytest.mark.parametrize("name", PROCESSES)
METHODS = {
    "pcm": Pcm(steps=6, phases=2, distance="l2", adversarial=0.3),
    "tscd": Tscd(steps=6, segments=3, adversarial=0.3),
}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
LEAN = normal(5, 2)


@dataclass
class Linear:
    """A discriminator whose logits are ⟨LEAN, x⟩, and which keeps what it is shown."""

    process: object

    def __post_init__(self):
        self.seen = []

    def discriminate(self, x, t, cond=None):
        self.seen.append((x.detach(), t))
        return Estimate(x, x), x @ LEAN


@names
def test_a_pair_is_noised_on_by_the_exact_transition(name):
    """States of the right marginal at e have that of a; a lies in [e, e + width]."""
    process, n, width = PROCESSES[name], 200_000, 0.3 * PROCESSES[name].t_max
    critic = Linear(process)
    end = at(0.4 * process.t_max, n)
    x = process.add_noise(M + S * normal(1, n, 2), normal(2, n, 2), end)
    given = batch(n, d=2)
    pair_logits(Players(None, discriminator=critic), given, StatePair(x, x, end, width), x, x)
    (first, a), (second, b) = critic.seen
    assert torch.equal(a, b)
    assert bool((a >= end).all()) and bool((a <= end + width).all())
    assert float(((a - end) / width).mean()) == pytest.approx(0.5, abs=0.005)
    alpha, sigma = (c[:, None] for c in process.scales(a))
    standard = (first - alpha * M) / ((alpha * S) ** 2 + sigma**2).sqrt()
    assert float(standard.mean()) == pytest.approx(0, abs=0.01)
    assert float(standard.std()) == pytest.approx(1, abs=0.01)
    assert not torch.equal(first, second)  # each with noise of its own


@names
def test_the_student_follows_the_discriminator_through_the_transition(name):
    """∇ of −λ E⟨v, x_a⟩ with respect to the guess is −λ (α_a/α_e) v / b."""
    process, method = PROCESSES[name], METHODS["pcm"]
    critic, guess = Linear(process), normal(3, 8, 2).requires_grad_()
    end = at(process.t_max * 0.3, 8)
    pair = StatePair(guess, guess.detach(), end, process.t_max * 0.5)
    terms = method.adversarial_term(Players(None, discriminator=critic), batch(8, d=2), pair)
    terms["adversarial"].backward()
    ((_, a),) = critic.seen
    keep = process.scales(a)[0] / process.scales(end)[0]
    close(guess.grad, -0.3 * keep[:, None] * LEAN / 8, rtol=1e-9)


@methods
def test_times_stay_where_networks_are_asked(method):
    for name in PROCESSES:
        process = PROCESSES[name]
        critic, student = Linear(process), Gaussian(at([M, M]), S, process)
        p = Players(student, student, None, student, discriminator=critic)
        method.discriminator_turn(p, batch(500, d=2))
        for _, a in critic.seen:
            assert float(a.min()) >= process.t_min and float(a.max()) <= process.t_max


@names
@methods
def test_the_discriminators_loss_is_the_hinge_of_both(name, method):
    """½ E[relu(1 + ℓ(guess)) + relu(1 − ℓ(goal))], of what it was shown."""
    process = PROCESSES[name]
    critic, player = Linear(process), Gaussian(at([M, M]), S, process)
    other = Gaussian(at([-M, M]), S, process)
    p = Players(other, player, None, player, discriminator=critic)
    loss = method.discriminator_turn(p, batch(64, d=2))
    guess, goal = (x @ LEAN for x, _ in critic.seen)
    by_hand = ((1 + guess).clamp(min=0) + (1 - goal).clamp(min=0)).mean() / 2
    assert float(loss.total) == pytest.approx(float(by_hand), rel=1e-12)
    assert float(loss.shown["fake"]) == pytest.approx(float(guess.mean()))
    # The student's samples are told from the teacher's by the mean that differs.
    assert float((goal - guess).mean() * LEAN[0]) > 0


SHARING = {"copies": PlayerSettings(), "adapters": PlayerSettings(adapters=Adapters(rank=2))}


@methods
@pytest.mark.parametrize("casting", SHARING.values(), ids=SHARING)
def test_the_discriminator_owns_its_head_alone(method, casting):
    """Each turn moves its player; the teacher's network is nobody's, bit for bit."""
    net = toys.tiny_unet()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    teacher = Teacher.from_pipeline(DDPMPipeline(net, FlowMatchEulerDiscreteScheduler()))
    if casting.adapters is not None:
        teacher = teacher.with_net(AdapterView(net, None))
    players = make_players(method, teacher, casting)
    assert {name.partition(".")[0] for name in players.discriminator.net.state_dict()} == {"head"}
    rate = Optimiser(lr=0.01)
    training = Training(2, 8, optimiser=rate, discriminator_optimiser=rate)
    trainer = Trainer(method, players, toys.tiny_images(), training, Accelerator(cpu=True))
    for player, other in (("student", "discriminator"), ("discriminator", "student")):
        kept = {n: [p.clone() for p in trainer.moved[n]] for n in trainer.moved}
        log = trainer.step()
        assert log.player == player and log.gradient_norm > 0
        assert any(not torch.equal(a, b) for a, b in zip(kept[player], trainer.moved[player]))
        assert all(torch.equal(a, b) for a, b in zip(kept[other], trainer.moved[other]))
    own = {name: tensor for name, tensor in net.state_dict().items() if "lora" not in name}
    own = {name.replace(".base_layer", ""): tensor for name, tensor in own.items()}
    assert own.keys() == before.keys() and all(torch.equal(own[k], before[k]) for k in own)


def test_without_a_discriminator_there_is_no_turn_and_no_term():
    method = Pcm(steps=6, phases=2)
    assert [turn.player for turn in method.turns()] == [
        "student"
    ] and not method.needs.discriminator
    assert method.adversarial_term(Players(None), batch(), None) == {}


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.net, self.calls = denoiser, denoiser.process, None, 0
        self.net = denoiser.net

    def __call__(self, x_t, t, cond=None):
        self.calls += 1
        return self.denoiser(x_t, t, cond)
