"""Teachers of pixel pipelines: what of their schedulers and networks is honoured, what refused."""

import json
from pathlib import Path
from threading import Thread

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from pixels import COSINE, ddim, ddpm, flow, saved, unet

from stepdistill.denoiser import Denoiser
from stepdistill.export.export import ExportError, allowed, pipeline_for, verify
from stepdistill.export.schedulers import plain_scheduler, stock_scheduler
from stepdistill.method import load
from stepdistill.networks.inputs import WithInputs
from stepdistill.process import VariancePreserving
from stepdistill.resources import pipeline_class
from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages
from stepdistill.solver import Sampler
from stepdistill.teachers.loading import few_step_class, load_pipeline
from stepdistill.teachers.schedulers import clip_of, process_of, table_of
from stepdistill.teachers.spacing import own_sampler
from stepdistill.teachers.teacher import Teacher, teacher_sampler
from stepdistill.times import Grid
from stepdistill.training.players import PlayerSettings, make_players

pytestmark = pytest.mark.xdist_group("caller")

ONE = Sampler((1,), Grid("trailing"), 0.0)
FEW = Sampler((1, 2, 4), Grid("trailing"), 0.0)


def edited(folder: Path, part: str, **changes: object) -> Path:
    """A saved pipeline whose part's configuration says something else; None takes a key out."""
    (file,) = (folder / part).glob("*config.json")
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))
    return folder


# Clipping.


def test_a_clip_is_the_teachers_and_not_its_students():
    teacher = Teacher.from_pipeline(ddpm(unet(classes=3), clip_sample_range=0.7), w=2.0)
    x, t, cond = torch.randn(2, *teacher.event), torch.tensor([990.0, 500.0]), teacher.some(2)
    free, kept = teacher.denoiser(x, t, cond), teacher.guided(x, t, cond)
    assert float(kept.x0.abs().max()) == pytest.approx(0.7) and float(free.x0.abs().max()) > 2
    whole = Teacher.from_pipeline(ddpm(unet(classes=3), clip_sample=False), w=2.0).guided(
        x, t, cond
    )
    assert torch.equal(kept.x0, whole.x0.clamp(-0.7, 0.7)) and torch.equal(kept.eps, whole.eps)
    players = make_players(load("dmd2")(), teacher, PlayerSettings(ONE))
    assert players.student.clip is None and players.critic.denoiser.clip is None
    assert teacher.with_net(unet(classes=3)).guided.denoiser.clip == 0.7
    exported = pipeline_for(teacher, players.student, ONE)
    assert clip_of(exported.scheduler) is None


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), "wide"])
def test_a_clip_at_no_place_is_refused(bound):
    scheduler = DDPMScheduler()
    scheduler.register_to_config(clip_sample_range=bound)
    with pytest.raises(ValueError, match="clip_sample_range .* is not above 0"):
        clip_of(scheduler)


# Times.


@pytest.mark.parametrize(
    ("scheduler", "times"),
    [
        (DDIMScheduler(), [750, 500, 250, 0]),
        (DDIMScheduler(steps_offset=1), [751, 501, 251, 1]),
        (DDPMScheduler(timestep_spacing="trailing"), [999, 749, 499, 249]),
        (DDPMScheduler(timestep_spacing="linspace"), [999, 666, 333, 0]),
        (EulerDiscreteScheduler(use_karras_sigmas=True), [999, 775.1343, 300.9903, 0]),
        (HeunDiscreteScheduler(), [999, 666, 333, 0]),
        (LCMScheduler(), [999, 759, 499, 259]),
        (DPMSolverMultistepScheduler(), [999, 749, 500, 250]),
        (PNDMScheduler(), [750, 500, 250, 0]),  # with more evaluations of its own between
        (KDPM2DiscreteScheduler(), [999, 666, 333, 0]),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_table_is_walked_at_its_schedulers_timesteps(scheduler, times):
    process, _ = process_of(scheduler)
    found = own_sampler(scheduler, process).times(process, 4)
    assert torch.allclose(found, torch.tensor(times, dtype=torch.float64), atol=1e-3)
    before = scheduler.num_inference_steps
    own_sampler(scheduler, process).times(process, 7)
    assert scheduler.num_inference_steps == before  # the pipeline's own is left alone


def test_a_flow_is_walked_at_its_shifted_times():
    for kind in (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler):
        scheduler = kind(shift=3.0)
        process, _ = process_of(scheduler)
        found = own_sampler(scheduler, process).times(process, 4)
        scheduler.set_timesteps(4)
        assert torch.equal(found, scheduler.sigmas[:-1].double().unique_consecutive())
        assert found[0] == 1 and found[1] > 0.8


def test_a_walk_ends_where_its_scheduler_does():
    for scheduler, end in (
        (DDIMScheduler(), -1),
        (DDIMScheduler(set_alpha_to_one=False), 0),
        (EulerDiscreteScheduler(final_sigmas_type="sigma_min"), 0),
        (FlowMatchEulerDiscreteScheduler(), 0),
    ):
        assert own_sampler(scheduler, process_of(scheduler)[0]).end == end


def test_steps_a_scheduler_has_no_times_for_are_refused():
    process, _ = process_of(DDIMScheduler())
    with pytest.raises(ValueError, match="DDIMScheduler: has no times for 1001 steps"):
        own_sampler(DDIMScheduler(), process).times(process, 1001)


def test_the_shipped_teachers_walk_as_they_always_did():
    for name, grid in (("digits", Grid("uniform")), ("digits-vp", Grid("trailing"))):
        teacher = Teacher.from_pipeline(load_pipeline(name))
        sampler, before = teacher_sampler(teacher), Sampler((), grid, 0.0)
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        for n in (1, 32):
            cond = teacher.some(1)
            walks = [s.draw(teacher.guided, noise, n, cond, None) for s in (sampler, before)]
            assert torch.equal(*walks)


def test_a_class_conditional_teachers_own_loop_is_shifted():
    """In the pipeline that we give it and in the toolkit."""
    pipeline = few_step_class()(unet(classes=3), FlowMatchEulerDiscreteScheduler(shift=4.0))
    pipeline.set_progress_bar_config(disable=True)
    teacher, labels = Teacher.from_pipeline(pipeline), torch.tensor([0, 1])
    x = torch.randn(2, *teacher.event, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = teacher_sampler(teacher).draw(teacher.guided, x, 4, teacher.conditions(labels), None)
    call = {"num_inference_steps": 4, "class_labels": labels, "output_type": "pt"}
    theirs = pipeline(latents=x, **call).images
    assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) <= 1e-5


# What float32 can bear.


def test_a_cosine_table_is_started_where_float32_can_bear_it():
    process, prediction = process_of(DDIMScheduler(**COSINE))
    assert prediction == "eps" and process.t_max == 998
    assert process_of(DDIMScheduler(**COSINE, prediction_type="v_prediction"))[0].t_max == 999
    assert process_of(DDIMScheduler())[0].t_max == 999
    teacher = Teacher.from_pipeline(ddim(unet(), **COSINE))
    assert FEW.times(process, 4)[0] == 998 and teacher_sampler(teacher).times(process, 4)[0] == 999


def test_errors_grow_in_x0_by_one_over_alpha():
    process = VariancePreserving(DDIMScheduler().alphas_cumprod)
    t = torch.tensor([999.0, 10.0])
    alpha, sigma = process.scales(t)
    assert torch.allclose(process.magnification("eps", t), sigma / alpha)
    assert torch.allclose(process.magnification("v", t), sigma)
    assert torch.allclose(process.magnification("x0", t), torch.ones(2).double())


def test_the_bound_of_an_export_grows_with_it():
    teacher = Teacher.from_pipeline(ddim(unet()))
    assert 2e-5 < allowed(teacher.denoiser, ONE) < 1e-4
    later = Sampler((1,), Grid("uniform", start=0.5), 0.0)
    assert allowed(teacher.denoiser, later) == 1e-5
    assert allowed(Teacher.from_pipeline(flow(unet())).denoiser, Sampler((1,))) == 1e-5


@pytest.mark.parametrize("steps", [(1,), (1, 2, 4)])
def test_diffusers_default_table_is_exported(steps, tmp_path, caller, monkeypatch):
    from stepdistill.export import export as exporting

    monkeypatch.setattr(exporting, "call_plainly", caller)
    teacher, sampler = Teacher.from_pipeline(ddim(unet())), Sampler(steps, Grid("trailing"), 0.0)
    pipeline = pipeline_for(teacher, teacher.denoiser, sampler)
    pipeline.save_pretrained(tmp_path)
    assert verify(tmp_path, teacher, teacher.denoiser, sampler) <= allowed(
        teacher.denoiser, sampler
    )
    pipeline.scheduler.register_to_config(beta_end=0.0201)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="differs"):
        verify(tmp_path, teacher, teacher.denoiser, sampler)


RUNS = {
    "learned variance": lambda: ddpm(unet(channels=1, out=2), variance_type="learned_range"),
    "cosine, clipped": lambda: ddim(unet(channels=1), **COSINE),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_such_a_teacher_is_trained_and_exported(name, tmp_path, caller, monkeypatch):
    from stepdistill.export import export as exporting

    monkeypatch.setattr(exporting, "call_plainly", caller)
    RUNS[name]().save_pretrained(tmp_path / "teacher")
    short = ("stages.0.training.updates=2", "stages.0.training.batch=4", "trackers=[]")
    run = read("digits-sid", (f"teacher={tmp_path / 'teacher'}", *short))
    stages = Stages.of(run, tmp_path / "run", Accelerator(cpu=True))
    while not stages.trainer.done:
        assert not stages.trainer.step().skipped
    student = stages.result().student
    exporting.export(stages.result(), tmp_path / "student")
    assert student.process.t_max == (998 if "cosine" in name else 999)


# Tables.


@pytest.mark.parametrize(
    ("config", "stock"),
    [
        ({"beta_schedule": "linear"}, True),
        ({"beta_schedule": "sigmoid"}, True),
        ({"trained_betas": torch.linspace(1e-4, 0.015, 1000).tolist()}, True),
        ({"num_train_timesteps": 200, "beta_end": 0.1}, True),
        ({"num_train_timesteps": 40, "trained_betas": [0.05] * 40}, True),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, True),
        ({"beta_schedule": "squaredcos_cap_v2"}, False),  # asked below its last timestep
    ],
)
def test_the_exported_scheduler_has_the_teachers_table(config, stock):
    teacher = Teacher.from_pipeline(ddpm(unet(), **config))
    table = table_of(teacher.pipeline.scheduler)
    made = pipeline_for(teacher, teacher.denoiser, FEW)
    assert isinstance(made, DDIMPipeline) == stock
    assert len(made.scheduler.alphas_cumprod) == len(table)
    assert torch.allclose(made.scheduler.alphas_cumprod.double(), table, rtol=1e-5, atol=0)
    plain = plain_scheduler(teacher.pipeline.scheduler)
    assert torch.allclose(plain.alphas_cumprod.double(), table, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steps", [(1, 2), ()])
@pytest.mark.parametrize("classes", [None, 3])
def test_students_of_a_cosine_table_begin_where_they_were_trained(classes, steps, tmp_path):
    teacher = Teacher.from_pipeline(ddpm(unet(classes=classes), **COSINE))
    sampler = Sampler(steps, Grid("uniform"), 0.0)
    made = pipeline_for(teacher, teacher.denoiser, sampler)
    made.set_progress_bar_config(disable=True)
    call = {"class_labels": [0, 1]} if classes else {"batch_size": 2}
    seeded = torch.Generator().manual_seed(1)
    theirs = made(num_inference_steps=2, generator=seeded, output_type="pt", **call).images
    x = torch.randn(2, *teacher.event, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = sampler.draw(teacher.denoiser, x, 2, teacher.conditions(torch.tensor([0, 1])), None)
    bound = allowed(teacher.denoiser, sampler)
    assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) <= bound


# Old and unknown keys.


def test_an_old_configuration_is_exported_as_one_with_all_keys(tmp_path):
    few = ("_class_name", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
    net = unet()
    for old in (False, True):
        saved(ddim(net, clip_sample=False, beta_schedule="scaled_linear"), tmp_path)
        if old:
            file = tmp_path / "scheduler" / "scheduler_config.json"
            kept = {k: v for k, v in json.loads(file.read_text()).items() if k in few}
            file.write_text(json.dumps(kept | {"tensor_format": "pt", "clip_sample": False}))
        teacher = Teacher.from_pipeline(load_pipeline(str(tmp_path)))
        stock = stock_scheduler(teacher, teacher.denoiser, FEW)
        assert isinstance(stock, DDIMScheduler) and stock.config.timestep_spacing == "trailing"


def test_predict_epsilon_says_what_the_network_predicts(tmp_path):
    saved(ddpm(unet()), tmp_path)
    edited(tmp_path, "scheduler", predict_epsilon=False, prediction_type="absent")
    assert Teacher.from_pipeline(load_pipeline(str(tmp_path))).denoiser.prediction == "x0"
    edited(tmp_path, "scheduler", predict_epsilon=True)
    assert Teacher.from_pipeline(load_pipeline(str(tmp_path))).denoiser.prediction == "eps"
    edited(tmp_path, "scheduler", prediction_type="v_prediction")
    with pytest.raises(ValueError, match="predict_epsilon contradicts prediction_type"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("scheduler", "beta_strat"),
        ("scheduler", "network_sees"),
        ("unet", "act_fun"),
        ("unet", "x"),
    ],
)
def test_keys_that_diffusers_would_drop_are_refused_by_name(part, key, tmp_path):
    saved(ddpm(unet()), tmp_path)
    edited(tmp_path, part, **{key: 3})
    with pytest.raises(ValueError, match=f"config.json: '{key}' is no setting"):
        load_pipeline(str(tmp_path))


def test_settings_of_another_scheduler_travel_along(tmp_path):
    """DDIMPipeline keeps those of the scheduler it was given, and saves them."""
    DDIMPipeline(unet(), DDPMScheduler(variance_type="fixed_large")).save_pretrained(tmp_path)
    assert "variance_type" in (tmp_path / "scheduler" / "scheduler_config.json").read_text()
    load_pipeline(str(tmp_path))


# Clocks, signs and other families.


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("EulerDiscrete", {"timestep_type": "continuous"}, "timestep_type 'continuous' asks"),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas True turns"),
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, "use_dynamic_shifting True"),
        ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1}, "shift_terminal 0.1"),
        ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "stochastic_sampling True"),
        ("DDIM", {"thresholding": True}, "thresholding True is not known here"),
        ("UniPCMultistep", {"use_flow_sigmas": True}, "FlowMatchEulerDiscreteScheduler"),
        ("EDMEuler", {}, "neither a flow nor a table"),
        ("CMStochasticIterative", {}, "neither a flow nor a table"),
        ("DDIMInverse", {}, "neither a flow nor a table"),
        ("SCM", {}, "neither a flow nor a table"),
        ("Heun", {"rescale_betas_zero_snr": True}, "takes no notice of rescale_betas_zero_snr"),
        ("DDPM", {"trained_betas": [0.1, 0.2]}, "2 betas for 1000 num_train_timesteps"),
    ],
)
def test_what_no_step_of_ours_can_follow_is_refused(kind, config, words):
    import diffusers

    known = {"Heun": "HeunDiscrete"}.get(kind, kind)
    taken = {k: v for k, v in config.items() if k != "rescale_betas_zero_snr"}
    scheduler = getattr(diffusers, f"{known}Scheduler")(**taken)
    scheduler.register_to_config(**config)
    with pytest.raises(ValueError, match=words):
        process_of(scheduler)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_embedding_type": "fourier"}, "clock is σ"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"out_channels": 5}, "out_channels 5: needs 3, or 6"),
        ({"num_class_embeds": 1}, "needs a class and the empty label"),
    ],
)
def test_networks_of_another_kind_are_refused(changes, words):
    small = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    with pytest.raises(ValueError, match=words):
        Teacher.from_pipeline(ddpm(UNet2DModel(**small, **blocks, **changes)))


# The pipeline of students.


def conditional(**settings):
    pipe = few_step_class()(unet(classes=4), FlowMatchEulerDiscreteScheduler(), **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def free(**settings):
    pipe = few_step_class()(unet(), FlowMatchEulerDiscreteScheduler(), **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"guidance_scale": 0}, "guidance_scale 0: 1 is without guidance"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan"),
        ({"guidance_scale": -2.0}, "guidance_scale -2"),
        ({"output_type": "numpy"}, "output_type: pil, np or pt"),
        ({"num_inference_steps": 3}, "trained for 1, 2 steps, not 3"),
        ({"num_inference_steps": 0}, "a whole number from 1, not 0"),
        ({"num_inference_steps": 1.0}, "a whole number from 1"),
        ({"batch_size": 0}, "batch_size: a whole number"),
        ({"batch_size": 3, "class_labels": [1, 2]}, "batch_size 3, class_labels 2"),
        ({"latents": torch.zeros(4, 3, 8, 8), "class_labels": [1, 2]}, "class_labels 2, latents 4"),
        ({"latents": torch.zeros(2, 3, 8, 9)}, "latents: needs the shape"),
        ({"class_labels": [1, 4]}, "must lie in 0 … 3"),
        ({"class_labels": [0.5]}, "whole numbers"),
        ({"class_labels": []}, "0 images are no multiple"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt: a whole number"),
        ({"num_images_per_prompt": 2, "latents": torch.zeros(3, 3, 8, 8)}, "3 images are no mult"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "latents only, not {'noise'}"),
        ({"generator": [torch.Generator()], "batch_size": 2}, "batch_size 2, generator 1"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        conditional(times={"1": [1.0], "2": [1.0, 0.5]})(**call)


def test_labels_and_guidance_are_refused_by_a_student_without_classes():
    for call, words in (
        ({"class_labels": [1]}, "knows no classes"),
        ({"guidance_scale": 2}, "leave"),
    ):
        with pytest.raises(ValueError, match=words):
            free(times={"1": [1.0]})(**call)


def test_latents_and_one_label_say_how_many():
    pipe = conditional(times={"1": [1.0]})
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    all_of_two = pipe(class_labels=2, latents=noise, output_type="pt").images
    each = pipe(class_labels=[2] * 4, latents=noise, output_type="pt").images
    assert len(all_of_two) == 4 and torch.equal(all_of_two, each)
    assert len(pipe(class_labels=2, batch_size=3, output_type="pt").images) == 3
    alone = free(times={"1": [1.0]})(latents=noise, output_type="pt").images
    assert len(alone) == 4 and not torch.equal(alone[0], alone[1])


def test_several_images_of_each_label_lie_side_by_side():
    pipe, noise = conditional(times={"1": [1.0]}), torch.randn(4, 3, 8, 8)
    pairs = {"class_labels": [1, 2], "num_images_per_prompt": 2}
    found = pipe(**pairs, latents=noise, output_type="pt").images
    wanted = pipe(class_labels=[1, 1, 2, 2], latents=noise, output_type="pt").images
    assert torch.equal(found, wanted)
    assert len(pipe(num_images_per_prompt=3).images) == 3
    own = [torch.Generator().manual_seed(seed) for seed in range(4)]
    assert len(pipe(num_images_per_prompt=2, generator=own).images) == 4


def test_a_callback_sees_every_step_and_may_change_it():
    pipe, seen = conditional(times={"2": [1.0, 0.5]}), []
    call = {"class_labels": [1], "num_inference_steps": 2, "output_type": "pt"}

    def watch(own, i, t, tensors):
        seen.append((own is pipe, i, t, tensors["latents"]))
        return {}

    def blacken(own, i, t, tensors):
        return {"latents": torch.full_like(tensors["latents"], -1.0)}

    latents = torch.randn(1, 3, 8, 8)
    plain = pipe(**call, latents=latents).images
    watched = pipe(**call, latents=latents, callback_on_step_end=watch).images
    assert torch.equal(plain, watched) and [s[:3] for s in seen] == [(True, 0, 1.0), (True, 1, 0.5)]
    assert torch.equal((seen[-1][3] / 2 + 0.5).clamp(0, 1), plain)
    assert float(pipe(**call, callback_on_step_end=blacken).images.max()) == 0


def test_a_list_of_generators_serves_each_image_by_its_own():
    pipe = conditional(times={"2": [1.0, 0.5]}, gamma=0.5)

    def seeded(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = pipe(generator=seeded(1, 2), output_type="pt").images
    alone = pipe(generator=seeded(2), output_type="pt").images
    assert torch.allclose(both[1], alone[0], atol=1e-6)
    assert not torch.allclose(both[0], alone[0], atol=1e-2)


def test_threads_with_their_own_guidance_do_not_disturb_each_other():
    torch.manual_seed(0)
    inputs = pipeline_class("extra_inputs", "ExtraInputs")(("w",), 32).requires_grad_(False)
    for parameter in inputs.parameters():
        parameter.normal_(std=0.3)
    pipe = conditional(times={"2": [1.0, 0.5]}, inputs=inputs.eval(), guidance=2.0)
    noise = torch.randn(1, 3, 8, 8)

    def images(w: float) -> torch.Tensor:
        call = {"num_inference_steps": 2, "class_labels": [1], "output_type": "pt"}
        return pipe(latents=noise, guidance_scale=w, **call).images

    wanted, found = {w: images(w) for w in (1.5, 4.0)}, {1.5: [], 4.0: []}
    assert not torch.equal(*wanted.values())
    threads = [
        Thread(target=lambda w=w: [found[w].append(images(w)) for _ in range(8)]) for w in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for w, made in found.items():
        assert len(made) == 8 and all(torch.equal(image, wanted[w]) for image in made)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_student_cast_to_half_is_saved_and_read_again(variant, tmp_path):
    from diffusers import DiffusionPipeline

    conditional(times={"1": [1.0]}).save_pretrained(tmp_path / "first")
    half = DiffusionPipeline.from_pretrained(tmp_path / "first", trust_remote_code=True)
    half.to(dtype=torch.float16).save_pretrained(tmp_path / "half", variant=variant)
    again = DiffusionPipeline.from_pretrained(
        tmp_path / "half", trust_remote_code=True, variant=variant
    )
    again.set_progress_bar_config(disable=True)
    assert again(class_labels=[1], output_type="pt").images.isfinite().all()
    ours = load_pipeline(str(tmp_path / "half"))
    assert ours.unet.dtype == torch.float32
    close = zip(ours.unet.parameters(), unet(classes=4).parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in close)


def test_a_few_step_scheduler_begins_where_it_is_told():
    kind = pipeline_class("few_step_scheduler", "FewStepScheduler")
    scheduler = kind(start=898.0)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == pytest.approx([898, 598.3333, 298.6667], abs=1e-3)
    for steps in (0, -1, None):
        with pytest.raises(ValueError, match="a whole number from 1"):
            scheduler.set_timesteps(steps)


def test_a_stock_pipeline_refuses_untrained_steps():
    teacher = Teacher.from_pipeline(ddpm(unet(out=6)))
    made = pipeline_for(teacher, teacher.denoiser, Sampler((2,), Grid("karras"), 0.0))
    assert isinstance(made, DDPMPipeline) and isinstance(teacher.denoiser, Denoiser)
    with pytest.raises(ValueError, match="trained for 2 steps, not 1000"):
        made()
    assert not isinstance(teacher.denoiser.net, WithInputs)
