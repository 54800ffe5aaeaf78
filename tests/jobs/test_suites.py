"""Suites and metrics by name: files of anyone's, and what becomes of a run that no suite fits.

Mutations that must each fail a test here: a fallback that says nothing; a suite that is not checked
before training; samples of 8×8 whatever the network's size; rows whose scores are not the suite's.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from stepdistill.cli import app
from stepdistill.data.sources import digits
from stepdistill.evaluation.evaluate import Sampled, evaluate
from stepdistill.evaluation.protocol import Procedure, protocols
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.report.report import read_results
from stepdistill.evaluation.suite import Unfit
from stepdistill.export import export as exporting
from stepdistill.jobs.sample import tile
from stepdistill.jobs.suites import load, require, suite_for
from stepdistill.resources import PACKAGE, shipped
from stepdistill.runs.config import read
from stepdistill.runs.setup import teacher_of
from stepdistill.schema import ConfigError
from stepdistill.teachers.loading import new_pipeline

pytestmark = pytest.mark.xdist_group("caller")

SIZE = (3, 12, 20)
DIGITS = Kind(digits.EVENT, digits.CLASSES)

# One file each, outside the package.
TASK = '''
"""Plain colours: every image of one value, and the words that ask for it."""
from dataclasses import dataclass
import torch
from stepdistill.evaluation.reference import Reference, Task

@dataclass(frozen=True)
class Colours(Task):
    words: bool = False
    def open(self, kind, brought):
        if kind.size != (3, 12, 20):
            raise ValueError("wants 12×20 colours")
        images = torch.linspace(-1, 1, 50)[:, None, None, None].expand(50, 3, 12, 20)
        ask = (lambda n, generator: ["grey"] * n) if self.words else None
        return Reference(kind.size, ask, images, about="colours")
'''
METRIC = '''
"""The mean of a channel."""
from dataclasses import dataclass
from stepdistill.evaluation.metric import Metric

@dataclass
class Brightness(Metric):
    about = "how bright a channel is."
    lower_is_better = False
    channel: int = 0
    def reset(self):
        self.total, self.n = 0.0, 0
    def update(self, made):
        self.total += float(made.images[:, self.channel].double().mean((1, 2)).sum())
        self.n += len(made.images)
    def merge(self, other):
        self.total, self.n = self.total + other.total, self.n + other.n
    def compute(self):
        return [self.total / self.n]
'''
SUITE = """
task: toy_colours
metrics:
  - {name: red, metric: toy_brightness}
  - {name: blue, metric: toy_brightness, settings: {channel: 2}}
  - {name: texture, metric: frechet, settings: {space: random-conv}}
headline: [blue, texture]
batch: 8
"""


def call(*arguments: str, expect: int = 0) -> str:
    answer = CliRunner().invoke(app, list(arguments))
    assert answer.exit_code == expect, answer.output
    return answer.output


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Path:
    """The YAML of a suite whose task and metric lie beside it."""
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "toy_colours.py").write_text(TASK)
    (folder / "toy_brightness.py").write_text(METRIC)
    (folder / "mine.yaml").write_text(SUITE)
    monkeypatch.syspath_prepend(str(folder))
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """A config's folder with a teacher of 12×20 colours and images to train on, and a suite."""
    folder = tmp_path_factory.mktemp("colours")
    unet = {"sample_size": SIZE[1:], "in_channels": 3, "out_channels": 3, "layers_per_block": 1}
    unet |= {"block_out_channels": [8, 8], "norm_num_groups": 4}
    unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    pipeline = new_pipeline(unet, "FlowMatchEulerDiscreteScheduler", {}, 0)
    pipeline.save_pretrained(folder / "teacher")
    (folder / "images").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 12, 20, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
    (folder / "colours.yaml").write_text(f"""
name: colours
teacher: {folder / "teacher"}
data: {{source: folder, settings: {{path: {folder / "images"}}}}}
stages:
  - {{method: consistency, settings: {{steps: 4}}, training: {{updates: 3, batch: 4}}}}
sampler: {{steps: [1, 2]}}
evaluation: {{n: 20, blocks: 2, steps: [1, 2], teacher_steps: [2, 4]}}
health: {{every: 2, samples: 16}}
trackers: []
log_every: 1
""")
    return folder, str(folder / "colours.yaml")


@pytest.fixture(scope="module")
def unfit(run, caller) -> Path:
    """The run's folder after `stepdistill run` under a suite that does not fit."""
    folder, config = run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "call_plainly", caller)
        said = call("run", config, "--runs", str(folder / "runs"))
    assert "No suite fits" in said
    return folder / "runs" / "colours"


def test_a_run_that_no_suite_fits_is_compared_with_its_teacher(unfit):
    rows = read_results(unfit / "results.json")
    found = {(row.model, row.steps): row for row in rows}
    assert set(found) == {
        *(("teacher", 2), ("teacher", 4), ("untrained-student", 1), ("student", 1), ("student", 2))
    }
    assert all(row.scores.keys() == {"paired"} and row.seconds > 0 for row in rows)
    assert found["teacher", 4].value("paired") == 0 < found["student", 1].value("paired")
    text = (unfit / "report.md").read_text()
    whys = [line for line in text.splitlines() if line.startswith("No suite fits")]
    assert len(whys) == 1
    (why,) = whys
    assert "'digits' scores images (1, 8, 8) of 10 classes or none" in why and "(3, 12, 20)" in why
    assert "the teacher at 4 steps (0.000)" in text and "| training health |" in text
    page = (unfit / "report.html").read_text()
    for shown in ("No suite fits", "Same noise", "Step by step", "Training curves", "Costs"):
        assert shown in page
    assert "Worst samples" not in page
    assert (unfit / "student" / "model_index.json").is_file()
    assert "| student | 1 | 1 |" in (unfit / "student" / "README.md").read_text()


def test_what_was_scored_is_how_far_a_student_is_from_its_teacher(unfit):
    """Against the definition, from the same noise of both blocks."""
    from accelerate import Accelerator

    from stepdistill.jobs.samplers import of_run
    from stepdistill.runs.stages import reopen

    samplers = {(s.model, s.steps): s for s in of_run(reopen(unfit, Accelerator(cpu=True)))}
    gaps = []
    for block in (0, 1):
        seed = int(np.random.SeedSequence((1000, block)).generate_state(1)[0])
        noise = torch.randn(20, *SIZE, generator=torch.Generator().manual_seed(seed))
        student, teacher = (
            samplers[key].sample(noise, None, torch.Generator())
            for key in (("student", 1), ("teacher", 4))
        )
        gaps.append((student - teacher).square().mean().item())
    (row,) = [
        r for r in read_results(unfit / "results.json") if (r.model, r.steps) == ("student", 1)
    ]
    assert row.value("paired") == pytest.approx(np.mean(gaps) ** 0.5, rel=1e-5)


def test_samples_have_the_size_of_the_network(unfit, tmp_path):
    for source in (unfit, unfit / "student"):
        call("sample", str(source), str(tmp_path / "a.png"), "--count", "3")
        picture = Image.open(tmp_path / "a.png")
        assert picture.mode == "RGB" and picture.size == (3 * 21 * 5, 13 * 5)  # 12 pixels, 5 times


def test_own_images_are_the_reference(unfit, run, tmp_path):
    """Those of a folder, of any exported pipeline; and none where nobody says where they are."""
    size = ("--n", "20", "--blocks", "2", "--out", str(tmp_path))
    for source in (unfit, unfit / "student"):
        own = ("--suite", "folder", "--reference", str(run[0] / "images"))
        call("eval", str(source), *own, *size)
        (row, *_) = [r for r in read_results(tmp_path / "results.json") if r.model == "student"]
        assert row.scores["frechet_random"].value > 0 and "accuracy" not in row.scores
        assert "images, 8 images" in (tmp_path / "report.md").read_text()
    assert "--reference DIR" in call("eval", str(unfit / "student"), "--suite", "folder", expect=2)
    assert "held_out" in call("eval", str(unfit), "--suite", "folder", expect=2)
    settings = ("evaluation.suite=folder", "name=other", "--runs", str(tmp_path / "runs"))
    assert "evaluation.reference" in call("run", run[1], *settings, expect=2)
    assert not (tmp_path / "runs").exists()


def test_tiles_are_the_images():
    images = torch.linspace(-1, 1, 5 * 3 * 2 * 3).view(5, 3, 2, 3)
    picture = tile(images, columns=3)
    zoom = 32
    assert picture.shape == (2 * 3 * zoom, 3 * 4 * zoom, 3)
    for i in range(5):
        corner = picture[i // 3 * 3 * zoom :, i % 3 * 4 * zoom :][
            : 2 * zoom : zoom, : 3 * zoom : zoom
        ]
        assert torch.equal(corner, ((images[i] / 2 + 0.5) * 255).round().byte().permute(1, 2, 0))


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_what_no_suite_fits_is_refused_by_one_line_where_a_table_was_asked_for(
    command, run, unfit, tmp_path
):
    _, config = run
    out = ["--out", str(tmp_path / "out")]
    runs = ["--runs", str(tmp_path / "runs")] if command == "compare" else []
    said = call(command, config if command == "compare" else str(unfit), *out, *runs, expect=2)
    assert "suite 'digits' scores images (1, 8, 8)" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_suite_and_a_metric_outside_the_package_work_by_name(toys, unfit, tmp_path):
    out = tmp_path / "out"
    said = call(
        "eval", str(unfit), "--suite", str(toys), "--n", "20", "--blocks", "2", "--out", str(out)
    )
    assert "blue" in said and "texture" in said
    *rows, real = read_results(out / "results.json")
    assert {row.model for row in rows} == {"teacher", "student", "untrained-student"}
    assert all(list(row.scores) == ["red", "blue", "texture"] for row in (*rows, real))
    assert real.value("red") == real.value("blue") and abs(real.value("red")) < 0.3
    text = (out / "report.md").read_text()
    assert "`red`, `blue`: how bright a channel is. Larger is better." in text
    assert "(blue, texture, random-conv)" in text and "suite | mine" in text
    # The headline's metrics are drawn, and outliers sought in its space.
    page = (out / "report.html").read_text()
    assert "blue</h4>" in page and "texture, random-conv</h4>" in page and "red</h4>" not in page
    assert "Worst samples" in page and "nearest to it in random-conv" in page


def test_a_run_is_scored_by_the_suite_it_names(toys, run):
    _, config = run
    named = read(config, (f"evaluation.suite={toys}",))
    suite, remark = suite_for(named, teacher_of(named))
    assert suite.name == "mine" and remark == ""
    assert [metric.name for metric in suite.metrics] == ["red", "blue", "texture"]


def test_prompts_are_asked_for_in_their_batches(toys):
    toys.write_text(SUITE + "settings: {words: true}\n")
    asked = []

    def sample(noise, prompts, generator):
        asked.append((len(noise), prompts))
        return noise.tanh()

    evaluate([Sampled("student", 1, 1, 0, SIZE, sample)], load(str(toys), Kind(SIZE)), 20, 2, 0)
    assert asked == [(n, ["grey"] * n) for n in (8, *[8, 8, 4] * 2)]


def test_a_sampler_s_noise_may_have_another_shape_than_its_images(toys):
    """As latents have."""
    shapes = []

    def decoded(noise, asked, generator):
        shapes.append(noise.shape[1:])
        return noise.mean((1, 2, 3))[:, None, None, None].expand(-1, *SIZE)

    row, _ = evaluate(
        [Sampled("student", 1, 1, 0, (4, 2, 2), decoded)], load(str(toys), Kind(SIZE)), 20, 2, 0
    )
    assert {tuple(shape) for shape in shapes} == {(4, 2, 2)}
    assert row.value("red") == row.value("blue")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "task: toy_colours",
            "task: toy_colour",
            "task 'toy_colour': neither a shipped task nor an importable module",
        ),
        ("task: toy_colours", "task: digits.x y", "not the name of a module"),
        (
            "task: toy_colours",
            "task: toy_brightness",
            "module 'toy_brightness' defines 0 classes of kind task, not 1",
        ),
        ("metric: frechet,", "metric: frechets,", "did you mean 'frechet'?"),
        ("channel: 2", "chanel: 2", "metrics.1.settings.chanel: unknown key"),
        ("channel: 2", "channel: two", "metrics.1.settings.channel: needs a whole number"),
        ("[blue, texture]", "[bleu]", "headline: ['bleu']: name some of the metrics: red, blue"),
        ("[blue, texture]", "[]", "headline: []"),
        ("name: blue", "name: red", "two of one name"),
        ("space: random-conv", "space: nowhere", "featurespace 'nowhere': neither a shipped"),
        ("space: random-conv", "space: domain-cnn", "domain-cnn sees images (1, 8, 8)"),
        ("batch: 8", "batch: 0", "batch: must be at least 1"),
        ("batch: 8", "bach: 8", "did you mean 'batch'?"),
    ],
)
def test_mistakes_in_a_suite_are_named(old, new, said, toys):
    toys.write_text(SUITE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load(str(toys), Kind(SIZE))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_suite_is_refused_before_training(toys, run, tmp_path):
    _, config = run
    toys.write_text(SUITE.replace("channel: 2", "channel: two"))
    named = (f"evaluation.suite={toys}", "--runs", str(tmp_path / "runs"))
    assert "metrics.1.settings.channel" in call("run", config, *named, expect=2)
    named = ("evaluation.suite=digit", *named[1:])
    assert "did you mean 'digits'?" in call("run", config, *named, expect=2)
    assert not (tmp_path / "runs").exists()


def test_fewer_images_are_generated_at_a_time_where_they_are_large(toys):
    for size, batch in (((1, 8, 8), 250), ((3, 256, 256), 21), ((3, 1024, 1024), 1)):
        assert load("teacher", Kind(size)).batch == batch
    assert load(str(toys), Kind(SIZE)).batch == 8


def test_a_suite_says_whom_it_fits():
    for kind in (DIGITS, Kind(digits.EVENT)):
        assert load("digits", kind).name == "digits"
    for kind in (Kind((1, 16, 16), 10), Kind(digits.EVENT, 4), Kind(SIZE)):
        with pytest.raises(Unfit, match="scores images") as caught:
            load("digits", kind)
        assert str(kind) in str(caught.value)
        assert load("teacher", kind).size == kind.size


def test_shipped_suites_name_shipped_metrics():
    named = {p.stem: require(p.stem) for p in (shipped("eval/suites")).glob("*.yaml")}
    metrics = [metric for _, _, metrics in named.values() for metric in metrics]
    used = {type(m).__module__.rpartition(".")[2] for m in metrics}
    assert used <= {p.stem for p in (PACKAGE / "evaluation" / "metrics").glob("[!_]*.py")}
    assert all(metric.about for metric in metrics)


def test_two_suites_are_not_one_table(toys, run, tmp_path):
    folder, config = run
    other = tmp_path / "other.yaml"
    text = Path(config).read_text().replace("name: colours", "name: other")
    other.write_text(text.replace("evaluation: {", f"evaluation: {{suite: {toys}, "))
    said = call("compare", config, str(other), "--runs", str(tmp_path / "runs"), expect=2)
    assert "one suite a table" in said


def test_a_teacher_too_large_is_paired_as_far_as_memory_goes(monkeypatch):
    """The rest of a block is left out of the mean."""
    from stepdistill.evaluation import metric as module

    suite = replace(load("teacher", DIGITS), batch=10)
    calls = []

    def student(noise, asked, generator):
        calls.append(len(noise))
        return torch.full_like(noise, 0.5 if (len(calls) - 2) % 2 == 0 else 1.0)

    def field():
        calls.clear()
        return [
            Sampled("teacher", 4, 4, 0, digits.EVENT, lambda noise, *_: torch.zeros_like(noise)),
            Sampled("student", 1, 1, 0, digits.EVENT, student),
        ]

    whole = evaluate(field(), suite, 20, 2, 0)[1].value("paired")
    monkeypatch.setattr(module, "PAIRED", 10 * 64 * 4)
    part = evaluate(field(), suite, 20, 2, 0)[1].value("paired")
    assert protocols(suite, Procedure(20, 2, 0), "")["paired"]["of"] == 10
    assert whole == pytest.approx(((0.25 + 1) / 2) ** 0.5) and part == pytest.approx(0.5)
    monkeypatch.setattr(module, "PAIRED", 15 * 64 * 4 + 1)
    part = evaluate(field(), suite, 20, 2, 0)[1].value("paired")
    assert part == pytest.approx(((2 * 0.25 + 1) / 3) ** 0.5)
