"""Pipeline folders that somebody else made: no code, no pickles, no pipes and devices, no bombs."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from pixels import ddpm, unet
from safetensors.torch import load_file, save_file

from stepdistill.jobs.samplers import of_folder
from stepdistill.resources import PACKAGE
from stepdistill.teachers.folder import pipeline_folder
from stepdistill.teachers.loading import load_any, load_pipeline, load_scheduler

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A sound folder, free to be damaged."""
    ddpm(unet()).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


def edited(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Code.


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "StableDiffusionPipeline", "vae": ["pipe.evil", "Evil"]},
        {"vae": ["pipe.evil", "Evil"]},
        {"_class_name": ["evil", "DDPMPipeline2"]},
        {"_class_name": "evil.Evil"},
        {"scheduler": ["pipe.evil", "Evil"]},
        {"scheduler": ["evil", "FewStep"]},
        {"unet": ["pipe.evil", "Evil"]},
        {"unet": ["diffusers", "AutoencoderKL"]},
    ],
)
def test_an_index_makes_nothing_run(changes, folder, tmp_path, monkeypatch):
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n"
    for place in (folder / "evil.py", tmp_path / "evil.py", folder / "pipeline.py"):
        place.write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    edited(folder / "model_index.json", **changes)
    with pytest.raises(ValueError, match="model_index.json"):
        load_pipeline(str(folder))
    assert not (tmp_path / "ran").exists()


def test_diffusers_is_never_handed_the_index(folder, monkeypatch):
    from diffusers import DiffusionPipeline

    def never(*a, **kw):
        raise AssertionError("handed")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", never)
    assert type(load_pipeline(str(folder))).__name__ == "DDPMPipeline"


# Weights.


def shards(folder: Path, named: dict[str, str]) -> None:
    (folder / "unet" / INDEX).write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": named})
    )


def unpickled(*a, **kw):
    raise RuntimeError("unpickled")


@pytest.mark.parametrize(
    "shard", ["w.bin", "w.pt", "../w.safetensors", "/w.safetensors", 3, "no.safetensors"]
)
def test_an_index_of_shards_names_safetensors_beside_it(shard, folder, monkeypatch):
    state = load_file(folder / "unet" / WEIGHTS)
    torch.save(state, folder / "unet" / "w.bin")
    shards(folder, dict.fromkeys(state, shard))
    monkeypatch.setattr(torch, "load", unpickled)
    with pytest.raises(ValueError, match="index.json: names"):
        load_pipeline(str(folder))


def test_so_does_one_of_a_family_that_is_named(folder):
    shards(folder, {"conv_in.bias": "w.bin"})
    with pytest.raises(ValueError, match="index.json: names 'w.bin'"):
        load_any(str(folder))


def test_sound_shards_are_read(folder):
    state = load_file(folder / "unet" / WEIGHTS)
    names = sorted(state)
    for i, some in enumerate((names[::2], names[1::2])):
        part = {name: state[name] for name in some}
        save_file(part, folder / "unet" / f"part-{i}.safetensors", {"format": "pt"})
    shards(folder, {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)})
    (folder / "unet" / WEIGHTS).unlink()
    again = load_pipeline(str(folder)).unet.state_dict()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_the_only_variant_is_taken_and_several_are_named(folder):
    half = {k: v.half() for k, v in load_file(folder / "unet" / WEIGHTS).items()}
    for name in ("fp16", "ema"):
        save_file(
            half, folder / "unet" / f"diffusion_pytorch_model.{name}.safetensors", {"format": "pt"}
        )
        if name == "fp16":
            (folder / "unet" / WEIGHTS).unlink()
            net = load_pipeline(str(folder)).unet
            assert net.dtype == torch.float32
            assert torch.equal(net.state_dict()["conv_in.bias"], half["conv_in.bias"].float())
    with pytest.raises(ValueError, match="model.ema.safetensors, diffusion_pytorch_model.fp16"):
        load_pipeline(str(folder))


# Files that are none.

FILES = [
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    f"unet/{WEIGHTS}",
]


@pytest.mark.parametrize("file", [*FILES, "unet/extra.safetensors", "notes.txt"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/urandom", "outside", "folder"])
def test_what_is_no_file_of_the_folder_is_not_opened(kind, file, folder, tmp_path):
    path = folder / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        (tmp_path / "else").mkdir()
        path.symlink_to(tmp_path / "else")
    elif kind == "outside":
        (tmp_path / "outside").write_text("{}")
        path.symlink_to(tmp_path / "outside")
    else:
        path.symlink_to(kind)
    with pytest.raises(ValueError) as caught:
        load_pipeline(str(folder))
    words = ("not a regular file", "a link out of the folder", "neither a shipped teacher")
    assert any(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) == 1


def test_links_inside_and_those_of_hugging_faces_cache_are_followed(folder, tmp_path):
    (tmp_path / "by").symlink_to(folder)
    load_pipeline(str(tmp_path / "by"))
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for i, file in enumerate(FILES):
        shutil.move(snapshot / file, blobs / str(i))
        (snapshot / file).symlink_to(os.path.relpath(blobs / str(i), (snapshot / file).parent))
    load_pipeline(str(snapshot))


@pytest.mark.parametrize("file", FILES[:3])
def test_a_huge_configuration_is_not_read(file, folder):
    (folder / file).write_text("[" + "[]," * 6_000_000 + "[]]")
    with pytest.raises(ValueError, match="larger than 16 MiB"):
        load_pipeline(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 10**7},
        {"block_out_channels": [8] * 10**5},
        {"block_out_channels": [10**9, 8]},
        {"down_block_types": ["DownBlock2D"] * 10**5},
        {"num_class_embeds": 10**9},
        {"norm_num_groups": 0},
        {"attention_head_dim": -1},
        {"time_embedding_dim": 10**9},
        {"in_channels": True},
        {"layers_per_block": None},
    ],
)
def test_a_network_out_of_bounds_is_not_made(changes, folder):
    edited(folder / "unet" / "config.json", **changes)
    (key,) = changes
    with pytest.raises(ValueError, match=f"config.json: {key}"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("steps", [1, 10**6, "many", None, True])
def test_a_table_of_no_length_is_not_made(steps, folder):
    edited(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=steps)
    with pytest.raises(ValueError, match="num_train_timesteps"):
        load_pipeline(str(folder))


# Numbers of exported students.


@pytest.mark.parametrize("place", ["model_index.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in ("gamma", "guidance")
            for value in ("NaN", "Infinity", "-3", '"x"')
        ),
        *(("skip_sigma_data", value) for value in ("NaN", "-Infinity", "0", "-1", "[]")),
        *(("start", value) for value in ("NaN", "-1", "true")),
        *(
            ("times", value)
            for value in (
                '{"1": [1.5]}',
                '{"1": [0]}',
                '{"1": [NaN]}',
                '{"1": [Infinity]}',
                '{"0": []}',
                "3",
            )
        ),
    ],
)
def test_settings_no_student_can_have_are_refused(place, key, value, tmp_path):
    shutil.copytree(PACKAGE / "assets" / "digits", tmp_path / "student")
    if place.startswith("scheduler"):
        if key == "guidance":
            return  # not among its settings
        edited(tmp_path / "student" / place, _class_name="FewStepScheduler", beta_schedule=None)
    file = tmp_path / "student" / place
    values = {k: v for k, v in json.loads(file.read_text()).items() if k != key}
    file.write_text(json.dumps(values)[:-1] + f', "{key}": {value}}}')
    with pytest.raises(ValueError, match=f"{key}|times"):
        if place.startswith("scheduler"):
            load_scheduler(tmp_path / "student", {"scheduler": ["few", "FewStepScheduler"]})
        load_pipeline(str(tmp_path / "student"))


# Names.


def test_a_bare_name_that_is_both_is_refused_and_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pipeline_folder("digits") == PACKAGE / "assets" / "digits"
    ddpm(unet()).save_pretrained("digits")
    with pytest.raises(ValueError, match="write ./digits for the folder"):
        load_pipeline("digits")
    assert of_folder(Path("digits"), 4)[1].event == (3, 8, 8)
    for path in (
        "./digits",
        "digits/",
        str(tmp_path / "digits"),
        "../" + tmp_path.name + "/digits",
    ):
        assert load_pipeline(path).unet.config.in_channels == 3
    (tmp_path / "other").mkdir()
    for path in ("./digits-vp", "other/../digits-vp", "digits-vp/"):
        with pytest.raises(ValueError, match="neither a shipped teacher"):
            load_pipeline(path)
