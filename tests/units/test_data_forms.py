"""Sources of images in archives, tables, Parquet and data sets: pictures and labels as they lie
there, and what is unfit named in one line."""

import json
import tarfile
from collections.abc import Callable, Sequence
from itertools import chain, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from shelf import Looker, pack, pixels, png, save, shards

from stepdistill.data.loader import Drawn, Loader, Source, held_out, stream, windowed
from stepdistill.data.sources.folder import Folder
from stepdistill.data.sources.table import Table
from stepdistill.data.sources.webdataset import WebDataset
from stepdistill.schema import ConfigError

N, NAMES = 12, ("ape", "cat", "dog")


def in_folder(folder: Path) -> Source:
    for k in range(N):
        save(folder / NAMES[k % 3] / f"{k}.png", pixels(k))
    return Folder(str(folder))


def in_archives(folder: Path) -> Source:
    shards(folder, (5, 4, 3))
    return WebDataset(str(folder), classes=NAMES)


def in_csv(folder: Path) -> Source:
    lines = ["file,animal"]
    for k in range(N):
        save(folder / "pictures" / f"{k}.png", pixels(k))
        lines.append(f"pictures/{k}.png,{NAMES[k % 3]}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return Table(str(folder / "list.csv"), image="file", label="animal")


def in_json(folder: Path) -> Source:
    lines = []
    for k in range(N):
        save(folder / f"{k}.png", pixels(k))
        lines.append(json.dumps({"image": f"{k}.png", "label": k % 3}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return Table(str(folder / "list.jsonl"), classes=NAMES)


def data_set():
    import datasets

    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    images = [{"bytes": png(pixels(k)), "path": None} for k in range(N)]
    columns = {"image": images, "label": [k % 3 for k in range(N)]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def in_parquet(folder: Path) -> Source:
    from stepdistill.data.sources.parquet import Parquet

    whole = data_set()
    whole.select(range(5)).to_parquet(folder / "0.parquet", batch_size=2)
    whole.select(range(5, N)).to_parquet(folder / "1.parquet", batch_size=3)
    return Parquet(str(folder), buffer=4)


def in_data_set(folder: Path) -> Source:
    from stepdistill.data.sources.hub import Hub

    data_set().save_to_disk(folder)
    return Hub(str(folder))


FORMS = {
    "folder": in_folder,
    "webdataset": in_archives,
    "csv": in_csv,
    "jsonl": in_json,
    "parquet": in_parquet,
    "hub": in_data_set,
}


@pytest.fixture(params=FORMS)
def form(request, tmp_path) -> tuple[Source, Callable[..., Source]]:
    """A source of the same twelve pictures, and a way to give it other settings."""
    folder = tmp_path / "data"
    folder.mkdir()
    return FORMS[request.param](folder)


def asked(source: Source, **settings: object) -> Source:
    from dataclasses import replace

    return replace(source, **settings)


def shown(pictures: torch.Tensor) -> list[int]:
    """Which of the twelve pictures these are."""
    known = {pixels(k).tobytes(): k for k in range(N)}
    return [known[((p[0] + 1) * 127.5).round().byte().numpy().tobytes()] for p in pictures]


def test_pixels_and_labels_are_what_lies_there(form):
    samples = form.open(Looker(1, 3))
    assert len(samples) == N and samples.names == NAMES
    images, labels = samples.rows(torch.arange(N))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    numbers = shown(images)
    assert sorted(numbers) == [*range(N)] and labels.tolist() == [k % 3 for k in numbers]
    k = numbers.index(7)
    assert np.array_equal(images[k, 0].numpy(), pixels(7) / np.float32(127.5) - 1)
    again = samples.rows(torch.tensor([k, 0, k]))
    assert torch.equal(again.images, images[[k, 0, k]])


def test_without_classes_there_are_no_labels(form):
    samples = form.open(Looker())
    images, labels = samples.rows(torch.arange(N))
    assert labels is None and samples.names == () and sorted(shown(images)) == [*range(N)]


def test_other_numbers_of_classes_are_refused(form):
    for classes in (2, 4):
        with pytest.raises(ConfigError, match=f"3 .* for the teacher's {classes}"):
            form.open(Looker(1, classes))


def test_what_is_held_out_is_never_trained_on(form):
    shared = asked(form, held_out=0.4)
    kept = held_out(shared, Looker(1, 3))
    trained = shared.open(Looker(1, 3))
    images, labels = trained.rows(torch.arange(len(trained)))
    apart, rest = shown(kept.images), shown(images)
    assert sorted(apart + rest) == [*range(N)] and 0 < len(apart) < len(rest) + 6
    assert kept.asked.tolist() == [k % 3 for k in apart]
    assert labels.tolist() == [k % 3 for k in rest]
    again = held_out(shared, Looker(1, 3))
    assert torch.equal(again.images, kept.images)
    changed = asked(shared, crop="random", flip=True, size=8)
    assert len(held_out(changed, Looker(1, 3)).images) == len(apart)
    assert torch.equal(held_out(changed, Looker()).images, held_out(changed, Looker()).images)
    others = {
        tuple(shown(held_out(asked(shared, held_out_seed=s), Looker(1, 3)).images))
        for s in range(4)
    }
    assert len(others) > 1
    with pytest.raises(ConfigError, match=r"settings\.held_out: no images are kept"):
        form.open_held_out(Looker(1, 3))


def test_a_walk_meets_each_picture_once_each_time_round(form):
    samples = form.open(Looker(1, 3))
    walk = samples.walk(0, 3 * N, seed=2)
    rounds = [walk[k * N : (k + 1) * N].tolist() for k in range(3)]
    assert all(sorted(each) == [*range(N)] for each in rounds)
    assert len({tuple(each) for each in rounds}) == 3
    for first in (0, 3, N - 1, 2 * N - 5):
        assert samples.walk(first, 7, seed=2).tolist() == walk[first : first + 7].tolist()
    assert samples.walk(0, 3 * N, seed=3).tolist() != walk.tolist()


def batches(source: Source, numbers: Sequence[int], seed: int = 0) -> list[Drawn]:
    """Batches of five by a loader that was asked for no others."""
    teacher = Looker(1, 3)
    loader = Loader(source.open(teacher), teacher, seed=seed)
    return [loader.batch(number, 5, stream(seed, 1, number)) for number in numbers]


def test_a_run_that_was_killed_anywhere_sees_the_same_samples_bit_for_bit(form):
    """Also the same cuts and mirrored pictures, whatever the process drew before."""
    source = asked(form, size=8, crop="random", flip=True, held_out=0.2)
    whole = batches(source, range(12))
    assert any(not torch.equal(whole[0].x0, other.x0) for other in whole[1:])
    for killed in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10):
        torch.rand(killed)
        for seen, expected in zip(batches(source, (killed, killed + 1)), whole[killed:]):
            assert torch.equal(seen.x0, expected.x0)
            assert torch.equal(seen.cond["label"], expected.cond["label"])


def test_two_processes_share_one_walk(form):
    """Each takes every second micro-batch; together they see what one sees."""
    alone = batches(form, range(8))
    first, second = batches(form, range(0, 8, 2)), batches(form, range(1, 8, 2))
    together = [drawn for pair in zip(first, second) for drawn in pair]
    assert all(torch.equal(a.x0, b.x0) for a, b in zip(alone, together))
    seen = shown(torch.cat([drawn.x0 for drawn in together])[:N])
    assert sorted(seen) == [*range(N)]


@pytest.mark.parametrize("window", [1, 3, 5, 100])
def test_a_stream_reads_its_shards_in_order(window):
    """In one order a round, of which each window is shuffled; against one walked step by step."""
    lengths, begins = (5, 0, 4, 3), (0, 5, 5, 9)
    found = windowed(lengths, window, 0, 40 * N, seed=1).reshape(40, N).tolist()
    orders, within = set(), set()
    for walk in found:
        runs = [range(b, b + n) for b, n in zip(begins, lengths) if n]
        fitting = [
            order
            for order in permutations(runs)
            if all(
                sorted(walk[w : w + window]) == sorted([*chain(*order)][w : w + window])
                for w in range(0, N, window)
            )
        ]
        assert fitting
        orders.add(fitting[0])
        within.add(tuple(walk))
    assert window == 100 or len(orders) == 6
    assert (len(within) == 6) == (window == 1)


def test_a_stream_holds_nothing_in_memory(tmp_path):
    shards(tmp_path, (5, 4, 3))
    assert WebDataset(str(tmp_path), streaming=True).open(Looker()).pixels is None
    assert len(WebDataset(str(tmp_path)).open(Looker()).pixels) == N


# What is unfit.


def said(source: Source, teacher: Looker | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        samples = source.open(teacher or Looker(1, 3))
        samples.rows(torch.arange(len(samples)))
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500
    return message


def member(name: str, content: bytes = b"x") -> dict[str, bytes]:
    return {"0.png": png(pixels(0)), "0.cls": b"0", name: content}


ARCHIVES = {
    "none of .png": member("1.pkl"),
    "1.pth": member("1.pth"),
    "0 images in one sample": member("1.cls"),
    "2 images in one sample": member("0.jpg"),
    "0 files .cls beside it": member("1.png", png(pixels(1))),
    "label 'x': not among ape": member("1.png", png(pixels(1))) | {"1.cls": b"x"},
    "a label of 5000 bytes": {"0.png": png(pixels(0)), "0.cls": b"1" * 5000},
    "00000.tar: 1.png: unreadable or damaged": member("1.png", png(pixels(1))[:60])
    | {"1.cls": b"1"},
    "holds no images": {},
}


@pytest.mark.parametrize("words", ARCHIVES)
def test_an_unfit_archive_is_named(words, tmp_path):
    pack(tmp_path / "00000.tar", ARCHIVES[words])
    message = said(WebDataset(str(tmp_path), classes=NAMES))
    assert words in message and str(tmp_path / "00000.tar") in message


@pytest.mark.parametrize("keep", [0, 100, 600, 2000, 5000, 9000, 15_000])
def test_an_archive_that_was_cut_off_is_named(keep, tmp_path):
    shards(tmp_path, (6,))
    file = tmp_path / "00000.tar"
    assert file.stat().st_size > 15_000 or keep == 15_000
    file.write_bytes(file.read_bytes()[: min(keep, 6 * 2048 - 512)])
    assert str(file) in said(WebDataset(str(tmp_path)))


def test_damage_in_the_middle_of_an_archive_is_seen(tmp_path):
    """tarfile itself ends without a word at a damaged header, and between two strung together."""
    shards(tmp_path, (6,))
    file = tmp_path / "00000.tar"
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * 512 + whole[4608:])
    with tarfile.open(file) as archive:
        assert len(archive.getnames()) < 12
    assert "damaged or cut off after 4096 bytes" in said(WebDataset(str(tmp_path)))
    file.write_bytes(whole + whole)
    assert "damaged or cut off" in said(WebDataset(str(tmp_path)))


def test_links_in_archives_and_packed_ones_are_refused(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "a link or device" in said(WebDataset(str(tmp_path / "0.tar")))
    with tarfile.open(tmp_path / "0.tar", "w:gz") as archive:
        archive.add(__file__, "0.png")
    assert "not a whole tar archive" in said(WebDataset(str(tmp_path / "0.tar")))
    (tmp_path / "1.tar.gz").write_bytes(b"")
    assert "not an archive (.tar)" in said(WebDataset(str(tmp_path)))


TABLES = {
    "list.csv: line 2: {0}/gone.png: no such file": "image,label\ngone.png,0\n",
    "settings.image: {0}/list.csv: line 2: no 'image' among 'file', 'label'": "file,label\na,0\n",
    "settings.label: {0}/list.csv: line 2: no 'label' among 'image'": "image\n0.png\n",
    "line 3: not as many values as columns": "image,label\n0.png,0\n0.png\n",
    "line 2: label '': needs a text": "image,label\n0.png,\n",
    "lists no images": "image,label\n",
    "label 'x': not among ape": "image,label\n0.png,0\n0.png,x\n",
}


@pytest.mark.parametrize("words", TABLES)
def test_an_unfit_table_is_named(words, tmp_path):
    save(tmp_path / "0.png", pixels(0))
    (tmp_path / "list.csv").write_text(TABLES[words])
    message = said(Table(str(tmp_path / "list.csv"), classes=NAMES))
    assert words.format(tmp_path) in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"image": "0.png", "label": true}', "label True: needs a text"),
        ('{"image": "0.png", "label": 3}', "label 3: not among"),
        ('{"image": "0.png", "label": -1}', "label -1: not among"),
        ('{"image": 5, "label": 0}', "image 5: needs a text"),
        ('{"image": "0.png"', "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[1]", "line 1: needs keys"),
        ("\x80", "unreadable"),
    ],
)
def test_unfit_json_lines_are_named(text, words, tmp_path):
    save(tmp_path / "0.png", pixels(0))
    (tmp_path / "list.jsonl").write_bytes(text.encode("latin-1"))
    assert words in said(Table(str(tmp_path / "list.jsonl")))


def test_tables_are_csv_or_json_lines(tmp_path):
    (tmp_path / "list.txt").write_text("image")
    for name in ("list.txt", "none.csv", "."):
        assert "not a .csv or .jsonl file" in said(Table(str(tmp_path / name)))


def test_unfit_parquet_is_named(tmp_path):
    from stepdistill.data.sources.parquet import Parquet

    in_parquet(tmp_path)
    file = tmp_path / "1.parquet"
    whole = file.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:keep])
        assert f"{file}: not a whole Parquet file" in said(Parquet(str(tmp_path)))
    file.write_bytes(whole[:4] + bytes(len(whole) - 400) + whole[-396:])
    assert str(file) in said(Parquet(str(tmp_path)))
    file.write_bytes(whole)
    other = Parquet(str(tmp_path), image="picture")
    assert "settings.image: " in said(other) and "no 'picture' among 'image', 'label'" in said(
        other
    )
    assert "holds no bytes of an image" in said(Parquet(str(tmp_path), image="label"))
    file.with_name("notes.txt").write_text("x")
    assert "notes.txt: not a table (.parquet)" in said(Parquet(str(tmp_path)))


def test_parquet_holds_no_more_than_its_buffer(tmp_path):
    source = asked(in_parquet(tmp_path), buffer=2)
    samples = source.open(Looker())
    walked = [samples.rows(samples.walk(k, 1, 0)).images for k in range(N)]
    assert sorted(shown(torch.cat(walked))) == [*range(N)]
    assert sum(map(len, samples.stored.recent.values())) <= 2 * 2 + 2 * 3


def test_a_data_set_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    from stepdistill.data.sources import hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "neither a folder nor to be had" in said(hub.Hub("someone/pictures"))
    cached = hub.Hub("someone/pictures", cache=str(tmp_path / "cache"))
    assert "someone/pictures: cannot be loaded" in said(cached)
    (tmp_path / "empty").mkdir()
    assert "empty: cannot be loaded" in said(hub.Hub(str(tmp_path / "empty")))


def test_no_copy_is_made_without_its_size_and_place(monkeypatch):
    from stepdistill.data.sources import hub

    class Api:
        def dataset_info(self, name, files_metadata):
            files = [type("File", (), {"size": size}) for size in (2_000_000, 500_000, None)]
            return type("Info", (), {"siblings": files})

    monkeypatch.setattr(hub, "HfApi", Api)
    message = said(hub.Hub("someone/pictures"))
    assert message.startswith("settings.cache: someone/pictures: 2.5 MB would be downloaded")


def test_nothing_is_copied_unasked(form, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = {path.name for path in tmp_path.rglob("*")}
    form.open(Looker(1, 3)).rows(torch.arange(N))
    assert {path.name for path in tmp_path.rglob("*")} == before
