"""What every source of images keeps to: one body a rule, over the same twelve pictures in each form
that a source reads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from shelf import FORMS, NAMES, Looker, N, pixels, shown

from stepdistill.data.loader import Drawn, InMemory, Loader, Rows, Source, stream
from stepdistill.resources import named, shipped_modules
from stepdistill.schema import ConfigError


def test_every_source_of_images_is_among_the_forms(tmp_path):
    kinds = {named("data.sources", name, Source) for name in shipped_modules("data.sources")}
    made = set()
    for name, form in FORMS.items():
        (tmp_path / name).mkdir()
        made.add(type(form(tmp_path / name)))
    drawn = {"Digits", "ShapesClasses", "Shapes"}
    assert {kind.__name__ for kind in kinds - made} == drawn and made < kinds


@pytest.fixture(params=FORMS)
def form(request, tmp_path) -> Source:
    """A source of the same twelve pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    return FORMS[request.param](folder)


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


def held_out(source: Source, teacher: Looker) -> Rows:
    samples = source.open_held_out(teacher)
    return samples.rows(torch.arange(len(samples)))


def test_what_is_held_out_is_never_trained_on(form):
    shared = replace(form, held_out=0.4)
    kept = held_out(shared, Looker(1, 3))
    trained = shared.open(Looker(1, 3))
    images, labels = trained.rows(torch.arange(len(trained)))
    apart, rest = shown(kept.images), shown(images)
    assert sorted(apart + rest) == [*range(N)] and 0 < len(apart) < len(rest) + 6
    assert kept.asked.tolist() == [k % 3 for k in apart]
    assert labels.tolist() == [k % 3 for k in rest]
    again = held_out(shared, Looker(1, 3))
    assert torch.equal(again.images, kept.images)
    changed = replace(shared, crop="random", flip=True, size=8)
    assert len(held_out(changed, Looker(1, 3)).images) == len(apart)
    assert torch.equal(held_out(changed, Looker()).images, held_out(changed, Looker()).images)
    others = {
        tuple(shown(held_out(replace(shared, held_out_seed=s), Looker(1, 3)).images))
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
    source = replace(form, size=8, crop="random", flip=True, held_out=0.2)
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


def test_nothing_is_copied_unasked(form, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    before = {path.name for path in tmp_path.rglob("*")}
    form.open(Looker(1, 3)).rows(torch.arange(N))
    assert {path.name for path in tmp_path.rglob("*")} == before


def test_what_is_asked_and_a_digest_are_those_of_all(form, tmp_path):
    """A digest is of the content: no file's place, no other picture has the same."""
    samples = form.open(Looker(1, 3))
    assert samples.asked().equal(samples.rows(torch.arange(N)).asked)
    assert form.open(Looker()).asked() is None
    assert samples.digest() == form.open(Looker(1, 3)).digest()
    assert samples.digest() != replace(form, size=8).open(Looker(1, 3)).digest()
    plain = InMemory(samples.rows(torch.arange(N)).images, None)
    fewer = InMemory(plain.images[1:], None)
    assert plain.digest() == InMemory(plain.images.clone(), None).digest() != fewer.digest()
