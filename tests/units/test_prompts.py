"""Files of prompts as benchmarks are given out, and what their prompts are grouped by."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stepdistill.data.prompts import Prompt, categories_of, prompts_of, read_prompts
from stepdistill.schema import ConfigError

COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4}, {"id": 5}],
    "annotations": [
        {"image_id": 4, "id": 30, "caption": "a later one"},
        {"image_id": 9, "id": 20, "caption": "two dogs"},
        {"image_id": 4, "id": 10, "caption": "a cat"},
    ],
}
MJHQ = {
    "a1": {"category": "animals", "prompt": "a red cat"},
    "b2": {"category": "logo", "prompt": "a sign"},
}
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "colors", "include": [], "prompt": "a red cake"},
]
FORMS = [
    ("coco.json", json.dumps(COCO), [("two dogs", None), ("a cat", None)]),
    ("meta_data.json", json.dumps(MJHQ), [("a red cat", "animals"), ("a sign", "logo")]),
    (
        "evaluation_metadata.jsonl",
        "\n".join(map(json.dumps, GENEVAL)),
        [("a bench", "single_object"), ("a red cake", "colors")],
    ),
    ("list.json", '["one", "two"]', [("one", None), ("two", None)]),
    ("all.json", '{"anime": ["one"], "photo": ["two"]}', [("one", "anime"), ("two", "photo")]),
    ("rows.json", '[{"text": "one", "style": "photo"}]', [("one", "photo")]),
    ("rows.csv", "prompt,category\na,x\nb,\n", [("a", "x"), ("b", None)]),
    ("rows.jsonl", '{"prompt": "a", "tag": ["not", "a", "name"]}', [("a", None)]),
    ("lines.txt", "one\n\ntwo\r\n", [("one", None), ("two", None)]),
]


@pytest.mark.parametrize(("name", "text", "wanted"), FORMS, ids=[name for name, *_ in FORMS])
def test_a_benchmarks_own_file_is_read(name, text, wanted, tmp_path):
    (tmp_path / name).write_text(text)
    assert prompts_of(tmp_path / name) == [Prompt(*each) for each in wanted]
    assert read_prompts(tmp_path / name) == [text for text, _ in wanted]


def test_a_folder_of_styles_is_hpsv2s(tmp_path):
    """Its benchmark/ holds drawbench.json, too, which is none of the 3,200 prompts."""
    styles = ("anime", "concept-art", "paintings", "photo")
    for style in ("photo", "drawbench", *styles[:3]):
        (tmp_path / f"{style}.json").write_text(json.dumps([f"a {style}", f"one more {style}"]))
    (tmp_path / "README.md").write_text("not a style")
    assert prompts_of(tmp_path) == [(f"{a} {s}", s) for s in styles for a in ("a", "one more")]
    (tmp_path / "paintings.json").write_text("[]")
    with pytest.raises(ConfigError, match="paintings.json: holds no prompts"):
        prompts_of(tmp_path)
    (tmp_path / "paintings.json").unlink()
    with pytest.raises(ConfigError, match="has no paintings.json: of folders, HPSv2's are read"):
        prompts_of(tmp_path)


def test_a_table_of_parquet_says_its_categories(tmp_path):
    table = pa.table({"n": [1, 2], "caption": ["a", "b"], "category": ["x", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert prompts_of(tmp_path / "a.parquet") == [("a", "x"), ("b", "y")]


def test_a_text_may_stand_in_several_categories():
    found = categories_of([Prompt("a", "x"), Prompt("b"), Prompt("a", "y"), Prompt("a", "x")])
    assert found == {"a": ("x", "y")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3", "neither a list of prompts nor COCO's captions"),
        ("[1]", "prompt 1 is 1, not a text"),
        ('{"images": [], "annotations": [3]}', "not such as COCO's captions have"),
        ('{"images": [], "annotations": []}', "holds no prompts"),
        ('{"a": {"words": "x"}}', "no column prompt"),
        ('{"a": ["x"], "b": 3}', "neither a list"),
        ("[[", "Expecting"),
    ],
)
def test_another_thing_is_one_line(text, words, tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        prompts_of(file)
    assert "\n" not in str(caught.value)
