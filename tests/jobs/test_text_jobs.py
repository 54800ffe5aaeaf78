"""From a folder of Stable Diffusion and a file of prompts to a few-step LoRA, scored and drawn."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from others import PROMPTS, finished_run, stable_diffusion_3
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from stepdistill.cli import app
from stepdistill.evaluation.report.report import read_results
from stepdistill.jobs.validation import Validator
from stepdistill.networks.lora import base_tensors
from stepdistill.networks.views import own_tensors
from stepdistill.runs.config import read
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")

RUN = """
name: words
teacher: models/sd
guidance: 3.0
prompts: prompts.txt
adapters: {rank: 2, alpha: 4}
stages:
  - method: tdm
    training: {updates: 2, batch: 2, optimiser: {lr: 0.01}, critic_optimiser: {lr: 0.01}}
sampler: {steps: [2], grid: {name: trailing}, gamma: 0.0}
evaluation: {suite: teacher, n: 20, blocks: 2, steps: [2], teacher_steps: [2, 4]}
validation: {every: 1, samples: 3, metric: paired, n: 20}
save_every: 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of the YAML above, by the command."""
    return finished_run(tmp_path_factory.mktemp("words"), RUN, "prompts.txt", "\n".join(PROMPTS))


def test_the_whole_job(folder):
    rows = read_results(folder / "runs" / "words" / "results.json")
    assert "4 of the run, SHA-256" in (folder / "runs/words/results.json").read_text()
    assert {(row.model, row.steps, row.nfe) for row in rows} >= {
        ("teacher", 2, 4),
        ("teacher", 4, 8),
        ("student", 2, 2),
    }


def test_the_student_is_looked_at_while_it_is_trained(folder):
    """From the same noise, the teacher above; the last is what the exported student makes."""
    files = sorted((folder / "runs/words/validation").iterdir())
    assert [file.name for file in files] == ["000001.png", "000002.png"]
    first, last = (np.array(Image.open(file)).astype(float) for file in files)
    side = len(first) // 2
    assert first.shape == (2 * side, 3 * side, 3)
    assert (first[:side] == last[:side]).all() and (first[side:] != last[side:]).any()
    student = load_pipeline(str(folder / "runs/words/student"))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    asked = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "np"}
    made = student(PROMPTS[:3], latents=noise, **asked).images * 255
    assert np.abs(np.concatenate(made, 1) - last[side:]).max() <= 0.6
    assert any((folder / "runs/words/stepdistill").glob("events*"))


def test_the_page_shows_prompts_and_the_student_while_it_is_trained(folder):
    page = (folder / "runs/words/report.html").read_text()
    assert "While it was trained" in page and "2 updates" in page
    assert f"<li>{PROMPTS[0]}</li>" in page


def test_the_best_checkpoint_is_that_of_the_metric(folder):
    found = {}
    for file in (folder / "runs/words/checkpoints").glob("*/state.json"):
        state = json.loads(file.read_text())
        found[state["numbers"]["update"]] = state["score"]
    (row,) = [r for r in read_results(folder / "runs/words/results.json") if r.model == "student"]
    assert found.keys() == {1, 2} and found[1] != found[2]
    assert found[2] == pytest.approx(row.scores["paired"].blocks[0], rel=0.2)
    with pytest.raises(ConfigError, match="validation.metric: 'fid': the suite has"):
        Validator(begun(folder, {"validation.metric": "fid"}))


def test_the_card_says_how_the_student_is_called_and_put_onto_its_base(folder):
    """Merged, as a LoRA and by kohya's file, as the card has it: the same pictures."""
    student, base = folder / "runs" / "words" / "student", folder / "models" / "sd"
    text = (student / "README.md").read_text().replace("path/to/this/folder", str(student))
    merged, lora = re.findall(r"```python\n(.*?)```", text, re.S)
    assert '["a red cat"], num_inference_steps=2, guidance_scale=1' in merged
    lora = lora.replace("path/to/the/teacher", str(base))
    codes = [merged, lora, lora.replace("pytorch_lora_weights", "kohya")]
    pictures = []
    for code in codes:
        scope: dict = {}
        exec(code, scope)
        pipe, seeded = scope["pipe"], torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
        pictures.append(pipe(PROMPTS[:2], generator=seeded, **call).images)
        assert bool(getattr(pipe.unet, "peft_config", None)) == (code is not merged)
    assert all(float((one - pictures[0]).abs().max()) <= 1e-5 for one in pictures)
    weights = load_file(student / "lora" / "pytorch_lora_weights.safetensors")
    assert any(float(w.abs().max()) > 0 for name, w in weights.items() if "lora_B" in name)


def test_samples_are_asked_for_by_prompts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    one = ["sample", "runs/words", "--count", "4"]
    done = CliRunner().invoke(app, [*one, "drawn.png", "--prompt", "a cat", "--prompt", "two dogs"])
    assert done.exit_code == 0, done.output
    assert Image.open("drawn.png").size == (2 * 17 * 4, 2 * 17 * 4)
    done = CliRunner().invoke(app, [*one, "o.png", "--prompt", "a", "--teacher", "5000"])
    assert done.exit_code == 2 and "error: --teacher: " in done.output
    done = CliRunner().invoke(app, ["sample", "runs/words/student", "other.png", "--count", "2"])
    assert done.exit_code == 2 and "give one" in done.output
    done = CliRunner().invoke(app, [*one, "o.png", *["--prompt", "a"] * 3])
    assert done.exit_code == 2 and "not as many" in done.output
    done = CliRunner().invoke(app, ["sample", "digits", "other.png", "--prompt", "a cat"])
    assert done.exit_code == 2 and "takes no prompts" in done.output
    assert not (folder / "other.png").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"prompts": "none.txt"}, "none.txt"),
        ({"prompts": "{texts: []}"}, "prompts"),
        ({"teacher": "digits"}, "takes none"),
        ({"prompts": "null"}, "prompts"),
        ({"stages.0.method": "dmd2", "data": "{source: folder, settings: {path: p}}"}, "captions"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(edit, said, folder, monkeypatch):
    monkeypatch.chdir(folder)
    Path("p").mkdir(exist_ok=True)
    Image.new("RGB", (16, 16)).save("p/a.png")
    overrides = [f"{key}={value}" for key, value in edit.items()]
    done = CliRunner().invoke(app, ["run", "words.yaml", "name=other", *overrides])
    assert done.exit_code == 2 and said in done.output
    assert done.output.count("\n") == 1 and not (folder / "runs" / "other").exists()


@pytest.mark.parametrize("alpha", [4, 6])
def test_a_role_begins_from_an_earlier_one(alpha, folder):
    """From a run's folder, an export's, the folder of its LoRA or kohya's file: as it was."""
    file = folder / "runs/words/student/lora/pytorch_lora_weights.safetensors"
    wanted = {k.removeprefix("unet."): v for k, v in load_file(file).items()}
    kohya = file.with_name("kohya.safetensors")
    places = file.parents[2], file.parents[1], file.parent, file, kohya
    for place in places:
        began = begun(folder, {"student": str(place), "adapters.alpha": alpha}).trainer.averaged()
        assert began.keys() == wanted.keys()
        for name, value in began.items():
            scale = alpha / 2 if ".lora_B." in name else 1.0  # over the rank
            assert torch.allclose(value * scale, wanted[name], atol=1e-7)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"adapters.rank": 3}, "has rank 2: set adapters.rank to that"),
        ({"adapters.targets": "[to_q]"}, "a layer that adapters.targets leave out"),
        ({"student": "models/sd"}, "holds no pytorch_lora_weights.safetensors"),
        ({"student": "prompts.safetensors"}, "prompts.safetensors"),
        ({"student": "prompts.bin"}, "prompts.bin: weights are read from .safetensors alone"),
    ],
)
def test_a_role_that_does_not_fit_is_refused(edit, said, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for kind in ("safetensors", "bin"):
        Path(f"prompts.{kind}").write_text("a cat")
    with pytest.raises(ConfigError, match=said):
        begun(folder, {"student": "runs/words"} | edit)


def begun(folder: Path, edit: dict) -> Stages:
    """The run above, changed, before anything is trained."""
    places = {"teacher.path": folder / "models/sd", "prompts": folder / "prompts.txt"}
    given = places | {"name": "began"}
    overrides = [f"{key}={value}" for key, value in (given | edit).items()]
    run = read(str(folder / "words.yaml"), tuple(overrides))
    return Stages.of(run, folder / "began", Accelerator(cpu=True))


def test_encoded_once_a_run_is_what_it_is_when_they_run_in_every_step(folder, monkeypatch):
    """The encoders leave no trace in training, and an export is checked against fresh ones."""
    monkeypatch.chdir(folder)
    weights, more = [], ["evaluation.n=20", "validation.every=0", "validation.metric=null"]
    for name, prompts in (("fresh", "prompts.txt"), ("once", "{file: prompts.txt, cache: kept}")):
        given = [f"name={name}", f"prompts={prompts}", "trackers=[]", *more]
        done = CliRunner().invoke(app, ["run", "words.yaml", *given])
        assert done.exit_code == 0, done.output
        assert ("encoded prompts: 0.0 MB" in done.output) == (name == "once")
        weights.append(load_file(f"runs/{name}/student/unet/diffusion_pytorch_model.safetensors"))
    gap = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert gap <= 1e-4
    assert Path("kept/manifest.json").is_file()


def test_a_base_in_half_precision_stays_and_ships_whole(folder, monkeypatch):
    """Half its bytes; its student is a float32 network that the stock pipeline calls as we do."""
    monkeypatch.chdir(folder)
    given = ["name=half", "teacher={path: models/sd, dtype: bfloat16}", "precision=bf16"]
    given += ["trackers=[]", "validation.metric=null"]
    done = CliRunner().invoke(app, ["run", "words.yaml", *given])
    assert done.exit_code == 0, done.output
    weights = load_file("runs/half/student/unet/diffusion_pytorch_model.safetensors")
    base = load_pipeline(str(folder / "models/sd")).unet.state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    rounded = {name: value.bfloat16().float() for name, value in base.items()}
    moved = {name for name in base if not torch.equal(weights[name], rounded[name])}
    assert moved and all(".to_" in name for name in moved)
    setup = begun(folder, {"student": "null", "teacher.dtype": "bfloat16", "precision": "bf16"})
    full = begun(folder, {"student": "null"})
    sizes = [base_bytes(stages.setup.teacher) for stages in (setup, full)]
    assert sizes[1] == 2 * sizes[0]
    roles = own_tensors(setup.trainer.players.student.net).values()
    assert {value.dtype for value in roles} == {torch.float32}


def base_bytes(teacher: Teacher) -> int:
    return sum(v.numel() * v.element_size() for v in base_tensors(teacher.denoiser.net).values())


@pytest.mark.parametrize("change", [{"adapters.roles": "[student]"}, {"precision": "fp32"}])
def test_half_precision_of_what_is_trained_is_refused(change, folder):
    edit = {"student": "null", "teacher.dtype": "bfloat16", "precision": "bf16"}
    with pytest.raises(ConfigError, match="teacher.dtype: bfloat16 is for a network that nobody"):
        begun(folder, edit | change)


FLOW = """
name: {name}
{made}
guidance: {guidance}
{data}
stages:
  - method: {method}
    training: {{updates: 2, batch: 2, optimiser: {{lr: 0.01}}}}
sampler: {{steps: {steps}, gamma: 0.0}}
evaluation: {{suite: teacher, n: 20, blocks: 2, steps: [2], teacher_steps: {taught}}}
trackers: []
"""
NEW = """
network:
  parts: models/sd3
  transformer: {sample_size: 8, patch_size: 2, in_channels: 4, out_channels: 4, num_layers: 2,
    attention_head_dim: 8, num_attention_heads: 2, joint_attention_dim: 40,
    caption_projection_dim: 16, pooled_projection_dim: 16, pos_embed_max_size: 12}
  scheduler_config: {shift: 3.0}
"""
PICTURES = "data: {source: folder, settings: {path: pictures}}"


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """A folder of a flow, one of pictures with captions, and prompts."""
    folder = tmp_path_factory.mktemp("flows")
    stable_diffusion_3().save_pretrained(folder / "models" / "sd3")
    (folder / "pictures").mkdir()
    for number, prompt in enumerate(PROMPTS):
        Image.new("RGB", (16, 16), (60 * number, 90, 30)).save(folder / f"pictures/{number}.png")
        (folder / f"pictures/{number}.txt").write_text(prompt)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.mark.parametrize("kind", ["student", "network"])
def test_a_flow_is_distilled_or_made_and_called_as_its_card_says(kind, flows, monkeypatch):
    monkeypatch.chdir(flows)
    student = {
        "made": "teacher: models/sd3\nadapters: {rank: 2}\nprompts: prompts.txt",
        "guidance": 3.0,
        "data": "",
        "method": "tdm",
        "steps": [2],
        "taught": [2],
    }
    network = {
        "made": NEW, "guidance": 1.0, "data": PICTURES, "method": "diffusion", "steps": [],
        "taught": [],
    }  # fmt: skip
    settings = {"student": student, "network": network}[kind]
    Path(f"{kind}.yaml").write_text(FLOW.format(name=kind, **settings))
    done = CliRunner().invoke(app, ["run", f"{kind}.yaml"])
    assert done.exit_code == 0, done.output
    out = flows / "runs" / kind / "student"
    text = (out / "README.md").read_text().replace("path/to/this/folder", str(out))
    codes = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(codes) == (2 if kind == "student" else 1) and "kohya" not in text
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    pictures = []
    for code in codes:
        scope: dict = {}
        exec(code.replace("path/to/the/teacher", str(flows / "models/sd3")), scope)
        seeded = torch.Generator().manual_seed(0)
        pictures.append(scope["pipe"](PROMPTS[:2], generator=seeded, **call).images)
    assert all(float((one - pictures[0]).abs().max()) <= 1e-5 for one in pictures)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network.unet": "{sample_size: 8}"}, "network.transformer: in place of unet"),
        ({"network.parts": "null"}, "network.transformer: in place of unet"),
        ({"network.transformer.layers": 2}, "network.transformer.layers: unknown key"),
        ({"network.transformer.num_layers": 10**6}, "network.transformer.num_layers"),
        ({"network.transformer.pooled_projection_dim": 8}, "pooled_projection_dim 8: needs 16"),
        ({"network.transformer.in_channels": 8}, "in_channels 8: the VAE's latents have 4"),
    ],
)
def test_a_network_of_a_flow_that_does_not_fit_is_refused(change, said, flows, monkeypatch):
    monkeypatch.chdir(flows)
    made = {"made": NEW, "guidance": 1.0, "data": PICTURES, "method": "diffusion", "steps": []}
    Path("new.yaml").write_text(FLOW.format(name="new", taught=[], **made))
    done = CliRunner().invoke(app, ["run", "new.yaml", *(f"{k}={v}" for k, v in change.items())])
    assert done.exit_code == 2 and said in done.output, done.output
    assert not Path("runs/new").exists()
