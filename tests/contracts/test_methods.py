"""What every file of stepdistill/methods/ must do, checked without being told its name."""

from copy import deepcopy
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pairs import pairs
from toys import guided_paths

from eval.mixture import (
    MixtureData,
    MixtureTeacher,
    energy_distance,
    five_modes,
    mlp_denoiser,
    pretrained,
)
from stepdistill.data.loader import Drawn, stream
from stepdistill.denoiser import Denoiser
from stepdistill.exact import GaussianMixture
from stepdistill.jobs.catalogue import catalogue, markdown
from stepdistill.method import Batch, Needs, Players, load
from stepdistill.networks.views import bare, load_own, trainable
from stepdistill.process import RectifiedFlow, TrigFlow, VarianceExploding, VariancePreserving
from stepdistill.resources import PACKAGE
from stepdistill.solver import Sampler
from stepdistill.training.players import PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training

TESTS = Path(__file__).parents[1]
NAMES = sorted(p.stem for p in (PACKAGE / "methods").glob("*.py") if p.stem != "__init__")
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESSES = {
    "flow": RectifiedFlow(),
    "trig": TrigFlow(),
    "edm": VarianceExploding(),
    "vp": VariancePreserving(torch.cumprod(1 - BETAS, 0)),
}
# Where a prediction says something about x0 at pure noise; every method meets every process and
# every prediction, and those meet each other.
WELL_POSED = pairs(
    NAMES,
    list(PROCESSES),
    ("x0", "eps", "v", "flow", "edm"),
    allowed=lambda name, process, kind: PROCESSES[process].is_well_posed(
        kind, PROCESSES[process].t_max
    ),
)


def labelled(method) -> bool:
    """Whether it needs a teacher with conditions."""
    return method.needs.guidance or method.needs.trajectories


def players(name: str, process, kind: str = "flow", seed: int = 0) -> Players:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = mlp_denoiser(process, kind)
    method = load(name)()
    sampler = Sampler((1, 2), gamma=0.0) if name == "tdm" else Sampler((1, 2))
    casting = PlayerSettings(sampler, target=0.9, inputs=method.needs.inputs, seed=(seed,))
    return make_players(
        method, MixtureTeacher(five_modes(process), base, labelled(method)), casting
    )


def net_of(p: Players, player: str) -> torch.nn.Module:
    return p.critic.net if player == "critic" else getattr(p, player).net


@dataclass(frozen=True)
class Paths:
    """Trajectories of the guided mixture as data."""

    mixture: GaussianMixture
    guidance: tuple[float, float] = (1.0, 3.0)

    def batch(self, number: int, size: int, local: torch.Generator) -> Drawn:
        return guided_paths(self.mixture, size, self.guidance, local)


def data(method, process):
    mixture = five_modes(process)
    return Paths(mixture) if method.needs.trajectories else MixtureData(mixture, labelled(method))


def batch(name: str, process, turn: int = 0, n: int = 32) -> Batch:
    drawn = data(load(name)(), process).batch(0, n, stream(9, turn))
    streams = stream(1, 0, turn), stream(1, 1, turn)
    return Batch(drawn.x0, drawn.cond, *streams, progress=0.5, path=drawn.path)


def test_there_are_methods_and_each_is_listed():
    assert {"consistency", "diffusion", "dmd2"} <= set(NAMES)
    assert [entry.name for entry in catalogue()] == NAMES
    assert all(f"`{name}`" in markdown() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_frozen_hyperparameters(name):
    method = load(name)()
    with pytest.raises(FrozenInstanceError):
        method.anything = 1
    assert all(field.default is not MISSING for field in fields(method))
    assert "arXiv:" in method.paper and len(method.turns()) >= 1


def looks_at_data(needs: Needs) -> bool:
    return needs.data or needs.trajectories


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_pure_function(name):
    method, process = load(name)(), RectifiedFlow()
    p = players(name, process)
    before = deepcopy(p)
    for turn in method.turns():
        losses = [turn.loss(p, batch(name, process)) for _ in range(2)]
        assert torch.equal(losses[0].total, losses[1].total)
        other = turn.loss(p, batch(name, process, turn=1)).total
        assert not torch.equal(losses[0].total, other)
        p.carry = losses[0].carry or p.carry
    for role in ("student", "critic", "target"):
        if getattr(p, role) is not None:
            for a, b in zip(trainable(net_of(p, role)), trainable(net_of(before, role))):
                assert torch.equal(a, b)


SETTINGS = [(n, {}) for n in NAMES] + [("dmd2", {"gan": 0.0, "gan_critic": 0.0})]
DATA_FREE = [(n, given) for n, given in SETTINGS if not looks_at_data(load(n)(**given).needs)]


@pytest.mark.parametrize(("name", "given"), DATA_FREE)
def test_a_method_that_needs_no_data_looks_at_none(name, given):
    method, p = load(name)(**given), players(name, RectifiedFlow())
    for turn in method.turns():
        seen = turn.loss(p, batch(name, RectifiedFlow()))
        blind = batch(name, RectifiedFlow())
        blind = replace(blind, x0=torch.full_like(blind.x0, torch.nan))
        assert torch.equal(turn.loss(p, blind).total, seen.total)
        p.carry = seen.carry or p.carry


@pytest.mark.parametrize("name", NAMES)
def test_only_the_player_whose_turn_it_is_moves(name):
    method = load(name)()
    training = Training(updates=10, batch=16, optimiser=Optimiser(lr=1e-2), target_ema=0.9)
    p = players(name, RectifiedFlow())
    process = RectifiedFlow()
    trainer = Trainer(method, p, data(method, process), training, Accelerator(cpu=True))
    for _ in method.turns():
        before = {n: [q.clone() for q in trainable(net)] for n, net in trainer.nets.items()}
        target = None if p.target is None else [q.clone() for q in trainable(p.target.net)]
        step = trainer.step()
        for player, old in before.items():
            moved = any(not torch.equal(a, b) for a, b in zip(old, trainable(trainer.nets[player])))
            assert moved == (player == step.player)
        if target is not None and step.player == "student":
            new = trainable(p.target.net)
            # After one update the warm-up's decay is 1/10.
            wanted = [t.lerp(s, 0.9) for t, s in zip(target, trainable(p.student.net))]
            assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(new, wanted))


@pytest.mark.parametrize("name,process,kind", WELL_POSED)
def test_gradients_are_finite_for_every_well_posed_prediction(name, process, kind):
    p = players(name, PROCESSES[process], kind)
    for turn in load(name)().turns():
        loss = turn.loss(p, batch(name, PROCESSES[process]))
        p.carry = loss.carry or p.carry
        moved = trainable(net_of(p, turn.player))
        gradients = torch.autograd.grad(loss.total, moved, allow_unused=True)
        gradients = [g for g in gradients if g is not None]
        assert all(bool(g.isfinite().all()) for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients) > 0


class Work:
    """Passes of samples through the networks of players, a backward as two forwards."""

    def __init__(self, p: Players) -> None:
        self.rows = 0
        seen = [d for d in (p.student, p.teacher, p.target, p.initial) if d is not None]
        seen += [m.denoiser for m in (p.critic, p.discriminator) if m is not None]
        self.nets = {bare(denoiser.net) for denoiser in seen}
        for net in self.nets:
            net.body[0].register_forward_hook(self.forward)
            net.body[-1].register_forward_hook(self.last)

    def forward(self, layer, given, out) -> None:
        self.rows += len(out)
        self.counted = out.requires_grad
        self.backward(out)

    def last(self, layer, given, out) -> None:
        # Adapters alone may move, which lie behind the first layer.
        if not self.counted:
            self.backward(out)

    def backward(self, out: torch.Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda gradient: self.add(2 * len(out)))

    def add(self, rows: int) -> None:
        self.rows += rows


# Every method, and what settings add. Forward mode's tangents are no passes that could be counted.
COUNTED = {name: (name, {}) for name in NAMES} | {
    "consistency, ddim": ("consistency", {"solver": "ddim"}),
    "ctm": ("ctm", {"steps": 1}),  # so that chance does not decide how far the teacher goes
    "ctm, at its end": ("ctm", {"steps": 1, "match": "end"}),
    "pcm, adversarial": ("pcm", {"adversarial": 0.1}),
    "tscd, adversarial": ("tscd", {"adversarial": 0.1}),
    "scm": ("scm", {"tangent": "difference"}),
    "tdm, three turns": ("tdm", {"ratio": 3}),
    "dmd2, r1": ("dmd2", {"r1": 0.1}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_passes_are_those_counted(case):
    """Of one update for one step, all its turns with what moves in them as it is in training."""
    name, settings = COUNTED[case]
    method, process = load(name)(**settings), RectifiedFlow()
    sampler, n = Sampler((1,), gamma=0.0), 6
    made = MixtureTeacher(five_modes(process), mlp_denoiser(process), labelled(method))
    made.guided = mlp_denoiser(process)  # a network too, in place of the exact teacher
    casting = PlayerSettings(sampler, target=0.9, inputs=method.needs.inputs)
    p = make_players(method, made, casting)
    work = Work(p)
    for k, turn in enumerate(method.turns()):
        for net in (*work.nets, *p.trained().values()):
            net.requires_grad_(False)
        for tensor in trainable(p.trained()[turn.player]):
            tensor.requires_grad_(True)
        drawn = data(method, process).batch(0, n, stream(9, k))
        streams = stream(1, 0, k), stream(1, 1, k)
        loss = turn.loss(p, Batch(drawn.x0, drawn.cond, *streams, progress=0.5, path=drawn.path))
        loss.total.backward()
        p.carry = loss.carry or p.carry
    assert work.rows / n == pytest.approx(method.passes(sampler).work(1))


# Players at which the expected gradient vanishes: the test that has them, or why there are none.
AGREES = "test_a_critic_that_agrees_with_the_teacher_leaves_the_student_alone"
IDEAL = {
    "agd": "maths/test_guidance.py::test_agds_loss_is_over_the_cached_states",
    "consistency": "maths/test_consistency.py::test_the_chain_has_no_loss_and_no_gradient",
    "consistency_training": "maths/test_consistency_training.py::test_the_affine_fixed_point",
    "ctm": "maths/test_ctm.py::test_exact_maps_have_no_loss",
    "diff_instruct": f"maths/test_matching.py::{AGREES}",
    "diffusion": "maths/test_critic.py::test_the_posterior_mean_minimises_the_denoising_loss",
    "dmd": "maths/test_matching.py::test_dmds_regression_is_on_the_cached_pairs",
    "dmd2": f"maths/test_dmd2.py::{AGREES}",
    "f_distill": f"maths/test_matching.py::{AGREES}",
    "guidance": "maths/test_guidance.py::test_the_gradient_is_the_formulas",
    "ladd": None,  # a GAN's student rests only where its judge sees no difference, which ours may
    "lcm": "maths/test_trajectory.py::test_exact_maps_have_no_loss",
    "pcm": "maths/test_trajectory.py::test_exact_maps_have_no_loss",  # without its judge, as above
    "scm": "maths/test_scm.py::test_the_tangent_vanishes_at_the_exact_consistency_function",
    "sid": f"maths/test_matching.py::{AGREES}",
    "tcd": "maths/test_trajectory.py::test_exact_maps_have_no_loss",  # if told e
    "tdm": f"maths/test_tdm.py::{AGREES}",
    "tscd": "maths/test_trajectory.py::test_exact_maps_have_no_loss",  # as tcd
    "vsd": f"maths/test_matching.py::{AGREES}",
}


def test_every_method_names_where_it_rests():
    assert sorted(IDEAL) == NAMES
    for file, _, test in (where.partition("::") for where in IDEAL.values() if where):
        assert f"def {test}" in (TESTS / file).read_text(), test


# Methods for few steps, with what makes them one-step methods.
FEW_STEPS = [n for n in NAMES if load(n)().needs.boundary or "critic" in load(n)().needs.players]
ONE_STEP = {
    "pcm": {"phases": 1},
    "tscd": {"segments": 1},
    "tcd": {"steps": 8},
    "sid": {"ratio": 5, "a": 1.0},
    "vsd": {"ratio": 5},
    "diff_instruct": {"ratio": 5},
    "dmd": {"ratio": 2},
}
# The tangents of scm are steep where the network's time is; without DMD's normaliser gradients are.
RATES = {"scm": 5e-4, "sid": 5e-4, "tdm": 5e-4, "vsd": 1e-3}


@cache
def seen_data() -> Denoiser:
    return pretrained()


@pytest.mark.parametrize("name", FEW_STEPS)
def test_the_student_improves_in_one_step(name):
    base, mixture, method = seen_data(), five_modes(), load(name)(**ONE_STEP.get(name, {}))
    casting = PlayerSettings(Sampler((1,)), target=0.9, inputs=method.needs.inputs)
    p = make_players(method, MixtureTeacher(mixture, base), casting)
    rate = Optimiser(lr=RATES.get(name, 2e-3))
    training = Training(updates=60, batch=64, optimiser=rate, ema=0.9)
    real, _ = mixture.sample(500, stream(11))
    noise = torch.randn(500, 2, generator=stream(12))

    def score(denoiser) -> float:
        with torch.no_grad():
            return energy_distance(Sampler().draw(denoiser, noise, 1, {}, stream(13)), real)

    before = score(base)
    given = (
        Paths(mixture, guidance=(1.0, 1.0)) if method.needs.trajectories else MixtureData(mixture)
    )
    trainer = Trainer(method, p, given, training, Accelerator(cpu=True))
    while not trainer.done:
        trainer.step()
    load_own(p.student.net, trainer.averaged())
    assert score(p.student) < 0.5 * before


def test_the_readme_shows_the_table_of_methods():
    readme = (PACKAGE.parent / "README.md").read_text()
    shown = readme.split("<!-- methods")[1].split("-->", 1)[1].split("<!-- end")[0]
    assert shown.strip() == markdown()
