"""What a suite fixes, where an evaluation departs from it, and numbers that do not compare."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from stepdistill.data import resize as resizing
from stepdistill.data.prompts import Prompt
from stepdistill.data.sources import digits
from stepdistill.evaluation.collection import save
from stepdistill.evaluation.differences import difference, winner
from stepdistill.evaluation.evaluate import Sampled, evaluate
from stepdistill.evaluation.features.space import FeatureSpace
from stepdistill.evaluation.metrics.feature_variance import FeatureVariance
from stepdistill.evaluation.metrics.fid_infinity import FIDInfinity
from stepdistill.evaluation.metrics.frechet import Frechet
from stepdistill.evaluation.metrics.kid import KID
from stepdistill.evaluation.metrics.lpips_diversity import as_saved
from stepdistill.evaluation.metrics.precision import Precision
from stepdistill.evaluation.metrics.recall import Recall
from stepdistill.evaluation.metrics.saturation import Saturation
from stepdistill.evaluation.numerals import span
from stepdistill.evaluation.protocol import Procedure, own, protocols
from stepdistill.evaluation.reference import Kind, Reference, evenly
from stepdistill.evaluation.report.hub import FOLDER, said, write_results
from stepdistill.evaluation.report.report import Report, read_results, write_report
from stepdistill.evaluation.rows import Row, Score
from stepdistill.evaluation.suite import Dataset, Suite, SuiteSettings, Unfit, of_each
from stepdistill.evaluation.suite import MetricSettings as Named
from stepdistill.evaluation.suites.prompts import Prompts, digest_of
from stepdistill.jobs.suites import brought, load, nothing_brought, parts, require, shape_of
from stepdistill.schema import ConfigError

SIZE = (3, 8, 8)
PROMPTS = [f"prompt {i}" for i in range(20)]
CATEGORIES = {p: ("even",) if i % 2 == 0 else ("odd",) for i, p in enumerate(PROMPTS)}
ASKED = Procedure(20, 2, 7)


def settings(**given) -> SuiteSettings:
    return SuiteSettings("prompts", [], (), **given)


def suite_of(said: SuiteSettings | None = None, real: bool = True) -> Suite:
    """Two metrics over all, and one of them in each of two categories."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(40, *SIZE, generator=rng) * 2 - 1 if real else None
    groups = ["even", "odd"] * 20 if real else None

    def ask(n, generator):
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        return [PROMPTS[i % 20] for i in order.tolist()]

    reference = Reference(SIZE, ask, images, categories=CATEGORIES, groups=groups, about="noise")
    found = []
    for metric in (Frechet("pixels"), Saturation()):
        metric.name = "fd" if isinstance(metric, Frechet) else "saturation"
        each = Named(metric.name, each="category", table="by kind")
        found += [metric, *of_each(metric, each, reference)]
    for metric in found:
        metric.open(reference.within(metric.category))
    found[0].table = found[3].table = ""
    return Suite("kinds", reference, tuple(found), ("fd",), 8, said or settings())


def noisy(shift: float | None, source: str = "a") -> Sampled:
    def sample(noise, asked, generator):
        if shift is None:
            return noise.tanh()
        odd = torch.tensor([shift if int(p.split()[1]) % 2 else 0.0 for p in asked])
        return (noise.tanh() + odd[:, None, None, None]).clamp(-1, 1)

    return Sampled("student", 1, 1, 0, SIZE, sample, source)


def rows_in(tmp_path, name: str, suite: Suite, asked: Procedure, shift: float | None = 0.0):
    """Rows as they are read again from a file."""
    rows = evaluate([noisy(shift, name)], suite, asked.n, asked.blocks, asked.seed)
    made = Report(name, rows, suite, {}, protocol=protocols(suite, asked, "v"))
    write_report(tmp_path / name, made)
    return read_results(tmp_path / name / "results.json")


def test_a_category_is_scored_by_its_own_images_alone():
    """What is shifted in odd prompts alone shows there, and even ones are as without it."""
    suite = suite_of()
    (plain, _), (shifted, _) = (evaluate([noisy(s)], suite, 20, 2, 0) for s in (0.0, 0.6))
    assert plain.value("fd even") == shifted.value("fd even")
    assert shifted.value("fd odd") > 1.1 * plain.value("fd odd")
    assert [m.heading for m in suite.metrics if m.table == "by kind"] == ["even", "odd"] * 2
    by_hand = []
    whole = Frechet("pixels")
    real = suite.reference.within("odd")
    assert len(real.images) == 20
    whole.open(real)
    for block in (0, 1):
        seed = int(np.random.SeedSequence((0, block)).generate_state(1)[0])
        asked = suite.reference.asked(20, torch.Generator().manual_seed(seed))
        noise = torch.randn(20, *SIZE, generator=torch.Generator().manual_seed(seed))
        odd = [i for i, p in enumerate(asked) if CATEGORIES[p] == ("odd",)]
        one = whole.fresh()
        images = noisy(0.6).sample(noise, asked, None)[odd]
        one.made = one.made.update(suite.reference.space("pixels")(images))
        by_hand += one.compute()
    assert shifted.value("fd odd") == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_a_category_without_enough_images_has_no_score():
    suite = suite_of()
    of = {p: ("rare",) for p in PROMPTS[:1]}
    reference = replace(suite.reference, categories=of, groups=["rare"] * 40)
    (metric,) = of_each(suite.metrics[0], Named("fd", each="category"), reference)
    metric.open(reference.within("rare"))
    suite = replace(suite, reference=reference, metrics=(suite.metrics[0], metric))
    row, _ = evaluate([noisy(0.0)], suite, 20, 2, 0)
    assert list(row.scores) == ["fd"]


def test_a_category_has_a_score_only_of_metrics_that_it_has_enough_images_for():
    """Five in a block: Fréchet and recall can be computed, FID∞ of five parts cannot."""
    few = {p: ("few",) for p in PROMPTS[:5]} | {p: ("three",) for p in PROMPTS[5:8]}
    reference = replace(suite_of().reference, categories=few, groups=["few", "three"] * 20)
    found = []
    for name, metric in {"fd": Frechet, "recall": Recall, "infinity": FIDInfinity}.items():
        one = metric("pixels")
        one.name = name
        found += of_each(one, Named(name, each="category"), reference)
    for metric in found:
        metric.open(reference.within(metric.category))
    suite = replace(suite_of(), reference=reference, metrics=tuple(found))
    row, _ = evaluate([noisy(0.0)], suite, 20, 2, 0)
    assert set(row.scores) == {"fd few", "fd three", "recall few"}


def test_too_few_images_for_a_metric_are_refused_before_any_is_made():
    metric = FIDInfinity("pixels", parts=20)
    metric.name = "infinity"
    suite = suite_of()
    metric.open(suite.reference)
    made: list = []
    student = replace(noisy(0.0), sample=lambda *given: made.append(given))
    with pytest.raises(ValueError, match="n = 20: infinity needs at least 40 a block"):
        evaluate([student], replace(suite, metrics=(metric,)), 20, 2, 0)
    with pytest.raises(ValueError, match="keep = 30: 20 parts need 40 images"):
        FIDInfinity("pixels", keep=30, parts=20).open(suite.reference)
    assert not made


@pytest.mark.parametrize(
    "task, kind", [("folder", Kind(SIZE)), ("prompts", Kind(SIZE, None, True))]
)
def test_real_images_of_another_size_are_refused(task, kind, tmp_path):
    """A published file's, too, whatever the task."""
    (tmp_path / "prompts.txt").write_text("one")
    np.savez(tmp_path / "batch.npz", arr_0=np.zeros((20, 6, 4, 3), np.uint8))
    real = brought(str(tmp_path / "batch.npz"), None, shape_of(kind))
    with pytest.raises(Unfit, match=r"the real images are \(3, 6, 4\), the samples \(3, 8, 8\)"):
        load(task, kind, real, str(tmp_path / "prompts.txt") if task == "prompts" else None)


def test_rows_are_compared_by_one_number_and_not_by_one_of_each_category():
    said = SuiteSettings("prompts", [Named("saturation", each="category")], ("saturation",))
    with pytest.raises(
        ConfigError, match="^headline: saturation: is one of each category"
    ) as caught:
        parts(said)
    assert "\n" not in str(caught.value)


def test_real_images_without_a_category_are_named():
    reference = replace(suite_of().reference, groups=None)
    with pytest.raises(ValueError, match="no real images of the category odd to compare with"):
        Frechet("pixels").open(reference.within("odd"))


def test_departures_are_said():
    said = settings(n=50_000, blocks=3, seed=7, guidance=0.0)
    departs = replace(ASKED, n=100, blocks=3, guidance=1.5).departures(said)
    assert departs == [
        "n = 100 in place of the protocol's 50,000",
        "guidance = 1.5 in place of the protocol's 0.0",
    ]
    shown = replace(ASKED, n=100, blocks=1).provenance(suite_of(said))
    assert shown["asked"].startswith("100 images, seed 7, 8 at a time, ")
    assert "n = 100 in place" in shown["departs from the protocol"]
    assert "--blocks 3" in shown["intervals"] and "parts of it" in shown["intervals"]
    assert ASKED.provenance(suite_of()).keys() == {"asked"}


def test_every_number_says_what_it_rests_on(tmp_path):
    suite = suite_of(settings(resize=resizing.Resize(8)))
    (row, _) = rows_in(tmp_path, "a", suite, ASKED)
    assert row.protocol.keys() == row.scores.keys()
    found = row.protocol["fd odd"]
    assert found["metric"] == "frechet" and found["settings"] == {"space": "pixels"}
    assert found["space"] == suite.reference.space("pixels").identity
    assert "lanczos" in found["resize"] and found["category"] == "odd"
    assert (found["n"], found["blocks"], found["seed"], found["versions"]) == (20, 2, 7, "v")


def test_rows_of_two_protocols_are_never_compared(tmp_path):
    one = rows_in(tmp_path, "one", suite_of(), ASKED)[0]
    two = rows_in(tmp_path, "two", suite_of(), ASKED, 0.5)[0]
    assert difference(one, two, "fd") is not None
    for name, suite, asked in (
        ("resize", suite_of(settings(resize=resizing.Resize(8))), ASKED),
        ("seed", suite_of(), replace(ASKED, seed=8)),
        ("reference", suite_of(real=True), ASKED),
    ):
        if name == "reference":
            suite = replace(suite, reference=replace(suite.reference, about="other noise"))
        other = rows_in(tmp_path, name, suite, asked)[0]
        words = f"^fd: rows of unequal {name} do not compare"
        with pytest.raises(ValueError, match=words):
            difference(one, other, "fd")
        with pytest.raises(ValueError, match=words):
            winner([one, other], suite.metrics[0])
        with pytest.raises(ValueError, match="do not compare"):
            write_report(tmp_path / "both", Report("both", [one, other], suite, {}))
    assert not (tmp_path / "both").exists()


def test_files_of_before_are_read_and_damaged_ones_are_not(tmp_path):
    rows = rows_in(tmp_path, "a", suite_of(), ASKED)
    file = tmp_path / "a" / "results.json"
    held = json.loads(file.read_text())
    del held["protocol"]
    file.write_text(json.dumps(held))
    assert read_results(file) == rows and not read_results(file)[0].protocol
    file.write_text(json.dumps(held | {"protocol": {"fd": 3}}))
    with pytest.raises(ValueError, match="damaged"):
        read_results(file)


def test_a_metric_of_few_images_says_so(tmp_path):
    """In results.json and in the notes; one that looks at all says nothing."""
    of = {None: 50, 30: 30, 100: 50}
    for keep, looks in of.items():
        suite = suite_of()
        metric = Precision("pixels", keep=keep)
        metric.name = "precision"
        metric.open(suite.reference)
        suite = replace(suite, metrics=(suite.metrics[0], metric))
        row, _ = rows_in(tmp_path, str(keep), suite, replace(ASKED, n=50))
        assert (row.protocol["precision"]["of"], row.protocol["fd"]["of"]) == (looks, 50)
        said = (tmp_path / str(keep) / "report.md").read_text()
        assert said.count("Of the first 30 images of a block.") == (keep == 30)


def test_imagenets_precision_looks_at_all_images_of_a_block():
    for name in ("imagenet-64", "imagenet-256"):
        _, _, metrics = require(name)
        found = {m.name: m.of(50_000, (3, 64, 64)) for m in metrics}
        assert (found["precision"], found["recall"]) == (50_000, 50_000)
    _, _, metrics = require("digits")
    assert {m.name: m.of(10_000, (1, 8, 8)) for m in metrics}["recall"] == 2000


def test_the_same_prompts_anywhere_compare_and_others_do_not(tmp_path):
    """Whatever the reference: the file's place is left out, its texts and categories are not."""
    texts = {"a": PROMPTS, "b": PROMPTS, "turned": PROMPTS[::-1], "other": [*PROMPTS[:-1], "x"]}
    kind = Kind(SIZE, prompts=True)
    (tmp_path / "real").mkdir()
    for i, image in enumerate(suite_of().reference.images):
        save(tmp_path / "real" / f"{i}.png", as_saved(image))
    real = brought(str(tmp_path / "real"), None, shape_of(kind))
    for images in (real, nothing_brought):
        rows = {}
        for name, each in texts.items():
            file = tmp_path / name / "prompts.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text("\n".join(each))
            task = Prompts(prompts=str(file), each=1)
            reference = task.open(kind, images)
            metric = Saturation()
            metric.name = "saturation"
            metric.open(reference)
            suite = Suite("s", reference, (metric,), ("saturation",), 8, settings())
            rows[name] = rows_in(tmp_path, f"out-{name}", suite, ASKED, shift=None)[0]
        difference(rows["a"], rows["b"], "saturation")
        for name in ("turned", "other"):
            with pytest.raises(ValueError, match="rows of unequal prompts do not compare"):
                difference(rows["a"], rows[name], "saturation")
    told = [Prompt("a", "x"), Prompt("b")]
    assert len({digest_of(told), digest_of(told[:1]), digest_of([Prompt("a"), told[1]])}) == 3


def test_versions_of_libraries_compare_and_resizes_do_not():
    """The identity, which the cache goes by, tells both."""
    one = FeatureSpace("flat", torch.nn.Flatten(), "", "resize to 8", libraries="torch 1.0")
    newer, other = replace(one, libraries="torch 1.1"), replace(one, how="resize to 9")
    assert one.comparable == newer.comparable != other.comparable
    assert len({each.identity for each in (one, newer, other)}) == 3
    assert one.identity.endswith("(resize to 8, torch 1.0)")
    suite = suite_of()
    suite.reference._spaces["pixels"] = one
    assert own(suite.metrics[0], suite)["space"] == one.comparable
    assert own(suite.metrics[0], suite)["libraries"] == "torch 1.0"


def test_real_images_of_no_known_class_have_no_score_of_classes():
    """Else they would be drawn from all classes, and their mixture called one."""
    images = torch.rand(40, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric = FeatureVariance("pixels", ratio=False)
    metric.name = "variance"
    for labels in (torch.arange(40) % 2, None):
        reference = Reference(SIZE, evenly(2), images, labels)
        suite = Suite("s", reference, (metric,), ("variance",), 8, settings())
        student = Sampled("student", 1, 1, 0, SIZE, lambda x, *_: x.tanh())
        row, real = evaluate([student], suite, 20, 2, 0)
        assert "variance" in row.scores and ("variance" in real.scores) == (labels is not None)


def test_one_block_is_a_protocols_number_without_an_interval():
    row, _ = evaluate([noisy(0.0)], suite_of(), 20, 1, 0)
    score = row.scores["fd"]
    assert score.low is None and score.high is None and len(score.blocks) == 1
    twice, _ = evaluate([noisy(0.0)], suite_of(), 20, 2, 0)
    assert twice.scores["fd"].blocks[0] == score.value


def test_threads_are_fixed_and_given_back():
    seen, before = [], torch.get_num_threads()

    def sample(noise, *_):
        seen.append(torch.get_num_threads())
        return noise.tanh()

    suite = suite_of(settings(threads=before + 1))
    evaluate([Sampled("student", 1, 1, 0, SIZE, sample)], suite, 20, 2, 0)
    assert {*seen} == {before + 1} and torch.get_num_threads() == before
    with pytest.raises(KeyError), suite.threaded():
        raise KeyError
    assert torch.get_num_threads() == before


def test_another_batch_agrees():
    suite = load("digits", Kind(digits.EVENT, digits.CLASSES))
    student = Sampled("student", 1, 1, 0, digits.EVENT, lambda x, *_: x.tanh())
    rows = [evaluate([student], replace(suite, batch=b), 40, 2, 0)[0] for b in (16, 40)]
    for name, score in rows[0].scores.items():
        assert score.value == pytest.approx(rows[1].value(name), rel=1e-5), name


@pytest.mark.parametrize("size", [(40, 30), (31, 53), (16, 16), (12, 9)])
@pytest.mark.parametrize("grey", [False, True])
def test_images_are_cut_and_resized_as_users_of_torchvision_do(size, grey):
    levels = np.random.default_rng(0).integers(0, 256, (2, *size, 1 if grey else 3), np.uint8)
    images = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1
    ours = resizing.Resize(16)(images)
    theirs = Compose([CenterCrop(min(size)), Resize(16, InterpolationMode.LANCZOS)])
    wanted = [np.asarray(theirs(Image.fromarray(each.squeeze()))) for each in levels]
    wanted = torch.from_numpy(np.stack(wanted)).reshape(2, 16, 16, -1).permute(0, 3, 1, 2)
    assert torch.equal(((ours + 1) * 127.5).round().byte(), wanted)
    assert torch.equal(resizing.Resize(16)(ours), ours)  # a square of this side stays


def test_a_suite_that_resizes_takes_larger_images():
    suite = suite_of(settings(resize=resizing.Resize(8)))
    large = replace(noisy(0.0), event=(3, 16, 16))
    row, _ = evaluate([large], suite, 20, 2, 0)
    assert set(row.scores) == {m.name for m in suite.metrics}


def test_the_hubs_interval_is_of_the_value_it_stands_beside():
    """KID's table shows both × 1000."""
    metric = KID("pixels")
    metric.name, score = "kid", Score(0.002, 0.001, 0.003)
    suite = replace(suite_of(), metrics=(metric,), headline=("kid",))
    row = Row("student", 1, 1, 40, "a", 0, None, {"kid": score})
    assert f"95 % interval {span(0.001, 0.003)}" in said(row, metric, suite, ASKED)
    assert metric.small(score) == "1.0 to 3.0"


def test_results_are_the_hubs(tmp_path):
    named = settings(dataset=Dataset("someone/benchmark", "fid"), n=100)
    suite = suite_of(named)
    rows = evaluate([noisy(0.0, "x/a b"), noisy(0.3, "c")], suite, 20, 2, 7)
    write_results(tmp_path, rows, suite_of(), ASKED)
    assert not (tmp_path / FOLDER).exists()
    write_results(tmp_path, rows, suite, ASKED)
    files = sorted((tmp_path / FOLDER).iterdir())
    assert [f.name for f in files] == ["kinds-0-a-b.yaml", "kinds-1-c.yaml"]
    for file, row in zip(files, rows):
        (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
        assert (entry.dataset_id, entry.task_id) == ("someone/benchmark", "fid")
        assert entry.value == row.value("fd")
        low, high = row.scores["fd"].low, row.scores["fd"].high
        assert f"95 % interval {span(low, high)};" in entry.notes
        assert "n = 20 in place of the protocol's 100" in entry.notes and "n = 40;" in entry.notes
