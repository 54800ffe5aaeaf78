"""Pipelines of text, as diffusers saves them: what the teacher answers to prompts, how it walks,
what its students are exported as, and methods on each.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers as d
import pytest
import torch
from cycles import noise, opened, same_when_exported, two_cycles
from others import PROMPTS, TABLE, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepdistill.conditions import join, repeat
from stepdistill.data.shards import require
from stepdistill.data.trajectories import CacheSettings, manifest
from stepdistill.denoiser import Denoiser
from stepdistill.export.export import pipeline_for
from stepdistill.export.lora import KOHYA, write_lora
from stepdistill.jobs.samplers import of_teacher
from stepdistill.method import load
from stepdistill.methods.ctm import Ctm
from stepdistill.methods.lcm import Lcm
from stepdistill.networks.guidance_embedding import GuidanceEmbedding
from stepdistill.networks.inputs import WithInputs
from stepdistill.networks.lora import AdapterView, add_adapter, low_rank
from stepdistill.networks.views import bare
from stepdistill.process import RectifiedFlow
from stepdistill.resources import shipped_modules
from stepdistill.runs.begin import beginning_of
from stepdistill.runs.config import RunConfig
from stepdistill.runs.setup import away_from, check_export, check_guidance, with_rescale
from stepdistill.schema import ConfigError
from stepdistill.solver import Sampler
from stepdistill.teachers.codec import Size
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.lora_file import FILE, role_in
from stepdistill.teachers.teacher import Teacher, teacher_sampler
from stepdistill.times import Grid

ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def with_scheduler(**config) -> d.StableDiffusionPipeline:
    pipeline = stable_diffusion()
    pipeline.scheduler = d.DDIMScheduler(clip_sample=False, **TABLE, **config)
    return pipeline


PIPELINES: dict[str, Callable[[], d.DiffusionPipeline]] = {
    "sd 1": lambda: with_scheduler(steps_offset=1, set_alpha_to_one=False),
    "sd 2": lambda: with_scheduler(**ZERO_SNR),
    "sdxl": stable_diffusion_xl,
    "sdxl, empty prompt": lambda: stable_diffusion_xl(zeros=False),
    "sd 3": stable_diffusion_3,
}
UNETS = [name for name in PIPELINES if name != "sd 3"]
ASKED = PROMPTS[:2]


@pytest.fixture(params=PIPELINES)
def name(request) -> str:
    return request.param


def saved(
    pipeline: d.DiffusionPipeline, folder: Path, w: float = 1.0, size: Size | None = None
) -> Teacher:
    """As a teacher, from its folder."""
    pipeline.save_pretrained(folder)
    teacher = Teacher.from_pipeline(load_pipeline(str(folder)), w, size)
    return replace(teacher, prompts=tuple(PROMPTS))


def called(pipeline: d.DiffusionPipeline, w: float) -> list[dict[str, Tensor]]:
    """What the network of a pipeline is given, in each call of one step."""
    seen, net = [], network_of(pipeline)
    forward = net.forward

    def record(*given, **more):
        output = forward(*given, **more)
        x, t = given or (more.pop("hidden_states"), more.pop("timestep"))
        more |= more.pop("added_cond_kwargs", None) or {}
        more = {name: value for name, value in more.items() if isinstance(value, Tensor)}
        t = torch.as_tensor(t).flatten()[:1].squeeze()
        seen.append({"x": x, "t": t, "output": output[0], **more})
        return output

    net.forward = record
    x = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    call = {"num_inference_steps": 1, "guidance_scale": w, "latents": x}
    call |= {"height": 16, "width": 24}
    pipeline(ASKED, **call, output_type="latent")
    net.forward = forward
    return seen


def network_of(pipeline: d.DiffusionPipeline) -> torch.nn.Module:
    return pipeline.components.get("unet") or pipeline.transformer


def is_flow(teacher: Teacher) -> bool:
    return isinstance(teacher.denoiser.process, RectifiedFlow)


NAMES = {
    "text": ("encoder_hidden_states",),
    "pooled": ("text_embeds", "pooled_projections"),
    "sizes": ("time_ids",),
}


def test_the_network_is_called_as_its_pipeline_calls_it(name, tmp_path):
    """With the empty prompt, too, not square, and for times of its own for each sample."""
    pipeline = PIPELINES[name]()
    teacher = saved(pipeline, tmp_path, size=(16, 24))
    pipeline.set_progress_bar_config(disable=True)
    (seen,) = called(pipeline, 3.0)
    null = repeat(teacher.null, 2)
    cond = join(null, teacher.conditions(ASKED))
    for ours, names in NAMES.items():
        theirs = [seen[name] for name in names if name in seen]
        assert (ours in cond) == bool(theirs)
        if ours in cond:
            torch.testing.assert_close(cond[ours], theirs[0], rtol=0, atol=1e-6)
    unit = 1000 if is_flow(teacher) else 1
    t = seen["t"].double().expand(4) / unit
    scale = teacher.denoiser.process.input_scale(t).float()[:, None, None, None]
    ours = teacher.denoiser.output(seen["x"] / scale, t, cond)
    assert float((ours - seen["output"]).abs().max()) <= 2e-5 and float(ours.std()) > 0.1
    times = torch.tensor([900.0, 20.0, 3.0, 500.0], dtype=torch.float64) / unit
    together = teacher.denoiser.output(seen["x"], times, cond)
    for i in range(4):
        row = {name: value[i : i + 1] for name, value in cond.items()}
        alone = teacher.denoiser.output(seen["x"][i : i + 1], times[i : i + 1], row)
        assert float((together[i : i + 1] - alone).abs().max()) <= 2e-5


@pytest.mark.parametrize("w", [1.0, 3.0], ids="w {}".format)
@pytest.mark.parametrize("n", [4, 10])
def test_the_teacher_walks_as_its_pipeline_does(name, n, w, tmp_path):
    pipeline = PIPELINES[name]()
    teacher = saved(pipeline, tmp_path, w)
    pipeline.set_progress_bar_config(disable=True)
    x = noise(teacher)
    call = {"num_inference_steps": n, "guidance_scale": w, "latents": x, "prompt": ASKED}
    theirs = pipeline(**call, output_type="latent").images
    with torch.no_grad():
        cond = teacher.conditions(ASKED)
        ours = teacher_sampler(teacher).draw(teacher.guided, x, n, cond, None)
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    seen = pipeline(**call, output_type="pt").images
    row = of_teacher(teacher, n)
    assert row.nfe == n * (1 if w == 1 else 2)
    made = row.sample(x, ASKED, torch.Generator())
    assert float((made / 2 + 0.5 - seen).abs().max()) <= 1e-4


def walks_as_called(
    teacher: Teacher, plain: Teacher, pipeline: d.DiffusionPipeline, **more: object
) -> None:
    """In five steps, the teacher as its pipeline called with `more`, and a plain one otherwise."""
    pipeline.set_progress_bar_config(disable=True)
    x = noise(teacher)
    call = {"num_inference_steps": 5, "guidance_scale": teacher.w, "latents": x, "prompt": ASKED}
    theirs = pipeline(**call, **more, output_type="latent").images
    with torch.no_grad():
        cond, walk = teacher.conditions(ASKED), teacher_sampler(teacher)
        ours = walk.draw(teacher.guided, x, 5, cond, None)
        other = walk.draw(plain.guided, x, 5, cond, None)
    most = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) <= 1e-5 * most
    assert float((other - theirs).abs().max()) > 1e-3 * most


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("name", UNETS)
def test_a_rescaled_teacher_walks_as_its_pipeline_does(name, share, tmp_path):
    pipeline = PIPELINES[name]()
    plain = saved(pipeline, tmp_path, 6.0)
    teacher = with_rescale(plain, share)
    walks_as_called(teacher, plain, pipeline, guidance_rescale=share)
    kept = [manifest(each, CacheSettings()) for each in (plain, teacher)]
    assert kept[1] == kept[0] | {"rescale": share}
    for i, (own, other) in enumerate((kept, kept[::-1])):
        require(tmp_path / str(i), own)
        with pytest.raises(ConfigError, match="a cache of another rescale"):
            require(tmp_path / str(i), other)


def test_guidance_leads_away_from_a_negative_prompt_as_its_pipeline_does(name, tmp_path):
    pipeline = PIPELINES[name]()
    plain = saved(pipeline, tmp_path, 3.0)
    teacher = away_from(plain, "a blurred dog")
    led = ["a blurred dog"] * len(ASKED)
    walks_as_called(teacher, plain, pipeline, negative_prompt=led)
    settings = CacheSettings()
    told = {"negative prompt": "a blurred dog"}
    assert manifest(teacher, settings) == manifest(plain, settings) | told


SAMPLERS = {
    "trailing": Sampler((1, 2), Grid("trailing"), 0.0),
    "re-noised": Sampler((1, 2), Grid("uniform"), 0.6),
}


def sampler_of(kind: str, teacher: Teacher) -> Sampler:
    """One of SAMPLERS; a flow has no whole timesteps."""
    return replace(SAMPLERS[kind], grid=Grid("uniform")) if is_flow(teacher) else SAMPLERS[kind]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_student_is_exported_called_saved_again_and_read(name, kind, tmp_path):
    teacher = saved(PIPELINES[name](), tmp_path / "teacher")
    sampler = sampler_of(kind, teacher)
    if is_flow(teacher) and sampler.gamma > 0:
        with pytest.raises(ConfigError, match="hands its generator to no scheduler"):
            check_export(RunConfig(sampler=sampler), (), teacher)
        return
    check_export(RunConfig(sampler=sampler), (), teacher)
    same_when_exported(teacher, sampler, ASKED, 1e-5, tmp_path)


@pytest.mark.parametrize("alpha", [2.0, 8.0])
def test_a_role_is_loaded_from_its_files_as_it_was(name, alpha, tmp_path):
    """By diffusers onto the stock base, whichever file, and merged: the same answers."""
    teacher = saved(PIPELINES[name](), tmp_path / "teacher")
    net = teacher.denoiser.net
    add_adapter(net, "student", rank=4, alpha=alpha)
    view = AdapterView(net, "student")
    generator = torch.Generator().manual_seed(1)
    for value in view.own().values():
        value.data = torch.randn(value.shape, generator=generator) * 0.2
    unit = 1000 if is_flow(teacher) else 1
    x, t = noise(teacher), torch.tensor([700.0, 300.0], dtype=torch.float64) / unit
    cond = teacher.conditions(ASKED)
    student = replace(teacher.denoiser, net=view)
    with torch.no_grad():
        ours, base = student.output(x, t, cond), teacher.with_net(AdapterView(net, None))
        before = base.denoiser.output(x, t, cond)
    most = 1e-5 * max(1.0, float(ours.abs().max()))
    part = teacher.backbone.network
    write_lora(tmp_path / "lora", teacher.pipeline, part, low_rank(view, view.own()))
    written = sorted(path.name for path in (tmp_path / "lora").iterdir())
    assert written == [KOHYA, FILE] if part == "unet" else [FILE]
    for file in written:
        pipeline = PIPELINES[name]()
        again = role_in(pipeline, part, tmp_path / "lora" / file)
        role = low_rank(view, view.own())
        assert again.rank == 4 and again.tensors.keys() == role.tensors.keys()
        assert all(again.tensors[n].allclose(role.tensors[n], atol=1e-6) for n in again.tensors)
        pipeline.load_lora_weights(tmp_path / "lora", weight_name=file)
        theirs = Teacher.from_pipeline(pipeline).denoiser
        with torch.no_grad():
            assert float((theirs.output(x, t, cond) - ours).abs().max()) <= most
    with torch.no_grad():
        merged = replace(student, net=view.standalone()).output(x, t, cond)
    assert float((merged - ours).abs().max()) <= most
    assert float((ours - before).abs().max()) > 0.1


def reading_guidance(teacher: Teacher, low_rank: bool) -> Denoiser:
    """A student with the guidance as an input that does something."""
    net = teacher.denoiser.net
    if low_rank:
        add_adapter(net, "student", rank=2)
        net = AdapterView(net, "student")
    student = WithInputs(net, teacher.backbone.guidance_input())
    generator = torch.Generator().manual_seed(1)
    for value in student.own().values():
        value.data = value.data + torch.randn(value.shape, generator=generator) * 0.03
    return replace(teacher.denoiser, net=student, w=teacher.w)


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("low_rank", [False, True], ids=["full", "low-rank"])
def test_guidance_as_an_input_is_given_by_the_stock_pipeline(name, low_rank, tmp_path):
    """Exported, called with guidance_scale, one pass a step; read again as a teacher, and begun
    from."""
    teacher, sampler = saved(PIPELINES[name](), tmp_path / "teacher", 3.0), SAMPLERS["trailing"]
    if low_rank:
        teacher = teacher.with_net(AdapterView(teacher.denoiser.net, None))
    base = replace(teacher, denoiser=replace(teacher.denoiser, net=bare(teacher.denoiser.net)))
    trained = reading_guidance(base, low_rank)
    x, cond = noise(teacher), teacher.conditions(ASKED)
    with torch.no_grad():
        wanted = {
            w: sampler.draw(replace(trained, w=w), x, 2, cond, None) for w in (3.0, 1.0, 2.3)
        }
        images = {w: teacher.codec.decode(found) / 2 + 0.5 for w, found in wanted.items()}
    assert float((wanted[3.0] - wanted[1.0]).abs().max()) > 0.05
    student = replace(trained, net=trained.net.standalone())
    pipeline_for(teacher, student, sampler).save_pretrained(tmp_path / "out")

    pipe, sizes = opened(tmp_path / "out"), []
    pipe.unet.register_forward_pre_hook(lambda net, given: sizes.append(len(given[0])))
    for w, image in images.items():
        call = {"num_inference_steps": 2, "guidance_scale": w, "latents": x, "output_type": "pt"}
        made = pipe(ASKED, **call).images
        assert float((made - image.clamp(0, 1)).abs().max()) <= 1e-5
    assert sizes == [2] * 6
    again = Teacher.from_pipeline(load_pipeline(str(tmp_path / "out")), 2.3)
    assert again.nfe == 1
    with torch.no_grad():
        read = sampler.draw(again.guided, x, 2, cond, None)
    assert float((read - wanted[2.3]).abs().max()) <= 1e-5 * float(wanted[2.3].abs().max())
    run = RunConfig(student=str(tmp_path / "out"))
    begun = beginning_of(run, teacher)
    assert begun.inputs == ("w",)
    proj = trained.net.inputs.proj.weight
    assert torch.equal(begun.tensors["inputs.proj.weight"], proj)


def test_parts_that_stable_diffusion_3_cannot_be_called_with_are_refused():
    pipeline = stable_diffusion_3()
    pipeline.vae.register_to_config(shift_factor=None)
    with pytest.raises(ValueError, match="its VAE says no shift_factor: write 0.0"):
        Teacher.from_pipeline(pipeline)
    pipeline = stable_diffusion_3()
    pipeline.text_encoder_3 = pipeline.text_encoder
    with pytest.raises(ValueError, match="its third text encoder is not known: leave it out"):
        Teacher.from_pipeline(pipeline)


def test_a_rescale_that_does_nothing_is_refused(tmp_path):
    teacher = saved(stable_diffusion(), tmp_path)
    run = RunConfig(guidance_rescale=0.5, sampler=SAMPLERS["trailing"])
    ranged = Lcm(steps=4, guidance=(1.0, 4.0), embedding=True)
    with pytest.raises(ConfigError, match="^guidance_rescale: changes nothing at guidance 1"):
        check_guidance(run, (Lcm(steps=4),), teacher)
    other = RunConfig(negative_prompt="", sampler=SAMPLERS["trailing"])
    with pytest.raises(ConfigError, match="^negative_prompt: changes nothing at guidance 1"):
        check_guidance(other, (Lcm(steps=4),), teacher)
    check_guidance(run, (ranged,), teacher)
    with pytest.raises(ConfigError, match="^guidance_rescale: is for guidance by two passes"):
        with_rescale(Teacher.from_pipeline(load_pipeline("digits-vp")), 0.5)
    with pytest.raises(ConfigError, match="^negative_prompt: is for a teacher of prompts"):
        away_from(Teacher.from_pipeline(load_pipeline("digits"), 2.0), "a cat")


def test_inputs_that_no_pipeline_gives_are_refused_before_training(name, tmp_path):
    """The target time by none, guidance by those of U-Nets, and by no network that reads it."""
    teacher, run = saved(PIPELINES[name](), tmp_path), RunConfig(sampler=SAMPLERS["trailing"])
    embedding = Lcm(steps=4, guidance=(1.0, 4.0), embedding=True)
    with pytest.raises(ConfigError, match="the input s is called by no"):
        check_export(run, (Ctm(steps=4),), teacher)
    if name in UNETS:
        check_export(run, (embedding,), teacher)
        teacher.backbone.embedded = True
    with pytest.raises(ConfigError, match="the input w is called by no"):
        check_export(run, (embedding,), teacher)


@pytest.mark.parametrize("name", UNETS)
def test_a_method_that_embeds_guidance_trains_and_ships_it_so(name, tmp_path):
    teacher = saved(PIPELINES[name](), tmp_path, 2.0)
    method = Lcm(steps=4, guidance=(1.0, 4.0), embedding=True)
    students = two_cycles("lcm", teacher, method)
    moved = students.net.inputs.proj.weight
    assert isinstance(students.net.inputs, GuidanceEmbedding) and float(moved.abs().max()) > 0


SOME = [("dmd2", "sd 1"), ("lcm", "sd 2"), ("vsd", "sd 3"), ("ladd", "sd 2")]


@pytest.mark.parametrize(("method", "pipeline"), SOME)
def test_a_method_trains_on_a_pipeline(method, pipeline, tmp_path):
    two_cycles(method, saved(PIPELINES[pipeline](), tmp_path, 2.0))


@pytest.mark.full(shard="teachers")
@pytest.mark.parametrize("method", shipped_modules("methods"))
def test_every_method_trains_on_every_pipeline(method, name, tmp_path):
    assert load(method).needs
    teacher = saved(PIPELINES[name](), tmp_path, 2.0)
    if (method, name) == ("agd", "sd 3"):
        with pytest.raises(ValueError, match="its blocks put out several streams"):
            two_cycles(method, teacher)
        return
    two_cycles(method, teacher)


def edited(file: Path, **changes: object) -> None:
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def older(folder: Path) -> None:
    """Names of weights as earlier libraries wrote them."""
    file = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name}": value for name, value in load_file(file).items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(named, file, metadata={"format": "pt"})


def test_weights_named_as_earlier_libraries_did_are_read(tmp_path):
    new = saved(stable_diffusion(), tmp_path)
    older(tmp_path)
    old = Teacher.from_pipeline(load_pipeline(str(tmp_path)))
    assert torch.equal(old.conditions(ASKED)["text"], new.conditions(ASKED)["text"])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no VAE": (lambda f: shutil.rmtree(f / "vae"), r"vae/config.json: No such file"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), r"^\S+:"),
    "pickled": (
        lambda f: (f / "text_encoder/model.safetensors").rename(f / "text_encoder/model.bin"),
        "pickled weights are never loaded",
    ),
    "cut off": (
        lambda f: os.truncate(f / "vae/diffusion_pytorch_model.safetensors", 999),
        "damaged or incomplete",
    ),
    "another encoder": (
        lambda f: edited(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        r"its text_encoder is not of a known class \(CLIPTextModel\)",
    ),
    "a part more": (
        lambda f: edited(f / "model_index.json", watcher=["a_module", "Watcher"]),
        "has no part 'watcher'",
    ),
    "an unknown key": (
        lambda f: edited(f / "unet/config.json", layers_per_blok=1),
        "'layers_per_blok' is no setting this diffusers knows",
    ),
    "weights elsewhere": (
        lambda f: edited(f / "text_encoder/config.json", transformers_weights="adapter_model.bin"),
        "'transformers_weights' is no setting",
    ),
    "code chosen": (
        lambda f: edited(f / "text_encoder/config.json", _attn_implementation="anyone/kernel"),
        "chooses code",
    ),
    "an adapter": (
        lambda f: (f / "text_encoder/adapter_config.json").write_text("{}"),
        "no text encoder",
    ),
    "no words": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        "no tokenizer.json or vocab.json",
    ),
    "long prompts": (
        lambda f: edited(f / "tokenizer/tokenizer_config.json", model_max_length=10**6),
        "makes prompts of 1000000 tokens",
    ),
    "guidance as an input": (
        lambda f: edited(f / "unet/config.json", time_cond_proj_dim=8),
        "missing weights|asks for more than a prompt",
    ),
    "out of bounds": (
        lambda f: edited(f / "text_encoder/config.json", vocab_size=10**9),
        "text_encoder/config.json: vocab_size",
    ),
    "labels": (
        lambda f: edited(f / "unet/config.json", class_embed_type="timestep"),
        "weights|asks for more than a prompt",
    ),
}


def test_trajectories_of_other_prompts_are_another_cache(tmp_path):
    teacher = saved(stable_diffusion(), tmp_path, 2.0)
    settings = CacheSettings(steps=2, samples=4)
    other = replace(teacher, prompts=("a", "b"))
    assert manifest(teacher, settings) == manifest(replace(teacher), settings)
    assert manifest(teacher, settings) != manifest(other, settings)


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_folder_is_refused_in_one_line(spoilt, tmp_path):
    stable_diffusion().save_pretrained(tmp_path)
    spoil, said = SPOILT[spoilt]
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said) as error:
        Teacher.from_pipeline(load_pipeline(str(tmp_path)))
    assert "\n" not in str(error.value)
