"""Models that are not ours: any diffusers pipeline as its users call it, and folders of images."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import diffusers as d
import numpy as np
import pytest
import torch
from others import PROMPTS, consistency, dit, pixel, stable_diffusion
from PIL import Image
from pixels import ddpm, unet
from rich.console import Console
from shelf import save
from typer.testing import CliRunner

from stepdistill import cli
from stepdistill.evaluation.collection import collection_of
from stepdistill.evaluation.evaluate import Request, Requests, Sampled
from stepdistill.jobs import foreign
from stepdistill.jobs.evaluate import score
from stepdistill.jobs.foreign import Call, CallFailed, Foreign, collect
from stepdistill.jobs.sources import Against, Gathered, Opening, shelves
from stepdistill.schema import ConfigError

QUIET = Console(quiet=True)


pytestmark = pytest.mark.usefixtures("one_thread")


def saved(pipeline: d.DiffusionPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder


def asked(*what: object, batch: int = 2) -> Requests:
    return Requests([Request(each, 100 + i) for i, each in enumerate(what)], len(what), batch)


def pixels(pipeline: d.DiffusionPipeline, seeds: list[int], **call) -> np.ndarray:
    """What a user's own call gives, as bytes (n, h, w, 3)."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(generator=generators, output_type="np", **call).images
    return (np.stack(list(images)) * 255).round().astype(np.uint8)


def files_of(collection) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in collection.files])


def test_prompts_are_the_users_own_call(tmp_path):
    pipeline = stable_diffusion()
    folder = saved(pipeline, tmp_path / "sd")
    model = Foreign.of(folder, Call(steps=3, guidance=4.0))
    assert model.kind.size == (3, 16, 16) and model.kind.prompts
    assert model.probed[1] == 6  # guidance counts twice
    found = files_of(collect(model, asked(*PROMPTS), tmp_path / "store"))
    call = {"num_inference_steps": 3, "guidance_scale": 4.0}
    halves = [(PROMPTS[:2], [100, 101]), (PROMPTS[2:], [102, 103])]
    wanted = [pixels(pipeline, seeds, prompt=prompts, **call) for prompts, seeds in halves]
    assert np.array_equal(found, np.concatenate(wanted))
    assert len({image.tobytes() for image in found}) == len(PROMPTS)


def test_labels_and_nothing_are_asked_for_where_that_is_how_it_is_called(tmp_path):
    pipeline = dit()
    model = Foreign.of(saved(pipeline, tmp_path / "dit"), Call(steps=2))
    assert model.classes == model.kind.classes == 1000
    found = files_of(collect(model, asked(1, 7), tmp_path))
    wanted = pixels(pipeline, [100, 101], class_labels=[1, 7], num_inference_steps=2)
    assert np.array_equal(found, wanted)
    free = Foreign.of(saved(pixel(), tmp_path / "ddpm"), Call(steps=2))
    found = files_of(collect(free, asked(None, None), tmp_path))
    assert free.kind.classes is None and not free.kind.prompts and len(found) == 2


def test_a_consistency_model_is_told_how_many_labels_there_are(tmp_path):
    pipeline = consistency()
    model = Foreign.of(saved(pipeline, tmp_path / "cm"), Call(steps=2))
    assert model.classes == 5
    found = files_of(collect(model, asked(1, 4, 2, batch=2), tmp_path))
    first = pixels(pipeline, [100, 101], class_labels=[1, 4], batch_size=2, num_inference_steps=2)
    last = pixels(pipeline, [102], class_labels=[2], num_inference_steps=2)
    assert np.array_equal(found, np.concatenate([first, last]))


@pytest.mark.parametrize("reason", [IndexError("step 7 of\n4"), KeyError("x"), None])
def test_whatever_a_pipeline_raises_is_a_call_that_fails(tmp_path, reason, monkeypatch):
    """In one line, so that others are scored; None for a pipeline that makes something else."""
    model = Foreign.of(saved(pixel(), tmp_path / "ddpm"), Call(steps=1))

    def called(self, generator=None, num_inference_steps=1, output_type="np", batch_size=1):
        if reason is not None:
            raise reason
        return SimpleNamespace(audios=[])

    monkeypatch.setattr(d.DDPMPipeline, "__call__", called)
    with pytest.raises(
        CallFailed, match=r"ddpm: its call fails: (Index|Key|Attribute)Error: "
    ) as e:
        model.called([Request(None, 0)])
    assert "\n" not in str(e.value)


def test_a_pipeline_that_forgets_its_generator_is_seeded_one_image_at_a_time(tmp_path):
    """P25: two calls with equal generators differ, and a batch depends on its order."""
    model = Foreign.of(saved(dit(d.LCMScheduler()), tmp_path / "dit"), Call(steps=2))
    first = collect(model, asked(1, 2, 3, batch=3), tmp_path / "a")
    torch.randn(5)
    again = collect(model, asked(1, 2, 3), tmp_path / "b")
    assert np.array_equal(files_of(first), files_of(again))


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_stopped_or_a_shared_collection_is_the_same(tmp_path, stopped, monkeypatch):
    model = Foreign.of(saved(stable_diffusion(), tmp_path / "sd"), Call(steps=1))
    wanted = asked(*PROMPTS, *PROMPTS)
    whole = files_of(collect(model, wanted, tmp_path / "whole"))
    write, left = foreign.save, [3 * stopped]

    def torn(file, image):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(file, image)

    monkeypatch.setattr(foreign, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        collect(model, wanted, tmp_path / "torn")
    monkeypatch.setattr(foreign, "save", write)
    assert np.array_equal(files_of(collect(model, wanted, tmp_path / "torn")), whole)
    collect(model, wanted, tmp_path / "two", part=(1, 2))
    made = len(list((tmp_path / "two").glob("*/*.png")))
    assert made == len(wanted) / 2
    assert np.array_equal(files_of(collect(model, wanted, tmp_path / "two", part=(0, 2))), whole)


def test_more_images_than_are_kept_are_the_same(tmp_path, monkeypatch):
    model = Foreign.of(saved(stable_diffusion(), tmp_path / "sd"), Call(steps=1))
    wanted = asked(*PROMPTS)
    assert foreign.too_many(model, wanted) == 0
    monkeypatch.setattr(foreign, "KEPT", 1000)
    assert foreign.too_many(model, wanted) > 1000
    kept = foreign.sampled(model, wanted, collect(model, wanted, tmp_path / "store"))
    fresh = foreign.sampled(model, wanted, None)
    for first in (0, 2):
        (one, asked_one), (other, asked_other) = kept.made(first, 2), fresh.made(first, 2)
        assert torch.equal(one, other) and asked_one == asked_other == PROMPTS[first : first + 2]


def test_batches_keep_within_their_block():
    wanted = Requests([Request(None, i) for i in range(10)], n=5, batch=3)
    found = [list(range(10))[rows] for rows in wanted.batches()]
    assert found == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]


def test_other_requests_steps_or_weights_are_other_images(tmp_path):
    folder = saved(stable_diffusion(), tmp_path / "sd")
    for call, wanted in (
        (Call(steps=1), asked("a")),
        (Call(steps=2), asked("a")),
        (Call(steps=1, guidance=2.0), asked("a")),
        (Call(steps=1), asked("b")),
    ):
        collect(Foreign.of(folder, call), wanted, tmp_path / "store")
    stable_diffusion(seed=9).unet.save_pretrained(folder / "unet")
    collect(Foreign.of(folder, Call(steps=1)), asked("a"), tmp_path / "store")
    assert len(list((tmp_path / "store").iterdir())) == 5


def test_code_in_a_folder_is_not_run_unasked(tmp_path):
    folder = saved(pixel(), tmp_path / "evil")
    (folder / "pipeline.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match=r"has code of its own, pipeline.py.*--trust-remote-code"):
        Foreign.of(folder, Call())


def test_what_a_pipeline_does_not_take_is_one_line(tmp_path):
    folder = saved(pixel(), tmp_path / "ddpm")
    with pytest.raises(ConfigError, match="DDPMPipeline takes no guidance_scale: leave it out"):
        _ = Foreign.of(folder, Call(1, guidance=2.0)).kind


def test_one_table_of_pipelines_and_a_folder_of_images(tmp_path):
    """From a prompt file, by the command line, in one report, and again without making an image."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["<b>bold</b> & more", *PROMPTS]))
    one = saved(stable_diffusion(), tmp_path / "one")
    other = saved(stable_diffusion(seed=7), tmp_path / "other")
    images = tmp_path / "images"
    for i in range(40):
        save(images / f"{i}.png", np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8))
    command = ["eval", *map(str, (one, other, images)), "--prompts", str(prompts), "--n", "20"]
    command += ["--blocks", "2", "--steps", "1", "--out", str(tmp_path / "out"), "--json"]
    command += ["--layout", "geneval"]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 0, answer.output
    rows = json.loads(answer.stdout)["rows"]
    assert [row["source"] for row in rows] == [str(one), str(other), str(images)]
    assert all(row["n"] == 40 for row in rows) and [row["nfe"] for row in rows] == [2, 2, 0]
    assert [row["seconds"] for row in rows] == [None] * 3 and rows[2]["costs"] is None
    assert all(row["costs"]["latency"] > 0 < row["costs"]["macs"]["vae"] for row in rows[:2])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>bold" not in page
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "images").glob("*/*.png")}
    assert len(before) == 80
    laid = collection_of(tmp_path / "out" / "geneval" / "one")
    assert len(laid) == 40 and laid.prompts[0] == "<b>bold</b> & more"
    again = json.loads(CliRunner().invoke(cli.app, command[:-2]).stdout)["rows"]
    assert [without_times(row) for row in again] == [without_times(row) for row in rows]
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.fixture
def two(tmp_path) -> list[str]:
    """A command that lays out what two pipelines of one name make."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    sources = [tmp_path / name / "model" for name in ("a", "b")]
    for seed, source in enumerate(sources):
        saved(stable_diffusion(seed), source)
    given = ["--prompts", str(tmp_path / "prompts.txt"), "--layout", "geneval", "--steps", "1"]
    given += ["--blocks", "1", "--out", str(tmp_path / "out"), "--n"]
    return ["eval", *map(str, sources), *given]


def test_pipelines_of_one_name_are_laid_out_apart(two, tmp_path):
    for _ in range(2):  # the same again is no other
        answer = CliRunner().invoke(cli.app, [*two, "20"])
        assert answer.exit_code == 0, answer.output
    place = tmp_path / "out" / "geneval"
    assert sorted(each.name for each in place.iterdir()) == ["a_model", "b_model"]
    assert len(collection_of(place / "a_model")) == len(collection_of(place / "b_model")) == 20
    kept = set((tmp_path / "out" / "images").iterdir())
    for n in ("24", "20"):  # more than there are, and others in their place
        if n == "20":
            save(place / "b_model" / "00000" / "samples" / "0000.png", pixels_of_nothing())
        answer = CliRunner().invoke(cli.app, [*two, n])
        assert answer.exit_code == 2 and answer.stderr.count("\n") == 1
        assert "_model: exists, with other images" in answer.stderr
        assert set((tmp_path / "out" / "images").iterdir()) == kept  # none was made


def pixels_of_nothing() -> np.ndarray:
    return np.zeros((16, 16, 3), np.uint8)


def test_images_of_ours_are_laid_out_for_nobody(two, tmp_path):
    model = Foreign.of(Path(two[1]), Call(1))
    ours = Sampled("student", 1, 1, 1, (3, 16, 16), lambda noise, *_: noise, "runs/ours")
    held = Gathered(model.kind, [ours], None, [], [model], {})
    given = Against(prompts=two[4], layout="geneval"), asked(*PROMPTS), tmp_path / "out"
    names = {two[1]: ".."}
    with pytest.raises(ConfigError, match="leave out our own runs/ours"):
        shelves(held, *given, names)
    free = replace(held, samplers=[])
    assert shelves(free, *given, names).of == {Path(two[1]): tmp_path / "out/geneval/pipeline"}
    assert shelves(held, given[0]._replace(layout=None), *given[1:], names) is None


def without_times(row: dict) -> dict:
    """What must be the same whenever it is measured."""
    counted = {name: (row["costs"] or {}).get(name) for name in ("macs", "parameters")}
    return {**row, "costs": counted}


def test_models_that_do_not_belong_in_one_table_are_refused(tmp_path):
    one = saved(stable_diffusion(), tmp_path / "sd")
    two = saved(ddpm(unet(8)), tmp_path / "ddpm")
    with pytest.raises(ConfigError, match=r"models of one kind a table, got \(3, 16, 16\) of prom"):
        score([one, two], Against(), tmp_path / "out", (20, 2), Opening(1), QUIET)
    with pytest.raises(ConfigError, match="needs prompts: --prompts FILE"):
        score([one], Against(), tmp_path / "out", (20, 2), Opening(1), QUIET)
    for i in range(5):
        save(tmp_path / "few" / f"{i}.png", np.full((16, 16, 3), 50 * i, np.uint8))
    with pytest.raises(ConfigError, match="has 5 images of the 40 that are scored"):
        against = Against("folder", str(tmp_path / "few"))
        score([tmp_path / "few"], against, tmp_path / "out", (20, 2), Opening(), QUIET)
    assert not (tmp_path / "out").exists()


LAYOUTS = {
    "metadata.jsonl": '{"file_name": "1.png", "prompt": "b"}\n'
    '{"file_name": "0.png", "text": "a"}\n',
    "captions.txt": "a\nb\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_says_what_its_images_are_of(layout, tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.png", np.full((4, 6, 3), 50 * i, np.uint8))
    (tmp_path / layout).write_text(LAYOUTS[layout])
    found = collection_of(tmp_path)
    by_name = {file.name: prompt for file, prompt in zip(found.files, found.prompts)}
    assert by_name == {"0.png": "a", "1.png": "b"} and found.size == (4, 6)
    order = [file.name for file in found.files]
    shades = ((found.images(0, 2) + 1) * 127.5).round()[:, 0, 0, 0].tolist()
    assert shades == [50.0 * int(name[0]) for name in order]


def test_genevals_layout_is_read(tmp_path):
    for prompt in range(2):
        for sample in range(3):
            save(tmp_path / f"{prompt:05d}/samples/{sample:04d}.png", np.zeros((4, 4, 3), np.uint8))
        words = json.dumps({"prompt": f"p{prompt}"})
        (tmp_path / f"{prompt:05d}" / "metadata.jsonl").write_text(words)
    found = collection_of(tmp_path)
    assert found.prompts == ["p0"] * 3 + ["p1"] * 3 and len(found) == 6


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("captions.txt", "a\n", "1 lines for 2 images"),
        ("metadata.jsonl", '{"file_name": "../0.png", "text": "a"}', "no file of this folder"),
        ("metadata.jsonl", '{"file_name": "9.png", "text": "a"}', "9.png is missing"),
        ("metadata.jsonl", '{"file_name": "0.png"}', "no prompt"),
        ("metadata.jsonl", "[1]", "no mapping"),
        ("metadata.jsonl", "{", "Expecting"),
    ],
)
def test_words_that_do_not_fit_are_one_line(name, text, words, tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        collection_of(tmp_path)


@pytest.mark.full(shard="harness")
def test_twenty_kills_and_two_processes_come_to_the_same(tmp_path, figure):
    """Images and scores, bit for bit; times are not kept where images are."""
    prompts, sources = tmp_path / "prompts.txt", [str(tmp_path / name) for name in ("one", "two")]
    prompts.write_text("\n".join(PROMPTS))
    for seed, source in enumerate(sources):
        saved(stable_diffusion(seed), Path(source))
    size = ["--prompts", str(prompts), "--n", "40", "--blocks", "3", "--steps", "4"]
    command = ["-m", "stepdistill", "eval", *sources, "--teacher", sources[1], *size, "--out"]
    alone = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | os.environ
    began = time.monotonic()
    subprocess.run([sys.executable, *command, str(tmp_path / "whole")], env=alone, check=True)
    seconds = time.monotonic() - began

    draw, kills = np.random.default_rng(0), 0
    while kills < 20:
        out = ["--out", str(tmp_path / "killed")]
        running = subprocess.Popen([sys.executable, *command[:-1], *out], env=alone)
        try:
            running.wait(seconds * draw.uniform(0.3, 0.9))
            shutil.rmtree(tmp_path / "killed")  # it was done: from the beginning
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
    subprocess.run([sys.executable, *command, str(tmp_path / "killed")], env=alone, check=True)
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"]
    launch += ["--num_cpu_threads_per_process", "1"]
    subprocess.run(
        [sys.executable, *launch, *command, str(tmp_path / "pair")], env=alone, check=True
    )
    figure("kills", kills)

    def made(name: str) -> dict[str, str]:
        folder = tmp_path / name
        files = sorted(folder.glob("images/*/*.png"))
        found = {str(f.relative_to(folder)): sha256(f.read_bytes()).hexdigest() for f in files}
        rows = json.loads((folder / "results.json").read_text())["rows"]
        return found | {"rows": json.dumps([without_times(row) for row in rows])}

    assert len(made("whole")) == 1 + 2 * 120
    assert made("killed") == made("whole") == made("pair")
