"""Every shipped protocol scores a tiny pipeline against stand-ins for what the user brings.

Mutations that must each fail a test here: a protocol whose file says less than it fixes; prompts or
a reference that are missed only after images are made; a category that is scored by all images.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from others import consistency, dit, pixel, stable_diffusion
from rich.console import Console
from shelf import pixels, save
from typer.testing import CliRunner

from stepdistill import cli
from stepdistill.evaluation.collection import collection_of
from stepdistill.evaluation.suite import SuiteSettings
from stepdistill.jobs.evaluate import score
from stepdistill.jobs.sources import Against, Opening
from stepdistill.resources import shipped
from stepdistill.runs.yaml import load_values
from stepdistill.schema import ConfigError, fit

QUIET = Console(quiet=True)
SIDE = 16  # of what the tiny pipelines make
STYLES = ("anime", "concept-art", "paintings", "photo")
WORDS = [f"a thing of kind {i}" for i in range(20)]


def folder_of(place: Path, size: tuple[int, int], groups: tuple[str, ...] = ("",)) -> str:
    """24 images, in these subfolders."""
    for i in range(24):
        save(place / groups[i % len(groups)] / f"{i}.png", pixels(i, 3, size))
    return str(place)


def batch(place: Path) -> str:
    """As ADM's: images, their labels, and statistics in Inception's width."""
    images = np.stack([pixels(i, 3, (SIDE, SIDE)) for i in range(24)])
    both = {"mu": np.zeros(2048), "sigma": np.eye(2048, dtype=np.float32)}
    np.savez(place / "batch.npz", arr_0=images, arr_1=np.arange(24), **both)
    return str(place / "batch.npz")


def file_of(place: Path, name: str, found: object) -> str:
    (place / name).write_text(json.dumps(found))
    return str(place / name)


def coco(place: Path) -> str:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(20)]
    said = [{"image_id": i, "id": i, "caption": text} for i, text in enumerate(WORDS)]
    return file_of(place, "captions.json", {"images": images, "annotations": said})


def mjhq(place: Path) -> str:
    kinds = ("animals", "logo")
    rows = {f"{i:x}": {"category": kinds[i % 2], "prompt": p} for i, p in enumerate(WORDS)}
    return file_of(place, "meta_data.json", rows)


def hpsv2(place: Path) -> str:
    for i, style in enumerate(STYLES):
        (place / "benchmark").mkdir(exist_ok=True)
        file_of(place / "benchmark", f"{style}.json", WORDS[i::4])
    file_of(place / "benchmark", "drawbench.json", ["no style's"])
    return str(place / "benchmark")


def geneval(place: Path) -> str:
    rows = [{"tag": "colors", "include": [], "prompt": prompt} for prompt in WORDS[:5]]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(place / "metadata.jsonl")


class Stand(NamedTuple):
    """pipeline, prompts, reference: what is brought. size: of the scored images. scored: metrics
    that need no weights, skipped: that do."""

    pipeline: Callable
    prompts: Callable[[Path], str] | None
    reference: Callable[[Path], str] | None
    scored: set[str]
    skipped: set[str]
    departs: str


INCEPTION = {"fid-tf", "inception_score"}
STANDS = {
    "imagenet-64": Stand(
        dit, None, batch, {"frechet_random"}, {*INCEPTION, "precision", "recall"}, "16×16"
    ),
    "imagenet-256": Stand(
        dit, None, batch, {"frechet_random"}, {*INCEPTION, "precision", "recall"}, "16×16"
    ),
    "cifar10": Stand(
        pixel,
        None,
        lambda place: folder_of(place / "real", (SIDE, SIDE)),
        {"frechet_random"},
        INCEPTION,
        "16×16",
    ),
    "coco-2014-30k": Stand(
        stable_diffusion,
        coco,
        lambda place: folder_of(place / "real", (30, 41)),
        {"frechet_random"},
        {"fid-clean", "clip_score"},
        "n = 20 in place of the protocol's 30,000",
    ),
    "coco-2017-5k": Stand(
        stable_diffusion,
        coco,
        lambda place: folder_of(place / "real", (30, 41)),
        {"frechet_random"},
        {"fid-clean", "clip_score"},
        "n = 20 in place of the protocol's 5,000",
    ),
    "mjhq-30k": Stand(
        stable_diffusion,
        mjhq,
        lambda place: folder_of(place / "real", (SIDE, SIDE), ("animals", "logo")),
        {"frechet_random", "random animals", "random logo"},
        {"fid-clean", "clip_score", "fid animals", "fid logo", "clip animals", "clip logo"},
        "16×16 in place of the protocol's 1024×1024",
    ),
    "hpsv2-prompts": Stand(
        stable_diffusion,
        hpsv2,
        None,
        {"vendi", *(f"variety {style}" for style in STYLES)},
        {"clip_score", "fid-clean", "frechet_random", *(f"clip {style}" for style in STYLES)},
        "n = 20 in place of the protocol's 3,200",
    ),
    "geneval": Stand(
        stable_diffusion,
        geneval,
        None,
        {"vendi", "same_picture", "feature_variance"},
        {"clip_score", "lpips_diversity", "clip colors"},
        "n = 20 in place of the protocol's 2,212",
    ),
}


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """A machine without anyone's weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("STEPDISTILL_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def smaller(name: str, place: Path) -> str:
    """The shipped file, that resizes to fewer pixels if to any."""
    text = (shipped("eval/suites") / f"{name}.yaml").read_text()
    text = re.sub("side: [0-9]+", "side: 24", text)
    (place / f"{name}.yaml").write_text(text)
    return str(place / f"{name}.yaml")


def test_all_protocols_have_a_stand_in():
    plain = {"digits", "folder", "folder-fid", "prompts", "shapes", "shapes-classes", "teacher"}
    assert {p.stem for p in shipped("eval/suites").glob("*.yaml")} == plain | STANDS.keys()
    for name in STANDS:
        said = fit(SuiteSettings, load_values(shipped("eval/suites") / f"{name}.yaml"))
        assert None not in (said.n, said.blocks, said.seed, said.batch, said.threads)


@pytest.mark.parametrize("name", STANDS)
def test_a_protocol_scores_a_tiny_pipeline(name, nowhere):
    stand = STANDS[name]
    pipeline = nowhere / "tiny"
    stand.pipeline().save_pretrained(pipeline)
    prompts = stand.prompts and stand.prompts(nowhere)
    reference = stand.reference and stand.reference(nowhere)
    out, opening = nowhere / "out", Opening(1)
    against = Against(smaller(name, nowhere), reference, prompts)
    (row, *floor) = score([pipeline], against, out, (20, 1), opening, QUIET).rows
    assert row.n == 20 and set(row.scores) >= stand.scored and len(floor) == bool(reference)
    assert not set(row.scores) & stand.skipped
    text = (out / "report.md").read_text()
    missing = text.partition("| not measured |")[2].partition("\n\n")[0]
    named = {name for line in missing.splitlines() for name in line[2:].split(" | ")[0].split(", ")}
    assert named >= stand.skipped
    assert "departs from the protocol" in text and stand.departs in text
    assert "1 threads" in text
    results = json.loads((out / "results.json").read_text())
    assert results["protocol"].keys() >= stand.scored
    assert not (out / ".eval_results").exists()
    if name == "geneval":
        assert len(collection_of(out / "geneval" / "tiny")) == 20


@pytest.mark.parametrize("name", STANDS)
def test_what_is_not_brought_is_refused_before_anything_is_loaded(name, nowhere):
    """In one line that says which file the protocol wants."""
    stand, empty = STANDS[name], nowhere / "no-pipeline"
    wanted = "--prompts: " if stand.prompts else "--reference: "
    command = ["eval", str(empty), "--suite", name, "--out", str(nowhere / "out")]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 2 and answer.stderr.count("\n") == 1
    assert f"suite {name}: needs {wanted}" in answer.stderr and " … " not in answer.stderr
    assert "http" not in answer.stderr
    if stand.prompts and stand.reference:
        against = Against(name, prompts=stand.prompts(nowhere))
        with pytest.raises(
            ConfigError, match="needs --reference: .*COCO|needs --reference: .*MJHQ"
        ):
            score([empty], against, nowhere / "out", (20, 1), Opening(1), QUIET)
    assert not (nowhere / "out").exists()


def test_a_folder_of_classes_is_scored_by_its_classes(nowhere, monkeypatch):
    """Where the reference has them, too: what lies in a wrong folder counts as wrong."""
    monkeypatch.setattr("stepdistill.evaluation.features.classes.STEPS", 40)
    shades = {"dark": 20, "light": 230}

    def fill(place: Path, swapped: bool) -> str:
        for i in range(40):
            kind = ("dark", "light")[i % 2]
            noise = pixels(i, 3, (SIDE, SIDE)) // 20
            name = ("light", "dark")[i % 2] if swapped else kind
            save(place / name / f"{i}.png", (noise + shades[kind]).astype(np.uint8))
        return str(place)

    real = fill(nowhere / "real", False)
    right, wrong = Path(fill(nowhere / "right", False)), Path(fill(nowhere / "wrong", True))
    first = collection_of(right)
    assert first.classes == ("dark", "light") and first.labels[:4] == [0, 1, 0, 1]
    sources, against = [right, wrong], Against("folder", real)
    rows = score(sources, against, nowhere / "out", (20, 2), Opening(), QUIET).rows
    accuracy = [row.value("accuracy") for row in rows[:2]]
    assert accuracy[0] > 0.9 and accuracy[1] < 0.1


@pytest.mark.parametrize("groups", [("",), ("loose", "")])
def test_a_folder_without_classes_will_do_where_none_are_needed(nowhere, groups):
    """CIFAR-10's images beside a model of classes, which is asked for each of them equally often;
    not where some lie in a class."""
    consistency().save_pretrained(nowhere / "tiny")
    real = folder_of(nowhere / "real", (SIDE, SIDE), groups)
    against = Against(smaller("cifar10", nowhere), real)
    given = [nowhere / "tiny"], against, nowhere / "out", (20, 1), Opening(1), QUIET
    if "loose" in groups:
        with pytest.raises(ConfigError, match="lies in no subfolder"):
            score(*given)
        return
    rows = score(*given).rows
    assert [row.n for row in rows] == [20, 20] and "frechet_random" in rows[0].scores
    with pytest.raises(ConfigError, match="lies in no subfolder"):
        score([nowhere / "tiny"], Against("folder", real), *given[2:])


def test_a_suite_of_ones_own_calls_pipelines_and_names_a_benchmark(nowhere):
    """Its steps, n and blocks hold unless the command says otherwise."""
    pixel().save_pretrained(nowhere / "tiny")
    said = yaml.safe_load((shipped("eval/suites") / "cifar10.yaml").read_text())
    said |= {"n": 20, "blocks": 2, "steps": 2, "size": [SIDE, SIDE]}
    said["dataset"] = {"id": "me/bench", "task": "random"}
    (nowhere / "mine.yaml").write_text(yaml.safe_dump(said))
    real = folder_of(nowhere / "real", (SIDE, SIDE))
    command = ["eval", str(nowhere / "tiny"), "--suite", str(nowhere / "mine.yaml")]
    command += ["--reference", real, "--out", str(nowhere / "out"), "--json"]
    answer = CliRunner().invoke(cli.app, command)
    assert answer.exit_code == 0, answer.output
    (row,) = json.loads(answer.stdout)["rows"]
    assert (row["n"], row["steps"]) == (40, 2)
    assert "departs from the protocol" not in (nowhere / "out" / "report.md").read_text()
    (file,) = (nowhere / "out" / ".eval_results").iterdir()
    (entry,) = yaml.safe_load(file.read_text())
    assert entry["dataset"] == {"id": "me/bench", "task_id": "random"}
    answer = CliRunner().invoke(cli.app, [*command, "--steps", "1"])
    text = (nowhere / "out" / "report.md").read_text()
    assert "steps = 1 in place of the protocol's 2" in text
