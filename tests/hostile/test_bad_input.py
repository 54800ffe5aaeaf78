"""Bad input is told from failures; teachers are loaded with suspicion; runs begin whole or not."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stepdistill import cli
from stepdistill.data.loader import InMemory
from stepdistill.data.sources import digits
from stepdistill.export.export import ExportError
from stepdistill.resources import PACKAGE
from stepdistill.runs import stages
from stepdistill.runs.config import read
from stepdistill.runs.folder import RunFolder
from stepdistill.runs.setup import data_of, teacher_of
from stepdistill.schema import ConfigError
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.checkpoint import CheckpointError
from stepdistill.training.trainer import TrainingFailed

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "diffusion_pytorch_model.safetensors"


# What is printed, and with which exit code.

RAISED = [
    (ConfigError("a: b"), 2, "a: b"),
    (CheckpointError("checkpoint x: altered"), 2, "checkpoint x: altered"),
    (TrainingFailed("3 steps in a row"), 1, "3 steps in a row"),
    (ExportError("differs"), 1, "differs"),
    (OSError(28, "No space left on device", "x"), 1, "No space left on device"),
    (ValueError("no idea"), 1, "ValueError: no idea (unexpected, a bug"),
    (RuntimeError("two\nlines"), 1, "RuntimeError: two (unexpected, a bug"),
    (KeyError(), 1, "KeyError: KeyError (unexpected, a bug"),
    (MemoryError(), 1, "out of memory: take a smaller batch"),
    (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory: take a smaller batch"),
    (RuntimeError("[enforce fail] can't allocate memory: 9 bytes"), 1, "out of memory: "),
    (KeyboardInterrupt(), 1, "stopped; the same command goes on"),
]


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch, *options: str):
    """`stepdistill plan smoke` while reading the config raises."""

    def fail(*_):
        raise error

    monkeypatch.setattr("stepdistill.runs.config.read", fail)
    return CliRunner().invoke(cli.app, ["plan", "smoke", *options])


@pytest.mark.parametrize("error, code, line", RAISED, ids=lambda x: type(x).__name__)
def test_every_error_is_one_line_and_a_code(error, code, line, monkeypatch):
    answer = raising(error, monkeypatch)
    assert answer.exit_code == code and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and line in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("error, code, line", RAISED[:-1], ids=lambda x: type(x).__name__)
def test_debug_shows_the_traceback_and_keeps_the_code(error, code, line, monkeypatch):
    answer = raising(error, monkeypatch, "--debug")
    assert answer.exit_code == code
    *traceback, last = answer.stderr.splitlines()
    assert traceback[0].startswith("Traceback") and "raise error" in answer.stderr
    assert last.startswith("error: ") and line in last


@pytest.mark.parametrize(
    "text, printed",
    [
        ("in [0, 1), got [0.9] [/] [red]", "in [0, 1), got [0.9] [/] [red]"),
        (":smile: {x} %s", ":smile: {x} %s"),
        ("a\x1b[31mb\tc\x00", "a\\x1b[31mb\\tc\\x00"),
        ("x" * 1000, "x" * 145 + " … " + "x" * 145),
    ],
)
def test_a_message_is_printed_as_it_is_but_short_and_harmless(text, printed, monkeypatch):
    assert raising(ConfigError(text), monkeypatch).stderr == f"error: {printed}\n"


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["run"], "config"),
        (["run", "smoke", "--nothing"], "--nothing"),
        (["nothing"], "nothing"),
        (["sample", "a", "b.png", "--steps", "few"], "--steps"),
        (["sample", "a", "b.png", "--seed", str(10**30)], "--seed"),
        (["eval", "a", "--blocks", "0"], "--blocks"),
    ],
)
def test_misuse_of_a_command_is_one_line_too(arguments, named):
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 2 and answer.stdout == ""
    assert answer.stderr.startswith("error: ") and named in answer.stderr
    assert answer.stderr.count("\n") == 1 and "--help" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "smoke", "--runs", "a-file"],
        ["train", "smoke", "--runs", "a-file/below"],
        ["sample", "digits", "a-file/a.png"],
        ["export", "nothing", "a-file/out"],
        ["eval", "digits", "--out", "a-file"],
        ["eval", "digits", "--out", "y" * 300],
    ],
)
def test_a_place_where_nothing_can_be_written_is_found_first(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("x")
    answer = CliRunner().invoke(cli.app, arguments)
    assert answer.exit_code == 2 and answer.stderr.endswith("write elsewhere\n")
    assert [p.name for p in tmp_path.iterdir()] == ["a-file"]


def test_a_real_process_prints_nothing_else(tmp_path):
    """Libraries log and warn past whatever a test runner catches."""
    teacher = copy_of("digits", tmp_path)
    (teacher / "unet" / WEIGHTS).unlink()
    (teacher / "unet" / "config.json").write_text("[]")
    done = subprocess.run(
        [sys.executable, "-m", "stepdistill.cli", "run", "smoke", f"teacher={teacher}"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if "VERBOSITY" not in k}
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "config.json" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


# Teachers.


def copy_of(name: str, folder: Path) -> Path:
    """A shipped teacher's folder, free to be damaged."""
    return Path(shutil.copytree(PACKAGE / "assets" / name, folder / name))


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["digits", "digits-vp"])
@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt"])
def test_pickled_weights_are_refused_and_never_unpickled(name, suffix, tmp_path):
    teacher, trap = copy_of(name, tmp_path), tmp_path / "sprung"
    file = teacher / "unet" / f"diffusion_pytorch_model.{suffix}"
    file.write_bytes(pickle.dumps(Trap(trap)))
    load_pipeline(str(teacher))  # beside safetensors they are left alone
    (teacher / "unet" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"{file.name}: pickled weights are never loaded"):
        load_pipeline(str(teacher))
    assert not trap.exists()
    pickle.loads(file.read_bytes())
    assert trap.exists()  # the trap works


def changed(teacher: Path, change) -> None:
    tensors = load_file(teacher / "unet" / WEIGHTS)
    change(tensors)
    save_file(tensors, teacher / "unet" / WEIGHTS)


@pytest.mark.parametrize("name", ["digits", "digits-vp"])
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("conv_in.bias"), "missing weights, like conv_in.bias"),
        (lambda t: t.update(odd=torch.zeros(1)), "unexpected weights, like odd"),
        (lambda t: t["conv_in.bias"].fill_(float("inf")), "conv_in.bias are not finite"),
        (lambda t: t.update({"conv_in.bias": torch.zeros(3)}), "conv_in.bias expected shape"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_not_made_up(name, change, words, tmp_path):
    teacher = copy_of(name, tmp_path)
    changed(teacher, change)
    with pytest.raises(ValueError) as caught:
        load_pipeline(str(teacher))
    assert str(teacher / "unet") in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "digits-vp"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_named(name, share, tmp_path):
    file = copy_of(name, tmp_path) / "unet" / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=f"{WEIGHTS}: damaged or incomplete"):
        load_pipeline(str(tmp_path / name))


def test_a_shipped_teacher_that_is_copied_is_the_same(tmp_path):
    for name in ("digits", "digits-vp"):
        ours = load_pipeline(name).unet.state_dict()
        copied = load_pipeline(str(copy_of(name, tmp_path))).unet.state_dict()
        assert ours.keys() == copied.keys()
        assert all(torch.equal(ours[k], copied[k]) for k in ours)


@pytest.mark.parametrize("name", ["digits", "digits-vp"])
@pytest.mark.parametrize(
    "file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", "[" * 2000, None])
def test_broken_json_is_named(name, file, content, tmp_path):
    path = copy_of(name, tmp_path) / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=Path(file).name):
        load_pipeline(str(tmp_path / name))


def edited(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_prediction_that_says_nothing_at_the_start_is_refused(tmp_path):
    teacher = copy_of("digits-vp", tmp_path)
    edited(teacher / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(ConfigError, match="'eps' says nothing about x0 at t = 999"):
        teacher_of(read("digits-consistency-vp", (f"teacher={teacher}",)))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sample_size": None}, "sample_size is nothing"),
        ({"sample_size": "8"}, "sample_size is '8'"),
        ({"sample_size": 10**12}, "sample_size is"),
        ({"sample_size": [8, 8, 8]}, "sample_size is"),
        ({"sample_size": 7}, "the network: "),
    ],
)
def test_a_network_that_cannot_answer_its_own_samples_is_refused(changes, words, tmp_path):
    teacher = copy_of("digits", tmp_path)
    edited(teacher / "unet" / "config.json", **changes)
    with pytest.raises(ValueError) as caught:
        Teacher.from_pipeline(load_pipeline(str(teacher)))
    assert words in str(caught.value)


# Data.


def pictures(folder: Path, per_class: int = 2, size: int = 8) -> Path:
    """Digits as an image folder, a subfolder for each class."""
    images, labels = digits.load()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for i, image in enumerate(images[labels == label][:per_class]):
            grey = (image[0] * 8 + 8).mul(15).byte().numpy()
            Image.fromarray(grey).resize((size, size)).save(folder / str(label) / f"{i}.png")
    return folder


def test_training_data_from_a_folder_of_images(tmp_path):
    folder = pictures(tmp_path / "pictures")
    run = read("smoke", (f"data={{source: folder, settings: {{path: {folder}}}, dropout: 0.5}}",))
    data = data_of(run, teacher_of(run))
    held = InMemory(*data.samples.rows(torch.arange(20)))
    assert held.images.shape == (20, 1, 8, 8) and held.labels.tolist() == sorted([*range(10)] * 2)
    images, cond = data.batch(0, 20, torch.Generator().manual_seed(0))[:2]
    labels = cond["label"]
    assert set(labels.tolist()) <= {*range(11)} and 2 < (labels == 10).sum() < 18
    kept = labels < 10
    of = {tuple(x.flatten().tolist()): int(y) for x, y in zip(held.images, held.labels)}
    assert all(of[tuple(x.flatten().tolist())] == y for x, y in zip(images[kept], labels[kept]))
    vp = read("digits-consistency-vp", (f"data={{source: folder, settings: {{path: {folder}}}}}",))
    unlabelled = data_of(vp, teacher_of(vp))
    images, labels = unlabelled.samples.rows(torch.arange(20))
    assert labels is None and torch.equal(images, held.images)


def test_a_run_trains_on_a_folder_of_images(tmp_path):
    folder = pictures(tmp_path / "pictures")
    settings = f"data={{source: folder, settings: {{path: {folder}}}}}"
    trained = CliRunner().invoke(cli.app, ["train", "smoke", settings, "--runs", str(tmp_path)])
    assert trained.exit_code == 0, trained.output
    assert "classes: 0 0, 1 1, 2 2" in trained.output
    assert json.loads((tmp_path / "smoke" / "classes.json").read_text()) == [*map(str, range(10))]
    (folder / "3").rename(folder / "3b")
    again = CliRunner().invoke(cli.app, ["train", "smoke", settings, "--runs", str(tmp_path)])
    assert again.exit_code == 2 and "label 3 was '3' and is '3b' in the data" in again.stderr
    shutil.rmtree(folder / "3b")
    answer = CliRunner().invoke(cli.app, ["sample", str(tmp_path / "smoke"), "a.png"])
    assert answer.exit_code == 2 and "9 subfolders" in answer.stderr


@pytest.mark.parametrize("name", ["vsd", "sid", "diff-instruct", "tdm"])
def test_methods_without_data_need_no_images(name, tmp_path):
    """They train with the images gone from the disk, and see zeros and every label."""
    gone = f"data={{source: folder, settings: {{path: {tmp_path / 'gone'}}}}}"
    small = ("stages.0.training.updates=1", "stages.0.training.batch=4", "health.every=0")
    config = f"digits-{name}"
    command = ["train", config, gone, *small, "--runs", str(tmp_path)]
    trained = CliRunner().invoke(cli.app, command)
    assert trained.exit_code == 0, trained.output
    run = read(config, (gone,))
    x0, cond, path = data_of(run, teacher_of(run), needed=False).batch(0, 500, torch.Generator())
    assert not x0.any() and set(cond["label"].tolist()) == {*range(10)} and path is None
    with pytest.raises(ConfigError, match="data.settings.path"):
        data_of(run, teacher_of(run))


def test_data_that_do_not_fit_the_teacher_are_refused(tmp_path):
    def refused(*overrides: str) -> str:
        run = read("digits-teacher", overrides)
        with pytest.raises(ConfigError) as caught:
            data_of(run, teacher_of(run))
        return str(caught.value)

    assert "teacher makes (1, 16, 16)" in refused("network.unet.sample_size=16")
    three = ("network.unet.in_channels=3", "network.unet.out_channels=3")
    folder = f"data={{source: folder, settings: {{path: {tmp_path}}}}}"
    assert "data.source: 'digits' are images (1, 8, 8)" in refused(*three)
    assert "data.settings.path" in refused(*three, folder)
    assert "of 4 classes" in refused("network.unet.num_class_embeds=5")
    assert "data.dropout" in refused("network.unet.num_class_embeds=null", "data.dropout=0.1")


# Runs' folders.


def test_a_run_s_folder_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    run = read("smoke")
    write, fails = Path.write_text, ["config.yaml", "versions.json"]

    def full(path: Path, text: str, **settings: str) -> int:
        write(path, text[:9], **settings)
        if path.name == fails[0]:
            raise OSError(28, "No space left on device")
        return write(path, text, **settings)

    monkeypatch.setattr(Path, "write_text", full)
    for _ in list(fails):
        with pytest.raises(ConfigError, match="cannot be created .No space left on device"):
            RunFolder(tmp_path / "a" / "b" / "smoke").open(run)
        assert list(tmp_path.iterdir()) == []
        fails.pop(0)
        fails.append("")
    monkeypatch.undo()
    RunFolder(tmp_path / "a" / "b" / "smoke").open(run)
    assert sorted(p.name for p in (tmp_path / "a" / "b" / "smoke").iterdir()) == [
        "config.yaml",
        "versions.json",
    ]
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["smoke"]


def test_what_a_crash_left_of_a_folder_in_the_making_is_no_obstacle(tmp_path):
    (tmp_path / ".smoke.partial").mkdir()
    (tmp_path / ".smoke.partial" / "config.yaml").write_text("na")
    RunFolder(tmp_path / "smoke").open(read("smoke"))
    assert [p.name for p in tmp_path.iterdir()] == ["smoke"]


def test_an_earlier_folder_is_the_same_run_whatever_its_yaml_looks_like(tmp_path):
    RunFolder(tmp_path / "smoke").open(read("smoke"))
    file = tmp_path / "smoke" / "config.yaml"
    file.write_text("# by an older version, which knew fewer keys\n" + file.read_text())
    file.write_text(file.read_text().replace("  path: null\n", "").replace("n: 40", "'n': 40"))
    RunFolder(tmp_path / "smoke").open(read("smoke"))
    with pytest.raises(ConfigError, match="another configuration"):
        RunFolder(tmp_path / "smoke").open(read("smoke", ("seed=1",)))


def test_the_session_s_own_errors_pass_reopening(tmp_path, monkeypatch):
    """A defect while a run is set up is no damaged checkpoint."""
    RunFolder(tmp_path / "smoke").open(read("smoke"))

    def broken(*_):
        raise RuntimeError("a slip")

    monkeypatch.setattr(stages, "make_players", broken)
    with pytest.raises(RuntimeError, match="a slip"):
        stages.reopen(tmp_path / "smoke", Accelerator())
