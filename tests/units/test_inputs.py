"""Networks with more inputs: in runs, over stages, on adapters, and through checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from accelerate import Accelerator
from cases import at, labels
from rich.console import Console
from torch import nn
from toys import tiny_images

from stepdistill.data.loader import stream
from stepdistill.denoiser import toward
from stepdistill.export.export import export
from stepdistill.jobs.distill import train_run
from stepdistill.jobs.samplers import of_folder
from stepdistill.methods.ctm import Ctm
from stepdistill.networks.inputs import LogVariance, WithInputs
from stepdistill.networks.lora import AdapterView
from stepdistill.networks.views import bare, own_tensors, standalone
from stepdistill.resources import pipeline_class
from stepdistill.runs.config import read
from stepdistill.runs.setup import check_batches
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.solver import Sampler
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.checkpoint import CheckpointError
from stepdistill.training.players import Adapters, PlayerSettings, copy_of, make_players

pytestmark = pytest.mark.xdist_group("caller")

ANY = "sampler.steps=[1, 2]"  # the shipped config's student takes any number
QUICK = "{updates: 2, batch: 4, ema: 0, optimiser: {lr: 0.02}}"


def session(folder, config, *overrides) -> Stages:
    made = Stages.of(read(config, ("trackers=[]", *overrides)), folder, Accelerator(cpu=True))
    made.rehearse_cache()
    return made


def finish(made: Stages) -> Stages:
    while not made.trainer.done:
        made.trainer.step()
    return made


def stages(*listed: str) -> str:
    return "stages=[" + ", ".join(f"{{{one}, training: {QUICK}}}" for one in listed) + "]"


def told(s: bool = True, w: bool = True, seed: int = 0):
    """A tiny UNet with more inputs, whose embeddings are not zero."""
    base, names = toys.tiny_denoiser(seed), ["s"] * s + ["w"] * w
    torch.manual_seed(seed)
    width = base.net.time_embedding.linear_2.out_features
    inputs = pipeline_class("extra_inputs", "ExtraInputs")(names, width, "time_embedding")
    for embedding in inputs.embeddings:
        nn.init.normal_(embedding.linear_2.weight, std=0.3)
    return replace(base, net=WithInputs(base.net, inputs))


def pictures(n=3):
    x0, cond, _ = tiny_images().batch(0, n, stream(1))
    return x0, at(0.6, n), cond


@torch.no_grad()
def test_each_input_is_heard_alone():
    x, t, cond = pictures()
    both, plain = told(), toys.tiny_denoiser()
    answers = [
        toward(replace(both, w=w), at(s, 3))(x, t, cond).raw
        for w, s in ((1.0, 0.2), (3.0, 0.2), (1.0, 0.4))
    ]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(answers[i], answers[j], atol=1e-4)
    only_w = replace(told(s=False), w=2.0)
    assert torch.equal(toward(only_w, at(0.2, 3))(x, t, cond).raw, only_w(x, t, cond).raw)
    assert torch.equal(replace(plain, w=7.0, s=at(0.1, 3))(x, t, cond).raw, plain(x, t, cond).raw)


@torch.no_grad()
def test_the_guidance_embedding_is_that_of_diffusers_pipelines():
    """w-embedding: sines of 1000 (w − 1), then cosines; 0 … 0, 1 … 1 where w is neutral."""
    features = pipeline_class("extra_inputs", "ExtraInputs")(["w"], 8).features
    neutral = features(torch.zeros(1))[0]
    assert neutral.tolist() == [0.0] * 64 + [1.0] * 64
    frequencies = 10_000 ** (-torch.arange(64) / 63)
    phase = 1000 * 1.5 * frequencies
    expected = torch.cat([phase.sin(), phase.cos()])
    assert torch.allclose(features(torch.tensor([1500.0]))[0], expected, atol=2e-3)


@torch.no_grad()
def test_a_hook_lives_for_one_call():
    student, (x, t, cond) = told(), pictures()
    base = replace(student, net=student.net.net)
    before = base(x, t, cond).raw
    toward(student, at(0.1, 3))(x, t, cond)
    assert torch.equal(base(x, t, cond).raw, before)
    assert not any(m._forward_hooks for m in bare(student.net).modules())


def test_what_belongs_to_it():
    student = told()
    own = own_tensors(student.net)
    assert {k for k in own if k.startswith("inputs.")} and "conv_in.weight" in own
    student.net.logvar = LogVariance()
    assert "logvar.linear.weight" in own_tensors(student.net)
    shipped = standalone(student.net)
    assert isinstance(shipped, WithInputs) and shipped.logvar is None
    silent = WithInputs(toys.tiny_unet(), None, LogVariance())
    assert not isinstance(standalone(silent), WithInputs)


def test_the_log_variance_begins_at_nothing_and_learns():
    student = replace(told(), net=WithInputs(toys.tiny_unet(), None, LogVariance()))
    u = student.log_variance(at([0.1, 0.9]))
    assert u.tolist() == [0.0, 0.0]
    u.sum().backward()
    assert float(student.net.logvar.linear.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("adapters", ["adapters=null", "adapters={rank: 2}"])
def test_inputs_go_on_to_later_stages_and_a_variance_does_not(tmp_path, adapters):
    made = session(
        tmp_path,
        "digits-ctm",
        adapters,
        stages(
            "method: ctm, settings: {steps: 4, grid: {name: uniform}}",
            "method: scm",
            "method: dmd2",
        ),
    )
    nets = []
    for stage in range(3):
        finish(made)
        nets.append(made.trainer.players.student.net)
        averaged = made.trainer.averaged()
        if stage < 2:
            made.next_stage()
            begun = own_tensors(made.trainer.players.student.net)
            for name in averaged.keys() & begun.keys():
                assert torch.equal(begun[name], averaged[name].to(begun[name])), name
    assert [isinstance(net, WithInputs) for net in nets] == [True] * 3
    assert [net.logvar is not None for net in nets] == [False, True, False]
    assert all(tuple(net.inputs.config.inputs) == ("s",) for net in nets)


def test_a_target_on_adapters_has_inputs_of_its_own():
    teacher = Teacher.from_pipeline(load_pipeline("digits"))
    teacher = teacher.with_net(AdapterView(teacher.denoiser.net, None))
    casting = PlayerSettings(Sampler((1,)), Adapters(rank=2), inputs=("s",))
    p = make_players(Ctm(steps=4), teacher, casting)
    assert p.target.net.inputs is not p.student.net.inputs
    assert p.target.net.net.net is p.student.net.net.net
    mine, its = own_tensors(p.student.net), own_tensors(p.target.net)
    assert mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)
    assert not any(v.requires_grad for v in its.values())
    assert all(v.requires_grad for v in mine.values())
    origin = copy_of(p.student, "origin", casting)
    assert origin.net.net.role == "origin"


def test_an_exported_student_comes_back_as_it_was(tmp_path, warm):
    made = session(
        tmp_path,
        "digits-lcm",
        "guidance=2.5",
        stages("method: lcm, settings: {steps: 4, guidance: [1, 4], embedding: true}"),
    )
    export(finish(made).result(), tmp_path / "student")
    contender, alone = of_folder(tmp_path / "student", 2)
    assert alone.classes == 10 and contender.event == alone.event == (1, 8, 8)
    noise, asked = torch.randn(4, 1, 8, 8, generator=stream(1)), torch.arange(4)
    cond = {"label": asked}
    mine = made.setup.run.sampler.draw(made.student(), noise, 2, cond, stream(2)).clamp(-1, 1)
    assert torch.allclose(contender.sample(noise, asked, stream(2)), mine, atol=1e-5)
    other = replace(made.student(), w=1.5)
    theirs = made.setup.run.sampler.draw(other, noise, 2, cond, stream(2)).clamp(-1, 1)
    at_w, _ = of_folder(tmp_path / "student", 2, guidance=1.5)
    assert torch.allclose(at_w.sample(noise, asked, stream(2)), theirs, atol=1e-5)
    with pytest.raises(ConfigError, match="--guidance: digits does not read it"):
        of_folder(Path("digits"), 2, guidance=1.5)


@pytest.mark.parametrize("kind", ["guidance", "agd"])
def test_the_last_student_can_teach_the_next_stage(tmp_path, kind):
    """Told the run's guidance, at half the cost; the same after a restart, refused if lost."""
    settings = ("guidance=2.5", "cache={samples: 4, steps: 2, guidance: [1, 4]}")
    two = stages(f"method: {kind}", "method: consistency, teacher: last")
    settings += (two, ANY, "evaluation.steps=[1]")
    made = finish(session(tmp_path, "digits-guidance", *settings))
    first = made.student()
    made.next_stage()
    taught = made.trainer.players.teacher
    assert taught.w == 2.5 and isinstance(taught.net, WithInputs)
    x, t, cond = torch.randn(4, 1, 8, 8, generator=stream(3)), at(0.7, 4), labels(*range(4))
    with torch.no_grad():
        assert torch.equal(taught(x, t, cond).raw, first(x, t, cond).raw)
        assert not torch.equal(taught(x, t, cond).raw, made.teacher.denoiser(x, t, cond).raw)
    state, folder = state_of(made), tmp_path / "checkpoints"
    again = session(tmp_path, "digits-guidance", *settings)
    again.go_on_from(state, folder)
    with torch.no_grad():
        assert torch.equal(again.trainer.players.teacher(x, t, cond).raw, taught(x, t, cond).raw)
    (tmp_path / "stages" / "0.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        session(tmp_path, "digits-guidance", *settings).go_on_from(state, folder)


def test_what_a_stage_started_from_is_there_after_a_restart(tmp_path):
    """TCM answers below its cut with the student as the stage found it."""
    settings = (
        stages(
            "method: consistency_training",
            "method: consistency_training, settings: {cut: 0.5}",
        ),
        "sampler={steps: [1]}",
        "evaluation.steps=[1]",
    )
    made = finish(session(tmp_path, "digits-consistency", *settings))
    found = made.student()
    made.next_stage()
    finish(made)
    again = session(tmp_path, "digits-consistency", *settings)
    again.go_on_from(state_of(made), tmp_path / "checkpoints")
    x, t, cond = torch.randn(4, 1, 8, 8, generator=stream(3)), at(0.2, 4), labels(*range(4))
    with torch.no_grad():
        kept, expected = again.trainer.players.initial(x, t, cond).raw, found(x, t, cond).raw
        assert torch.equal(kept, expected)
        assert not torch.equal(again.trainer.players.student(x, t, cond).raw, kept)


def state_of(made: Stages):
    state = made.trainer.state()
    numbers = {"stage": made.stage, "pending": {}, "health": {}}
    return state._replace(numbers=state.numbers | numbers)


def test_a_first_stage_has_no_last_student():
    with pytest.raises(ConfigError, match="no stage before the first"):
        read("digits-consistency", ("stages.0.teacher=last",))


IDLE_GUIDANCE = {
    ("digits-ladd", "guidance=2"): "guidance: 2 is for a teacher that no stage asks",
    ("digits-vsd", "guidance=2"): "stages.0: dropout: a guided critic is asked without a label",
    ("digits-dmd", "cache.guidance=[1, 3]"): "stages.0: dmd gives no student w: no cache.guidance",
    (
        "digits-lcm",
        "stages=[{method: consistency}, "
        "{method: lcm, teacher: last, settings: {steps: 16, guidance: [1, 3]}}]",
    ): "stages.1: guides the last student, which takes no",
    ("digits-lcm", "stages.0.settings.guidance=[3, 15]"): (
        "guidance: 1 lies outside the 3 to 15 that stages.0 trains its student for: write one"
    ),
    ("digits-guidance", "guidance=20"): "guidance: 20 lies outside the 1 to 6 that stages.0",
    ("digits-agd", "guidance=0.5"): "guidance: 0.5 lies outside the 1 to 6 that stages.0",
    (
        "digits-guidance",
        "sampler={steps: [1]}",
        "evaluation.steps=[1]",
        "stages=[{method: guidance}, "
        "{method: lcm, teacher: last, settings: {steps: 16, guidance: [2, 8], embedding: true}}]",
    ): "stages.1: guidance: 8 lies outside the 1 to 6 that stages.0",
    ("digits-dmd", "sampler.grid.start=0.7"): "sampler: dmd's pairs begin at pure noise",
}


def test_a_guidance_that_the_student_sees_is_taken(tmp_path):
    for w in ("1", "6"):
        session(tmp_path, "digits-guidance", f"guidance={w}")
    session(tmp_path, "digits-lcm", "stages.0.settings={guidance: [3, 15], embedding: false}")


@pytest.mark.parametrize(
    "stages",
    ["[{method: consistency_training, settings: {cut: 0.5}}]",
     "[{method: diffusion}, {method: consistency_training, settings: {cut: 0.5}}]"],
)  # fmt: skip
def test_a_cut_needs_a_consistency_function_to_start_from(stages):
    with pytest.raises(ConfigError, match=r"stages.\d.method: answers below its cut with what it"):
        read("digits-consistency", (f"stages={stages}",))


def test_bins_are_not_averages_of_a_sample_or_two(tmp_path):
    """f-distill's parts of time hold four samples of a turn on average, or it is refused."""
    message = "batch: f_distill compares 40 samples of a turn or more, and has 16 × 2 acc.* × 1 pro"
    few = ("stages.0.training.batch=16", "stages.0.training.accumulation=2")
    with pytest.raises(ConfigError, match=message):
        train_run(read("digits-f-distill", few), tmp_path / "run", Console(quiet=True))
    assert not (tmp_path / "run").exists()
    for enough in ("stages.0.training.accumulation=3", "stages.0.settings.bins=8"):
        check_batches(session(tmp_path, "digits-f-distill", *few, enough).setup)


def test_what_a_run_lacks_is_named(tmp_path):
    with pytest.raises(ConfigError, match="stages.0.method: needs the teacher's trajectories"):
        read("digits-agd", ("cache=null",))
    with pytest.raises(ConfigError, match="stages.0: guidance needs a class-conditional teacher"):
        session(tmp_path, "digits-guidance", "teacher=digits-vp", "guidance=1")
    for changes, message in IDLE_GUIDANCE.items():
        with pytest.raises(ConfigError, match=message):
            session(tmp_path, *changes)
