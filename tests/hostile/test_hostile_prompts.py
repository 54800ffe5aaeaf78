"""Sixty prompts and twenty files of prompts that nobody should write: a picture that is asked for
the very prompt, or one clear line; and the page shows them as text.
"""

import html
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from others import finished_run
from PIL import Image
from typer.testing import CliRunner

from stepdistill.cli import app
from stepdistill.data.prompts import LONGEST
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")

MARKUP = [
    "<script>alert(1)</script>",
    "</script><script>alert('1 & 2')</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg/onload=alert(1)>",
    "' onmouseover='alert(1)",
    "<!-- a comment",
    "]]>",
    "</li></ol></details><h1>",
    "<style>*{display:none}</style>",
    "&lt;b&gt; &amp;amp; &#60;",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "${jndi:ldap://nowhere/a}",
    "| a | table |",
    "![a](x) [b](javascript:alert(1)) `code`",
    "$\\alpha_1$ \\input{/etc/passwd} %",
]
CODE = [
    "'; DROP TABLE prompts; --",
    "$(touch spoilt) `touch spoilt` ; touch spoilt",
    "../../../etc/passwd",
    "/dev/null",
    "C:\\Windows\\System32",
    "file:///etc/passwd",
    "http://example.com/a.png",
    "__import__('os').system('touch spoilt')",
    "%s %d %n {0} {name}",
    "\\n\\t\\u0041",
    "null",
    "true",
    "0",
    "-1e309",
    "NaN",
    "[1, 2, 3]",
    '{"prompt": "a cat"}',
    "- a: b",
    "# a comment",
    "key=value",
]
SIGNS = [
    "a \N{PILE OF POO} and a \N{SMILING FACE WITH OPEN MOUTH}",
    "\N{FLAG IN HOLE}\N{VARIATION SELECTOR-16}",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0645\u0631\u062d\u0628\u0627 a cat",
    "\u202ea cat backwards\u202c",
    "\u05d7\u05ea\u05d5\u05dc",
    "\u4e00\u53ea\u732b",
    "Z\u0351\u036b\u0343\u036a\u0302a\u0368\u0312\u034cl\u0357\u0365go",
    "e\u0301 \u00e9",
    "\u00a0a\u2003cat\u3000",
    "\u200ba\u200bcat",
    "\ufeffa cat",
    "\U0001d400\U0001d401",
    "\ud7ff\ue000\uffff",
    "a\tcat",
    "a\x0bcat\x0c",
    "a\x1b[31mcat\x07",
    "\x01\x02\x7f\x85",
]
LONG = ["a " * 4000, "x" * LONGEST, "a cat, " * 1000, "<b>" * 3000, "\N{PILE OF POO}" * 5000, " "]
PROMPTS = [*MARKUP, *CODE, *SIGNS, *LONG]
RUN = """
name: words
teacher: models/sd
guidance: 3.0
prompts: prompts.jsonl
stages:
  - method: tdm
    training: {updates: 1, batch: 2, optimiser: {lr: 0.01}, critic_optimiser: {lr: 0.01}}
sampler: {steps: [1], grid: {name: trailing}, gamma: 0.0}
evaluation: {suite: teacher, n: 60, blocks: 2, steps: [1], teacher_steps: [1]}
trackers: []
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose prompts are all of these, finished."""
    rows = [json.dumps({"prompt": prompt}) for prompt in [*PROMPTS, PROMPTS[0], ""]]
    return finished_run(tmp_path_factory.mktemp("hostile"), RUN, "prompts.jsonl", "\n".join(rows))


def test_they_are_sixty():
    assert len(PROMPTS) == len(set(PROMPTS)) == 60


def test_a_run_of_them_is_finished_and_did_what_none_of_them_says(folder):
    names = {path.name for path in folder.rglob("*")}
    assert "report.html" in names and "spoilt" not in names


def test_the_page_shows_them_as_text(folder):
    page = (folder / "runs/words/report.html").read_text()
    shown = re.findall(r"<li>(.*?)</li>", page[page.index("Prompts, from left to right") :], re.S)
    assert html.unescape(shown[0]) == PROMPTS[0] and html.unescape(shown[1]) == PROMPTS[1]
    assert page.count("<script") == 1 and "onerror=alert(1)>" not in page
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202e]", page)
    for name in ("report.md", "results.json"):
        assert "\x1b" not in (folder / "runs/words" / name).read_text()


@pytest.mark.parametrize("number", range(0, 60, 12))
def test_each_has_its_picture(number, folder, monkeypatch):
    """That of the very prompt: what its encoder makes of it, and of nothing else."""
    monkeypatch.chdir(folder)
    asked = PROMPTS[number : number + 12]
    given = [word for prompt in asked for word in ("--prompt", prompt)]
    out = Path(f"out{number}.png")
    done = CliRunner().invoke(app, ["sample", "runs/words", str(out), "--count", "12", *given])
    assert done.exit_code == 0, done.output
    assert Image.open(out).size[1] == 12 * (Image.open(out).size[0])
    teacher = Teacher.from_pipeline(load_pipeline(str(folder / "models/sd")))
    cond, encode = teacher.conditions(asked), teacher.pipeline.encode_prompt
    for i, prompt in enumerate(asked):
        wanted = encode(prompt, torch.device("cpu"), 1, False)[0]
        assert float((cond["text"][i] - wanted[0]).abs().max()) <= 1e-5


def table(path: Path, columns: dict) -> None:
    pq.write_table(pa.table(columns), path)


FILES = {
    "empty.txt": lambda p: p.write_text(""),
    "blank.txt": lambda p: p.write_text("\n \n\t\n"),
    "latin.txt": lambda p: p.write_bytes("ein Bär\n".encode("latin-1")),
    "binary.txt": lambda p: p.write_bytes(bytes(range(256)) * 8),
    "utf16.txt": lambda p: p.write_text("a cat\n", encoding="utf-16"),
    "one.docx": lambda p: p.write_text("a cat"),
    "none": lambda p: p.write_text("a cat"),
    "folder.txt": lambda p: p.mkdir(),
    "long.txt": lambda p: p.write_text("x" * (LONGEST + 1)),
    "columns.csv": lambda p: p.write_text("words\na cat\n"),
    "quotes.csv": lambda p: p.write_text('prompt\n"a cat\n'),
    "empty.csv": lambda p: p.write_text("prompt\n"),
    "list.jsonl": lambda p: p.write_text('["a cat"]\n'),
    "torn.jsonl": lambda p: p.write_text('{"prompt": "a cat"}\n{"prompt": "a'),
    "number.jsonl": lambda p: p.write_text('{"prompt": 5}\n'),
    "missing.jsonl": lambda p: p.write_text('{"prompt": "a cat"}\n{"name": "a dog"}\n'),
    "deep.json": lambda p: p.write_text("[" * 100_000),
    "torn.parquet": lambda p: p.write_bytes(b"PAR1" + b"\0" * 64 + b"PAR1"),
    "columns.parquet": lambda p: table(p, {"words": ["a cat"]}),
    "holes.parquet": lambda p: table(p, {"prompt": ["a cat", None]}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_refused_in_one_line(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    FILES[name](Path(name))
    runs = sorted(Path("runs").iterdir())
    given = ["run", "words.yaml", "name=other", f"prompts={name}"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2 and name in done.output, done.output
    assert len(done.output.strip().splitlines()) == 1 and "Traceback" not in done.output
    assert sorted(Path("runs").iterdir()) == runs


def test_broken_files_are_twenty():
    assert len(FILES) == 20
