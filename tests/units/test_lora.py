"""Roles on one base: gradients of full copies, a bitwise teacher, isolation, nesting, saving.

References: full copies with one plain peft adapter each and no checkpointing; weights folded by
hand in float64; diffusers' own LoRA loader; peft's own key names.
"""

import copy
import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from stepdistill.networks.lora import AdapterView, add_adapter, enable_checkpointing
from stepdistill.networks.views import load_own, trainable

WIDE = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "time_emb_proj", "conv_out")
T = torch.tensor([999, 500])
NARROW = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Base:
    """A tiny network, its call x, t → prediction, the module whose output is its feature, and
    targets that put LoRA layers inside its checkpointed blocks (None: the default ones are)."""

    net: nn.Module
    inputs: dict[str, Any]
    feature: str
    wide: tuple[str, ...] | None = None

    def __call__(self, view: Any, x: torch.Tensor, t: torch.Tensor = T) -> torch.Tensor:
        return view(x, timestep=t, **self.inputs).sample


def redrawn(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random: fresh networks hide errors behind zero heads and gates."""
    for i, p in enumerate(net.parameters()):
        scale = 0.7 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1
        p.data = normal(1000 * seed + i, *p.shape) * scale
    return net.eval()


def unet(**changes: Any) -> Base:
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    channels = {"in_channels": 2, "out_channels": 2, "attention_head_dim": 8}
    net = UNet2DModel(sample_size=8, **{**NARROW, **blocks, **channels, **changes})
    return Base(redrawn(net), {}, "mid_block", WIDE)


def convolutional() -> Base:
    base = unet(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    return replace(base, wide=None)


def text_unet() -> Base:
    net = UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        attention_head_dim=2,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **NARROW,
    )
    return Base(redrawn(net), {"encoder_hidden_states": normal(7, 2, 5, 16)}, "mid_block", WIDE)


def dit() -> Base:
    net = DiTTransformer2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        norm_num_groups=1,
        num_embeds_ada_norm=1000,
    )
    return Base(redrawn(net), {"class_labels": torch.tensor([3, 5])}, "transformer_blocks.0")


BASES = [unet, text_unet, dit, convolutional]
ON_EVERY_BASE = pytest.mark.parametrize("make", BASES, ids=lambda make: make.__name__)


def randomise(view: AdapterView, seed: int) -> AdapterView:
    for i, p in enumerate(trainable(view)):
        p.data = normal(100 * seed + i, *p.shape) * 0.2
    return view


def with_roles(base: Base, *roles: str, **options: Any) -> list[AdapterView]:
    for role in roles:
        add_adapter(base.net, role, **{"rank": 2, "alpha": 5.0, **options})
    return [randomise(AdapterView(base.net, role), i + 1) for i, role in enumerate(roles)]


def full_copy(base: Base, view: AdapterView) -> nn.Module:
    """A network of its own with the view's LoRA as its only, always active peft adapter."""
    names = sorted({key.split(".lora_")[0] for key in view.state()})
    net = copy.deepcopy(base.net)
    config = LoraConfig(r=2, lora_alpha=5.0, target_modules=names)
    inject_adapter_in_model(config, net, adapter_name="only")
    outcome = set_peft_model_state_dict(net, view.state(), adapter_name="only")
    assert not outcome.unexpected_keys
    return net


def lora_parameters(net: nn.Module, role: str) -> list[nn.Parameter]:
    halves = (
        half for m in net.modules() if isinstance(m, LoraLayer) for half in (m.lora_A, m.lora_B)
    )
    return [half[role].weight for half in halves if role in half]


# --- one cycle in the manner of DMD2: a surrogate from critic and teacher, and a GAN head ---------


def observed(base: Base, critic: Any, net: nn.Module, x_t: torch.Tensor):
    seen = []
    module = net.get_submodule(base.feature)
    handle = module.register_forward_hook(lambda _, args, out: seen.append(out))
    fake = base(critic, x_t)
    handle.remove()
    head = normal(13, *seen[0].shape[1:])
    return fake, (seen[0] * head).flatten(1).mean(1)


def student_loss(base: Base, student: Any, critic: Any, critic_net: nn.Module, teacher: Any):
    z, noise = normal(11, 2, 2, 8, 8), normal(12, 2, 2, 8, 8)
    x = z - 0.9 * base(student, z)
    x_t = 0.6 * x + 0.8 * noise
    fake, logit = observed(base, critic, critic_net, x_t)
    with torch.no_grad():
        g = fake - base(teacher, x_t)
    return 0.5 * (x - (x - g).detach()).square().mean() + F.softplus(-logit).mean()


def critic_loss(base: Base, student: Any, critic: Any, critic_net: nn.Module, teacher: Any):
    z, noise = normal(21, 2, 2, 8, 8), normal(22, 2, 2, 8, 8)
    with torch.no_grad():
        x = z - 0.9 * base(student, z)
        base(teacher, x)
    fake, logit = observed(base, critic, critic_net, 0.6 * x + 0.8 * noise)
    return (fake - noise).square().mean() + F.softplus(logit).mean()


def gradients(loss: torch.Tensor, player: list[nn.Parameter]) -> list[torch.Tensor]:
    for p in player:
        p.grad = None
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in player]


def error(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Largest deviation of a tensor relative to that tensor's largest entry."""
    pairs = zip(got, want, strict=True)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs)


def turn(*, moves: list[nn.Parameter], rests: list[nn.Parameter]) -> None:
    for p in moves + rests:
        p.requires_grad_(any(p is q for q in moves))


@dataclass(frozen=True)
class Cycle:
    """What both losses of one cycle give on full copies, and the shared network to compare."""

    base: Base
    student: AdapterView
    critic: AdapterView
    want: tuple[list[torch.Tensor], list[torch.Tensor]]

    def got(self, *players: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        s, c = trainable(self.student), trainable(self.critic)
        turn(moves=s, rests=c)
        first = gradients(student_loss(self.base, *players[:2], self.base.net, players[2]), s)
        assert all(p.grad is None for p in c)
        turn(moves=c, rests=s)
        return first, gradients(critic_loss(self.base, *players[:2], self.base.net, players[2]), c)


def cycle(make: Any) -> Cycle:
    base = make()
    original = copy.deepcopy(base.net)
    student, critic = with_roles(base, "student", "critic", targets=base.wide)
    alone = replace(base, net=original)
    nets = full_copy(alone, student), full_copy(alone, critic)
    s, c = (lora_parameters(net, "only") for net in nets)
    turn(moves=s, rests=c)
    first = gradients(student_loss(base, *nets, nets[1], original), s)
    turn(moves=c, rests=s)
    second = gradients(critic_loss(base, *nets, nets[1], original), c)
    assert all(g.abs().max() > 0 for g in first + second)
    return Cycle(base, student, critic, (first, second))


@ON_EVERY_BASE
@pytest.mark.parametrize("checkpointing", [False, True])
def test_roles_give_the_gradients_of_full_copies(make, checkpointing):
    run = cycle(make)
    if checkpointing:
        enable_checkpointing(run.base.net)
    got = run.got(run.student, run.critic, AdapterView(run.base.net, None))
    for mine, theirs in zip(got, run.want, strict=True):
        assert error(mine, theirs) <= 1e-5


@pytest.mark.parametrize("make", [unet, text_unet])
@pytest.mark.parametrize("thawed", [False, True])
def test_the_librarys_switch_drops_or_falsifies_the_students_gradient(make, thawed):
    run = cycle(make)
    net = run.base.net
    layers = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]

    def switch(role):
        for layer in layers:
            layer.set_adapter(role or [])
        for view in (run.student, run.critic) if thawed else ():
            turn(moves=trainable(view), rests=[])

    def switched(role):
        def call(*args, **inputs):
            switch(role)
            return net(*args, **inputs)

        return call

    if thawed:
        net.enable_gradient_checkpointing()
    loss = student_loss(run.base, switched("student"), switched("critic"), net, switched(None))
    switch("critic")
    got = gradients(loss, trainable(run.student))
    assert error(got, run.want[0]) > 0.1 if thawed else not any(g.any() for g in got)


# --- the base and the other roles stay as they are ------------------------------------------------


@ON_EVERY_BASE
def test_teacher_stays_bitwise_and_a_step_moves_one_role_only(make):
    base = make()
    original, x = copy.deepcopy(base.net), normal(3, 2, 2, 8, 8)
    teacher = AdapterView(base.net, None)
    student, critic = with_roles(base, "student", "critic")
    want = base(original, x)
    weights = dict(original.named_parameters())
    for player, loss in ((student, student_loss), (critic, critic_loss), (student, student_loss)):
        other = critic if player is student else student
        turn(moves=trainable(player), rests=trainable(other))
        before = [p.detach().clone() for p in trainable(player)]
        rest = [p.detach().clone() for p in trainable(other)]
        optimiser = torch.optim.Adam(trainable(player), lr=1e-2)
        loss(base, student, critic, base.net, teacher).backward()
        optimiser.step()
        assert all(not torch.equal(p, q) for p, q in zip(trainable(player), before, strict=True))
        assert all(torch.equal(p, q) for p, q in zip(trainable(other), rest, strict=True))
        optimiser.zero_grad()
    moved = {
        n.replace(".base_layer", ""): p for n, p in base.net.named_parameters() if ".lora_" not in n
    }
    assert moved.keys() == weights.keys()
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in moved.items())
    assert torch.equal(base(teacher, x), want) and torch.equal(base(base.net, x), want)
    assert not torch.equal(base(student, x), want)


@ON_EVERY_BASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_role_is_the_base_bit_for_bit_with_float32_weights(make, dtype):
    base = make()
    net = base.net.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in base.inputs.items()}
    base = replace(base, inputs=inputs)
    x = normal(3, 2, 2, 8, 8).to(dtype)
    want = base(net, x)
    add_adapter(net, "student", rank=2)
    student = AdapterView(net, "student")
    assert torch.equal(base(student, x), want) and base(student, x).dtype == dtype
    base(student, x).float().square().mean().backward()
    state = student.state()
    assert {p.dtype for p in state.values()} == {torch.float32}
    assert all(p.grad.abs().max() > 0 for p in lora_parameters(net, "student")[1::2])
    assert all(p.any() == ("lora_A" in key) for key, p in state.items())


def test_requires_grad_is_the_trainers_alone():
    base = unet()
    [student] = with_roles(base, "student")
    assert all(p.requires_grad for p in trainable(student))
    for flags in itertools.product([True, False], repeat=2):
        for p, flag in zip(trainable(student), itertools.cycle(flags)):
            p.requires_grad_(flag)
        before = [p.requires_grad for p in trainable(student)]
        add_adapter(base.net, f"critic_{flags[0]}_{flags[1]}", rank=1)
        for role in ("student", "critic_True_True", None):
            base(AdapterView(base.net, role), normal(1, 2, 2, 8, 8))
        assert [p.requires_grad for p in trainable(student)] == before
    assert not any(p.requires_grad for n, p in base.net.named_parameters() if ".lora_" not in n)


# --- nesting and exceptions -----------------------------------------------------------------------


@ON_EVERY_BASE
@pytest.mark.parametrize("failing", [False, True])
def test_a_view_called_inside_another_gives_way_to_it_again(make, failing):
    base = make()
    student, critic = with_roles(base, "student", "critic")
    teacher = AdapterView(base.net, None)
    x, y = normal(3, 2, 2, 8, 8), normal(4, 2, 2, 8, 8)
    want = {view: (base(view, x), base(view, y)) for view in (student, critic, teacher)}
    feature = base.net.get_submodule(base.feature)

    def interrupt(module, args, out):
        raise KeyError("inside the student")

    def visit(module, args, out):
        outer.remove()
        assert torch.equal(base(teacher, y), want[teacher][1])
        inner = feature.register_forward_hook(interrupt) if failing else None
        try:
            assert torch.equal(base(student, y), want[student][1])
        except KeyError:
            inner.remove()

    outer = feature.register_forward_hook(visit)
    assert torch.equal(base(critic, x), want[critic][0])
    assert torch.equal(base(base.net, x), want[teacher][0])


# --- saving ---------------------------------------------------------------------------------------


@ON_EVERY_BASE
def test_saved_role_reproduces_its_outputs_in_a_fresh_base(make, tmp_path):
    base, fresh = make(), make()
    student, _ = with_roles(base, "student", "student_2")
    x = normal(3, 2, 2, 8, 8)
    save_file(student.state(), tmp_path / "student.safetensors")
    state = load_file(tmp_path / "student.safetensors")
    theirs = get_peft_model_state_dict(base.net, adapter_name="student")
    assert state.keys() == {key for key in theirs if "student_2" not in key}

    add_adapter(fresh.net, "anything", rank=2, alpha=5.0)
    again = AdapterView(fresh.net, "anything")
    assert not torch.equal(base(again, x), base(student, x))
    load_own(again, state)
    assert torch.equal(fresh(again, x), base(student, x))
    with pytest.raises(ValueError, match="1 tensors differ"):
        load_own(again, dict(list(state.items())[1:]))
    with pytest.raises(ValueError, match="1 tensors differ"):
        load_own(again, {**state, min(state): state[min(state)][:1]})


@ON_EVERY_BASE
def test_a_role_is_the_base_with_alpha_over_rank_times_BA_added(make):
    base, folded = make(), make()
    [student] = with_roles(base, "student", rank=3, alpha=7.5)
    state = student.state()
    weights = dict(folded.net.named_parameters())
    for key in (key for key in state if ".lora_A." in key):
        a, b = state[key].double(), state[key.replace("lora_A", "lora_B")].double()
        weight = weights[key.replace("lora_A.", "")]
        update = (7.5 / 3) * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
        weight.data = (weight.double() + update).float()
    got, want = base(student, normal(3, 2, 2, 8, 8)), folded(folded.net, normal(3, 2, 2, 8, 8))
    assert error([got], [want]) < 1e-5
    assert error([got], [base(AdapterView(base.net, None), normal(3, 2, 2, 8, 8))]) > 1e-2


def test_diffusers_own_loader_understands_a_saved_role():
    base, fresh = text_unet(), text_unet()
    [student] = with_roles(base, "student")
    metadata = base.net.peft_config["student"].to_dict()
    fresh.net.load_lora_adapter(student.state(), prefix=None, metadata=metadata)
    x = normal(3, 2, 2, 8, 8)
    assert torch.equal(fresh(fresh.net, x), base(student, x))


# --- what is adapted, what is refused -------------------------------------------------------------


def adapted(net: nn.Module) -> set[str]:
    return {name for name, m in net.named_modules() if isinstance(m, LoraLayer)}


@pytest.mark.parametrize("make", [unet, text_unet, dit])
def test_default_targets_are_the_projections_of_every_attention(make):
    base = make()
    want = {
        name
        for name, m in base.net.named_modules()
        if isinstance(m, nn.Linear) and {"to_q", "to_k", "to_v", "to_out"} & set(name.split("."))
    }
    for role in ("student", "critic"):
        add_adapter(base.net, role, rank=1)
        assert adapted(base.net) == want
        assert len(AdapterView(base.net, role).state()) == 2 * len(want)


def test_without_attention_every_linear_and_convolution_is_adapted():
    base = convolutional()
    want = {n for n, m in base.net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    add_adapter(base.net, "student", rank=1)
    assert adapted(base.net) == want and {"conv_in", "conv_out"} <= want


def test_roles_may_have_different_targets():
    base = unet()
    original, x = copy.deepcopy(base.net), normal(3, 2, 2, 8, 8)
    [student] = with_roles(base, "student", targets=("to_q", "mid_block.resnets.0.conv1"))
    [critic] = with_roles(base, "critic", targets=("conv_out",))
    assert {key.split(".lora_")[0] for key in critic.state()} == {"conv_out"}
    assert {key.split(".")[-3] for key in student.state()} == {"to_q", "conv1"}
    for view in (student, critic):
        assert torch.equal(base(view, x), base(full_copy(replace(base, net=original), view), x))


@pytest.mark.parametrize(
    ("net", "role", "options", "message"),
    [
        (unet, "student", {"targets": ("to_q", "to_qq")}, r"\['to_qq'\]: no such .* in UNet2D"),
        (nn.ReLU, "student", {}, "no such .* in ReLU"),
        (unet, "stu.dent", {}, "no identifier"),
        (unet, "student", {"rank": 0}, "rank 0"),
        (unet, "student", {"alpha": 0.0}, "alpha 0.0"),
    ],
)
def test_bad_requests_are_refused(net, role, options, message):
    made = net()
    with pytest.raises(ValueError, match=message):
        add_adapter(made.net if isinstance(made, Base) else made, role, **{"rank": 2, **options})


def test_unknown_taken_foreign_and_switched_roles_are_refused():
    base = text_unet()
    [student] = with_roles(base, "student")
    with pytest.raises(ValueError, match="'critic': the network only has"):
        AdapterView(base.net, "critic")
    with pytest.raises(ValueError, match="'student': taken"):
        add_adapter(base.net, "student", rank=2)
    layers = [layer for layer in base.net.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    with pytest.raises(ValueError, match="loaded or switched by another library"):
        base(student, normal(3, 2, 2, 8, 8))
    for layer in layers:
        layer.enable_adapters(True)
        layer.set_adapter("student")
    with pytest.raises(ValueError, match="loaded or switched by another library"):
        base(student, normal(3, 2, 2, 8, 8))
    foreign = text_unet()
    foreign.net.add_adapter(LoraConfig(r=1, target_modules=["to_q"]), "style")
    with pytest.raises(ValueError, match="loaded or switched by another library"):
        add_adapter(foreign.net, "student", rank=2)


def test_a_copied_network_switches_its_roles_alone():
    base = unet()
    student, critic = with_roles(base, "student", "critic")
    enable_checkpointing(base.net)
    x, twin = normal(3, 2, 2, 8, 8), copy.deepcopy(student)
    want = base(critic, x)

    def visit_the_twin(module, args, out):
        base(twin, x)

    hook = base.net.mid_block.register_forward_hook(visit_the_twin)
    assert torch.equal(base(critic, x), want)
    hook.remove()
    assert torch.equal(base(twin, x), base(student, x))
    base(twin, x).square().mean().backward()
    assert all(p.grad is None for p in trainable(student))
    copied = [p.grad for p in trainable(twin)]
    base(student, x).square().mean().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(trainable(student), copied, strict=True))
