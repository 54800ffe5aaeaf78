"""The doctor: what stock pipelines really ask, faults planted into twins of nine families, and
silence on folders that are right.

A fault is planted as users make it: with diffusers' own from_config, a line of a config, a call on
a card. What is recorded is compared with the closed forms of the schedules and with networks that
really run.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
from toys import tiny_unet
from twins import TWINS, edit, reschedule, student_card
from typer.testing import CliRunner

from stepdistill.cli import app
from stepdistill.doctor import evidence, verdict
from stepdistill.doctor.opened import Opened, opened
from stepdistill.doctor.recording import record
from stepdistill.jobs.doctor import Diagnosis, diagnose
from stepdistill.schema import ConfigError
from stepdistill.teachers.loading import few_step_class, few_step_scheduler_class

TABLES = ("sd15", "sd21", "sdxl", "dit")
FLOWS = ("sd3", "flux", "wan", "zimage", "sana")
SIGMAS = ("sd3", "flux", "zimage", "sana")  # pipelines that take sigmas
UNGUIDED = {"zimage": "guidance_scale=0.0", "flux": "guidance_scale=3.5"}
Plant = Callable[[Path, str], None]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A twin as diffusers saved it, once."""
    root = tmp_path_factory.mktemp("shelf")

    def saved(name: str) -> Path:
        if not (root / name).is_dir():
            TWINS[name]().save_pretrained(root / name)
        return root / name

    return saved


@pytest.fixture
def twin(shelf: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy to be spoilt."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(shelf(name), tmp_path / name))

    return copied


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def settle(folder: Path, **values: Any) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", **values)


def named(folder: Path, name: str) -> None:
    """A network that says where it comes from."""
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    edit(folder / part / "config.json", _name_or_path=name)


def called(folder: Path, family: str, steps: int = 4, more: str = "") -> None:
    guidance = UNGUIDED.get(family, "guidance_scale=1.0")
    student_card(folder, f"num_inference_steps={steps}, {guidance}{more}")


def faults(found: Diagnosis) -> list[str]:
    return [fault.name for fault in found.faults]


# ---- faults, one function each: (folder, family) spoils the folder ------------------------------


def clipped(folder: Path, family: str) -> None:
    table = d.DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    reschedule(folder, d.DDIMScheduler.from_config(table.config))


def as_table(folder: Path, family: str) -> None:
    flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    reschedule(folder, d.UniPCMultistepScheduler.from_config(flow.config))


def without_shift(folder: Path, family: str) -> None:
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}
    config = d.UniPCMultistepScheduler(**solver).config
    reschedule(folder, d.FlowMatchEulerDiscreteScheduler.from_config(config))


def leading(folder: Path, family: str) -> None:
    called(folder, family)


def leading_turbo(folder: Path, family: str) -> None:
    named(folder, "stabilityai/sdxl-turbo")
    called(folder, family)


def shifted_again(folder: Path, family: str) -> None:
    reschedule(folder, d.FlowMatchEulerDiscreteScheduler(shift=3.0))
    edit(folder / "model_index.json", is_distilled=True, distilled_sigmas=[1.0, 0.75, 0.5, 0.25])
    called(folder, family, more=", sigmas=[1.0, 0.75, 0.5, 0.25]")


def timesteps_given(folder: Path, family: str) -> None:
    settle(folder, shift=3.0)
    called(folder, family, more=", timesteps=[1000, 750, 500, 250]")


def terminal(folder: Path, family: str) -> None:
    settle(folder, shift_terminal=0.02)
    edit(folder / "model_index.json", distilled_sigmas=[1.0])
    called(folder, family, 1)


def wasted(folder: Path, family: str) -> None:
    reschedule(folder, d.FlowMatchEulerDiscreteScheduler(shift=3.0))
    called(folder, family)


def linspace(folder: Path, family: str) -> None:
    settle(folder, timestep_spacing="linspace")
    called(folder, family)


def guided(folder: Path, family: str) -> None:
    named(folder, "Tongyi-MAI/Z-Image-Turbo")
    student_card(folder, "num_inference_steps=8, guidance_scale=1")


def guided_anyway(folder: Path, family: str) -> None:
    edit(folder / "model_index.json", is_distilled=True)
    student_card(folder, "num_inference_steps=4, guidance_scale=4.0, true_cfg_scale=4.0")


def no_signal(folder: Path, family: str) -> None:
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    reschedule(folder, d.DDIMScheduler(clip_sample=False, **trailing))


def another_shift(folder: Path, family: str) -> None:
    name = {"wan": "lightx2v/Wan2.1-StepDistill", "zimage": "Z-Image-Turbo", "sd3": "tdm"}
    named(folder, name.get(family, "FLUX.1-schnell"))
    right = {"zimage": "FlowMatchEuler", "flux": "FlowMatchEuler"}
    solver = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    flow = d.FlowMatchEulerDiscreteScheduler(shift=2.0)
    unipc = d.UniPCMultistepScheduler(**solver, flow_shift=2.0)
    reschedule(folder, flow if family in right else unipc)
    called(folder, family, 8 if family == "zimage" else 4)


def of_the_base(folder: Path, family: str) -> None:
    base = {"base_shift": 0.5, "max_shift": 1.15, "use_dynamic_shifting": True, "shift": 3.0}
    reschedule(folder, d.FlowMatchEulerDiscreteScheduler(**base))
    edit(folder / "model_index.json", distilled_sigmas=[1.0, 0.75, 0.5, 0.25])
    called(folder, family)


def schnell_as_dev(folder: Path, family: str) -> None:
    reschedule(folder, d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))
    called(folder, "flux")


def shift_of_the_base(folder: Path, family: str) -> None:
    edit(folder / "model_index.json", is_distilled=True, distilled_sigmas=[1, 0.9375, 0.83, 0.625])
    called(folder, family)


def another_number(folder: Path, family: str) -> None:
    edit(folder / "model_index.json", distilled_sigmas=[1.0, 0.5])
    called(folder, family, 8)


def another_prediction(folder: Path, family: str) -> None:
    settle(folder, timestep_spacing="trailing")
    (folder / "sdxl_lightning_1step_lora.safetensors").write_bytes(b"")
    called(folder, family, 1)


PLANTS: dict[str, tuple[Plant, tuple[str, ...], str]] = {
    "P1": (clipped, TABLES, "clipped latents"),
    "P2 process": (as_table, FLOWS, "another process"),
    "P2 shift": (without_shift, FLOWS, "lost shift"),
    "P4": (leading, TABLES, "late start"),
    "P4 known": (leading_turbo, ("sd15", "sd21", "sdxl"), "late start"),
    "P5 sigmas": (shifted_again, SIGMAS, "sigmas shifted again"),
    "P5 timesteps": (timesteps_given, ("sana",), "another time than the state's"),
    "P6": (terminal, ("flux", "zimage"), "not finite"),
    "P7": (wasted, ("sd3", "wan", "sana"), "wasted evaluation"),
    "P7 table": (linspace, ("sd21", "sdxl", "dit"), "wasted evaluation"),
    "steps": (another_number, ("sdxl", "zimage", "wan"), "another number of steps"),
    "prediction": (another_prediction, ("sdxl",), "another prediction"),
    "P10": (guided, ("zimage",), "guided twice"),
    "guided": (guided_anyway, (*TABLES, "sd3", "wan", "zimage", "sana"), "guided twice"),
    "eps at zero SNR": (no_signal, TABLES, "noise prediction without signal"),
    "wrong shift": (another_shift, ("sd3", "wan", "zimage", "flux"), "wrong shift"),
    "base dynamic": (of_the_base, ("flux", "zimage"), "the base's scheduler"),
    "base schnell": (schnell_as_dev, ("schnell",), "the base's scheduler"),
    "base": (shift_of_the_base, ("wan",), "wrong shift"),
}
MATRIX = [(plant, family) for plant, (_, families, _) in PLANTS.items() for family in families]
FAST = [(plant, families[0]) for plant, (_, families, _) in PLANTS.items()]


def check_plant(folder: Path, plant: str, family: str) -> None:
    spoil, _, fault = PLANTS[plant]
    spoil(folder, family)
    found = diagnose(str(folder))
    assert found.verdict == "wrong", found.why
    assert fault in faults(found), list(found.lines())
    assert all(each.change for each in found.faults)


@pytest.mark.parametrize(("plant", "family"), FAST)
def test_a_planted_fault_is_found(twin, plant: str, family: str):
    check_plant(twin(family), plant, family)


@pytest.mark.full(shard="doctor")
@pytest.mark.parametrize(("plant", "family"), [each for each in MATRIX if each not in FAST])
def test_a_planted_fault_is_found_in_every_family(twin, plant: str, family: str):
    check_plant(twin(family), plant, family)


@pytest.mark.full(shard="doctor")
def test_no_rule_is_idle(twin, monkeypatch: pytest.MonkeyPatch):
    """Of each rule there is a planted fault that no other names."""
    told: set[tuple[str, str]] = set()

    def noted(rule: Callable) -> Callable:
        def noting(case: verdict.Case) -> Iterator[verdict.Fault]:
            found = list(rule(case))
            told.update((rule.__name__, fault.name) for fault in found)
            yield from found

        return noting

    rules = verdict.RULES
    monkeypatch.setattr(verdict, "RULES", tuple(map(noted, rules)))
    needed = set()
    for plant, family in FAST:
        told.clear()
        folder = twin(family)
        check_plant(folder, plant, family)
        shutil.rmtree(folder)
        namers = [rule for rule, fault in told if fault == PLANTS[plant][2]]
        needed |= {*namers} if len(namers) == 1 else set()
    assert needed == {rule.__name__ for rule in rules}


# ---- folders that are right -------------------------------------------------------------------


def base(folder: Path, family: str) -> None:
    """As its makers published it, for many steps."""


def lightning(folder: Path, family: str) -> None:
    euler = d.EulerDiscreteScheduler
    reschedule(folder, euler.from_config(config_of(folder), timestep_spacing="trailing"))
    (folder / "sdxl_lightning_4step_lora.safetensors").write_bytes(b"")
    student_card(folder, "num_inference_steps=4, guidance_scale=0")


def dmd2(folder: Path, family: str) -> None:
    reschedule(folder, d.LCMScheduler.from_config(config_of(folder)))
    named(folder, "tianweiy/DMD2")
    student_card(folder, "num_inference_steps=4, guidance_scale=0, timesteps=[999, 749, 499, 249]")


def lcm(folder: Path, family: str) -> None:
    reschedule(folder, d.LCMScheduler.from_config(config_of(folder)))
    base = "latent-consistency/lcm-lora-sdv1-5"
    student_card(folder, "num_inference_steps=4, guidance_scale=1", base)


def schnell(folder: Path, family: str) -> None:
    student_card(folder, "num_inference_steps=4, guidance_scale=0.0, max_sequence_length=256")


def zimage_turbo(folder: Path, family: str) -> None:
    named(folder, "Tongyi-MAI/Z-Image-Turbo")
    student_card(folder, "num_inference_steps=9, guidance_scale=0.0")


def wan_four(folder: Path, family: str) -> None:
    settle(folder, flow_shift=5.0)
    named(folder, "lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Lightx2v")
    student_card(folder, "num_inference_steps=4, guidance_scale=1.0")


def exact_sigmas(folder: Path, family: str) -> None:
    settle(folder, shift=1.0)
    edit(folder / "model_index.json", is_distilled=True, distilled_sigmas=[1.0, 0.9, 0.75, 0.5, 0])
    called(folder, family, more=", sigmas=[1.0, 0.9, 0.75, 0.5]")


def trailing(folder: Path, family: str) -> None:
    settle(folder, timestep_spacing="trailing")
    called(folder, family)


def zero_snr(folder: Path, family: str) -> None:
    snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    settle(folder, **snr)


RIGHT: dict[str, tuple[Plant, str, str]] = {
    **{f"base {family}": (base, family, "cannot tell") for family in (*TABLES, *FLOWS, "ddpm")},
    "SDXL-Lightning": (lightning, "sdxl", "right"),
    "DMD2": (dmd2, "sdxl", "right"),
    "LCM-LoRA": (lcm, "sd15", "right"),
    "schnell": (schnell, "schnell", "right"),
    "Z-Image-Turbo": (zimage_turbo, "zimage", "right"),
    "Wan lightx2v": (wan_four, "wan", "right"),
    "distilled_sigmas": (exact_sigmas, "sd3", "right"),
    "DiT trailing": (trailing, "dit", "cannot tell"),
    "v-prediction at zero SNR": (zero_snr, "sd21", "cannot tell"),
}


LONG = {"base wan", "base ddpm"}  # 50 steps of a video, and 1,000


@pytest.mark.parametrize("name", sorted(RIGHT.keys() - LONG))
def test_what_is_right_is_left_alone(twin, name: str):
    check_right(twin, name)


@pytest.mark.full(shard="doctor")
@pytest.mark.parametrize("name", sorted(LONG))
def test_what_is_right_and_long_is_left_alone(twin, name: str):
    check_right(twin, name)


def check_right(twin: Callable[[str], Path], name: str) -> None:
    make, family, verdict = RIGHT[name]
    folder = twin(family)
    make(folder, family)
    found = diagnose(str(folder))
    assert (found.verdict, faults(found)) == (verdict, []), list(found.lines())
    assert not found.recordings[0].error


# ---- our own exports --------------------------------------------------------------------------


def few_step(folder: Path) -> None:
    times = {"1": [1.0], "2": [1.0, 0.6]}
    scheduler = d.FlowMatchEulerDiscreteScheduler()
    few_step_class()(tiny_unet(), scheduler, times=times, gamma=1.0).save_pretrained(folder)


def with_own_scheduler(folder: Path) -> None:
    scheduler = few_step_scheduler_class()(times={"2": [999.0, 500.0]})
    d.DDPMPipeline(tiny_unet(classes=None), scheduler).save_pretrained(folder)


def under_ddim(folder: Path, spacing: str = "trailing") -> None:
    scheduler = d.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    d.DDIMPipeline(tiny_unet(classes=None), scheduler).save_pretrained(folder)
    (folder / "README.md").write_text(
        "Made with stepdistill 0.1.0 by: consistency.\n\n```python\n"
        "images = pipe(num_inference_steps=2, batch_size=2).images\n```\n\n"
        "Steps it was trained for: 1, 2.\n"
    )


@pytest.mark.parametrize("make", [few_step, with_own_scheduler, under_ddim])
def test_our_exports_are_right(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "student")
    found = diagnose(str(tmp_path / "student"))
    assert (found.verdict, faults(found)) == ("right", []), list(found.lines())


def test_our_export_with_a_line_changed_is_wrong(tmp_path: Path):
    under_ddim(tmp_path / "student", "leading")
    assert faults(diagnose(str(tmp_path / "student"))) == ["late start"]


def test_what_is_recorded_of_our_pipeline_is_what_it_was_trained_at(tmp_path: Path):
    few_step(tmp_path / "student")
    by = {tuple(r.call.items()): r for r in diagnose(str(tmp_path / "student")).recordings}
    assert by[()].times == (1.0,)
    assert by[(("num_inference_steps", 2),)].times == (1.0, 0.6)
    assert "trained for 1, 2" in by[(("num_inference_steps", 4),)].error


# ---- published students -----------------------------------------------------------------------


def test_every_published_student_is_whole():
    known = {"name", "match", "in", "not_in", "steps", "grid", "shift", "times"}
    known |= {"guidance", "set", "says"}
    classes = [name for name in dir(d) if name.endswith("Pipeline")]
    for student in evidence.published()["students"]:
        assert student.keys() <= known and student["says"], student["name"]
        assert student["guidance"] in ("none", "input", "any")
        assert student.get("grid", "own") in ("trailing", "lcm", "even", "own")
        assert any(name.startswith(student["in"]) for name in classes), student["name"]
        for n, times in student.get("times", {}).items():
            assert len(times) == n in student["steps"] and times == sorted(times, reverse=True)
        assert all(getattr(d, c, None) for k, c in student["set"].items() if k == "_class_name")


def test_grids_are_those_of_diffusers_schedulers():
    lcm, euler = d.LCMScheduler(), d.EulerDiscreteScheduler(timestep_spacing="trailing")
    for n in (1, 2, 3, 4, 8):
        for grid, scheduler in (("lcm", lcm), ("trailing", euler)):
            scheduler.set_timesteps(n)
            trained = evidence.Trained("a test", grid=grid)
            assert trained.at(n, 1000) == tuple(map(float, scheduler.timesteps))
        flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
        flow.set_timesteps(sigmas=[1 - i / n for i in range(n)])
        even = evidence.Trained("a test", grid="even", shift=3.0).at(n, 1000)
        assert even == pytest.approx(flow.sigmas[:-1].tolist())


@pytest.mark.parametrize(
    ("name", "pipeline", "student"),
    [
        ("ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet", "StableDiffusionXLPipeline", (4,)),
        ("dmd2_sdxl_4step_lora", "StableDiffusionXLPipeline", (4,)),
        ("Hyper-SDXL-8steps-lora", "StableDiffusionXLPipeline", (8,)),
        ("Qwen-Image-Lightning-8steps-V1.0", "QwenImagePipeline", (8,)),
        ("black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline", (4,)),
        ("black-forest-labs/FLUX.2-klein-base-4B", "Flux2KleinPipeline", None),
        ("stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", None),
        ("runwayml/stable-diffusion-v1-5", "StableDiffusionPipeline", None),
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "WanPipeline", None),
        ("Tongyi-MAI/Z-Image", "ZImagePipeline", None),
        ("a" * 10**6, "StableDiffusionPipeline", None),
    ],
)
def test_names_are_known_and_bases_are_not(
    tmp_path: Path, name: str, pipeline: str, student: tuple[int, ...] | None
):
    folder = Opened(tmp_path, {"_name_or_path": name}, getattr(d, pipeline), {})
    found = evidence.known(folder)
    assert (found and found.steps) == student


FAMILIES = {
    **{"StableDiffusionXL": "sdxl", "StableDiffusion3": "sd3", "StableDiffusion": "sd21"},
    **{"Flux": "schnell", "ZImage": "zimage", "Wan": "wan", "": "sd21"},
}
CURED = [
    student["name"]
    for student in evidence.published()["students"]
    if student["in"] in FAMILIES and student.get("grid", "own") != "own"
]


@pytest.mark.full(shard="doctor")
@pytest.mark.parametrize("name", CURED)
def test_the_settings_that_are_told_put_a_published_student_right(twin, monkeypatch, name: str):
    """Its family's base with `set` in the scheduler's config, called as its makers say."""
    (student,) = [s for s in evidence.published()["students"] if s["name"] == name]
    alone = evidence.published() | {"students": [student | {"match": "it"}]}
    monkeypatch.setattr(evidence, "published", lambda: alone)
    monkeypatch.setattr(evidence, "names_of", lambda folder: ["it"])
    folder, n = twin(FAMILIES[student["in"]]), (student["steps"] or [4])[-1]
    config = config_of(folder) | student["set"]
    kind = getattr(d, config["_class_name"])
    settings = {k: v for k, v in config.items() if not k.startswith("_")}
    reschedule(folder, kind.from_config(settings))
    called(folder, FAMILIES[student["in"]].replace("schnell", "flux"), n)
    found = diagnose(str(folder))
    assert (found.verdict, faults(found)) == ("right", []), list(found.lines())


# ---- what is recorded -------------------------------------------------------------------------


def shift(s: float, n: int) -> list[float]:
    even = [1 - i / n for i in range(n)]
    return [s * u / (1 + (s - 1) * u) for u in even]


def leads(n: int, offset: int) -> list[float]:
    return [float(i * (1000 // n) + offset) for i in reversed(range(n))]


EXPECTED: dict[str, Callable[[int], list[float]]] = {
    "sdxl": lambda n: leads(n, 1),
    "sd21": lambda n: leads(n, 1),
    "dit": lambda n: leads(n, 0),
    "wan": lambda n: shift(3.0, n),
    "zimage": lambda n: shift(3.0, n),
    "flux": lambda n: shift(2.718281828**1.15, n),  # 1024 × 1024 pixels are 4096 tokens
    "schnell": lambda n: shift(1.0, n),
}


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_times_are_those_of_the_closed_form(shelf, family: str, n: int):
    seen = record(opened(str(shelf(family))), {"num_inference_steps": n})
    assert seen.times == pytest.approx(EXPECTED[family](n), abs=2e-3)
    assert seen.finite and not seen.error


@pytest.mark.parametrize(
    ("family", "call", "guidance"),
    [
        ("sd15", {}, "2 passes"),
        ("sd15", {"guidance_scale": 1.0}, "none"),
        ("zimage", {"guidance_scale": 1.0}, "2 passes"),
        ("zimage", {"guidance_scale": 0.0}, "none"),
        ("wan", {}, "2 passes"),
        ("flux", {}, "w = 3.5 is an input"),
        ("schnell", {}, "none"),
        ("dit", {"guidance_scale": 1.0}, "none"),
        ("ddpm", {}, "none"),
    ],
)
def test_guidance_is_seen_in_the_passes(shelf, family: str, call: dict, guidance: str):
    seen = record(opened(str(shelf(family))), {"num_inference_steps": 2, **call})
    assert seen.guidance == guidance


def test_a_network_with_guidance_as_input_is_recognised(tmp_path: Path):
    TWINS["sd15"](time_cond_proj_dim=8).save_pretrained(tmp_path / "lcm")
    reschedule(tmp_path / "lcm", d.LCMScheduler.from_config(config_of(tmp_path / "lcm")))
    student_card(tmp_path / "lcm", "num_inference_steps=4, guidance_scale=8.0")
    found = diagnose(str(tmp_path / "lcm"))
    assert found.verdict == "right" and found.recordings[0].guidance == "w = 8 is an input"


def test_real_networks_are_asked_the_same(shelf):
    """The same calls on the pipeline with its weights: a hook hears what the stub heard."""
    for family in ("dit", "ddpm"):
        pipe = d.DiffusionPipeline.from_pretrained(shelf(family))
        pipe.set_progress_bar_config(disable=True)
        net, heard = pipe.transformer if family == "dit" else pipe.unet, []

        def hear(_: Any, args: tuple, kwargs: dict, heard: list = heard) -> None:
            t = kwargs["timestep"] if "timestep" in kwargs else args[1]
            heard.append((float(torch.as_tensor(t).flatten()[0]), len(args[0])))

        net.register_forward_pre_hook(hear, with_kwargs=True)
        given = {"class_labels": [0]} if family == "dit" else {}
        pipe(**given, num_inference_steps=4, output_type="np")
        seen = record(opened(str(shelf(family))), {"num_inference_steps": 4})
        assert [t for t, _ in heard] == list(seen.times)
        assert {rows for _, rows in heard} == {seen.passes}


# ---- the command ------------------------------------------------------------------------------


def command(*arguments: str, expect: int) -> str:
    answer = CliRunner().invoke(app, ["doctor", *arguments])
    assert answer.exit_code == expect, answer.output
    return answer.output


def test_the_command_says_what_to_change_and_exits_with_1(twin):
    folder = twin("zimage")
    guided(folder, "zimage")
    told = command(str(folder), expect=1)
    assert "wrong: 2 passes" in told and "change: call: guidance_scale=0" in told
    right = command(str(folder), "--call", "num_inference_steps=8, guidance_scale=0", expect=0)
    assert "right: asked at its trained times, 1, 0.9545, 0.9" in right


def test_json_is_one_line_and_agrees(twin):
    folder = twin("sd15")
    found = json.loads(command(str(folder), "--json", expect=0))
    assert found["verdict"] == "cannot tell" and found["process"] == "variance preserving"
    assert [r["steps"] for r in found["recordings"]] == [51, 1, 3, 5, 9]  # PNDM asks once more


def test_times_that_are_no_numbers_are_null_in_json(twin):
    folder = twin("flux")
    terminal(folder, "flux")
    assert json.loads(command(str(folder), "--json", expect=1))["recordings"][0]["times"] == [None]


BAD: dict[str, Callable[[Path], Any]] = {
    "no index": lambda f: (f / "model_index.json").unlink(),
    "no JSON": lambda f: (f / "model_index.json").write_text("{"),
    "no scheduler": lambda f: shutil.rmtree(f / "scheduler"),
    "no config": lambda f: (f / "unet" / "config.json").unlink(),
    "link": lambda f: (f / "unet" / "more.json").symlink_to("/etc/hostname"),
    "number": lambda f: edit(f / "unet" / "config.json", time_embedding_dim=10**9),
    "size": lambda f: edit(f / "unet" / "config.json", sample_size=10**5),
    "sigmas": lambda f: edit(f / "model_index.json", distilled_sigmas="many"),
    "steps": lambda f: settle(f, num_train_timesteps=10**9),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(twin, name: str):
    folder = twin("ddpm")
    BAD[name](folder)
    assert command(str(folder), expect=2).count("\n") == 1


@pytest.mark.parametrize(
    "call",
    ["4", "num_inference_steps", "num_inference_steps=x", "prompt='a'", "eta=1", "a=1)(b=2"]
    + [
        "num_inference_steps=0",
        "num_inference_steps=1000000000",
        "timesteps=[]",
        "guidance_scale='a'",
    ],
)
def test_calls_that_are_none_are_refused(shelf, call: str):
    with pytest.raises(ConfigError, match="--call"):
        diagnose(str(shelf("sd15")), call)


def test_a_card_and_names_of_endless_steps_cost_nothing(twin):
    folder = twin("sdxl")
    student_card(folder, "num_inference_steps=1000000000", "sdxl_lightning_999999999step")
    assert max(seen.steps for seen in diagnose(str(folder)).recordings) == 50


def test_code_of_the_folder_is_not_run(twin, tmp_path: Path):
    folder, witness = twin("ddpm"), tmp_path / "ran"
    (folder / "pipeline.py").write_text(f"open({str(witness)!r}, 'w')\n")
    edit(folder / "model_index.json", _class_name=["pipeline", "MyPipeline"])
    found = diagnose(str(folder))
    assert found.verdict == "cannot tell" and "code of its own" in found.why
    assert not witness.exists()


def test_a_network_of_any_size_is_asked_the_same(twin):
    """Layers are never built: this one would hold terabytes."""
    folder = twin("sdxl")
    before = diagnose(str(folder)).recordings
    wide = {"block_out_channels": [10**6, 10**6], "layers_per_block": 1000, "sample_size": 128}
    edit(folder / "unet" / "config.json", **wide)
    assert diagnose(str(folder)).recordings == before


def test_weights_are_never_opened(twin):
    folder = twin("sd15")
    for file in folder.glob("*/*.safetensors"):
        file.with_suffix(".bin").write_bytes(b"\x80")
        file.unlink()
    assert diagnose(str(folder)).recordings[0].steps == 51
