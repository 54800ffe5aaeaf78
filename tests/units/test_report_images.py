"""The pictures of a report: same noise in every row, estimates of the very steps, the true worst.

Mutations that must each fail a test here: the stream of re-noising started anew; a film of x_t, or
of other steps than its labels say; the best in place of the worst; confidence in the class seen
where another was asked; distances to a reference without the nearest image; images other than
those that are scored.
"""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from cases import labels
from test_report import Page
from torch import Tensor

from stepdistill.data.sources import digits
from stepdistill.evaluation.evaluate import Sampled, evaluate
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.report.names import short
from stepdistill.evaluation.report.outliers import outliers
from stepdistill.evaluation.report.report import write_report
from stepdistill.jobs.distill import Clock, report, stage_spans
from stepdistill.jobs.report_images import outliers_of, pairs_of, same_noise, strips, within
from stepdistill.jobs.samplers import of_run
from stepdistill.jobs.suites import load
from stepdistill.runs.config import read, text_of
from stepdistill.runs.settings import Evaluation
from stepdistill.runs.stages import Stages, TrainedRun
from stepdistill.solver import Sampler, solve_ode
from stepdistill.teachers.teacher import teacher_sampler

SUITE = load("digits", Kind(digits.EVENT, digits.CLASSES))
FREE = load("digits", Kind(digits.EVENT))
IMAGES, LABELS = digits.load()
REAL = SUITE.reference.features("domain-cnn").double()


def student(sample, steps: int = 1, source: str = "") -> Sampled:
    return Sampled("student", steps, steps, 1, digits.EVENT, sample, source)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainedRun:
    evaluation = Evaluation(n=20, blocks=2, steps=(4, 2, 1), teacher_steps=(1, 12))
    run = replace(read("smoke"), evaluation=evaluation, sampler=Sampler((1, 2, 4)), guidance=2.0)
    return Stages.of(run, tmp_path_factory.mktemp("run"), Accelerator(cpu=True)).result()


def test_a_film_shows_the_estimates_of_its_steps(trained: TrainedRun):
    teacher, student = strips(trained)
    assert (teacher.title, student.title) == ("teacher, 12 steps", "student, 4 steps")
    assert student.frame_labels == ["1", "2", "3", "4"]
    assert len(teacher.frame_labels) == 8 and {"1", "12"} <= set(teacher.frame_labels)
    takes = len(teacher.images)
    noise = torch.randn(takes, 1, 8, 8, generator=torch.Generator().manual_seed(trained.run.seed))
    guided, cond = trained.teacher.guided, labels(*range(takes))
    times = teacher_sampler(trained.teacher).grid.times(guided.process, 12)
    with torch.no_grad():
        states = list(solve_ode(guided, noise, times, cond))
        for frame, label in zip(teacher.images.transpose(0, 1), teacher.frame_labels, strict=True):
            k = int(label) - 1
            wanted = guided(states[k], times[k].expand(takes), cond).x0.clamp(-1, 1)
            assert torch.allclose(frame, wanted, atol=1e-5)


def test_the_student_starts_its_film_where_the_teacher_does(trained: TrainedRun):
    """At their first evaluation both see the same noise: this student is the unguided teacher."""
    student = strips(trained)[1]
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(trained.run.seed))
    process = trained.teacher.denoiser.process
    with torch.no_grad():
        t = torch.full((3,), process.t_max, dtype=torch.float64)
        wanted = trained.teacher.denoiser(noise, t, labels(0, 1, 2)).x0.clamp(-1, 1)
    assert torch.allclose(student.images[:, 0], wanted, atol=1e-5)
    assert (student.images[:, 0] - student.images[:, -1]).abs().mean() > 0.01


def test_a_grid_gives_every_sampler_the_same_noise_labels_and_stream(trained: TrainedRun):
    contenders = of_run(trained)
    grid = same_noise(contenders, SUITE, seed=5)
    assert grid.row_labels == [
        "teacher, 1 step",
        "teacher, 12 steps",
        "student, 4 steps",
        "student, 2 steps",
        "student, 1 step",
    ]
    assert [grid.row_labels[i] for i in grid.pair] == ["teacher, 12 steps", "student, 1 step"]
    stream = torch.Generator().manual_seed(5)
    noise = torch.randn(grid.images.shape[1:], generator=stream)
    labels = torch.arange(len(noise)) % 10
    state = stream.get_state()
    shown = [c for c in contenders if c.model != "untrained-student"]
    for row, contender in zip(grid.images, shown, strict=True):
        wanted = contender.sample(noise, labels, torch.Generator().set_state(state))
        assert torch.equal(row, wanted)
    # What the first step adds must not be the noise the sample started from.
    again = shown[2].sample(noise, labels, torch.Generator().manual_seed(5))
    assert not torch.equal(grid.images[2], again)


def test_without_a_teacher_the_slider_compares_step_counts():
    steps = [student(lambda noise, *_: noise.tanh(), n) for n in (2, 1, 4)]
    grid = same_noise(steps, FREE, seed=0)
    assert [grid.row_labels[i] for i in grid.pair] == ["student, 4 steps", "student, 1 step"]


def spoilt(noise: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Real images of the requested class, in order; number 3 is of the next class, 7 is noise."""
    wanted = torch.zeros(len(noise), dtype=torch.long) if labels is None else labels.clone()
    if len(wanted) > 7:
        wanted[3] = (wanted[3] + 1) % 10
    rows = [(LABELS == label).nonzero()[i % 100] for i, label in enumerate(wanted)]
    images = IMAGES[torch.cat(rows)].clone()
    if len(wanted) > 7:
        images[7] = noise[7].sign()
    return images


def test_the_worst_of_a_conditional_sampler_are_those_the_classifier_doubts():
    found = outliers(student(spoilt), SUITE, 60, 0, "name", count=60)
    assert (found.sampler, found.n, len(found.found)) == ("name", 60, 60)
    confidence = [one.confidence for one in found.found]
    assert confidence == sorted(confidence) and confidence[1] < 0.5 < confidence[10]
    worst_two = found.found[:2]
    wrong = next(one for one in worst_two if one.distance < 1e-3)
    assert wrong.read == (wrong.label + 1) % 10 and torch.equal(wrong.image, wrong.nearest)
    noise = next(one for one in worst_two if one.distance > found.usual)
    assert noise.image.abs().min() == 1
    assert all(one.read == one.label for one in found.found[20:])


def test_the_worst_of_an_unconditional_sampler_are_the_farthest_from_data():
    found = outliers(student(spoilt), FREE, 60, 0, "name", count=4)
    first, *rest = found.found
    assert first.distance > found.usual and all(one.distance < 1e-3 for one in rest)
    assert first.label is None and 0.1 < first.confidence <= 1
    features = SUITE.reference.space("domain-cnn")(first.image[None]).double()
    gaps = (features - REAL).square().sum(1).sqrt()
    assert first.distance == pytest.approx(gaps.min().item(), rel=1e-6)
    assert torch.equal(first.nearest, IMAGES[gaps.argmin()])


def test_what_is_usual_is_how_far_real_images_lie_from_each_other():
    usual = outliers(student(spoilt), SUITE, 20, 0, "", count=1).usual
    nearest = [
        (REAL[i] - torch.cat([REAL[:i], REAL[i + 1 :]])).square().sum(1).min().sqrt()
        for i in range(len(REAL))
    ]
    share = (torch.stack(nearest) <= usual).double().mean().item()
    assert share == pytest.approx(0.95, abs=0.002)


def test_the_worst_are_sought_among_the_images_that_are_scored():
    seen: list[Tensor] = []

    def sample(noise: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(torch.cat([noise.flatten(1), labels[:, None]], 1))
        return IMAGES[: len(noise)] + 0 * torch.rand(1, generator=generator)

    small = replace(SUITE, batch=25)
    evaluate([student(sample)], small, 40, 2, 9)
    scored = torch.cat(seen[1:3])  # after the warm-up, the first block
    seen.clear()
    assert outliers(student(sample), small, 40, 9, "", count=40).n == 40
    assert torch.equal(torch.cat(seen), scored)


@pytest.mark.parametrize("n", [40, 60])
def test_what_is_shown_of_a_large_block_is_of_its_labels(n, monkeypatch):
    """Of the first 30 images: those that `evaluate` scores, and not those of a block of 30."""
    monkeypatch.setattr("stepdistill.evaluation.report.outliers.KEPT", 30)
    monkeypatch.setattr("stepdistill.evaluation.report.pairs.LOOKED_AT", 30)
    monkeypatch.setattr("stepdistill.evaluation.report.pairs.SHOWN", 15)
    seen: list[Tensor] = []

    def sample(noise: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(labels)
        return noise.tanh()

    small = replace(SUITE, batch=25)
    evaluate([student(sample)], small, n, 1, 9)
    scored = torch.cat(seen[1:])[:30].sort().values.tolist()
    found = outliers(student(sample), small, n, 9, "", count=30)
    assert sorted(one.label for one in found.found) == scored
    teacher = Sampled("teacher", 8, 8, 1, digits.EVENT, shaded, "")
    (shown,) = pairs_of([teacher, student(sample)], small, n, 9)
    said = [int(pair.asked.removeprefix("label ")) for pair in shown.best + shown.worst]
    assert shown.n == len(said) == 30 and sorted(said) == scored


def test_every_source_shows_the_worst_of_its_fewest_steps():
    field = [student(spoilt, steps, source) for steps, source in ((2, "a"), (1, "a"), (4, "b"))]
    field.append(replace(student(spoilt), model="x"))
    assert [one.sampler for one in outliers_of(field, SUITE, 20, 0)] == [
        "student, 1 step · a",
        "student, 4 steps · b",
    ]


def shaded(noise: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Grey images, darker from one to the next."""
    return torch.linspace(-0.5, 0.5, len(noise)).view(-1, 1, 1, 1).expand(noise.shape)


def test_the_nearest_to_the_teacher_and_the_farthest_are_shown_from_the_same_noise():
    teacher = Sampled("teacher", 8, 8, 1, digits.EVENT, shaded, "")
    coarse = replace(teacher, steps=1, sample=lambda noise, *given: 0 * noise - 1)

    def drifting(noise: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        amount = torch.linspace(0, 0.4, len(noise)).view(-1, 1, 1, 1)
        return shaded(noise, labels, generator) + amount * (-1.0) ** labels.view(-1, 1, 1, 1)

    other = replace(student(drifting, source="b"), kind=Kind(digits.EVENT))  # takes no labels
    (found,) = pairs_of(
        [coarse, teacher, student(drifting, 2), student(drifting), other], SUITE, 41, 0
    )
    assert (found.student, found.teacher, found.n) == ("student, 1 step", "teacher, 8 steps", 41)
    assert [round(100 * pair.distance) for pair in found.best] == [0, 1, 2, 3, 4, 5]
    assert [round(100 * pair.distance) for pair in found.worst] == [40, 39, 38, 37, 36, 35]
    last = found.worst[0]
    assert torch.equal(last.teacher, torch.full(digits.EVENT, 0.5)) and last.asked[:6] == "label "
    odd = int(last.asked[6:]) % 2
    assert torch.allclose(last.student, last.teacher + (-0.4 if odd else 0.4))
    assert pairs_of([student(drifting)], SUITE, 41, 0) == []


def stored(one: Sampled, source: str) -> Sampled:
    """As of another pipeline, whose images come from seeds of their own."""

    def made(first: int, count: int) -> tuple[Tensor, Tensor]:
        return IMAGES[first : first + count], LABELS[first : first + count]

    return replace(one, sample=None, made=made, source=source)


def test_images_of_unrelated_noise_are_not_compared_one_by_one():
    """Ours draw from a block's noise, other pipelines from the seeds of images."""
    teacher = Sampled("teacher", 8, 8, 1, digits.EVENT, shaded, "")
    ours, theirs = student(shaded, source="ours"), stored(student(shaded), "theirs")
    for teaches, paired, other in (
        (teacher, ours, theirs),
        (stored(teacher, "taught"), replace(theirs, source="b"), ours),
    ):
        field = [teaches, paired, other]
        rows = evaluate(field, SUITE, 20, 1, 0)
        assert ["paired" in row.scores for row in rows] == [True, True, False, False]
        assert len(pairs_of(field, SUITE, 20, 0)) == 1
        assert pairs_of([teaches, other], SUITE, 20, 0) == []
        grid = same_noise(field, SUITE, 0, 20)
        assert grid.title == "Image by image"
        assert "From other noise than those of other pipelines: " in grid.note
    assert same_noise([stored(teacher, "a"), theirs], SUITE, 0, 20).title == "Same seed, same label"
    assert same_noise([teacher, ours], SUITE, 0).note == ""


def test_several_images_of_one_label_are_shown_side_by_side():
    """Those of the teacher at most steps first; none of a model that takes no labels."""

    def told(noise: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return noise.clamp(-0.05, 0.05) + labels.view(-1, 1, 1, 1) / 10

    teachers = [Sampled("teacher", steps, steps, 1, digits.EVENT, told, "") for steps in (1, 8)]
    free = replace(student(told, source="free"), kind=Kind(digits.EVENT))
    found = within([*teachers, student(told, source="a"), free], SUITE, seed=0, n=40)
    assert [one.asked for one in found] == ["label 0", "label 1", "label 2"]
    for label, one in enumerate(found):
        assert list(one.images) == ["teacher, 8 steps", "student, 1 step · a"]
        first, second = one.images.values()
        assert torch.equal(first, second) and len(first.unique(dim=0)) == len(first) == 4
        assert (first.mean() - label / 10).abs() < 0.05
    assert within([student(told)], FREE, seed=0, n=40) == []
    prompts = ["a", "b", "c"]  # each once
    once = replace(SUITE, reference=replace(SUITE.reference, ask=lambda n, _: prompts[:n]))
    assert within([student(told)], once, seed=0, n=3) == []
    assert within([student(told)], SUITE, seed=0, n=10) == []


def test_a_folder_is_called_by_as_much_of_its_path_as_tells_it_apart():
    paths = ["/a/x/student", "/a/y/student", "runs/demo", "demo", "../demo-1"]
    assert list(short(paths).values()) == ["x/student", "y/student", "runs/demo", "demo", "demo-1"]
    assert short(["/only/one"]) == {"/only/one": "one"} and short(["a", "a"]) == {"a": "a"}


def test_a_run_tells_everything_about_itself(trained: TrainedRun):
    (stage,) = trained.run.stages
    longer = replace(stage, training=replace(stage.training, updates=7))
    run = replace(trained.run, stages=[stage, longer])
    methods = tuple(s.build() for s in run.stages)
    trained = replace(trained, setup=replace(trained.setup, run=run, methods=methods))
    assert stage_spans(trained.run) == [("consistency", 0, 5), ("consistency", 5, 12)]
    logged = [{"stage": i, "turn": 5, "update": 5, "player": "student", "l": 1.0} for i in (0, 1)]
    trained.folder.log.write_text("".join(json.dumps(row) + "\n" for row in logged))
    contenders = of_run(trained)
    rows = evaluate(contenders[-1:], SUITE, 20, 2, 0)
    clock = Clock()
    clock.seconds = {"training": 12.34}
    write_report(trained.folder.path, report(trained, rows, SUITE, contenders, clock, 1e-7))
    page = Page((trained.folder.path / "report.html").read_text(encoding="utf-8"))
    assert page.headings == [
        "Same noise, same label",
        "Results",
        "Quality against cost",
        "Asked again and again",
        "Beside the teacher",
        "Step by step",
        "Worst samples",
        "Training curves",
        "Costs",
        "How to read this",
        "Provenance",
    ]
    assert text_of(trained.run) in page.text
    assert "training12.3 s" in page.text
    assert "stage 2, consistency7 updates of 8 samples; network passes" in page.text
    assert str(stage.build()) in page.text
    assert "equals the trainer's sampler to 1.0e-07" in page.text
