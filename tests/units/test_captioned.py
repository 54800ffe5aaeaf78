"""Pictures with captions, in each form that a source reads: those that stand beside them."""

import json
import re
from dataclasses import replace

import pytest
import torch
from shelf import N, Reader, pack, pixels, png, save, shown

from stepdistill.data.loader import Source
from stepdistill.data.sources.folder import Folder
from stepdistill.data.sources.table import Table
from stepdistill.data.sources.webdataset import WebDataset
from stepdistill.schema import ConfigError


def said(k: int) -> str:
    return f"picture {k}, <b>\u732b</b>"


def metadata(folder) -> Source:
    lines = []
    for k in range(N):
        save(folder / "some" / f"{k}.png", pixels(k))
        lines.append(json.dumps({"file_name": f"some/{k}.png", "text": said(k)}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return Folder(str(folder))


def lines(folder) -> Source:
    for k in range(N):
        save(folder / f"{k}.png", pixels(k))
    (folder / "captions.txt").write_text("\n".join(said(k) for k in range(N)) + "\n")
    return Folder(str(folder))


def beside(folder) -> Source:
    for k in range(N):
        save(folder / f"{k}.png", pixels(k))
        (folder / f"{k}.txt").write_text(said(k).replace(" ", "\n") + "\n")
    return Folder(str(folder))


def archives(folder, extension: str = "txt") -> WebDataset:
    for shard in range(3):
        members = {}
        for k in range(shard * 4, shard * 4 + 4):
            members |= {f"{k:05d}.png": png(pixels(k)), f"{k:05d}.{extension}": said(k).encode()}
        pack(folder / f"{shard}.tar", members)
    return WebDataset(str(folder))


def csv(folder) -> Source:
    rows = ["image,caption"]
    for k in range(N):
        save(folder / f"{k}.png", pixels(k))
        rows.append(f'{k}.png,"{said(k)}"')
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return Table(str(folder / "list.csv"))


def jsonl(folder) -> Source:
    rows = []
    for k in range(N):
        save(folder / f"{k}.png", pixels(k))
        rows.append(json.dumps({"image": f"{k}.png", "words": said(k), "text": "no"}))
    (folder / "list.jsonl").write_text("\n".join(rows) + "\n")
    return Table(str(folder / "list.jsonl"), caption="words")


def data_set():
    import datasets

    images = [{"bytes": png(pixels(k)), "path": None} for k in range(N)]
    columns = {"image": images, "text": [said(k) for k in range(N)]}
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def parquet(folder) -> Source:
    from stepdistill.data.sources.parquet import Parquet

    data_set().select(range(5)).to_parquet(folder / "0.parquet", batch_size=2)
    data_set().select(range(5, N)).to_parquet(folder / "1.parquet", batch_size=3)
    return Parquet(str(folder), buffer=4)


def hub(folder) -> Source:
    from stepdistill.data.sources.hub import Hub

    data_set().save_to_disk(folder)
    return Hub(str(folder))


FORMS = {f.__name__: f for f in (metadata, lines, beside, archives, csv, jsonl, parquet, hub)}


@pytest.fixture(params=FORMS)
def form(request, tmp_path) -> Source:
    (tmp_path / "data").mkdir()
    return FORMS[request.param](tmp_path / "data")


def test_a_caption_is_that_of_its_picture(form):
    samples = form.open(Reader())
    images, asked = samples.rows(torch.arange(N))
    assert asked == [said(k) for k in shown(images)] and sorted(shown(images)) == [*range(N)]
    assert samples.asked() == asked
    some = samples.rows(torch.tensor([7, 2, 7]))
    assert some.asked == [said(k) for k in shown(some.images)]
    assert sorted(form.prompts()) == sorted(said(k) for k in range(N))


def test_what_is_held_out_is_among_no_prompts(form):
    shared = replace(form, held_out=0.4)
    kept, trained = shared.open_held_out(Reader()), shared.open(Reader())
    assert 0 < len(kept) < N and len(kept) + len(trained) == N
    assert shared.prompts() == trained.asked()
    assert not {*kept.asked()} & {*trained.asked()}
    images, asked = kept.rows(torch.arange(len(kept)))
    assert asked == [said(k) for k in shown(images)]


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (lines, lambda f: (f / "captions.txt").unlink(), "no captions: write metadata.jsonl"),
        (lines, lambda f: (f / "0.png").unlink(), "has 12 lines for 11 images"),
        (beside, lambda f: (f / "3.txt").unlink(), "3.txt is missing"),
        (beside, lambda f: (f / "note.txt").write_text("a"), "note.txt is no image"),
        (beside, lambda f: (f / "3.txt").write_text("x" * 10_001), "prompt 4 is no text"),
        (metadata, lambda f: (f / "some/4.png").unlink(), "4.png is missing"),
        (archives, lambda f: archives(f, "text"), "none of .*.txt"),
        (archives, lambda f: pack(f / "9.tar", {"a.png": png(pixels(0))}), "0 files .txt"),
        (csv, lambda f: (f / "list.csv").write_text("image,what\n0.png,a\n"), "no 'prompt' among"),
    ],
)
def test_what_is_missing_is_named_in_one_line(make, change, words, tmp_path):
    source = make(tmp_path)
    change(tmp_path)
    for look in (lambda: source.open(Reader()), source.prompts):
        with pytest.raises(ConfigError) as caught:
            look()
        assert re.search(words, str(caught.value)) and "\n" not in str(caught.value)
