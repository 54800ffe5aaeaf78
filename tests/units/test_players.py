"""Casting: the players of a stage as adapters on one frozen network, or as full copies of it.

References: the chain rule through W + (alpha / rank) B A, written out; full copies with the same
effective weights; the network as it was before anyone played on it.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from cases import at, labels, normal
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler
from torch import nn
from toys import tiny_images, tiny_unet

from stepdistill.data.loader import stream
from stepdistill.method import Batch, Needs
from stepdistill.methods.agd import Agd
from stepdistill.methods.consistency import Consistency
from stepdistill.methods.dmd2 import Dmd2
from stepdistill.networks.lora import AdapterView, merged, without_roles
from stepdistill.networks.views import bare, load_own, own_tensors, parameter_count, trainable
from stepdistill.runs.config import RunConfig
from stepdistill.runs.log import Log
from stepdistill.runs.loop import checkpoint
from stepdistill.runs.settings import Network, Stage
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.solver import Sampler
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.checkpoint import latest, save
from stepdistill.training.health.monitor import Monitor
from stepdistill.training.players import Adapters, PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training

ADAPTERS = Adapters(rank=2, alpha=5.0)
SCALE = 5.0 / 2
CASTINGS = {
    "adapters": PlayerSettings(Sampler((1, 2)), ADAPTERS, target=0.9),
    "checkpointed adapters": PlayerSettings(
        Sampler((1, 2)), ADAPTERS, checkpointing=True, target=0.9
    ),
    "copies": PlayerSettings(Sampler((1, 2)), target=0.9),
    "a low-rank critic": PlayerSettings(
        Sampler((1, 2)), replace(ADAPTERS, roles=("critic",)), target=0.9
    ),
    "checkpointed copies": PlayerSettings(Sampler((1, 2)), checkpointing=True, target=0.9),
}
castings = pytest.mark.parametrize("casting", CASTINGS.values(), ids=CASTINGS)
PLAIN = {"gan": 0.0, "gan_critic": 0.0}


def teacher_for(casting, seed=0, w=1.0):
    """A teacher on a tiny labelled UNet, seen as the base of roles where the casting has some."""
    net = tiny_unet(seed)
    teacher = Teacher.from_pipeline(DDPMPipeline(net, FlowMatchEulerDiscreteScheduler()), w)
    return teacher if casting.adapters is None else teacher.with_net(AdapterView(net, None))


def plain_net(teacher):
    net = teacher.denoiser.net
    return net.net if isinstance(net, AdapterView) else net


def nets(players):
    found = {"student": players.student.net}
    found |= {} if players.critic is None else {"critic": players.critic.net}
    return found | ({} if players.target is None else {"target": players.target.net})


def move(net, seed):
    """Every tensor a role has for itself, drawn afresh."""
    for k, p in enumerate(trainable(net)):
        p.data = normal(1000 * seed + k, *p.shape).to(p) * 0.2


def base_tensors(net):
    """The network's own tensors, named as if no adapter wrapped its layers."""
    state = net.state_dict()
    return {k.replace(".base_layer", ""): v.clone() for k, v in state.items() if ".lora_" not in k}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def snapshot(players, teacher):
    """Clones of all tensors, by who has them."""
    found = {
        name: {k: v.detach().clone() for k, v in own_tensors(net).items()}
        for name, net in nets(players).items()
    }
    return found | {"teacher": base_tensors(plain_net(teacher))}


X = normal(1, 4, 1, 8, 8, dtype=torch.float32)
T = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
LABELS = labels(0, 1, 0, 2)


def answer(denoiser, cond=LABELS):
    with torch.no_grad():
        return denoiser(X, T, cond).x0


def batch_of(k=0, n=4, dtype=torch.float32):
    x0, cond = tiny_images().batch(k, n, stream(3, k))[:2]
    return Batch(x0.to(dtype), cond, stream(1, k), stream(2, k))


def trainer(method, players, updates=4):
    training = Training(updates, batch=4, optimiser=Optimiser(lr=1e-2), target_ema=0.9, ema=0.9)
    return Trainer(method, players, tiny_images(), training, Accelerator(cpu=True), (5,))


# --- birth ----------------------------------------------------------------------------------------


@castings
def test_every_role_is_born_as_the_teacher(casting):
    teacher = teacher_for(casting)
    want = answer(teacher_for(CASTINGS["copies"]).denoiser)
    players = make_players(Dmd2(), teacher, casting)
    denoisers = (players.student, players.teacher, players.critic)
    assert all(torch.equal(answer(denoiser), want) for denoiser in denoisers)
    other = make_players(Consistency(), teacher, casting)
    assert torch.equal(answer(other.target), want) and other.critic is None
    assert players.target is None and players.sampler == casting.sampler


@castings
def test_newborn_roles_give_no_gradient_at_all(casting):
    """Critic and teacher agree to the bit, so the student's direction is exactly zero."""
    players = make_players(Dmd2(**PLAIN), teacher_for(casting), casting)
    moved = trainable(players.student.net)
    for p in moved:
        p.requires_grad_()

    def slopes():
        loss = Dmd2(**PLAIN).student_loss(players, batch_of()).total
        return torch.autograd.grad(loss, moved, allow_unused=True)

    assert all(g is None or not g.any() for g in slopes())
    move(players.critic.net, 1)
    found = [g for g in slopes() if g is not None]
    assert len(found) > 10 and sum(float(g.abs().sum()) for g in found) > 0


@castings
def test_guidance_stays_on_the_teacher(casting):
    teacher = teacher_for(casting, w=3.0)
    players = make_players(Dmd2(), teacher, casting)
    move(players.student.net, 1), move(players.critic.net, 2)
    given, free = (answer(teacher.denoiser, cond=c) for c in (LABELS, labels(2, n=4)))
    torch.testing.assert_close(answer(players.teacher), given + 2 * (given - free))
    assert not torch.allclose(answer(players.teacher), given, rtol=1e-3)


def test_roles_share_the_base_and_copies_share_nothing():
    def storages(net):
        return {p.untyped_storage().data_ptr() for p in net.state_dict().values()}

    for name in ("adapters", "copies"):
        teacher = teacher_for(CASTINGS[name])
        players = make_players(Dmd2(), teacher, CASTINGS[name])
        base, student = storages(plain_net(teacher)), storages(players.student.net)
        critic = storages(players.critic.denoiser.net)
        if name == "adapters":
            assert base == student == critic
        else:
            assert not base & student and not base & critic and not student & critic


def test_parameters_of_a_role_are_the_bases_and_its_own():
    casting = CASTINGS["adapters"]
    teacher = teacher_for(casting)
    base = sum(p.numel() for p in tiny_unet().parameters())
    assert parameter_count(plain_net(teacher)) == base
    players = make_players(Dmd2(**PLAIN), teacher, casting)
    own = sum(p.numel() for p in trainable(players.student.net))
    layers = [m for m in tiny_unet().modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert own == sum(2 * (m.weight.shape[0] + m.weight[0].numel()) for m in layers)
    assert parameter_count(players.student.net) == base + own
    assert parameter_count(teacher.denoiser.net) == base


def test_the_critic_may_have_a_rank_of_its_own():
    casting = replace(CASTINGS["adapters"], adapters=replace(ADAPTERS, critic_rank=3))
    players = make_players(Dmd2(**PLAIN), teacher_for(casting), casting)
    for net, rank in ((players.student.net, 2), (players.critic.denoiser.net, 3)):
        assert {len(a) for name, a in own_tensors(net).items() if ".lora_A." in name} == {rank}


@castings
def test_a_seed_gives_the_same_head_and_adapters_and_another_seed_others(casting):
    before = torch.get_rng_state()
    born = []
    for seed in ((1, 0), (1, 0), (1, 1), (2, 0)):
        torch.rand(len(born))  # whatever the process has drawn so far
        teacher = teacher_for(casting)
        state = torch.get_rng_state()
        players = make_players(Dmd2(), teacher, replace(casting, seed=seed))
        assert torch.equal(torch.get_rng_state(), state)
        born.append(snapshot(players, teacher))
    torch.set_rng_state(before)
    assert all(same(born[0][role], born[1][role]) for role in born[0])
    for other in born[2:]:
        one, two = born[0]["critic"], other["critic"]
        own = [k for k in one if k.startswith("head") or ".lora_A" in k]
        drawn = [k for k in own if one[k].unique().numel() > 1]  # not the ones of a group norm
        assert len(drawn) >= 3 and not any(torch.equal(one[k], two[k]) for k in drawn)
    if casting.adapters is not None:
        mine = born[0]["student"], born[0]["critic"]
        names = [k for k in mine[0] if ".lora_A" in k]
        assert not any(torch.equal(mine[0][k], mine[1][f"network.{k}"]) for k in names)


def test_a_target_without_decay_is_the_student():
    for name in ("adapters", "copies"):
        casting = replace(CASTINGS[name], target=0.0)
        players = make_players(Consistency(), teacher_for(casting), casting)
        assert players.target is players.student


@pytest.mark.parametrize("name", ["copies", "adapters"])
def test_checkpointed_blocks_run_again_in_the_backward(name):
    for checkpointing, again in ((False, False), (True, True)):
        casting = replace(CASTINGS[name], checkpointing=checkpointing)
        players = make_players(Dmd2(**PLAIN), teacher_for(casting), casting)
        move(players.critic.net, 1)
        for p in trainable(players.student.net):
            p.requires_grad_()
        net, runs = players.student.net, Counter()
        inside = (net.net if isinstance(net, AdapterView) else net).down_blocks[0].resnets[0].conv1
        inside.register_forward_hook(lambda *_, runs=runs: runs.update(ran=1))
        loss = Dmd2(**PLAIN).student_loss(players, batch_of()).total
        forwards = runs["ran"]
        loss.backward()
        assert forwards > 0 and (runs["ran"] > forwards) == again


# --- turns ----------------------------------------------------------------------------------------

MOVES = {
    "dmd2": (Dmd2(ratio=2), {"student": {"student"}, "critic": {"critic"}}),
    "stepwise": (Dmd2(ratio=2, stepwise=True), {"student": {"student"}, "critic": {"critic"}}),
    "consistency": (Consistency(steps=4), {"student": {"student", "target"}}),
}


@castings
@pytest.mark.parametrize("method, moves", MOVES.values(), ids=MOVES)
def test_a_turn_moves_its_role_and_never_the_teacher(casting, method, moves):
    teacher = teacher_for(casting)
    want, players = answer(teacher.denoiser), make_players(method, teacher, casting)
    made, first = trainer(method, players), snapshot(players, teacher)
    before = first
    for _ in range(2 * len(method.turns())):
        step = made.step()
        after = snapshot(players, teacher)
        moved = {role for role in after if not same(before[role], after[role])}
        assert moved == moves[step.player] and not step.skipped
        before = after
    assert same(before["teacher"], first["teacher"])
    assert same(before["teacher"], base_tensors(tiny_unet()))
    assert torch.equal(answer(teacher.denoiser), want)
    assert not torch.equal(answer(players.student), want)
    assert all(p.grad is None and not p.requires_grad for p in base_parameters(teacher))


@castings
@pytest.mark.parametrize("gan", [{}, PLAIN], ids=["gan", "plain"])
def test_a_stepwise_critic_begins_as_the_teacher_and_learns_which_step(casting, gan):
    """It is resumed with the sample it would follow next, and which step made that."""
    method = Dmd2(ratio=2, stepwise=True, **gan)
    made, twin = (
        trainer(method, make_players(method, teacher_for(casting), casting)) for _ in range(2)
    )
    critic = made.players.critic
    first, second = (critic.toward(torch.full((4,), t)) for t in (1.0, 0.5))
    assert torch.equal(answer(first), answer(made.players.teacher))
    for _ in range(4):
        made.step()
    state = made.state()
    twin.restore(state._replace(tensors={k: v.clone() for k, v in state.tensors.items()}))
    assert [twin.step() for _ in range(3)] == [made.step() for _ in range(3)]
    assert not torch.equal(answer(first), answer(second))


def base_parameters(teacher):
    named = plain_net(teacher).named_parameters()
    return [p for name, p in named if ".lora_" not in name]


def full_slopes(view, copy):
    """What the copy's weight gradients say about the view's A and B: the chain rule, by hand."""
    state, weights, wanted = view.state(), dict(copy.named_parameters()), {}
    for key in (key for key in state if ".lora_A." in key):
        twin = key.replace("lora_A", "lora_B")
        slope = weights[key.replace("lora_A.", "")].grad
        slope = torch.zeros(1) if slope is None else slope.flatten(1)
        a, b = state[key].flatten(1), state[twin].flatten(1)
        wanted[key] = (SCALE * b.T @ slope).view_as(state[key])
        wanted[twin] = (SCALE * slope @ a.T).view_as(state[twin])
    return wanted


def doubled(players, teacher):
    plain_net(teacher).double()
    for net in nets(players).values():
        net.double()
    return players


def slopes_of(turn, players, k):
    """Gradients of one turn, left in the parameters of its player alone."""
    for name, net in nets(players).items():
        for p in trainable(net):
            p.requires_grad_(name == turn.player)
            p.grad = None
    loss = turn.loss(players, batch_of(k, dtype=torch.float64))
    loss.total.backward()
    players.carry = loss.carry or players.carry
    return loss


@pytest.mark.parametrize("name", ["adapters", "checkpointed adapters"])
def test_gradients_are_those_of_full_copies(name):
    """Student's turn, critic's turn on its sample and on a fresh one; GAN and R1, in float64."""
    method, casting = Dmd2(ratio=2, gan=0.3, gan_critic=0.2, r1=0.1), CASTINGS[name]
    teacher = teacher_for(casting)
    roles = make_players(method, teacher, casting)
    move(roles.student.net, 1), move(roles.critic.denoiser.net, 2)
    doubled(roles, teacher)
    alone = teacher_for(CASTINGS["copies"])
    copies = doubled(make_players(method, alone, CASTINGS["copies"]), alone)
    copies.student.net.load_state_dict(merged(roles.student.net).state_dict())
    copies.critic.denoiser.net.load_state_dict(merged(roles.critic.denoiser.net).state_dict())
    copies.critic.head.load_state_dict(roles.critic.head.state_dict())

    for k, turn in enumerate(method.turns()):
        ours, theirs = slopes_of(turn, roles, k), slopes_of(turn, copies, k)
        torch.testing.assert_close(ours.total, theirs.total, rtol=1e-12, atol=0)
        player = roles.student if turn.player == "student" else roles.critic.denoiser
        copy = copies.student if turn.player == "student" else copies.critic.denoiser
        wanted = full_slopes(player.net, copy.net)
        got = {name: p.grad for name, p in own_tensors(player.net).items()}
        assert got.keys() == wanted.keys() and len(got) > 20
        if turn.player == "critic":
            for (key, p), q in zip(
                roles.critic.head.named_parameters(), copies.critic.head.parameters(), strict=True
            ):
                got[key], wanted[key] = p.grad, q.grad
        for key, slope in wanted.items():
            if got[key] is None:
                assert not slope.any()
                continue
            assert float((got[key] - slope).norm()) <= 1e-10 * float(slope.norm()), key
        assert sum(bool(g is not None and g.any()) for g in got.values()) > 20


# --- saving ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumable():
    """A new trainer on checkpointed adapters, as a new process would make it."""
    method, casting = Dmd2(ratio=2), CASTINGS["checkpointed adapters"]
    return lambda: trainer(method, make_players(method, teacher_for(casting), casting))


def test_a_resumed_run_on_adapters_is_bitwise(tmp_path, resumable):
    whole = resumable()
    steps, states = [], []
    for k in range(6):
        if k in (1, 2, 3):  # with a sample carried, in the middle of a cycle, between two
            save(tmp_path / str(k), k, whole.state())
            states.append(k)
        steps.append(whole.step())
    for k in states:
        second = resumable()
        second.restore(latest(tmp_path / str(k))[0])
        assert [second.step() for _ in range(6 - k)] == steps[k:]
        mine, wanted = second.state(), whole.state()
        assert same(mine.tensors, wanted.tensors) and mine.numbers == wanted.numbers


def test_a_checkpoint_of_adapters_holds_no_base(resumable):
    made = resumable()
    for _ in range(3):
        made.step()
    tensors = made.state().tensors
    weights = {k: v for k, v in tensors.items() if k.startswith("net/")}
    assert all(".lora_" in k or k.startswith("net/critic/head.") for k in weights)
    own = sum(p.numel() for net in nets(made.players).values() for p in trainable(net))
    assert sum(v.numel() for v in weights.values()) == own
    base = [v for v in base_tensors(tiny_unet()).values() if v.unique().numel() > 1]
    for tensor in tensors.values():
        assert not any(tensor.shape == b.shape and torch.equal(tensor, b) for b in base)


def test_a_merged_role_answers_as_its_view():
    casting = CASTINGS["checkpointed adapters"]
    teacher = teacher_for(casting)
    players = make_players(Dmd2(), teacher, casting)
    move(players.student.net, 1), move(players.critic.net, 2)
    base = answer(teacher.denoiser)
    for denoiser in (players.student, players.critic.denoiser):
        plain = merged(denoiser.net)
        got, want = answer(replace(denoiser, net=plain)), answer(denoiser)
        assert float((got - want).abs().max()) <= 1e-6 * float(want.abs().max())
        assert float((base - want).abs().max()) > 1e-2 * float(want.abs().max())
        assert plain.state_dict().keys() == tiny_unet().state_dict().keys()
    assert torch.equal(answer(teacher.denoiser), base)


def test_without_roles_the_base_is_as_it_was():
    casting = CASTINGS["checkpointed adapters"]
    teacher = teacher_for(casting)
    players = make_players(Dmd2(), teacher, casting)
    move(players.student.net, 1), move(players.critic.net, 2)
    net, original = without_roles(plain_net(teacher)), tiny_unet()
    assert same(dict(net.state_dict()), dict(original.state_dict()))
    kinds = [[(n, type(m)) for n, m in each.named_modules()] for each in (net, original)]
    assert kinds[0] == kinds[1] and "peft_config" not in vars(net)


# --- stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapters", "copies"])
def test_a_next_stage_starts_from_the_averaged_student_and_a_new_critic(name):
    casting = CASTINGS[name]
    teacher, method = teacher_for(casting), Dmd2()
    made = trainer(method, make_players(method, teacher, casting), updates=2)
    while not made.done:
        made.step()
    start = {k: v.clone() for k, v in made.averaged().items()}
    going_on = own_tensors(made.players.critic.denoiser.net)
    kept = {k: v.clone() for k, v in going_on.items()}
    present = snapshot(made.players, teacher)
    assert not same(start, present["student"])

    players = make_players(method, teacher, replace(casting, start=start, seed=(0, 1)))
    born = snapshot(players, teacher)
    assert same(born["student"], start)
    assert same(born["teacher"], base_tensors(tiny_unet()))
    new = answer(players.critic.denoiser)
    assert torch.equal(new, answer(teacher.denoiser))
    assert not torch.equal(answer(players.student), new)
    heads = [{k: v for k, v in s["critic"].items() if k[:4] == "head"} for s in (present, born)]
    assert heads[0].keys() == heads[1].keys() and not same(*heads)

    later = make_players(
        method, teacher, replace(casting, start=start, critic=going_on, seed=(0, 1))
    )
    assert same({k: v.clone() for k, v in own_tensors(later.critic.denoiser.net).items()}, kept)
    assert not torch.equal(answer(later.critic.denoiser), new)

    again = make_players(Consistency(), teacher, replace(casting, start=start))
    assert same(snapshot(again, teacher)["target"], start)


def test_a_critic_of_its_own_carries_nothing_of_the_students_adapter():
    casting = PlayerSettings(Sampler((1, 2)), replace(ADAPTERS, roles=("student",)))
    p = make_players(Dmd2(), teacher_for(casting), casting)
    own = own_tensors(p.critic.net)
    assert {f"network.{name}" for name in plain_net(teacher_for(casting)).state_dict()} < {*own}
    assert not any("lora" in name for name in own)


def test_guidance_adapters_fit_blocks_of_unequal_widths():
    """On a UNet whose parts are not registered in the order in which they are passed."""
    net = tiny_unet(widths=(8, 16))
    teacher = Teacher.from_pipeline(DDPMPipeline(net, FlowMatchEulerDiscreteScheduler()), 1.0)
    p = make_players(Agd(), teacher, PlayerSettings(inputs=("adapters",)))
    for adapter in p.student.net.inputs.adapters:
        torch.nn.init.normal_(adapter.up.weight, std=0.3)
    x, t, cond = normal(1, 2, 1, 8, 8).float(), at(0.5, 2), labels(0, 1)
    with torch.no_grad():
        plain, told = (replace(p.student, w=w)(x, t, cond).raw for w in (1.0, 3.0))
    assert not torch.allclose(plain, told, atol=1e-4)


def test_a_student_of_another_shape_cannot_start_a_stage():
    casting = CASTINGS["adapters"]
    teacher = teacher_for(casting)
    start = own_tensors(make_players(Dmd2(), teacher, casting).student.net)
    start = {k: v.detach().clone() for k, v in start.items()}
    wider = replace(casting, adapters=Adapters(rank=3), start=start)
    with pytest.raises(ValueError, match="saved from another network, rank or set of targets"):
        make_players(Dmd2(), teacher, wider)


TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "norm_num_groups": 4,
}


def session(tmp_path, methods, prediction, adapters=None, **unet):
    """Stages of two updates on an untrained unconditional network under a table of ᾱ."""
    network = Network(unet=TINY | unet, scheduler="DDIMScheduler", scheduler_config=prediction)
    settings = {"consistency": {"steps": 4, "solver": "ddim"}, "dmd2": {"ratio": 2}}
    training = Training(updates=2, batch=4, ema=0.5)
    stages = [Stage(m, settings[m], training) for m in methods]
    run = RunConfig(network=network, stages=stages, adapters=adapters, sampler=Sampler((1, 2)))
    return Stages.of(run, tmp_path, Accelerator(cpu=True))


X0 = {"prediction_type": "sample"}
V = {"prediction_type": "v_prediction"}


@pytest.mark.parametrize("adapters", [None, ADAPTERS], ids=["copies", "adapters"])
@pytest.mark.parametrize(
    "methods, prediction, skips",
    [
        (("consistency", "dmd2"), X0, [True, True]),
        (("dmd2", "consistency"), X0, [False, True]),
        (("consistency", "dmd2"), V, [False, False]),
    ],
)
def test_a_consistency_function_stays_one_in_later_stages(
    tmp_path, methods, prediction, skips, adapters
):
    made, found = session(tmp_path, methods, prediction, adapters), []
    for stage in range(2):
        players = made.trainer.players
        found.append(players.student.skip)
        assert players.critic is None or not players.critic.denoiser.skip
        assert players.target is None or players.target.skip == players.student.skip
        if stage == 0:
            while not made.trainer.done:
                made.trainer.step()
            made.next_stage()
    assert found == skips and made.student().skip == skips[1]


def test_a_run_of_two_stages_on_adapters(tmp_path):
    """Resumed inside a cycle of the second; its base is never touched; what it gives is plain."""
    made = session(tmp_path, ("consistency", "dmd2"), V, ADAPTERS)
    base = base_tensors(plain_net(made.teacher))
    while not made.trainer.done:
        made.trainer.step()
    start = {k: v.clone() for k, v in made.trainer.averaged().items()}
    made.next_stage()
    assert same({k: v.clone() for k, v in own_tensors(made.trainer.nets["student"]).items()}, start)
    for k in range(5):
        if k == 1:
            checkpoint(made, Log(made), Monitor(made.setup.run.health, made.trainer, made.teacher))
        made.trainer.step()
    again = session(tmp_path, ("consistency", "dmd2"), V, ADAPTERS)
    assert again.restore() == [] and (again.stage, again.trainer.turn) == (1, 1)
    for _ in range(4):
        again.trainer.step()
    assert same(again.trainer.state().tensors, made.trainer.state().tensors)
    assert same(base_tensors(plain_net(made.teacher)), base)
    x, t = normal(1, 3, 1, 8, 8, dtype=torch.float32), torch.tensor([999.0, 400, 10]).double()
    student = made.student()
    assert not any(".lora_" in k for k in student.net.state_dict())
    view = replace(made.trainer.players.student, net=deepcopy(made.trainer.players.student.net))
    load_own(view.net, made.trainer.averaged())
    with torch.no_grad():
        got, want = student(x, t).x0, view(x, t).x0
        assert float((got - want).abs().max()) <= 1e-6 * float(want.abs().max())
        assert not torch.allclose(want, made.teacher.denoiser(x, t).x0, rtol=1e-3)


# --- what cannot be cast --------------------------------------------------------------------------


def test_a_network_without_the_block_is_refused_in_one_line(tmp_path, monkeypatch):
    for name in ("adapters", "copies"):
        casting = CASTINGS[name]
        for block in ("", "middle.of_nowhere"):
            teacher = teacher_for(casting)
            monkeypatch.setattr(type(teacher.backbone), "tap", block)
            with pytest.raises(ValueError, match="UNet2DModel has no block .* train without a GAN"):
                make_players(Dmd2(), teacher, casting)
            assert make_players(Dmd2(**PLAIN), teacher, casting).critic.head is None
            monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"^stages\.0: UNet2DModel has no block 'mid_block'") as e:
        session(tmp_path, ("dmd2",), V, mid_block_type=None)
    assert "\n" not in str(e.value)


def test_the_head_looks_at_the_block_that_is_asked_for():
    """In the critic's own network, whose features of another size get a head of their own."""
    for name in ("adapters", "copies"):
        casting = CASTINGS[name]
        critics = [
            make_players(Dmd2(tap=block), teacher_for(casting), casting).critic
            for block in (None, "up_blocks.1")
        ]
        nets = [bare(critic.denoiser.net) for critic in critics]
        assert [critic.taps.paths for critic in critics] == [("mid_block",), ("up_blocks.1",)]
        assert nets[0] is not nets[1]
        sizes = [sum(p.numel() for p in critic.head.parameters()) for critic in critics]
        assert sizes[0] != sizes[1]
        with pytest.raises(ValueError, match="its block puts out more: choose a part"):
            make_players(Dmd2(tap="down_blocks.0"), teacher_for(casting), casting)
        with pytest.raises(ValueError, match="no block 'up_blocks.9' for a discriminator's head"):
            make_players(Dmd2(tap="up_blocks.9"), teacher_for(casting), casting)


def test_an_unknown_role_is_refused():
    class Extra(Dmd2):
        needs = Needs(("student", "teacher", "muse"))

    for casting in CASTINGS.values():
        with pytest.raises(ValueError, match="player muse; there are student, teacher, critic"):
            make_players(Extra(), teacher_for(casting), casting)


def test_adapters_on_layers_that_do_not_exist_are_refused():
    casting = replace(CASTINGS["adapters"], adapters=Adapters(targets=("to_q", "nowhere")))
    with pytest.raises(ValueError, match="no such linear layer or convolution"):
        make_players(Dmd2(), teacher_for(casting), casting)
