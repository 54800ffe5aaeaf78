"""Exported folders: the plain call in a clean process equals the trainer's own sampler."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline
from safetensors import safe_open

from stepdistill.denoiser import Denoiser
from stepdistill.export import export as exporting
from stepdistill.export.export import ExportError, call_plainly, export, pipeline_for
from stepdistill.export.schedulers import stock_scheduler
from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages
from stepdistill.solver import Sampler, sample
from stepdistill.teachers.loading import load_pipeline, new_pipeline
from stepdistill.teachers.schedulers import process_of
from stepdistill.teachers.teacher import Teacher
from stepdistill.times import Grid

SHORT = ("stages.0.training.updates=2", "stages.0.training.batch=4", "trackers=[]")
VP = {"beta_schedule": "linear", "clip_sample": False}


def session(folder: Path, config: str, *overrides: str) -> Stages:
    """A session trained for two updates."""
    made = Stages.of(read(config, (*SHORT, *overrides)), folder, Accelerator(cpu=True))
    made.rehearse_cache()
    while not made.trainer.done:
        made.trainer.step()
    return made


KARRAS = ("sampler.grid.name=karras", "stages.0.settings.grid.name=karras")
SHIFTED = tuple(
    f"{grid}.{key}" for grid in ("sampler.grid", "stages.0.settings.grid")
    for key in ("name=shifted", "shift=3")
)  # fmt: skip
# So that what is zero at birth is not when it is exported.
LOUD = ("stages.0.training.optimiser={lr: 0.02}", "stages.0.training.ema=0")
CASES = {
    "labels, re-noised": ("demo", ()),
    "labels, deterministic": ("demo", ("sampler.gamma=0", *KARRAS)),
    "labels, shifted": ("demo", SHIFTED),
    "table, one step": ("digits-consistency-vp", ("sampler.steps=[1]", "evaluation.steps=[1]")),
    "table, deterministic": ("digits-consistency-vp", ("sampler.gamma=0",)),
    "table, re-noised": ("digits-consistency-vp", ("sampler.gamma=1",)),
    "labels, from less noise": ("digits-sid", ("sampler.grid.start=0.7",)),
    "table, from less noise": ("digits-tdm-vp", ("sampler.grid={name: uniform, start: 0.6}",)),
    "told where it goes": ("digits-ctm", (*LOUD, "sampler.gamma=0.4")),
    "told its guidance": ("digits-lcm", (*LOUD, "guidance=2.5")),
    "adapters": ("digits-agd", LOUD),
    "any number of steps": ("digits-teacher", ()),
    "any number of steps, table": ("digits-teacher-vp", ()),
}
STOCK = {"table, one step", "table, deterministic", "any number of steps, table"}


@pytest.mark.parametrize("case", CASES)
def test_the_plain_call_of_the_exported_folder_is_the_trainers_sampler(case, tmp_path):
    config, overrides = CASES[case]
    made = session(tmp_path, config, *overrides)
    assert export(made, tmp_path / "student") <= 1e-5
    index = json.loads((tmp_path / "student" / "model_index.json").read_text())
    stock = index["_class_name"] == "DDIMPipeline"
    assert stock == (case in STOCK)
    card = (tmp_path / "student" / "README.md").read_text()
    assert ("trust_remote_code=True" in card) == (not stock)
    files = [p.name for p in (tmp_path / "student").rglob("*") if p.is_file()]
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl", ".ckpt"))]
    assert ("pipeline.py" in files) == (not stock)


def test_steps_it_was_not_trained_for_are_refused(tmp_path):
    export(session(tmp_path, "demo"), tmp_path / "student")
    request = {"folder": str(tmp_path / "student"), "custom": True, "steps": [3], "seed": 0}
    with pytest.raises(ExportError, match="trained for 1, 2, 4 steps, not 3"):
        call_plainly(request | {"batch": 2, "labels": [1, 2]})


def test_a_mismatch_fails_and_leaves_nothing_behind(tmp_path, monkeypatch):
    made = session(tmp_path, "demo")
    wrong = replace(made.setup.run.sampler, grid=Grid("shifted", shift=2.0))

    def off(teacher, student, sampler):
        return pipeline_for(teacher, student, wrong)

    monkeypatch.setattr(exporting, "pipeline_for", off)
    with pytest.raises(ExportError, match="nothing was written"):
        export(made, tmp_path / "out" / "student")
    assert list((tmp_path / "out").iterdir()) == []


def test_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an earlier export"):
        export(session(tmp_path, "demo"), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "mine"


def test_a_pipeline_somebody_else_made_is_not_overwritten(tmp_path):
    load_pipeline("digits-vp").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="not an earlier export"):
        export(session(tmp_path, "demo"), tmp_path / "theirs")
    assert (tmp_path / "theirs" / "unet" / "config.json").is_file()


def test_half_of_the_numbers_are_the_averaged_students(tmp_path):
    made = session(tmp_path, "demo")
    export(made, tmp_path / "student")
    file = tmp_path / "student" / "unet" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, "pt") as saved:
        for (name, _), mean in zip(
            made.trainer.players.student.net.named_parameters(),
            made.trainer.ema.averaged,
            strict=True,
        ):
            assert torch.equal(saved.get_tensor(name), mean)


def test_a_stock_scheduler_is_used_only_where_it_yields_the_times():
    teacher = Teacher.from_pipeline(load_pipeline("digits-vp"))
    student = teacher.denoiser

    def stock(*steps: int, grid: str = "trailing", gamma: float = 0.0):
        return stock_scheduler(teacher, student, Sampler(steps, Grid(grid), gamma))

    assert stock(1, 2, 4, 8) is not None
    assert stock(3) is None  # DDIM steps down by 1000 // 3, not to its own next timestep
    assert stock(1, grid="karras") is not None and stock(4, grid="karras") is None
    assert stock(2, gamma=1.0) is None and stock(1, gamma=1.0) is not None
    labelled = Teacher.from_pipeline(load_pipeline("digits"))
    assert stock_scheduler(labelled, labelled.denoiser, Sampler((1,))) is None


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_teacher_reads_process_and_prediction_from_the_scheduler(prediction, zero_snr):
    config = VP | {"prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}
    if prediction == "epsilon" and zero_snr:
        with pytest.raises(ValueError, match="says nothing"):
            process_of(DDIMScheduler(**config))
        return
    unet = dict(load_pipeline("digits-vp").unet.config)
    pipeline = new_pipeline(unet, "DDIMScheduler", config | {"timestep_spacing": "trailing"}, 0)
    with torch.no_grad():
        for p in pipeline.unet.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    teacher = Teacher.from_pipeline(pipeline)
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    times = Grid("trailing").times(teacher.denoiser.process, 4)[:-1]
    ours = sample(teacher.denoiser, noise, times)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.requires_grad_(False)
    theirs = pipeline(
        3, torch.Generator().manual_seed(2), num_inference_steps=4, output_type="np"
    ).images
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(ours - theirs).max() <= 1e-5


def test_guidance_in_the_pipeline_is_guidance_in_the_toolkit():
    pipeline = load_pipeline("digits")
    teacher = Teacher.from_pipeline(pipeline, w=3.0)
    labels = torch.arange(6)
    noise = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = sample(teacher.guided, noise, Grid().times(teacher.denoiser.process, 4)[:-1], labels)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        num_inference_steps=4, class_labels=labels, guidance_scale=3.0, latents=noise,
        output_type="pt",
    ).images  # fmt: skip
    assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) <= 1e-5
    assert teacher.nfe == 2


def test_what_a_teacher_cannot_be():
    unet = dict(load_pipeline("digits-vp").unet.config)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler"):
        new_pipeline(unet, "UniPCMultistepScheduler", flow, 0)
    with pytest.raises(ValueError, match="class-conditional"):
        Teacher.from_pipeline(load_pipeline("digits-vp"), w=2.0)
    with pytest.raises(ValueError, match="shipped teacher"):
        load_pipeline("no-such-teacher")


@pytest.mark.parametrize("name", ["digits", "digits-vp"])
def test_the_embedded_teachers_run_as_shipped(name):
    from stepdistill.resources import PACKAGE

    folder = PACKAGE / "assets" / name
    custom = {} if name == "digits-vp" else {"trust_remote_code": True}
    pipe = DiffusionPipeline.from_pretrained(folder, **custom)
    assert isinstance(pipe, DDIMPipeline) == (name == "digits-vp")
    weights = list(folder.rglob("*.safetensors"))
    assert weights and all(p.stat().st_size <= 4 * 2**20 for p in weights)
    assert "license:" in (folder / "README.md").read_text()


def test_the_shipped_code_beside_the_weights_is_the_one_in_pipelines():
    from stepdistill.resources import PACKAGE, shipped

    code = (shipped("pipelines") / "few_step.py").read_text()
    assert (PACKAGE / "assets" / "digits" / "pipeline.py").read_text() == code


def test_a_student_that_predicts_x0_keeps_its_boundary_through_export(tmp_path):
    unet = dict(load_pipeline("digits-vp").unet.config)
    config = VP | {"prediction_type": "sample", "timestep_spacing": "trailing"}
    teacher = Teacher.from_pipeline(new_pipeline(unet, "DDIMScheduler", config, 0))
    student: Denoiser = replace(teacher.denoiser, skip=True)
    sampler = Sampler((1, 2), Grid("trailing"), gamma=0.0)
    pipeline = pipeline_for(teacher, student, sampler)
    assert pipeline.config["skip_sigma_data"] == student.process.sigma_data
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    theirs = pipeline(2, latents=noise, batch_size=2, output_type="pt").images
    with torch.no_grad():
        ours = sampler.draw(student, noise, 2, None, torch.Generator())
    assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) <= 1e-5
