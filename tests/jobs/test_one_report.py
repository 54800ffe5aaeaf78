"""Whatever people bring in one report: pipelines of prompts, labels and nothing, and folders.

Mutations that must each fail a test here: prompts handed to a pipeline that takes none; metrics of
prompts computed of images that had none; a failing pipeline that takes the others with it; images
of a folder beside the teacher's as if from one noise.
"""

import json
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, axe, chromium
from others import PROMPTS, dit, pixel, stable_diffusion
from PIL import Image
from shelf import save
from typer.testing import CliRunner

from stepdistill import ConfigError, Incomplete, cli, evaluate
from stepdistill.evaluation.evaluate import Request, Requests
from stepdistill.evaluation.reference import Kind, heeded
from stepdistill.evaluation.report.report import (
    ImageGrid,
    Report,
    Within,
    read_results,
    write_report,
)
from stepdistill.evaluation.rows import Row, Score
from stepdistill.jobs import foreign
from stepdistill.jobs.foreign import CallFailed, Foreign
from stepdistill.jobs.suites import load

ASKED = [PROMPTS[0], '<b>bold</b> & "more"', PROMPTS[2], PROMPTS[3]]
SIZE = ["--n", "24", "--blocks", "2", "--steps", "2"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos(folder: Path, seed: int, prompts: list[str] | None = None) -> Path:
    """48 images of colours that run into one another."""
    draw, lines = np.random.default_rng(seed), []
    for i in range(48):
        corners = draw.integers(0, 255, (2, 2, 3)).astype(np.float32)
        x = torch.from_numpy(corners).permute(2, 0, 1)[None]
        smooth = torch.nn.functional.interpolate(x, (16, 16), mode="bilinear")[0]
        save(folder / f"{i:02d}.png", smooth.permute(1, 2, 0).byte().numpy())
        words = prompts and prompts[i // 4 % len(prompts)]
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "prompt": words}))
    if prompts:
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five sources and a file of prompts."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, pipeline in (("sd", stable_diffusion()), ("dit", dit()), ("ddpm", pixel())):
        pipeline.save_pretrained(folder / name)
    photos(folder / "asked", 1, ASKED)
    photos(folder / "found", 2)
    (folder / "prompts.txt").write_text("\n".join(ASKED))
    return folder


SOURCES = ["sd", "dit", "ddpm", "asked", "found"]


@pytest.fixture(scope="module")
def out(shelf: Path) -> Path:
    """The report of the five."""
    sources = [str(shelf / name) for name in SOURCES]
    prompts = ["--prompts", str(shelf / "prompts.txt"), "--teacher", sources[0]]
    command = ["eval", *sources, *prompts, *SIZE, "--out", str(shelf / "out")]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 0, answer.output
    return shelf / "out"


def test_what_a_model_cannot_be_asked_it_is_not_asked(out: Path, shelf: Path):
    rows = {Path(row.source).name: row for row in read_results(out / "results.json")}
    assert list(rows) == SOURCES
    within = {"same_picture", "feature_variance", "vendi"}
    assert {name for name, row in rows.items() if within <= row.scores.keys()} == {"sd", "asked"}
    assert not any(within & rows[name].scores.keys() for name in ("dit", "ddpm", "found"))
    assert all("saturation" in row.scores for row in rows.values())
    page = unescape((out / "report.html").read_text(encoding="utf-8"))
    assert "its labels, 0 to 999, were asked for in order. Not measured of it: " in page
    assert "it takes neither prompts nor labels" in page
    assert "nobody says what its images were asked for" in page
    assert "clip_score" in page.partition("Not measured")[2].partition("How to read")[0]
    assert "<b>bold" not in (out / "report.html").read_text(encoding="utf-8")


def test_labels_come_in_order_and_what_takes_nothing_gets_nothing():
    wanted = Requests([Request(p, i) for i, p in enumerate(ASKED)], n=2, batch=1)
    assert [r.asked for r in wanted.of(Kind((3, 4, 4), classes=3)).each] == [0, 1, 2, 0]
    assert [r.asked for r in wanted.of(Kind((3, 4, 4))).each] == [None] * 4
    assert wanted.of(Kind((3, 4, 4), prompts=True)) == wanted
    labels = Requests([Request(7, 0), Request(5, 1)], n=2, batch=1)
    assert labels.of(Kind((3, 4, 4), classes=9)) == labels
    assert [r.asked for r in labels.of(Kind((3, 4, 4), prompts=True)).each] == ["", ""]
    assert heeded(None, ["a"]) and heeded(["a"], ["a"]) and heeded(torch.ones(1), torch.ones(1))
    assert not any(heeded(["a"], x) for x in (None, torch.ones(1))) and not heeded(
        torch.ones(1), None
    )


def test_the_pictures_are_of_those_that_were_asked(out: Path, shelf: Path):
    page = unescape((out / "report.html").read_text(encoding="utf-8"))
    again = page.partition("Asked again and again")[2].partition("</section>")[0]
    assert again.count('class="words"') == 3 and "teacher, 50 steps" in again
    assert "<figcaption>asked<" in again and "dit" not in again
    assert "Beside the teacher" not in page  # nobody was asked for the same from the same noise
    note = "images of asked and found were made, nobody knows. From the same seeds as others, but "
    assert (
        page.count("Image by image") == 1 and f"{note}not of their prompts: dit and ddpm." in page
    )
    assert str(shelf / "dit") in page.partition("Provenance")[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_people_can_read_it(out: Path, width: int, dark: bool):
    with Browser(chromium()) as browser:
        browser.open(out / "report.html", width, dark)
        assert browser.violations(axe()) == []
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")


def test_a_pipeline_whose_call_fails_does_not_take_the_others_with_it(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One raises at its first call, another after a block."""
    bad = shelf / "bad"
    for folder in (bad, shelf / "late"):
        pixel().save_pretrained(folder)
    config = json.loads((bad / "scheduler" / "scheduler_config.json").read_text())
    config["prediction_type"] = "<nonsense>"
    (bad / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    made, called = Foreign.made, []

    def sometimes(model: Foreign, wanted: list[Request]) -> torch.Tensor:
        called.append(model.folder.name)
        if model.folder.name == "late" and called.count("late") == 2:
            raise CallFailed(f"{model.folder}: its call fails: no memory")
        return made(model, wanted)

    monkeypatch.setattr(Foreign, "made", sometimes)
    sources = [str(shelf / name) for name in ("bad", "late", "ddpm", "found")]
    command = ["eval", *sources, *SIZE, "--out", str(tmp_path / "out"), "--suite", "folder"]
    answer = CliRunner().invoke(cli.app, [*command, "--reference", str(shelf / "found")])
    assert answer.exit_code == 1 and "2 not scored" in answer.stderr, answer.output
    assert answer.stdout.count("left out: ") == 2 and "ddpm" in answer.stdout
    rows = read_results(tmp_path / "out" / "results.json")
    assert [Path(row.source).name for row in rows] == ["ddpm", "found", ""]
    page = unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    told = page.partition("Not scored")[2].partition("</section>")[0]
    assert "prediction_type given as <nonsense>" in told and "no memory" in told
    with pytest.raises(Incomplete, match="1 not scored") as raised:
        size = {"size": (20, 2), "steps": 1, "reference": str(shelf / "found")}
        evaluate([bad, shelf / "ddpm"], "folder", tmp_path / "two", **size)
    assert [row.model for row in raised.value.rows] == ["student", "real"]
    with pytest.raises(ConfigError, match="prediction_type"):
        evaluate([bad], "folder", tmp_path / "one", **size)
    assert not (tmp_path / "one").exists()


def test_what_another_process_could_not_make_is_named_by_the_one_that_scores(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Foreign.of(shelf / "ddpm", foreign.Call(1))
    wanted = Requests([Request(None, i) for i in range(4)], n=4, batch=2)
    kept = foreign.collect(model, wanted, tmp_path, part=(0, 2))
    assert foreign.missing(kept) == "another process did not make its images"

    def failing(*_: object) -> None:
        raise CallFailed("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(Foreign, "made", failing)
        with pytest.raises(CallFailed):
            foreign.collect(model, wanted, tmp_path, part=(1, 2))
    assert foreign.missing(kept) == "no memory"
    foreign.collect(model, wanted, tmp_path, part=(1, 2))
    assert foreign.missing(kept) == "" and not list(tmp_path.rglob(foreign.FAILED))


def test_eight_models_of_large_images_make_a_small_page(tmp_path: Path, figure):
    """Speckled images, which compress badly; each PNG beside the page is the image itself."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 128, 128, generator=draw)
    images = torch.nn.functional.interpolate(coarse, (1024, 1024), mode="bicubic").clamp(0, 1)
    images = (images * 255).byte()[torch.arange(10) % 3]
    names = [f"../{i}/{'x' * 300}" for i in range(8)]
    scores = {"saturation": Score(0.5)}
    report = Report(
        "Eight",
        [Row("student", 1, 1, 20, name, 0, None, scores) for name in names],
        load("prompts", Kind((3, 1024, 1024), prompts=True), prompts=prompts(tmp_path)),
        {},
        grids=[ImageGrid("Same seed", images.expand(8, -1, -1, -1, -1), names)],
        within=[Within(p, dict.fromkeys(names, images[:4])) for p in ASKED[:3]],
    )
    write_report(tmp_path / "out", report)
    size = (tmp_path / "out" / "report.html").stat().st_size
    figure("page of 8 models at 1024 px", size / 1e6, "MB")
    assert size <= 5e6
    files = sorted((tmp_path / "out" / "report-images").iterdir())
    kept = {np.asarray(Image.open(file)).tobytes() for file in files}
    assert kept == {image.permute(1, 2, 0).numpy().tobytes() for image in images[:3]}
    assert sum(1 for _ in (tmp_path / "out").iterdir()) == 5


def prompts(folder: Path) -> str:
    (folder / "prompts.txt").write_text("\n".join(ASKED))
    return str(folder / "prompts.txt")
