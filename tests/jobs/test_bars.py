"""The bars of the shipped teachers, in full: what the shipped configs reach, and in what time.

Run on an idle machine, in shards of their own, which give them every core.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from accelerate import Accelerator

from eval.guidance import GUIDANCES, ratio, share
from stepdistill.evaluation.report.report import read_results
from stepdistill.evaluation.rows import Row
from stepdistill.runs.stages import reopen


def run(config: str, runs: Path, *overrides: str) -> tuple[dict[tuple[str, int], Row], float]:
    """Rows by (model, steps) of a shipped config run by the command, and the seconds it took."""
    start = time.perf_counter()
    command = [sys.executable, "-c", "from stepdistill.cli import main; main()"]
    threads = os.environ["OMP_NUM_THREADS"]
    subprocess.run(
        [*command, "run", config, *overrides, "--runs", str(runs)],
        check=True,
        env=os.environ | {"MKL_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
    )
    rows = read_results(runs / config / "results.json")
    return {(row.model, row.steps): row for row in rows}, time.perf_counter() - start


def read_costs(folder: Path) -> dict[str, float]:
    """Seconds of each part of a run."""
    return json.loads((folder / "costs.json").read_text())["seconds"]


def within(student: Row, teacher: Row, factor: float) -> bool:
    """Whether a student's distances are at most `factor` times its teacher's, in both spaces."""
    distances = ("frechet", "frechet_random")
    return all(student.value(name) <= factor * teacher.value(name) for name in distances)


def measured(
    config: str,
    runs: Path,
    figure: Callable[..., None],
    *overrides: str,
    names: Sequence[str] = ("frechet", "frechet_random"),
) -> tuple[dict[tuple[str, int], Row], float]:
    """What `run` gives, its scores of these names and its seconds recorded."""
    rows, seconds = run(config, runs, *overrides)
    for (model, steps), row in rows.items():
        for name in names:
            if name in row.scores or model != "real":
                figure(f"{model} {steps}, {name}", row.value(name))
    figure(config, seconds, "s")
    return rows, seconds


@pytest.mark.full(shard="demo")
def test_the_demo(figure, tmp_path):
    rows, seconds = measured("demo", tmp_path, figure)
    student, four, many = rows["student", 1], rows["teacher", 4], rows["teacher", 32]
    speed = many.seconds / student.seconds
    figure("times faster than the teacher at 32 steps", speed)
    assert student.n == 3000 and {n for m, n in rows if m == "teacher"} == {1, 4, 32}
    assert seconds <= 8 * 60
    assert within(student, four, 0.7)
    assert speed >= 20
    parts = read_costs(tmp_path / "demo")
    for name, spent in parts.items():
        figure(f"demo, {name}", spent, "s")
    # The time table adds up: start-up and imports are all that is left over.
    assert 0.85 * seconds <= sum(parts.values()) <= seconds


ONE, TWO = "follows by cell one object", "follows by cell two objects"
FOLLOWED = (ONE, f"{ONE}, held out", TWO, f"{TWO}, held out", "frechet_random")


@pytest.mark.full(shard="demo-text")
def test_the_demo_of_text(figure, tmp_path):
    rows, seconds = measured("demo-text", tmp_path, figure, names=FOLLOWED)
    student, before = rows["student", 4], rows["untrained-student", 4]
    assert seconds <= 12 * 60
    assert student.value(ONE) >= 0.85 and student.value(TWO) >= 0.75
    assert student.nfe == before.nfe == 4 and student.value(TWO) > before.value(TWO) + 0.1


@pytest.mark.full(shard="shapes-classes")
def test_shapes_classes(figure, tmp_path):
    rows, _ = measured("shapes-classes", tmp_path, figure)
    for (model, steps), row in rows.items():
        figure(f"{model} {steps}, accuracy", row.value("accuracy"))
    assert within(rows["student", 1], rows["teacher", 8], 1.0)
    assert within(rows["student", 2], rows["teacher", 32], 1.5)
    for steps in (1, 2):
        right = rows["student", steps].value("accuracy")
        assert right >= rows["teacher", 32].value("accuracy") - 0.02
    training = read_costs(tmp_path / "shapes-classes")["training"]
    figure("shapes-classes, training", training, "s")
    assert training <= 60 * 60


@pytest.mark.full(shard="digits")
def test_digits_consistency(figure, tmp_path):
    rows, seconds = measured("digits-consistency", tmp_path, figure)
    teacher = rows["teacher", 32]
    assert seconds <= 40 * 60 and teacher.n == 30_000
    for steps, factor in ((1, 2.5), (2, 2.0)):
        assert within(rows["student", steps], teacher, factor)


@pytest.mark.full(shard="digits-vp")
def test_digits_consistency_under_a_table(figure, tmp_path):
    rows, _ = measured("digits-consistency-vp", tmp_path, figure)
    assert within(rows["student", 1], rows["teacher", 4], 1.0)


@pytest.mark.full(shard="digits-dmd2")
def test_digits_dmd2(figure, tmp_path):
    rows, seconds = measured("digits-dmd2", tmp_path, figure)
    assert seconds <= 40 * 60
    assert within(rows["student", 1], rows["teacher", 32], 1.5)


@pytest.mark.full(shard="digits-dmd2-no-gan")
def test_digits_dmd2_without_a_gan(figure, tmp_path):
    off = "stages.1.settings={gan: 0, gan_critic: 0}"
    rows, _ = measured("digits-dmd2", tmp_path, figure, off)
    assert within(rows["student", 1], rows["teacher", 32], 2.0)


@pytest.mark.full(shard="digits-dmd2-steps")
def test_digits_dmd2_in_several_steps(figure, tmp_path):
    rows, _ = measured("digits-dmd2-steps", tmp_path, figure)
    for steps, factor in ((2, 1.5), (4, 2.0)):
        assert within(rows["student", steps], rows["teacher", 32], factor)


@pytest.mark.full(shard="digits-dmd2-vp")
def test_digits_dmd2_under_a_table(figure, tmp_path):
    rows, _ = measured("digits-dmd2-vp", tmp_path, figure)
    assert within(rows["student", 1], rows["teacher", 8], 1.0)


def each_in_a_shard_of_its_own(configs: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test with every config, each in a shard named after it."""
    params = [pytest.param(c, marks=pytest.mark.full(shard=f"family-{c}")) for c in configs]
    return pytest.mark.parametrize("config", params)


# Student's steps → the teacher's, which they are to be no worse than; trained within ten minutes.
ONE_OR_TWO, FOUR = 4, 8
FAMILIES = {
    "digits-consistency-training": {1: ONE_OR_TWO, 2: ONE_OR_TWO, 4: FOUR},
    "digits-lcm": {1: ONE_OR_TWO, 2: ONE_OR_TWO, 4: FOUR},
    "digits-scm": {1: ONE_OR_TWO, 2: ONE_OR_TWO, 4: FOUR},
    "digits-ctm": {1: ONE_OR_TWO, 2: ONE_OR_TWO, 4: FOUR},
    "digits-tscd": {1: ONE_OR_TWO, 2: ONE_OR_TWO, 4: FOUR},
    "digits-tcd": {2: ONE_OR_TWO, 4: FOUR},
    "digits-pcm": {4: FOUR},
    "digits-pcm-vp": {2: ONE_OR_TWO},
    "digits-dmd": {1: ONE_OR_TWO},
    "digits-dmd2-short": {1: ONE_OR_TWO},
    "digits-f-distill": {1: ONE_OR_TWO},
    "digits-diff-instruct": {1: ONE_OR_TWO},
    "digits-sid": {1: ONE_OR_TWO},
    "digits-ladd": {1: ONE_OR_TWO},
    "digits-vsd": {1: ONE_OR_TWO},
    "digits-tdm": {4: FOUR},
}
# The best of each family: its steps, and how near it comes to the teacher at 32.
BEST = {
    "digits-scm": (4, 1.25),
    "digits-pcm": (4, 1.25),
    "digits-dmd2-short": (1, 1.25),
    "digits-vsd": (1, 2.0),
}
RESULTS = Path(__file__).resolve().parents[2] / "eval" / "results"


def teacher_rows(name: str) -> dict[int, Row]:
    """Rows of an embedded teacher by steps, measured on the same noise when it was made."""
    rows = read_results(RESULTS / name / "results.json")
    return {row.steps: row for row in rows if row.model == "student"}


@each_in_a_shard_of_its_own(FAMILIES)
def test_a_method_on_digits(config, figure, tmp_path):
    teacher = teacher_rows("digits-teacher-vp" if config.endswith("-vp") else "digits-teacher")
    rows, _ = measured(config, tmp_path, figure, "evaluation.teacher_steps=[]")
    assert read_costs(tmp_path / config)["training"] <= 10 * 60
    for steps, of_teacher in FAMILIES[config].items():
        row = rows["student", steps]
        assert row.n == teacher[of_teacher].n and within(row, teacher[of_teacher], 1.0), steps
    if config in BEST:
        steps, factor = BEST[config]
        assert within(rows["student", steps], teacher[32], factor)


# What guidance in one pass still misses at each of GUIDANCES. The goal is 0.25, not reached:
# eval/results/tuning.md tells why.
MISSED = {"digits-agd": (0.65, 0.6, 0.6), "digits-guidance": (1.0, 0.5, 0.55)}
SMALL = ("evaluation.n=1000", "evaluation.steps=[32]", "evaluation.teacher_steps=[32]")


@each_in_a_shard_of_its_own(MISSED)
def test_guidance_in_one_pass(config, figure, tmp_path):
    rows, _ = measured(config, tmp_path, figure, *SMALL)
    assert read_costs(tmp_path / config)["training"] <= 10 * 60
    assert rows["student", 32].nfe == 32 and rows["teacher", 32].nfe == 64
    session = reopen(tmp_path / config, Accelerator(cpu=True))
    for w, most in zip(GUIDANCES, MISSED[config]):
        missed = ratio(session, w)
        figure(f"missed at w = {w:g}", missed)
        assert missed <= most
    if config == "digits-agd":
        assert share(session) <= 0.05
