"""The page a reader sees: self-contained, escaped, honest about n; the JSON a program reads.

Mutations that must each fail a test here: autoescape off; `allow_nan=False` dropped; a headline
that compares in one space only or takes the student at most steps; strips without rounding or
alpha.
"""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from stepdistill.evaluation.figures import (
    LIGHT,
    Series,
    _draw_quality,
    quality_pictures,
    strip,
    training_pictures,
)
from stepdistill.evaluation.report import Grid, headline, read_results, write_report
from stepdistill.evaluation.suite import Row

EVIL = "<script>alert('1 & 2')</script>"
VOID = {"meta", "img", "source", "br"}


def row(model: str, steps: int, frechet: float, frechet_random: float) -> Row:
    return Row(
        model=model,
        steps=steps,
        nfe=2 * steps if model == "teacher" else steps,
        frechet=frechet,
        frechet_random=frechet_random,
        low=0.9 * frechet,
        high=1.1 * frechet,
        low_random=0.8 * frechet_random,
        high_random=1.2 * frechet_random,
        n=3000,
        accuracy=0.97,
        seconds_per_image=0.001 * steps,
        kid=-0.0012,
        kid_error=0.0004,
        precision=0.91,
        recall=0.82,
        diversity=0.95,
        paired=0.21,
        parameters=612_345,
    )


ROWS = [
    row("teacher", 1, 26.0, 11.0),
    row("teacher", 4, 1.9, 0.9),
    row("teacher", 32, 0.26, 0.12),
    row("untrained-student", 1, 31.0, 12.0),
    row("student", 2, 0.3, 0.1),
    row("student", 1, 0.42, 0.2),
    replace(row("real", 0, 0.17, 0.06), seconds_per_image=None, paired=None, parameters=0),
]
GRIDS = [Grid(EVIL, torch.rand(2, 5, 1, 8, 8) * 2 - 1, ["teacher", EVIL])]
CURVES = {EVIL: [(1.0, 3.0), (2.0, float("nan")), (3.0, 0.1)], "loss": [(0.0, 1.0), (1.0, 0.5)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("report") / "new" / "folder"
    write_report(made, ROWS, title=EVIL, provenance={"a | b": EVIL}, curves=CURVES, grids=GRIDS)
    return made


class Page(HTMLParser):
    """Checks nesting while it collects tags, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "srcset", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_page_parses_and_escapes_what_it_is_given(page: Page):
    assert "script" not in page.tags
    # Title twice, one curve, one grid title, one row label, one provenance value.
    assert page.text.count(EVIL) == 6
    assert page.tags.count("h1") == 1


def test_page_asks_no_server_for_anything(folder: Path, page: Page):
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", html)
    assert "default-src 'none'" in html


def test_page_shows_two_spaces_every_curve_and_every_strip(page: Page):
    pictures = 2 + len(CURVES)
    assert page.tags.count("picture") == pictures
    assert page.tags.count("img") == pictures + 2
    for link in page.links:
        Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).verify()


def test_page_and_markdown_show_every_row_and_mark_missing_values(folder: Path, page: Page):
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    table = [line for line in markdown.splitlines() if line.startswith("|")][: 2 + len(ROWS)]
    assert len({line.count("|") for line in table}) == 1
    assert table[-1].startswith(
        "| real | – | 0.170 0.153–0.187 | 0.0600 0.0480–0.0720 | −1.2 ± 0.4"
    )
    assert table[-1].endswith("| – | – | – |")
    assert table[4].startswith("| teacher 32 steps | 64 | 0.260 0.234–0.286 |")
    assert page.tags.count("tr") == 1 + len(ROWS) + 2
    assert "a \\| b" in markdown and "| images a row | 3,000 |" in markdown


def test_columns_without_values_are_left_out(tmp_path: Path):
    rows = [replace(r, accuracy=None, paired=None) for r in ROWS]
    write_report(tmp_path, rows, title="t", provenance={}, curves={}, grids=[])
    header = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()[4]
    assert "recall" in header and "accuracy" not in header and "paired" not in header
    bare = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Training" not in bare.text and "Same noise" not in bare.text


def test_results_are_strict_json_and_read_back(folder: Path):
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "results.json").read_text(encoding="utf-8")
    raw = json.loads(text, parse_constant=refuse)
    assert {row["model"] for row in raw["rows"]} == {"teacher", "student", "untrained-student"}
    assert raw["floor"][0]["seconds_per_image"] is None
    assert read_results(folder / "results.json") == ROWS


def test_numbers_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path: Path):
    for bad in (float("nan"), float("inf")):
        rows = [replace(ROWS[0], frechet=bad)]
        with pytest.raises(ValueError):
            write_report(tmp_path, rows, title="t", provenance={}, curves={}, grids=[])
    assert list(tmp_path.iterdir()) == []


def test_rows_of_unequal_n_and_mislabelled_grids_are_refused(tmp_path: Path):
    def write(rows, grids):
        write_report(tmp_path, rows, title="t", provenance={}, curves={}, grids=grids)

    with pytest.raises(ValueError, match="different n do not compare"):
        write([ROWS[0], replace(ROWS[1], n=2000)], [])
    with pytest.raises(ValueError, match="one label a row"):
        write(ROWS, [Grid("g", torch.zeros(2, 3, 1, 8, 8), ["only one"])])
    with pytest.raises(ValueError, match="at least one row"):
        write([], [])


def test_headline_compares_in_both_spaces_and_in_time():
    said = headline(ROWS)
    assert said.startswith("In 1 step the student scores 0.420, 0.200")
    assert "no worse than the teacher at 4 steps (1.90, 0.900)" in said
    assert "32× as fast per image as the teacher at 32 steps (0.260, 0.120)" in said
    weak = [replace(r, frechet_random=9.0) if r.model == "student" else r for r in ROWS]
    assert "no worse than the teacher at 1 step (" in headline(weak)
    bad = [replace(r, frechet_random=99.0) if r.model == "student" else r for r in ROWS]
    assert "not in both spaces as good as the teacher at 1 step" in headline(bad)


def test_headline_without_student_or_teacher():
    assert "the teacher at 4 steps 1.90, 0.900" in headline(ROWS[:3])
    assert headline([ROWS[5]]) == (
        "In 1 step the student scores 0.420, 0.200 (domain-cnn, random-conv)."
    )


def test_strip_holds_the_pixels_of_every_image():
    images = torch.linspace(-1, 1, 3 * 2 * 4 * 4).reshape(3, 2, 4, 4)[:, :1]
    picture = Image.open(io.BytesIO(base64.b64decode(strip(images).split(",")[1])))
    zoom, gap = 12, 6  # 4 pixels drawn 48 high
    assert picture.mode == "RGBA" and picture.size == (3 * 4 * zoom + 2 * gap, 4 * zoom)
    for column in range(3):
        left = column * (4 * zoom + gap)
        for y, x in ((0, 0), (3, 1), (2, 3)):
            grey = round((images[column, 0, y, x].item() + 1) * 127.5)
            found = picture.getpixel((left + x * zoom + 5, y * zoom + 5))
            assert found == (grey, grey, grey, 255)
        if column < 2:
            assert picture.getpixel((left + 4 * zoom + 1, 0))[3] == 0
    colour = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    picture = Image.open(io.BytesIO(base64.b64decode(strip(colour).split(",")[1])))
    assert picture.getpixel((3, 3)) == (255, 0, 128, 255)
    with pytest.raises(ValueError, match="1 or 3"):
        strip(torch.zeros(1, 2, 4, 4))


def test_pictures_differ_by_theme_space_and_content():
    first, second = quality_pictures(ROWS)
    assert len({first.light, first.dark, second.light, second.dark}) == 4
    moved = quality_pictures([*ROWS[:5], replace(ROWS[5], frechet=5.0), ROWS[6]])
    assert moved[0].light != first.light and moved[1].light == second.light
    assert quality_pictures([ROWS[-1]]) == []
    assert [p.title for p in training_pictures(CURVES)] == list(CURVES)
    assert training_pictures({"empty": [], "all nan": [(0.0, float("nan"))]}) == []


def test_a_distance_of_zero_stays_on_the_axis():
    values = {"linear": [0.0, 2.0], "log": [0.01, 2.0]}
    for scale, value in values.items():
        axes = Figure().add_subplot()
        _draw_quality(axes, [Series("teacher", [1, 2], value, value, value)], LIGHT)
        assert axes.get_yscale() == scale and axes.get_xscale() == "log"
