"""Real images of any number: read in parts, what spaces say of them kept by content, and published
references.

Independent references: the same images in one tensor; NumPy's mean, covariance and archives.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from shelf import Looker, pixels, save
from torch import Tensor, nn

from stepdistill.data.sources.folder import Folder
from stepdistill.evaluation import summary as summaries
from stepdistill.evaluation.evaluate import Sampled, evaluate
from stepdistill.evaluation.features import classes
from stepdistill.evaluation.features import space as spaces
from stepdistill.evaluation.features.random_conv import RandomConv, random_conv
from stepdistill.evaluation.features.space import FeatureSpace
from stepdistill.evaluation.gallery import Gallery
from stepdistill.evaluation.kept import OnDisk
from stepdistill.evaluation.metric import Made
from stepdistill.evaluation.metrics import inception_score, kid
from stepdistill.evaluation.metrics.cmmd import mean_kernel
from stepdistill.evaluation.moments import Moments, frechet_distance
from stepdistill.evaluation.published import published
from stepdistill.evaluation.reference import Kind, NoneBrought, RealImages, Reference
from stepdistill.evaluation.report.outliers import outliers
from stepdistill.evaluation.suite import Suite, Unfit
from stepdistill.evaluation.summary import Summary, look, places, summary
from stepdistill.jobs.suites import Shape, brought, load
from stepdistill.schema import ConfigError

M, SIZE = 90, (3, 6, 4)
KIND = Kind(SIZE)
SPACE = random_conv(3)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder_of(place: Path, m: int = M, first: int = 0) -> Path:
    for i in range(m):
        save(place / f"{i}.png", pixels(first + i, 3, SIZE[1:]))
    return place


def gallery(folder: Path) -> Gallery:
    return Gallery(Folder(path=str(folder)).open(Looker(3, size=SIZE[1:])))


@pytest.fixture
def images(tmp_path) -> Gallery:
    return gallery(folder_of(tmp_path / "images"))


def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of the network sees from now on."""
    seen, forward = [], RandomConv.forward

    def counted(self, x):
        seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(RandomConv, "forward", counted)
    return seen


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("reference-*"))


# In parts


def test_a_gallery_stands_for_the_tensor_of_its_images(images):
    whole = torch.cat(list(images.split(M)))
    assert images.shape == tuple(whole.shape) == (M, *SIZE) and len(images) == M
    assert whole[7].equal(images[7]) and whole[7].equal(images[-M + 7])
    assert whole[5:40:3].equal(images[5:40:3])
    some = torch.tensor([3, 80, 3])
    assert whole[some].equal(images[some])
    parts = list(images.split(37))
    assert [len(part) for part in parts] == [37, 37, 16] and torch.cat(parts).equal(whole)


@pytest.mark.parametrize("batch", [7, 40, 500])
def test_what_is_added_up_in_chunks_is_that_of_the_whole(images, batch, monkeypatch):
    space = FeatureSpace("random-conv", SPACE.network, batch=batch)
    features = torch.cat([space(part) for part in images.split(batch)])
    alike = look(images, space)
    assert alike.rows.equal(features) and alike.mean is None
    assert alike.moments.scatter.equal(Moments.of(features, "").scatter)  # to the bit, as before
    monkeypatch.setattr(summaries, "MOST", 25)
    found = look(images, space)
    assert places(M).tolist() == [i * M // 25 for i in range(25)]
    assert found.rows.equal(features[places(M)])
    whole = Moments.of(features, space.identity)
    assert found.moments.n == M
    torch.testing.assert_close(found.moments.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.moments.scatter, whole.scatter, rtol=1e-10, atol=1e-12)


def test_the_same_images_in_a_tensor_score_the_same_to_the_bit(images):
    def scores(real: object) -> dict:
        sampler = Sampled("student", 1, 1, 0, SIZE, lambda z, asked, generator: z.clamp(-1, 1))
        rows = evaluate([sampler], suite_of(real), 20, 2, 0)
        return {row.model: row.scores for row in rows}

    assert scores(images) == scores(torch.cat(list(images.split(50))))


def test_large_images_are_looked_at_few_at_a_time(images, monkeypatch):
    expected = look(images, SPACE).rows
    monkeypatch.setattr(spaces, "VALUES", 10 * math.prod(SIZE))
    seen = looks(monkeypatch)
    torch.testing.assert_close(look(images, SPACE).rows, expected)
    assert seen == [10] * 9 and SPACE.at_once((3, 999, 999)) == 1


def suite_of(real: object) -> Suite:
    return load("folder", KIND, lambda: RealImages(real, None, "mine"))


def test_a_kernel_in_chunks_is_the_whole(monkeypatch):
    x = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = kid.kernel_within(x)
    monkeypatch.setattr(kid, "WHOLE", 10)
    monkeypatch.setattr(kid, "CHUNK", 13)
    assert kid.kernel_within(x) == pytest.approx(whole, rel=1e-12)


def test_rows_on_disk_are_those_that_were_added(monkeypatch):
    x = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    first, second = OnDisk(), OnDisk()
    for part in x[:40].split(9):
        first.add(part)
    second.add(x[40:])
    first.merge(second)
    assert len(first) == 70
    for size in (1, 9, 70, 100):
        assert torch.cat(list(first.split(size))).equal(x)
    assert mean_kernel(first, first, 2.0) == mean_kernel(x, x, 2.0)
    scores = inception_score.inception_scores(first, 4)
    assert scores == inception_score.inception_scores(x, 4)
    monkeypatch.setattr(inception_score, "CHUNK", 11)
    assert inception_score.inception_scores(first, 4) == pytest.approx(scores, rel=1e-12)


def test_the_nearest_real_image_is_found_among_those_that_are_compared(images, monkeypatch):
    monkeypatch.setattr(summaries, "MOST", 30)
    suite = suite_of(images)

    def copies(noise: Tensor, asked: object, generator: torch.Generator) -> Tensor:
        return images[places(M)[: len(noise)]]

    found = outliers(Sampled("student", 1, 1, 0, SIZE, copies), suite, 20, 0, "copies")
    said = suite.provenance["real images that are compared one by one"]
    assert said == "30 of 90, evenly spread"
    assert all(one.distance < 1e-6 and one.nearest.equal(one.image) for one in found.found)


def test_a_classifier_reads_images_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "STEPS", 5)
    for name, first in (("0", 0), ("1", 100)):
        folder_of(tmp_path / "two" / name, 12, first)
    samples = Folder(path=str(tmp_path / "two")).open(Looker(3, 2, SIZE[1:]))
    labels, held = samples.asked(), torch.cat(list(Gallery(samples).split(9)))
    nets = [classes.classifier(each, labels) for each in (Gallery(samples), held, Gallery(samples))]
    for net, right in nets[1:]:
        assert right == pytest.approx(nets[0][1])
        assert all(map(torch.equal, net.state_dict().values(), nets[0][0].state_dict().values()))


# Kept by content


def test_what_was_looked_at_once_is_not_looked_at_again(images, tmp_path, monkeypatch):
    monkeypatch.setattr(summaries, "MOST", 40)
    seen = looks(monkeypatch)
    first = summary(images, SPACE)
    assert sum(seen) == M + summaries.PROBED
    seen.clear()
    moved = gallery(shutil.copytree(tmp_path / "images", tmp_path / "elsewhere"))
    again = summary(moved, random_conv(3))
    assert sum(seen) == summaries.PROBED
    assert again.rows.equal(first.rows) and again.moments.scatter.equal(first.moments.scatter)
    assert again.moments.mean.equal(first.moments.mean) and again.moments.n == M


def test_a_second_evaluation_looks_at_no_real_image_again(images, monkeypatch):
    """Of all metrics together each image is looked at once; then at two, to know the network."""
    seen = looks(monkeypatch)
    suite_of(images)
    assert sum(seen) == M + summaries.PROBED
    seen.clear()
    suite_of(images)
    assert sum(seen) == summaries.PROBED


class Twice(nn.Module):
    """A network without weights, as one that its user edits."""

    factor = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.flatten(1)


def test_another_picture_space_or_network_is_another_entry(images, tmp_path, monkeypatch):
    space = FeatureSpace("mine", Twice())
    assert summary(images, space).rows.equal(2 * torch.cat(list(images.split(9))).flatten(1))
    monkeypatch.setattr(Twice, "factor", 3)  # the same name, and no weights that could tell
    assert summary(images, space).rows.equal(3 * torch.cat(list(images.split(9))).flatten(1))
    summary(images, SPACE)
    save(tmp_path / "images" / "80.png", pixels(1000, 3, SIZE[1:]))
    changed = gallery(tmp_path / "images")
    assert summary(changed, SPACE).rows[-10:].equal(SPACE(changed[-10:]))
    assert len(cached(tmp_path)) == 4


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def narrow(file: Path) -> None:
    summaries.keep(Summary("", M, torch.zeros(M, 7)), file)


def foreign(file: Path) -> None:
    summaries.save_whole(file, {"rows": torch.zeros(40, 288), "other": torch.zeros(1)})


def lacking(file: Path) -> None:
    summaries.save_whole(file, {"rows": torch.zeros(40, 288)})


@pytest.mark.parametrize("damage", [halved, narrow, foreign, lacking, lambda f: f.write_text("")])
def test_a_damaged_entry_is_made_again(images, tmp_path, damage, monkeypatch):
    monkeypatch.setattr(summaries, "MOST", 40)
    first = summary(images, SPACE)
    (file,) = cached(tmp_path)
    damage(file)
    again = summary(images, SPACE)
    assert again.rows.equal(first.rows) and again.moments.scatter.equal(first.moments.scatter)
    assert again.tensors.keys() == summaries.known(file, images, SPACE).tensors.keys()


def test_where_nothing_can_be_kept_everything_is_looked_at(images, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert summary(images, SPACE).rows.equal(look(images, SPACE).rows)
    monkeypatch.setattr(summaries, "cache_folder", lambda: None)
    assert summary(images, SPACE).m == M


def test_what_is_in_memory_is_not_kept(images, tmp_path):
    summary(images[:], SPACE)
    assert not cached(tmp_path)


def test_too_wide_features_have_rows_alone(images, monkeypatch):
    monkeypatch.setattr(summaries, "MOST", 40)
    monkeypatch.setattr(summaries, "WIDEST", 200)
    found = summary(images, SPACE)
    assert found.rows.equal(summary(images, SPACE).rows) and len(found.rows) == 40
    with pytest.raises(ValueError, match="too wide"):
        _ = found.moments


# Published


def bytes_of(images: Gallery) -> np.ndarray:
    """(m, h, w, c) as an archive has them."""
    return ((images[:] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def bring(file: Path, classes: int | None = None) -> Callable:
    return brought(str(file), None, Shape(SIZE[1:], Kind(SIZE), classes))


def statistics_of(images: Gallery) -> dict[str, np.ndarray]:
    features = SPACE(images[:]).double().numpy()
    return {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_images_of_a_published_file_are_those_of_the_folder(images, tmp_path, write):
    write(
        tmp_path / "batch.npz", bytes_of(images), np.arange(M) % 3, mu=np.zeros(9), sigma=np.eye(9)
    )
    for count in (None, 3):
        real = bring(tmp_path / "batch.npz", count)()
        assert real.images[:].equal(images[:]) and real.images[5].equal(images[5])
        assert (real.labels is None) == (count is None)
    assert real.labels.tolist() == [i % 3 for i in range(M)]
    assert f"{M} images" in real.about
    with pytest.raises(ConfigError, match=r"batch.npz: labels 0 … 2, not 0 … 1"):
        bring(tmp_path / "batch.npz", 2)()


def suite(tmp_path: Path, real: Callable, statistics: str = "random-conv") -> Suite:
    (tmp_path / "mine.yaml").write_text(f"""
task: folder
settings: {{statistics: {statistics}}}
metrics:
  - {{name: frechet, settings: {{space: random-conv}}}}
  - {{name: fid_infinity, settings: {{space: random-conv}}}}
  - {{name: kid, settings: {{space: random-conv}}}}
  - {{name: pixels, metric: frechet, settings: {{space: pixels}}}}
  - {{name: patch_frechet, settings: {{space: random-conv, crop: 4}}}}
headline: [frechet]
""")
    return load(str(tmp_path / "mine.yaml"), KIND, real)


def test_statistics_alone_give_the_distance_that_the_images_give(images, tmp_path):
    np.savez(tmp_path / "stats.npz", **statistics_of(images), n=M)
    found = suite(tmp_path, bring(tmp_path / "stats.npz"))
    assert [metric.name for metric in found.metrics] == ["frechet", "fid_infinity"]
    assert found.skipped.keys() == {"kid", "pixels", "patch_frechet"}
    assert all("stats.npz holds statistics alone" in why for why in found.skipped.values())
    made = Made(images[:40].flip(0, 2), None, None, found.reference)
    fresh = found.metrics[0].fresh()
    fresh.update(made)
    theirs = Moments.of(SPACE(made.images), SPACE.identity)
    expected = frechet_distance(summary(images, SPACE).moments, theirs)
    assert fresh.compute() == [pytest.approx(expected, rel=1e-6)]  # few images, so roots of zero
    said = found.provenance
    assert "stats.npz, SHA-256" in said["reference"]
    assert (
        said["statistics of the reference"]
        == f"mean and covariance (n = {M}), taken for random-conv"
    )


def test_statistics_beside_images_are_taken_only_where_a_suite_says_whose_they_are(
    images, tmp_path
):
    """In ADM's batches they are of more images than lie there."""
    far = {"mu": np.full(288, 7.0), "sigma": np.eye(288)}
    np.savez(tmp_path / "batch.npz", bytes_of(images), **far)
    real = bring(tmp_path / "batch.npz")
    taken, left = suite(tmp_path, real).reference, suite(tmp_path, real, "null").reference
    assert taken.moments("random-conv").mean.tolist() == [7.0] * 288
    assert left.moments("random-conv").mean.equal(summary(images, SPACE).moments.mean)
    assert taken.features("random-conv").equal(left.features("random-conv"))
    assert "of a space that nobody names" in left.provenance["statistics of the reference"]
    assert not suite(tmp_path, real).skipped


def test_statistics_of_another_width_are_refused_before_anything_is_made(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(
        Unfit, match=r"stats.npz: statistics of 64 numbers, not the 288 of random-conv"
    ):
        suite(tmp_path, bring(tmp_path / "stats.npz"))
    with pytest.raises(Unfit, match="of a space that nobody names"):
        load("folder", KIND, bring(tmp_path / "stats.npz"))


def test_classes_that_no_file_tells_apart_are_asked_for_equally_often(images, tmp_path):
    np.savez(tmp_path / "batch.npz", bytes_of(images))
    found = load("folder", Kind(SIZE, 3), bring(tmp_path / "batch.npz", 3))
    assert found.reference.asked(9).tolist() == [0, 1, 2] * 3
    assert found.skipped.keys() == {"frechet", "accuracy"}


def test_images_of_another_size_are_refused(images, tmp_path):
    np.savez(tmp_path / "batch.npz", bytes_of(images))
    with pytest.raises(Unfit, match=r"the real images are \(3, 6, 4\)"):
        load("folder", Kind((3, 8, 8)), bring(tmp_path / "batch.npz"))


SQUARE = np.eye(4)
PICTURES = np.zeros((3, 6, 4, 3), np.uint8)
DAMAGED = {
    "no covariance": {"mu": np.zeros(4)},
    "nothing known": {"other": SQUARE},
    "objects": {"mu": np.array([{}], object), "sigma": SQUARE},
    "another width": {"mu": np.zeros(5), "sigma": SQUARE},
    "not square": {"mu": np.zeros(4), "sigma": np.zeros((4, 5))},
    "not finite": {"mu": np.full(4, np.nan), "sigma": SQUARE},
    "not symmetric": {"mu": np.zeros(4), "sigma": np.triu(np.ones((4, 4)))},
    "negative": {"mu": np.zeros(4), "sigma": -SQUARE},
    "too wide": {"mu": np.zeros(9000), "sigma": SQUARE},
    "texts": {"mu": np.array(["a"] * 4), "sigma": SQUARE},
    "floats": {"arr_0": PICTURES.astype(np.float32)},
    "flat": {"arr_0": PICTURES[0]},
    "none": {"arr_0": PICTURES[:0]},
    "columns first": {"arr_0": np.asfortranarray(PICTURES)},
    "pickled images": {"arr_0": np.array([{}], object)},
    "too few labels": {"arr_0": PICTURES, "arr_1": np.zeros(2, int)},
    "labels of other kinds": {"arr_0": PICTURES, "arr_1": np.zeros(3)},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_reference_is_refused_in_a_line(tmp_path, name):
    file = tmp_path / "wrong.npz"
    np.savez(file, **DAMAGED[name])
    with pytest.raises(
        ConfigError, match=r"wrong\.npz: (no readable \.npz|holds neither)"
    ) as error:
        published(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_bytes_anywhere_are_refused(images, tmp_path, write):
    file = tmp_path / "batch.npz"
    write(file, bytes_of(images))
    content = file.read_bytes()
    for place in (27, 200, len(content) // 2):  # a length, and images
        file.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with pytest.raises(ConfigError, match=r"batch\.npz: no readable"):
            published(file)
    for end in (0, 100, len(content) // 2, len(content) - 10):
        file.write_bytes(content[:end])
        with pytest.raises(ConfigError, match=r"batch\.npz: no readable"):
            published(file)
    with pytest.raises(ConfigError, match=r"no\.npz: no readable"):
        published(tmp_path / "no.npz")


def test_a_wrong_reference_is_not_none(tmp_path):
    """Prompts do without real images, but not without those that the user names."""
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    kind, prompts = Kind(SIZE, prompts=True), str(tmp_path / "prompts.txt")
    with pytest.raises(Unfit, match="not a readable folder"):
        load("prompts", kind, bring(tmp_path / "nowhere"), prompts)
    with pytest.raises(NoneBrought, match="--reference DIR"):
        brought(None, None, Shape(SIZE[1:], kind, None))()
    assert isinstance(Reference(SIZE).provenance["reference"], str)
