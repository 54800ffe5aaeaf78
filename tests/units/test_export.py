"""Exported folders: the plain call in a clean process equals the trainer's own sampler."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DiffusionPipeline
from diffusers.pipelines.ddim import pipeline_ddim
from diffusers.pipelines.ddpm import pipeline_ddpm
from diffusers.utils.torch_utils import randn_tensor
from safetensors import safe_open
from torch import Tensor

from stepdistill.denoiser import Denoiser
from stepdistill.export import export as exporting
from stepdistill.export.export import (
    ExportError,
    call_plainly,
    code_of,
    export,
    pipeline_for,
)
from stepdistill.export.model_card import licence_of
from stepdistill.export.schedulers import stock_scheduler
from stepdistill.jobs.samplers import of_folder
from stepdistill.resources import PACKAGE
from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages, TrainedRun
from stepdistill.schema import ConfigError
from stepdistill.solver import Sampler, sample
from stepdistill.teachers.loading import load_pipeline, new_pipeline, trained_settings
from stepdistill.teachers.schedulers import process_of
from stepdistill.teachers.teacher import Teacher
from stepdistill.times import Grid

pytestmark = pytest.mark.xdist_group("caller")

SHORT = ("stages.0.training.updates=2", "stages.0.training.batch=4", "trackers=[]")
VP = {"beta_schedule": "linear", "clip_sample": False}


def session(folder: Path, config: str, *overrides: str) -> Stages:
    """A session trained for two updates."""
    made = Stages.of(read(config, (*SHORT, *overrides)), folder, Accelerator(cpu=True))
    made.rehearse_cache()
    while not made.trainer.done:
        made.trainer.step()
    return made


def trained(folder: Path, config: str, *overrides: str) -> TrainedRun:
    return session(folder, config, *overrides).result()


@pytest.fixture
def quick(caller, monkeypatch) -> None:
    """Exports are checked by a process that is there already."""
    monkeypatch.setattr(exporting, "call_plainly", caller)


def opened(folder: Path | str, **settings) -> DiffusionPipeline:
    """An exported folder as its users open it."""
    code = any(Path(folder).rglob("*.py"))
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=code, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def asked_of(pipe: DiffusionPipeline, n: int) -> Tensor:
    """Images (6, c, h, w) of a plain call."""
    generator = torch.Generator().manual_seed(3)
    few = {"class_labels": list(range(6))} if pipe.unet.config.num_class_embeds else {}
    few = few or {"batch_size": 6}
    return pipe(num_inference_steps=n, generator=generator, output_type="pt", **few).images


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
SCHEDULER, PIPELINE = "scheduler/few_step_scheduler.py", "pipeline.py"
# Where it is not the pipeline.
CODE = {
    "table, one step": [],
    "table, deterministic": [],
    "any number of steps, table": [],
    "table, re-noised": [SCHEDULER],
    "table, from less noise": [SCHEDULER],
    "told where it goes": ["inputs/extra_inputs.py", PIPELINE],
    "told its guidance": ["inputs/extra_inputs.py", PIPELINE],
    "adapters": ["inputs/guidance_adapters.py", PIPELINE],
}


@dataclass
class Made:
    """An exported case: its files of code, the request it was checked with, the images then."""

    folder: Path
    code: list[str]
    request: dict
    images: dict[str, Tensor]
    difference: float


@pytest.fixture(scope="module", params=CASES)
def made(request, caller, tmp_path_factory) -> Made:
    folder, (config, overrides) = tmp_path_factory.mktemp("made"), CASES[request.param]
    asked, images = {}, {}

    def call(request: dict) -> dict[str, Tensor]:
        asked.update(request)
        images.update(caller(request))
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "call_plainly", call)
        difference = export(trained(folder, config, *overrides), folder / "student")
    code = CODE.get(request.param, [PIPELINE])
    return Made(folder / "student", code, asked, images, difference)


def test_the_plain_call_of_the_exported_folder_is_the_trainers_sampler(made):
    assert made.difference <= 1e-5
    assert code_of(made.folder) == made.code
    index = json.loads((made.folder / "model_index.json").read_text())
    stock = "DDPMPipeline" if made.code else "DDIMPipeline"
    ours = ["pipeline", "FewStepPipeline"]
    assert index["_class_name"] == (ours if PIPELINE in made.code else stock)
    card = (made.folder / "README.md").read_text()
    assert ("trust_remote_code=True" in card) == bool(made.code)
    assert all(f"`{file}`" in card for file in made.code)
    files = [p.name for p in made.folder.rglob("*") if p.is_file()]
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl", ".ckpt"))]


def saved_again(folder: Path, where: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy, opened by a relative path and saved elsewhere by diffusers, of which it is left."""
    shutil.copytree(folder, where / "student")
    patch.chdir(where)
    opened("student").save_pretrained("again")
    shutil.rmtree(where / "student")
    return where / "again"


def test_what_diffusers_saves_again_is_as_good(made, caller, tmp_path, monkeypatch):
    again = saved_again(made.folder, tmp_path, monkeypatch)
    assert code_of(again) == made.code
    images = caller(made.request | {"folder": str(again)})
    assert images.keys() == made.images.keys()
    assert all(torch.equal(images[n], before) for n, before in made.images.items())


def test_half_precision_is_close(made, monkeypatch):
    for pixels in (pipeline_ddim, pipeline_ddpm):  # which draw other numbers in another precision
        monkeypatch.setattr(
            pixels, "randn_tensor", lambda *a, dtype, **kw: randn_tensor(*a, **kw).to(dtype)
        )
    whole = opened(made.folder)
    for dtype, near in ((torch.float16, 0.005), (torch.bfloat16, 0.03)):
        half = opened(made.folder, torch_dtype=dtype)
        assert half.unet.dtype == dtype
        for n in made.request["steps"]:
            images = asked_of(half, n)
            assert (images.float() - asked_of(whole, n)).abs().mean() <= near


def test_a_clean_process_opens_what_was_saved_again(tmp_path, quick, monkeypatch):
    """With another cache of modules, and nothing left of the first folder."""
    config, overrides = CASES["table, re-noised"]
    export(trained(tmp_path / "run", config, *overrides), tmp_path / "run" / "student")
    first = asked_of(opened(tmp_path / "run" / "student"), 2).permute(0, 2, 3, 1)
    again = saved_again(tmp_path / "run" / "student", tmp_path, monkeypatch)
    request = {"folder": str(again), "custom": True, "absent": [], "steps": [2], "seed": 3}
    images = call_plainly(request | {"call": {"batch_size": 6}})
    assert float((images["2"] - first).abs().max()) <= 1e-6
    with pytest.raises(ValueError, match="trained for 1, 2, 4 steps, not 1000"):
        opened(again)()


def test_steps_it_was_not_trained_for_are_refused(tmp_path, quick):
    export(trained(tmp_path, "demo"), tmp_path / "student")
    with pytest.raises(ValueError, match="trained for 1, 2, 4 steps, not 3"):
        opened(tmp_path / "student")(num_inference_steps=3, class_labels=[1, 2])


def test_a_clean_process_that_fails_says_why(tmp_path, monkeypatch):
    script = tmp_path / "export" / "check_call.py"
    script.parent.mkdir()
    script.write_text("raise ValueError('not for 3 steps')")
    monkeypatch.setattr(exporting, "PACKAGE", tmp_path)
    with pytest.raises(ExportError, match="does not run: ValueError: not for 3 steps"):
        call_plainly({"folder": str(tmp_path / "student")})
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ExportError, match="its process was ended by SIGKILL, as the system does"):
        call_plainly({"folder": str(tmp_path / "student")})
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_a_clean_process_ends_with_the_one_that_asked(tmp_path):
    """Its input ends, whatever ended that one, and nothing of it is left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    shutil.copy(PACKAGE / "export" / "check_call.py", scratch / "call.py")
    (scratch / "ask").write_text(json.dumps({"folder": "/nowhere", "custom": False}))
    command = [sys.executable, str(scratch / "call.py"), str(scratch / "ask"), "answer"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, cwd=scratch, capture_output=True)
    assert ended.returncode == 1 and not ended.stderr and not scratch.exists()


def test_a_mismatch_fails_and_leaves_nothing_behind(tmp_path, quick, monkeypatch):
    made = trained(tmp_path, "demo")
    wrong = replace(made.run.sampler, grid=Grid("shifted", shift=2.0))

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
        export(trained(tmp_path, "demo"), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "mine"


def test_a_pipeline_somebody_else_made_is_not_overwritten(tmp_path):
    load_pipeline("digits-vp").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="not an earlier export"):
        export(trained(tmp_path, "demo"), tmp_path / "theirs")
    assert (tmp_path / "theirs" / "unet" / "config.json").is_file()


@pytest.mark.parametrize("torn", [b"", b"Mod\xe8le", None, "set aside"])
def test_what_was_torn_in_a_run_s_own_folder_is_made_anew(tmp_path, quick, torn):
    made = trained(tmp_path, "demo")
    out = made.folder.student
    export(made, out)
    whole = {p.name for p in out.iterdir()}
    made.folder.results.write_text("")  # torn as well, and not yet the run's: it has no costs
    if torn == "set aside":
        out.rename(out.with_name(".student.old"))
    elif torn is None:
        (out / "README.md").unlink()
    else:
        (out / "README.md").write_bytes(torn)
    export(made, out)
    assert {p.name for p in out.iterdir()} == whole and not list(out.parent.glob(".*"))


def test_a_card_that_is_no_text_is_none_of_ours(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_bytes(b"---\nlicense: mit\n---\nMod\xe8le")
    with pytest.raises(ConfigError, match="not an earlier export"):
        export(trained(tmp_path, "demo"), tmp_path / "theirs")
    assert licence_of(str(tmp_path / "theirs")) == "mit"


def test_half_of_the_numbers_are_the_averaged_students(tmp_path, quick):
    made = session(tmp_path, "demo")
    export(made.result(), tmp_path / "student")
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
    labels, cond = torch.arange(6), teacher.conditions(torch.arange(6))
    noise = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = sample(teacher.guided, noise, Grid().times(teacher.denoiser.process, 4)[:-1], cond)
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


@pytest.mark.parametrize("name", ["digits", "digits-vp", "shapes-classes"])
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
    copies = list((PACKAGE / "assets").glob("*/pipeline.py"))
    assert {copy.parent.name for copy in copies} == {"digits", "shapes-classes"}
    assert all(copy.read_text() == code for copy in copies)


FLOW = ("FlowMatchEulerDiscreteScheduler", {})
TABLES = {
    f"{kind}{', zero SNR' if zero else ''}": (
        "DDPMScheduler",
        {"prediction_type": kind, "rescale_betas_zero_snr": zero, "clip_sample": True},
    )
    for kind, zero in (("epsilon", False), ("v_prediction", True), ("sample", True))
}


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("scheduler", "config"), [FLOW, *TABLES.values()], ids=["flow", *TABLES])
def test_unconditional_students_run_under_a_stock_pipeline(scheduler, config, gamma, tmp_path):
    """And are read back from their folder as what they were."""
    unet = dict(load_pipeline("digits-vp").unet.config)
    teacher = Teacher.from_pipeline(new_pipeline(unet, scheduler, config, 0))
    skip = config.get("prediction_type") == "sample"
    student: Denoiser = replace(teacher.denoiser, skip=skip)
    sampler = Sampler((1, 3), Grid("karras"), gamma)
    pipeline_for(teacher, student, sampler).save_pretrained(tmp_path)
    assert code_of(tmp_path) == [SCHEDULER]
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(6, 1, 8, 8, generator=generator)
    state = generator.get_state()
    with torch.no_grad():
        ours = sampler.draw(student, noise, 3, {}, generator)
    theirs = asked_of(opened(tmp_path), 3)
    assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) <= 1e-5
    found, _ = of_folder(tmp_path, 3)
    again = found.sample(noise, None, torch.Generator().set_state(state))
    assert float((again - ours.clamp(-1, 1)).abs().max()) <= 1e-5


def test_one_step_of_an_unconditional_flow_needs_no_code(tmp_path):
    unet = dict(load_pipeline("digits-vp").unet.config)
    teacher = Teacher.from_pipeline(new_pipeline(unet, *FLOW, 0))
    for steps, grid, kind in (
        ((1,), Grid(), "FlowMatchEulerDiscreteScheduler"),
        ((1, 2), Grid(), "FewStepScheduler"),
        ((), Grid(), "FewStepScheduler"),
    ):
        sampler = Sampler(steps, grid, gamma=0.0)
        pipeline = pipeline_for(teacher, teacher.denoiser, sampler)
        assert isinstance(pipeline, DDPMPipeline)
        assert type(pipeline.scheduler).__name__ == kind
        pipeline.set_progress_bar_config(disable=True)
        n = 1 if steps else 5
        noise = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            ours = sampler.draw(teacher.denoiser, noise, n, {}, None)
        theirs = asked_of(pipeline, n)
        assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) <= 1e-5
    less = Sampler((1,), Grid("uniform", start=0.7), gamma=0.0)
    pipeline = pipeline_for(teacher, teacher.denoiser, less)
    assert type(pipeline).__name__ == "FewStepPipeline"  # stock ones start from unit noise


def test_the_folder_of_a_few_step_student_is_a_teacher_again(tmp_path):
    """Whose students are exported without a trace of its times, in each of the three ways."""
    teacher = Teacher.from_pipeline(load_pipeline("digits-vp"))
    few = pipeline_for(teacher, teacher.denoiser, Sampler((2,), Grid("trailing"), gamma=1.0))
    few.save_pretrained(tmp_path)
    again = Teacher.from_pipeline(load_pipeline(str(tmp_path)))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([800.0, 90.0])
    assert torch.equal(again.denoiser(x, t, {}).x0, teacher.denoiser(x, t, {}).x0)
    made = [
        pipeline_for(again, again.denoiser, Sampler((1, 4), Grid("trailing"), gamma))
        for gamma in (0.0, 0.5)
    ]
    assert "times" not in made[0].scheduler.config
    assert list(made[1].scheduler.config["times"]) == ["1", "4"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("times", {"2": [1, 5]}), ("times", {}), ("times", [3]), ("gamma", 2), ("gamma", "much")],
)
def test_a_damaged_few_step_scheduler_is_refused(key, value, tmp_path):
    teacher = Teacher.from_pipeline(load_pipeline("digits-vp"))
    sampler = Sampler((2,), Grid("trailing"), gamma=1.0)
    pipeline_for(teacher, teacher.denoiser, sampler).save_pretrained(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"scheduler_config.json: {key}"):
        load_pipeline(str(tmp_path))


def test_the_code_of_a_folder_is_not_run_when_it_is_read(tmp_path):
    teacher = Teacher.from_pipeline(load_pipeline("digits-vp"))
    sampler = Sampler((2,), Grid("trailing"), gamma=1.0)
    pipeline_for(teacher, teacher.denoiser, sampler).save_pretrained(tmp_path)
    (tmp_path / SCHEDULER).write_text("raise SystemExit('run')")
    assert trained_settings(load_pipeline(str(tmp_path)))["gamma"] == 1.0


def test_a_size_of_the_users_own_is_the_exports(tmp_path, quick):
    """A teacher asked for larger images than it was trained for, and a student without data."""
    made = trained(tmp_path, "digits-sid", "teacher={path: digits, size: [16, 12]}")
    assert made.teacher.event == (1, 16, 12)
    export(made, tmp_path / "student")
    assert asked_of(opened(tmp_path / "student"), 1).shape[-2:] == (16, 12)
    assert load_pipeline("digits").unet.config.sample_size == 8
