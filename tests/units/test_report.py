"""The page a reader sees: self-contained, escaped, honest about n; the JSON a program reads.

Mutations that must each fail a test here: autoescape off; `allow_nan=False` dropped; a headline
that compares in one space only or takes the student at most steps; mosaics without rounding or
alpha, or filled column by column; a policy that admits any style; stages of a run without their
boundaries; all students of a comparison in one series; a dollar sign that starts a formula; two
of sixteen students that look alike.

What a browser makes of the page is in test_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from copy import copy
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

from stepdistill.data.sources import digits
from stepdistill.evaluation.metric import Metric
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.report.figures import (
    LIGHT,
    Curve,
    _draw_training,
    training_panels,
)
from stepdistill.evaluation.report.headline import headline
from stepdistill.evaluation.report.latex import latex
from stepdistill.evaluation.report.outliers import Outlier, Outliers
from stepdistill.evaluation.report.pairs import Pair, Pairs
from stepdistill.evaluation.report.pictures import FOLDER, NAME, mosaic
from stepdistill.evaluation.report.quality import (
    CROWD,
    Series,
    _draw_quality,
    _series,
    quality_panels,
    value_of,
)
from stepdistill.evaluation.report.report import (
    ImageGrid,
    Report,
    TrajectoryStrip,
    Within,
    read_results,
    write_report,
)
from stepdistill.evaluation.report.table import notes_of
from stepdistill.evaluation.rows import Row, Score
from stepdistill.jobs.suites import load
from stepdistill.training.health.monitor import Record, Signal
from stepdistill.training.health.reference import StageSpan

EVIL = """"'></style></select></script><script>alert('1 & 2')</script><img src=x onerror='a'>"""
VOID = {"meta", "img", "source", "br", "input"}
SUITE = load("digits", Kind(digits.EVENT, digits.CLASSES))


def row(model: str, steps: int, frechet: float, frechet_random: float) -> Row:
    return Row(
        model=model,
        steps=steps,
        nfe=2 * steps if model == "teacher" else steps,
        n=3000,
        source="",
        parameters=612_345,
        seconds=0.001 * steps,
        scores={
            "frechet": around(frechet, 0.1),
            "frechet_random": around(frechet_random, 0.2),
            "kid": Score(-0.0012, error=0.0004),
            "precision": Score(0.91),
            "recall": around(0.82, 0.1),
            "accuracy": around(0.97, 0.1),
            "diversity": Score(0.95),
            "paired": Score(0.21),
        },
    )


def around(value: float, reach: float, *spread: float) -> Score:
    """A score of three blocks; spread: where they lie, in shares of the value."""
    blocks = tuple(value * (1 + share) for share in spread or (-0.05, 0, 0.05))
    return Score(value, (1 - reach) * value, (1 + reach) * value, blocks=blocks)


def scored(row: Row, *without: str, **values: float | Score) -> Row:
    """The row with other values, and without some scores."""
    new = {k: v if isinstance(v, Score) else around(v, 0.1) for k, v in values.items()}
    return replace(row, scores={k: v for k, v in (row.scores | new).items() if k not in without})


ROWS = [
    row("teacher", 1, 26.0, 11.0),
    row("teacher", 4, 1.9, 0.9),
    row("teacher", 32, 0.26, 0.12),
    row("untrained-student", 1, 31.0, 12.0),
    row("student", 2, 0.3, 0.1),
    row("student", 1, 0.42, 0.2),
    scored(replace(row("real", 0, 0.17, 0.06), seconds=None, parameters=0), "paired"),
]


def images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, 1, 8, 8, generator=generator) * 2 - 1


def report_of(name: str) -> Report:
    """A report with everything a report may have, and `name` wherever it takes a user's text."""
    picture = images()
    asked = Outlier(picture, picture, 4.2, read=7, label=3, confidence=0.08)
    return Report(
        title=name,
        rows=[*ROWS[:-1], replace(ROWS[5], source=name), ROWS[-1]],
        suite=SUITE,
        remark=name,
        failed={name: name},
        unasked={name: name},
        provenance={f"a | b {name}": name},
        costs={f"training {name}": name},
        curves={
            f"student: {name}": [(1.0, 3.0), (2.0, float("nan")), (3.0, 0.1)],
            f"{name}: score": [(2.0, 1.0), (3.0, 0.5)],
        },
        bands={f"{name}: score": [(0.0, 2.5, 0.4, 1.2)]},
        stages=[StageSpan(name, 0, 2), StageSpan(name, 2, 3)],
        grids=[ImageGrid(name, images(2, 12), ["teacher", name])],
        within=[Within(name, {"teacher": images(4), name: images(4)})],
        pairs=[Pairs(name, name, 20, [Pair(picture, picture, 0.1, name)], [])],
        films=[TrajectoryStrip(name, images(2, 3), ["1", "2", name])],
        worst=[Outliers(name, 300, "domain-cnn", 3.5, [asked, replace(asked, label=None)])],
        health=Record(
            [
                Signal(f"lag {name}", 0.03, 0.0, 0.1, "healthy"),
                Signal("drift", math.nan, -math.inf, 2.0, "alarm"),
                Signal("diversity", 0.6, 0.7, math.inf, "watch", (0.9, 1.1)),
            ],
            [name],
        ),
        config=f"name: {name}\nseed: 0\n",
    )


BARE = Report("t", ROWS, SUITE, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_report(made, report_of(EVIL))
    return made


class Page(HTMLParser):
    """Checks nesting while it collects tags, attributes and the text that is shown."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.values, self.headings = [], [], [], [], []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href", "action", "data")]
        self.values += [v or "" for _, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, *_ in self.tags)


def page_of(report: Report, folder: Path) -> Page:
    write_report(folder, report)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_no_text_changes_the_page_and_all_of_it_is_shown(page: Page, tmp_path: Path):
    plain = page_of(report_of("harmless"), tmp_path)
    assert page.tags == plain.tags
    # Title and headings 4, remark, not scored and not asked 4, slider and strips 3, prompt and
    # figure 2, beside the teacher 3, frame, worst, curves 2, table, health 2, costs and provenance
    # 4, configuration.
    assert page.text.count(EVIL) == plain.text.count("harmless") == 29
    evil, harmless = ("".join(values) for values in (page.values, plain.values))
    assert evil.count(EVIL) == harmless.count("harmless") > 5


def test_page_asks_no_server_for_anything(folder: Path, page: Page):
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe|<base", html)


def test_the_policy_admits_only_the_style_and_the_script_of_the_page(folder: Path):
    html = (folder / "report.html").read_text(encoding="utf-8")
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1])
    allowed = {name: values for name, *values in map(str.split, policy.split("; "))}
    assert allowed.pop("default-src") == ["'none'"] and allowed.pop("img-src") == ["data:"]
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == [f"'sha256-{digest}'"]
    assert set(map(tuple, allowed.values())) == {("'none'",)}


def test_page_shows_every_picture(page: Page):
    drawn = 4 + 2  # two spaces against two costs, two curves
    assert page.count("picture") == drawn
    # Two rows under the slider and two static, a prompt of two, a pair, three frames, two worst
    # samples.
    assert page.count("img") == drawn + 2 + 2 + 2 + 1 + 3 + 2
    for link in page.links:
        Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).verify()


def test_page_and_markdown_show_every_row_and_mark_missing_values(tmp_path: Path):
    page = page_of(replace(BARE, provenance={"a | b": "c"}), tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    table = [line for line in markdown.splitlines() if line.startswith("|")][: 2 + len(ROWS)]
    assert len({line.count("|") for line in table}) == 1
    assert table[-1].startswith(
        "| real | – | 0.170 0.153–0.187 | 0.0600 0.0480–0.0720 | −1.2 ± 0.4"
    )
    assert table[-1].endswith("| – | – | – |")
    assert table[4].startswith("| teacher 32 steps | 64 | 0.260 0.234–0.286 |")
    assert page.count("tr") == 1 + len(ROWS) + 2
    assert "a \\| b" in markdown and "| images a row | 3,000 |" in markdown


def test_health_and_costs_are_told_in_both_forms(tmp_path: Path):
    page = page_of(report_of("x"), tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "* **alarm**: x\n" in markdown and "| training x | x |" in markdown
    signs = [
        ("lag x", "0.03", "0 – 0.1", "–", "healthy"),
        ("drift", "not finite", "≤ 2", "–", "alarm"),
        ("diversity", "0.6", "≥ 0.7", "0.9 – 1.1", "watch"),
    ]
    for sign in signs:
        assert f"| {' | '.join(sign)} |" in markdown
        assert "".join(sign) in page.text.replace("\n", "")
    assert page.text.index("Training raised an alarm") < page.text.index("Results")


def test_what_is_empty_is_left_out(tmp_path: Path):
    rows = [scored(r, "accuracy", "paired") for r in ROWS]
    page = page_of(replace(BARE, rows=rows), tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    header = markdown.splitlines()[4]
    assert "recall" in header and "accuracy" not in header and "paired" not in header
    assert page.headings == ["Results", "Quality against cost", "How to read this", "Provenance"]
    assert "Configuration" not in page.text and "| cost |" not in markdown
    assert "alarm" not in markdown and "health" not in markdown
    assert "Shaded" not in page.text and "Shaded" in page_of(report_of("x"), tmp_path).text


def test_a_grid_of_one_sampler_has_no_slider(tmp_path: Path):
    for rows, sliders in ((1, 0), (2, 1), (3, 1)):
        grid = ImageGrid("g", images(rows, 3), [f"row {i}" for i in range(rows)])
        page = page_of(replace(BARE, grids=[grid]), tmp_path / str(rows))
        assert page.count("input") == sliders and page.count("select") == 2 * sliders


def test_results_are_strict_json_and_read_back(tmp_path: Path):
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    write_report(tmp_path, BARE)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    raw = json.loads(text, parse_constant=refuse)
    assert {row["model"] for row in raw["rows"]} == {"teacher", "student", "untrained-student"}
    assert raw["floor"][0]["seconds"] is None
    assert read_results(tmp_path / "results.json") == ROWS


OLD = sorted((Path(__file__).resolve().parents[2] / "eval" / "results").rglob("results.json"))


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.parent.name)
def test_results_of_before_are_read_to_the_last_number(file: Path):
    raw = json.loads(file.read_text(encoding="utf-8"))
    before = [*raw["rows"], *raw["floor"]]
    for row, old in zip(read_results(file), before, strict=True):
        assert (row.model, row.steps, row.n) == (old["model"], old["steps"], old["n"])
        if "scores" in old:
            continue
        assert row.seconds == old["seconds_per_image"]
        for name in ("frechet", "frechet_random"):
            low, high = (f"{end}{name.removeprefix('frechet')}" for end in ("low", "high"))
            assert row.scores[name] == Score(old[name], old[low], old[high])
        assert row.scores["kid"] == Score(old["kid"], error=old["kid_error"])
        for name in ("precision", "recall", "accuracy", "diversity", "paired"):
            assert row.scores.get(name, Score(None)).value == old[name]


def test_numbers_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path: Path):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            write_report(tmp_path, replace(BARE, rows=[scored(ROWS[0], frechet=bad)]))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_unequal_n_and_mislabelled_pictures_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="different n do not compare"):
        write_report(tmp_path, replace(BARE, rows=[ROWS[0], replace(ROWS[1], n=2000)]))
    with pytest.raises(ValueError, match="grid 'g'.*one label"):
        write_report(tmp_path, replace(BARE, grids=[ImageGrid("g", images(2, 3), ["only one"])]))
    with pytest.raises(ValueError, match="film 'f'.*one label"):
        write_report(
            tmp_path, replace(BARE, films=[TrajectoryStrip("f", images(2, 3), ["1", "2"])])
        )
    with pytest.raises(ValueError, match="at least one row"):
        write_report(tmp_path, replace(BARE, rows=[]))
    assert list(tmp_path.iterdir()) == []


def test_headline_compares_in_both_spaces_and_in_time():
    said = headline(ROWS, SUITE)
    assert said.startswith("In 1 step the student scores 0.420, 0.200")
    assert "in both spaces better than the teacher at 4 steps (1.90, 0.900), and" in said
    assert "32× as fast per image as the teacher at 32 steps (0.260, 0.120)" in said
    weak = [scored(r, frechet_random=9.0) if r.model == "student" else r for r in ROWS]
    assert "in both spaces better than the teacher at 1 step (" in headline(weak, SUITE)
    bad = [scored(r, frechet_random=99.0) if r.model == "student" else r for r in ROWS]
    assert "not in both spaces as good as the teacher at 1 step" in headline(bad, SUITE)
    better = [*ROWS, scored(replace(ROWS[5], source="runs/b"), frechet=0.3)]
    said = headline(better, SUITE)
    assert said.startswith("In 1 step the best, runs/b, scores 0.300, 0.200")


def test_headline_says_better_only_where_that_is_sure():
    def said(**values: Score) -> str:
        students = [scored(r, **values) if r.model == "student" else r for r in ROWS]
        return headline(students, SUITE)

    wide = around(0.3, 0.1, -0.9, 0.1, 0.8)
    both = said(frechet=wide, frechet_random=around(0.11, 0.1, -0.9, 0.1, 0.8))
    assert "better than the teacher at 4 steps (1.90, 0.900), in both spaces not distingui" in both
    assert "not distinguishable from the teacher at 32 steps (0.260, 0.120), and 32×" in both
    half = said(frechet=wide, frechet_random=around(0.05, 0.1))
    assert (
        "better in frechet_random, random-conv, not distinguishable in frechet, domain-cnn from "
        "the teacher at 32 steps"
    ) in half
    smaller, sure = around(0.25, 0.1, -0.9, 0.1, 0.8), said(frechet=around(0.25, 0.1))
    assert "32 steps (0.260" in said(frechet=smaller).partition("as fast")[2]
    assert "better than the teacher at 32" not in said(frechet=smaller) + sure


def test_headline_calls_the_best_only_what_is_surely_ahead():
    other = scored(replace(ROWS[5], source="runs/b"), frechet=around(0.41, 0.1, -0.5, 0, 0.5))
    said = headline([*ROWS, other], SUITE)
    assert said.startswith("In 1 step runs/b, ahead but not surely, scores 0.410, 0.200")
    photos = replace(ROWS[5], source="photos", steps=0, nfe=0, seconds=None)
    said = headline([photos, scored(photos, frechet=0.1)], SUITE)
    assert said.startswith("As a folder of images photos scores 0.100, 0.200 (domain-cnn, ")
    slow = scored(replace(ROWS[5], source="a", steps=4), frechet=0.3)
    assert headline([photos, ROWS[5], slow], SUITE).startswith("In 4 steps the best, a, scores")


def test_headline_leaves_out_rows_that_lack_what_others_have():
    unasked = scored(replace(ROWS[5], source="b"), "frechet", "frechet_random")
    assert headline([*ROWS, unasked], SUITE) == headline(ROWS, SUITE)
    half = [scored(r, "frechet") if r.model == "real" else r for r in ROWS]
    assert headline(half, SUITE) == headline(ROWS, SUITE)


def test_headline_compares_by_what_the_suite_says_and_in_its_direction():
    """Recall alone: larger is better."""
    recall = replace(SUITE, headline=("recall",))
    rows = [scored(r, recall=0.4) if r.model == "teacher" and r.steps < 32 else r for r in ROWS]
    rows = [scored(r, recall=0.5) if r.model == "student" else r for r in rows]
    better = scored(replace(ROWS[5], source="runs/b"), recall=0.6)
    said = headline([*rows, better], recall)
    assert said.startswith(
        "In 1 step the best, runs/b, scores 0.600 (recall, random-conv): better than"
    )
    assert "better than the teacher at 4 steps (0.400)" in said
    three = replace(SUITE, headline=("recall", "frechet", "accuracy"))
    assert "not in all scores as good as the teacher at 1 step" in headline(
        [scored(r, accuracy=0.1) if r.model == "student" else r for r in ROWS], three
    )
    assert "compare" in headline([scored(r, "recall") for r in ROWS], recall)


def test_the_notes_say_what_the_scores_shown_are():
    notes = " ".join(notes_of(ROWS, SUITE))
    said = "`frechet` in domain-cnn (a small classifier of digits), `frechet_random` in random-conv"
    assert said in notes and notes.count("Fréchet distance to") == 1
    for metric in SUITE.metrics:
        assert f"`{metric.name}`" in notes
    assert "`paired`" not in " ".join(notes_of([scored(r, "paired") for r in ROWS], SUITE))
    assert "`real`" not in " ".join(notes_of([scored(r, "kid") for r in ROWS[:-1]], SUITE))


def test_headline_without_student_or_teacher():
    assert "the teacher at 4 steps 1.90, 0.900" in headline(ROWS[:3], SUITE)
    assert headline([ROWS[5]], SUITE) == (
        "In 1 step the student scores 0.420, 0.200 (domain-cnn, random-conv)."
    )


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_mosaic_holds_the_pixels_of_every_image():
    made = torch.linspace(-1, 1, 5 * 2 * 4 * 4).reshape(5, 2, 4, 4)[:, :1]
    picture = opened(mosaic(made, columns=3))
    zoom, gap = 12, 6  # 4 pixels drawn 48 high
    pitch = 4 * zoom + gap
    assert picture.mode == "RGBA" and picture.size == (3 * pitch - gap, 2 * pitch - gap)
    for index in range(5):
        left, top = index % 3 * pitch, index // 3 * pitch
        for y, x in ((0, 0), (3, 1), (2, 3)):
            grey = round((made[index, 0, y, x].item() + 1) * 127.5)
            found = picture.getpixel((left + x * zoom + 5, top + y * zoom + 5))
            assert found == (grey, grey, grey, 255)
    assert picture.getpixel((pitch - 1, 0))[3] == 0 and picture.getpixel((0, pitch - 1))[3] == 0
    assert picture.getpixel((2 * pitch + 5, pitch + 5))[3] == 0  # no sixth image
    colour = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert opened(mosaic(colour, 1)).getpixel((3, 3)) == (255, 0, 128, 255)
    with pytest.raises(ValueError, match="1 or 3"):
        mosaic(torch.zeros(1, 2, 4, 4), 1)


def test_a_large_image_is_a_thumbnail_and_lies_beside_the_page_as_it_is(tmp_path: Path):
    """Whatever it is called; a page that is written again leaves nothing of the last one."""
    name = f"../../{EVIL}"
    spots = torch.rand(6, 3, 4, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    big = interpolate(spots, (130, 97), mode="bilinear").unflatten(0, (2, 3))
    report = replace(
        BARE,
        grids=[ImageGrid(name, big, [name, "b"])],
        within=[Within(name, {name: big[0, :2]})],
        pairs=[Pairs(name, name, 20, [Pair(big[0, 0], big[1, 2], 0.1, name)], [])],
        worst=[Outliers(name, 20, "space", 1.0, [Outlier(big[0, 1], big[0, 2], 1.0, 1, 1, 0.5)])],
    )
    page = page_of(report, tmp_path)
    links = [link for link in page.links if not link.startswith("data:")]
    assert len(links) == page.count("a") == 6 + 2 + 2 + 2
    folder, names = zip(*(link.split("/") for link in links))
    assert set(folder) == {FOLDER} and all(map(NAME.fullmatch, names))
    assert {file.name for file in (tmp_path / FOLDER).iterdir()} == set(names)
    assert len(set(names)) == 6
    kept = Image.open(tmp_path / links[0])
    wanted = ((big[0, 0] + 1) * 127.5).round().to(torch.uint8)
    assert kept.format == "PNG" and torch.equal(pil_to_tensor(kept), wanted)
    thumbs = [opened(link) for link in page.links if link.startswith("data:image/webp")]
    assert len(thumbs) == 12 + 2 and {t.size for t in thumbs[2:]} == {(84, 112)}
    one = torch.stack([pil_to_tensor(t.convert("RGB")) for t in thumbs[2:3]]).float()
    small = interpolate(wanted[None].float(), (112, 84), mode="area")
    assert (one - small).abs().mean() < 4  # WebP loses some
    (tmp_path / FOLDER / "mine.png").touch()
    page_of(BARE, tmp_path)
    assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["mine.png"]


def test_a_category_has_a_table_of_its_own(tmp_path: Path):
    apart = [replace_table(metric) for metric in SUITE.metrics]
    report = replace(BARE, suite=replace(SUITE, metrics=tuple(apart)))
    page = page_of(report, tmp_path)
    assert page.count("table") == 3 and f"{EVIL} by class" in page.text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    _, _, own = markdown.partition("## ")
    assert own.splitlines()[2] == "| model | precision | recall |"
    assert "precision" not in markdown.partition("## ")[0] and own.count("| student ") == 2
    assert (tmp_path / "table.tex").read_text().count(r"\begin{tabular}") == 2


def replace_table(metric: Metric) -> Metric:
    found = copy(metric)
    found.table = f"{EVIL} by class" if metric.name in ("precision", "recall") else ""
    return found


def test_what_is_missing_is_said_in_plain_words(tmp_path: Path):
    suite = replace(SUITE, skipped={"fid-tf": "needs <weights> of 95 MB"})
    failed, unasked = {"bad": "bad: its call fails: <oops>"}, {"ddpm": "it takes no labels"}
    page = page_of(replace(BARE, suite=suite, failed=failed, unasked=unasked), tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.headings[0] == "Not scored" and "Not measured" in page.headings
    for words in ("needs <weights> of 95 MB", "its call fails: <oops>", "it takes no labels. Not"):
        assert words in page.text and words.replace("<", "&lt;") in markdown
    assert "of it: accuracy, diversity" in page.text


def test_pictures_differ_by_theme_space_cost_and_content():
    panels = quality_panels(ROWS, SUITE)
    drawn = [p for panel in panels for p in panel.pictures]
    assert len({uri for p in drawn for uri in (p.light, p.dark)}) == 8
    moved = quality_panels([*ROWS[:5], scored(ROWS[5], frechet=5.0), ROWS[6]], SUITE)
    same = [
        [old.light == new.light for old, new in zip(a.pictures, b.pictures)]
        for a, b in zip(panels, moved)
    ]
    assert same == [[False, True], [False, True]]
    assert quality_panels([ROWS[-1]], SUITE) == []
    untimed = quality_panels([replace(r, seconds=None) for r in ROWS], SUITE)
    assert [panel.title for panel in untimed] == [panels[0].title]


def test_students_of_several_sources_are_separate_series_of_separate_colours():
    rows = [*ROWS, *(replace(r, source=r"runs/$\frac{b") for r in ROWS[4:6])]
    series = _series(rows, lambda r: r.nfe, value_of("frechet"))
    assert [(s.model, s.cost) for s in series] == [
        ("teacher", [2, 8, 64]),
        ("untrained-student", [1]),
        ("student", [1, 2]),
        ("real", [0]),
        ("student", [1, 2]),
    ]
    axes = Figure().add_subplot()
    _draw_quality("cost")(axes, series, LIGHT)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert r"student runs/$\frac{b" in names and len(set(names)) == len(names) == 5
    colours = [c.lines[0].get_color() for c in axes.containers]
    assert len(set(colours)) == len(colours) == 3
    assert len(quality_panels(rows, SUITE)) == 2  # such a name is no formula


def of_many(count: int) -> list[Row]:
    students = [scored(replace(ROWS[4], source=f"runs/{i}"), frechet=1.0 + i) for i in range(count)]
    return [row for row in ROWS if row.model != "student"] + students


def drawn(rows: list[Row]) -> tuple[list[str], set[tuple]]:
    """The names in a quality picture's legend, and the looks of what is not the teacher."""
    axes = Figure().add_subplot()
    series = _series(rows, lambda r: r.nfe, value_of("frechet"))
    _draw_quality("cost")(axes, series, LIGHT)
    looks = {(c.lines[0].get_color(), c.lines[0].get_marker()) for c in axes.containers}
    return [text.get_text() for text in axes.get_legend().get_texts()], looks


def test_more_students_than_colours_differ_by_marker_and_their_names_stand_below():
    names, looks = drawn(of_many(CROWD))
    assert len(set(names)) == len(looks) + 2 == CROWD + 3
    few, many = (opened(quality_panels(of_many(n), SUITE)[0].pictures[0].light) for n in (2, CROWD))
    assert many.width == few.width and many.height > few.height


def test_a_crowd_of_students_shares_one_look_and_name():
    names, looks = drawn(of_many(CROWD + 1))
    assert [name for name in names if "student" in name] == ["untrained-student", "17 students"]
    assert len(looks) == 2


def test_the_end_of_a_long_source_is_kept():
    rows = [replace(ROWS[4], source=f"{'x' * 50}/run-{i}") for i in (1, 2)]
    first, second = _series(rows, lambda r: r.nfe, lambda r: (1, 1, 1))
    assert first.name != second.name and len(first.name) <= 30
    assert first.name.startswith("student …") and first.name.endswith("/run-1")


def test_a_distance_of_zero_stays_on_the_axis():
    values = {"linear": [0.0, 2.0], "log": [0.01, 2.0]}
    for scale, value in values.items():
        axes = Figure().add_subplot()
        _draw_quality("cost")(axes, [Series("teacher", "t", [1, 2], value, value, value)], LIGHT)
        assert axes.get_yscale() == scale and axes.get_xscale() == "log"


def test_curves_are_grouped_by_player_losses_first():
    line = [(0.0, 1.0), (10.0, 2.0)]
    names = ["critic: gradient_norm", "critic: score", "student: lr", "student: gan", "other"]
    names += ["student: dmd", "critic: realness", "student: gradient_norm"]
    panels = training_panels(dict.fromkeys(names, line))
    assert [(panel.title, [p.title for p in panel.pictures]) for panel in panels] == [
        ("student", ["dmd", "gan", "gradient norm", "learning rate"]),
        ("critic", ["realness", "score", "gradient norm"]),
        ("other", ["other"]),
    ]
    assert training_panels({"student: a": [], "student: b": [(0.0, float("nan"))]}) == []


def test_a_curve_is_drawn_over_what_healthy_runs_had():
    curve = Curve(
        [(5.0, 1.0)], [StageSpan("dmd2", 0, 10)], player=0, band=[(0, 4, 0.5, 2), (4, 8, 0.6, 0.7)]
    )
    axes = Figure().add_subplot()
    _draw_training(axes, [curve], LIGHT)
    boxes = [patch.get_paths()[0].get_extents() for patch in axes.collections]
    assert [box.bounds for box in boxes] == [(0, 0.5, 4, 1.5), (4, 0.6, 4, pytest.approx(0.1))]


def test_stages_are_marked_on_every_curve_of_a_run():
    stages = [
        StageSpan("consistency", 0, 2500),
        StageSpan("$dmd2$", 2500, 4000),
        StageSpan("x" * 40, 4000, 4200),
    ]
    curve = Curve([(2600.0, 1.0), (3900.0, 30.0)], stages, player=1)
    axes = Figure().add_subplot()
    _draw_training(axes, [curve], LIGHT)
    (line, *marks) = axes.lines
    assert list(line.get_xdata()) == [2600.0, 3900.0] and line.get_color() == LIGHT.students[1]
    assert [mark.get_xdata()[0] for mark in marks] == [2500, 4000]
    assert [(t.xy[0], t.get_text()) for t in axes.texts] == [
        (0, "consistency"),
        (2500, "$dmd2$"),
        (4000, "x" * 14 + "…"),
    ]
    assert not any(text.get_parse_math() for text in axes.texts)
    assert axes.get_xlim() == (0, 4200) and axes.get_yscale() == "log"
    alone = Figure().add_subplot()
    _draw_training(alone, [replace(curve, stages=stages[:1])], LIGHT)
    assert len(alone.lines) == 1 and not alone.texts and alone.get_xlim() == (0, 3900)


def test_a_table_for_a_paper_obeys_no_ones_words():
    rows = [replace(row, source=r"a_b & 50% \input{x} <é>\n") for row in ROWS]
    text = latex(rows, SUITE)
    lines = text.splitlines()
    assert lines[0].startswith(r"\begin{tabular}{lrr") and lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r" \\")]
    assert len(body) == 1 + len(rows)
    assert len({line.replace(r"\&", "").count("&") for line in body}) == 1
    assert r"a\_b \& 50\% \textbackslash{}input\{x\} \textless{}é\textgreater{}" in text
