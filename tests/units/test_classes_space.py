"""The classifier of a reference's own classes, its cache, and what suites leave out without one.

Mutations that must each fail a test here: a cache that does not look at the labels; a damaged file
that stops an evaluation; an optional metric that is demanded.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepdistill.data.shapes import Scenes
from stepdistill.evaluation.features import classes
from stepdistill.evaluation.reference import Kind, RealImages, Reference
from stepdistill.evaluation.suite import Unfit
from stepdistill.evaluation.suites.folder import as_often
from stepdistill.jobs.suites import load

KIND = Kind((3, 16, 16), 2)


def pictures(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Red circles and blue squares, one of the second to three of the first."""
    labels = (torch.arange(n) % 4 == 0).long()
    scenes = Scenes.drawn(labels * 25, torch.Generator().manual_seed(0))
    return scenes.images(16, 16), labels


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(classes, "STEPS", 30)
    return tmp_path / "stepdistill"


def test_it_tells_classes_apart_and_is_kept(cache, monkeypatch):
    images, labels = pictures()
    net, right = classes.classifier(images, labels)
    assert right == 1 and torch.equal(net(images).argmax(1), labels)
    monkeypatch.setattr(classes, "fit", None)  # nothing is trained again
    again, known = classes.classifier(images, labels)
    assert known == right and torch.equal(again(images), net(images))
    assert len([*cache.iterdir()]) == 1


def test_the_cache_goes_by_content(cache):
    images, labels = pictures()
    classes.classifier(images, labels)
    classes.classifier(images, 1 - labels)
    classes.classifier(images.flip(0), labels)
    assert len([*cache.iterdir()]) == 3


def test_a_damaged_or_unwritable_cache_is_no_obstacle(cache):
    images, labels = pictures()
    net, _ = classes.classifier(images, labels)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    again, _ = classes.classifier(images, labels)
    assert torch.equal(again(images), net(images))
    file.unlink()
    cache.rmdir()
    cache.write_text("a file where a folder should be")
    classes.classifier(images, labels)


def test_without_enough_of_each_class_there_is_no_space():
    images, labels = pictures(16)
    for given in (None, torch.zeros(16, dtype=torch.long), labels):
        with pytest.raises(ValueError, match="classes"):
            classes.ClassesSpace.of(Reference((3, 16, 16), images=images, labels=given))


def test_a_folder_suite_measures_against_what_is_brought():
    images, labels = pictures(80)
    suite = load("folder", KIND, lambda: RealImages(images, labels, "mine"))
    names = [metric.name for metric in suite.metrics]
    assert {"frechet", "frechet_random", "accuracy"} <= {*names}
    assert suite.headline == ("frechet", "frechet_random")
    assert suite.provenance["reference"] == "mine"
    assert suite.reference.asked(8).tolist() == [0] * 6 + [1] * 2
    assert suite.reference.reader.read(suite.reference.features("classes")).equal(labels)
    without = load("folder", Kind(KIND.size), lambda: RealImages(images, None, "mine"))
    assert without.headline == ("frechet_random",) and without.reference.asked(8) is None
    assert {*names} - {m.name for m in without.metrics} == {"frechet", "accuracy"}


def test_a_folder_suite_refuses_what_it_cannot_measure():
    images, labels = pictures(80)
    with pytest.raises(Unfit, match="--reference DIR"):
        load("folder", KIND)
    with pytest.raises(Unfit, match=r"\(3, 16, 16\)"):
        load("folder", replace(KIND, size=(3, 8, 8)), lambda: RealImages(images, labels, ""))


def test_labels_are_asked_for_as_often_as_there_are():
    labels = torch.tensor([2] * 30 + [0] * 60 + [1] * 10)
    assert as_often(labels, 10, None).tolist() == [0] * 6 + [1] + [2] * 3
    drawn = as_often(labels, 1000, torch.Generator().manual_seed(0))
    assert drawn.bincount().tolist() == [600, 100, 300]
    assert drawn[:100].unique().tolist() == [0, 1, 2]
