"""Teachers as others keep them: in one file, in half precision, and as their cards say."""

import json
from contextlib import suppress

import pytest
import torch
from original import write_original
from others import PROMPTS, stable_diffusion, stable_diffusion_3, stable_diffusion_xl
from readme import blocks
from safetensors.torch import load_file, save_file
from torch import nn

from stepdistill.jobs.foreign import Call, Foreign
from stepdistill.resources import PACKAGE
from stepdistill.runs.config import RunConfig
from stepdistill.runs.settings import TeacherSettings
from stepdistill.runs.setup import teacher_of
from stepdistill.schema import ConfigError
from stepdistill.teachers.loading import load_any
from stepdistill.teachers.single_file import load_single_file

MADE = {
    "Stable Diffusion 1": (stable_diffusion, False),
    "Stable Diffusion 2": (stable_diffusion, True),
    "Stable Diffusion XL": (lambda: stable_diffusion_xl(wide=24), False),
}
pytestmark = pytest.mark.filterwarnings("ignore")


def bare(folder, pipeline):
    """A folder with all of a pipeline but its weights."""
    pipeline.save_pretrained(folder)
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    return folder


@pytest.fixture
def one(tmp_path):
    """The file of a Stable Diffusion, and its configurations."""
    pipeline = stable_diffusion()
    write_original(pipeline, tmp_path / "all.safetensors")
    return tmp_path / "all.safetensors", bare(tmp_path / "config", pipeline)


@pytest.mark.parametrize("name", MADE)
def test_a_file_is_the_pipeline(name, tmp_path):
    make, opened = MADE[name]
    pipeline, file = make(), tmp_path / "all.safetensors"
    write_original(pipeline, file, opened)
    config = bare(tmp_path / "config", pipeline)
    loaded = load_single_file(file, str(config))
    assert type(loaded) is type(pipeline)
    assert loaded.scheduler.to_json_string() == pipeline.scheduler.to_json_string()
    for part, net in pipeline.components.items():
        if isinstance(net, nn.Module):
            there = loaded.components[part].state_dict()
            assert {*there} == {*net.state_dict()}
            assert all(torch.equal(there[key], value) for key, value in net.state_dict().items())
    asked = TeacherSettings(str(file), config=str(config))
    teacher = teacher_of(RunConfig(teacher=asked))
    assert teacher.conditions(PROMPTS)["text"].shape[0] == len(PROMPTS)


def test_one_file_needs_its_configurations(one, tmp_path):
    file, config = one
    for path, other, said in (
        (file, None, "one file: set config, a folder with its configurations"),
        (config, config, "no file of safetensors, and config is for those: leave it out"),
        (tmp_path / "no.safetensors", config, "no file of safetensors"),
        (file, tmp_path / "nothing", "neither a shipped teacher"),
        (file, bare(tmp_path / "sd3", stable_diffusion_3()), "is read from folders alone"),
    ):
        asked = TeacherSettings(str(path), config=None if other is None else str(other))
        with pytest.raises(ConfigError, match=f"^teacher: .*{said}"):
            teacher_of(RunConfig(teacher=asked))


def test_a_file_of_other_weights_is_refused(one):
    file, config = one
    whole = load_file(file)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    for broken, said in (
        ({k: v for k, v in whole.items() if k != key}, ""),
        ({**whole, f"{key}_more": whole[key].clone()}, "weights model.diffusion_model."),
        ({**whole, key: whole[key] * float("nan")}, "weights conv_in.weight are not finite"),
        ({**whole, key: whole[key][:1]}, ""),
        ({k: v for k, v in whole.items() if "cond_stage" not in k}, "CLIP"),
    ):
        save_file(broken, file)
        with pytest.raises(ValueError, match=f"{file.name}: .*{said}") as caught:
            load_single_file(file, str(config))
        assert "\n" not in str(caught.value)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_single_file(file, str(config))


@pytest.mark.parametrize("part", ["image_encoder", "feature_extractor", "safety_checker"])
def test_what_an_index_names_is_not_imported(part, one, tmp_path, monkeypatch):
    file, config = one
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    index = config / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {part: ["theirs", "Thing"]}))
    with suppress(ValueError):
        assert load_single_file(file, str(config)).components[part] is None
    assert not (tmp_path / "imported").exists()


def test_parts_that_make_no_picture_need_not_be_there(tmp_path):
    """As they are left out of what is fetched from the hub."""
    stable_diffusion().save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    named = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    named |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | named))
    assert load_any(str(tmp_path)).safety_checker is None
    assert Foreign.of(tmp_path, Call(2), False).pipeline.safety_checker is None


def test_configurations_are_bounded(one):
    file, config = one
    place = config / "unet/config.json"
    place.write_text(
        place.read_text().replace('"layers_per_block": 1', '"layers_per_block": 99999')
    )
    with pytest.raises(ValueError, match="layers_per_block"):
        load_single_file(file, str(config))


def test_the_card_of_the_shipped_teacher_is_a_call_that_runs():
    folder = PACKAGE / "assets/shapes"
    ((_, code),) = [
        block for block in blocks((folder / "README.md").read_text()) if block[0] == "python"
    ]
    done: dict = {}
    exec(code.replace("path/to/this/folder", str(folder)).replace("25,", "2,"), done)
    assert [image.size for image in done["images"]] == [(32, 32)] * 2


def test_a_folder_in_half_precision_is_called_in_whole(tmp_path):
    """transformers opens each part as it was saved, diffusers in float32."""
    stable_diffusion().to(torch.float16).save_pretrained(tmp_path)
    model = Foreign.of(tmp_path, Call(2), False)
    parts = [part for part in model.pipeline.components.values() if isinstance(part, nn.Module)]
    assert {value.dtype for part in parts for value in part.parameters()} == {torch.float32}
    model.pipeline(PROMPTS[:1], num_inference_steps=1, height=16, width=16)
    opened = load_any(str(tmp_path)).text_encoder
    assert next(opened.parameters()).dtype == torch.float32
