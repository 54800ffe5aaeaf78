"""`stepdistill compare`: what runs cost, and their students and one teacher in one table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from rich.console import Console

from stepdistill.cli import BLOCKS
from stepdistill.evaluation.report.report import read_results
from stepdistill.jobs.benchmark import Summary, benchmark, enter
from stepdistill.jobs.compare import compare
from stepdistill.jobs.evaluate import SCORED
from stepdistill.method import load
from stepdistill.runs.config import read
from stepdistill.runs.costs import RunCost
from stepdistill.runs.folder import RunFolder
from stepdistill.runs.log import seconds_of
from stepdistill.runs.settings import TeacherSettings
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.training.trainer import Optimiser, TrainingFailed

SMALL = """
name: {name}
teacher: digits
stages:
  - method: {method}
    settings: {settings}
    training: {{updates: {updates}, batch: 4, accumulation: 2}}
sampler: {{steps: [1]}}
evaluation: {{n: 20, blocks: 2, steps: [1], teacher_steps: [1, 2]}}
health: {{every: 0}}
"""
QUIET = Console(quiet=True)
ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "eval" / "results" / "comparison"


@pytest.fixture
def configs(tmp_path):
    first = {"name": "one", "method": "consistency", "settings": "{steps: 4}", "updates": 3}
    second = {"name": "two", "method": "dmd2", "settings": "{ratio: 1}", "updates": 2}
    files = []
    for values in (first, second):
        file = tmp_path / f"{values['name']}.yaml"
        file.write_text(SMALL.format(**values))
        files.append(str(file))
    return [read(file) for file in files]


def test_configs_are_trained_and_scored_in_one_table(configs, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "comparison"
    rows = compare(configs, runs, out, (20, 2), QUIET)
    found = {(row.model, row.steps, row.source.rpartition("/")[2]) for row in rows}
    assert {("student", 1, "one"), ("student", 1, "two")} <= found
    assert sum(row.model == "teacher" for row in rows) == 2  # once each, for both students
    assert read_results(out / "results.json") == rows
    assert not (out / SCORED).exists()  # for the report is there
    text = (out / "report.md").read_text()
    # One update is a loss on each of two micro-batches; Heun asks the teacher twice.
    assert "3 student updates, 12 passes of student and critic, 12 of the teacher" in text
    assert "2 student updates, 16 passes of student and critic, 4 of the teacher" in text

    log = (runs / "one" / "log.jsonl").read_bytes()
    again = compare(configs, runs, out, (20, 2), QUIET)
    assert (runs / "one" / "log.jsonl").read_bytes() == log  # not trained again
    assert [row.scores for row in again] == [row.scores for row in rows]


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(configs, tmp_path):
    one, two = configs
    guided = replace(two, guidance=2.0)
    unfit = replace(guided, teacher=TeacherSettings("digits-vp"))
    unfit = replace(unfit, evaluation=replace(unfit.evaluation, teacher_steps=()))
    for wanted, message in (
        ([one, one], "names one run twice"),
        ([one, guided], "one teacher a table, got digits, w = 1; digits, w = 2"),
        ([one, unfit], "guidance"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(wanted, tmp_path / "runs", tmp_path / "out", (20, 2), QUIET)
    assert not (tmp_path / "runs").exists()
    RunFolder(tmp_path / "runs" / "two").open(replace(two, seed=5))
    with pytest.raises(ConfigError, match="holds a run with another configuration"):
        compare(configs, tmp_path / "runs", tmp_path / "out", (20, 2), QUIET)
    assert not (tmp_path / "runs" / "one").exists()


def test_a_run_that_fails_does_not_keep_the_others_from_their_table(configs, tmp_path):
    (stage,) = configs[0].stages
    wild = replace(stage.training, optimiser=Optimiser(lr=1e30, clip=0.0), updates=60)
    bad = replace(configs[0], name="bad", stages=[replace(stage, training=wild)])
    out = tmp_path / "out"
    with pytest.raises(TrainingFailed, match="bad: not trained; .*out has the others"):
        compare([bad, configs[1]], tmp_path / "runs", out, (20, 2), QUIET)
    assert {r.source for r in read_results(out / "results.json") if r.model == "student"} == {
        str(tmp_path / "runs" / "two")
    }
    with pytest.raises(TrainingFailed, match="in a row were not finite"):
        compare([bad], tmp_path / "runs", tmp_path / "alone", (20, 2), QUIET)
    assert not (tmp_path / "alone").exists()


def test_seconds_are_added_over_the_times_a_run_was_taken_up(tmp_path):
    log = tmp_path / "log.jsonl"
    place = {"stage": 0, "turn": 1, "update": 1, "player": "student"}
    rows = [place | {"seconds": s} for s in (1.0, 4.0, 0.5, 2.0, 2.0)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds_of(log) == pytest.approx(4 + 2)
    assert seconds_of(tmp_path / "none.jsonl") == 0


def test_the_teachers_trajectories_are_counted(tmp_path):
    """16 of 4 steps, by Heun and once more for each answer, beside the one call an update."""
    changes = ("cache={samples: 16, steps: 4, solver: heun}", "stages.0.training.updates=5")
    run = read("digits-dmd", (*changes, "stages.0.training.batch=8", "trackers=[]"))
    made = Stages.of(run, tmp_path, Accelerator(cpu=True))
    (tmp_path / "log.jsonl").write_text("")
    assert RunCost.of(made.setup, 0.0).teacher == 5 + 16 * 4 * 3 / 8


def test_budgets_scale_every_stage_alike(configs):
    """A pass of one sample is the unit: 6 for consistency by Heun, 13 for dmd2 at ratio 1."""
    (entry,) = enter(configs[0], [6 * 8 * 50], seeds=2)
    assert [run.seed for run in entry.runs] == [0, 1]
    assert [run.stages[0].training.updates for run in entry.runs] == [50, 50]
    assert {run.name for run in entry.runs} == {"one-2.4e03-0", "one-2.4e03-1"}
    two = replace(configs[1], stages=[*configs[0].stages, *configs[1].stages])
    ((run,),) = [e.runs for e in enter(two, [10 * (3 * 8 * 6 + 2 * 8 * 13)], seeds=1)]
    assert [stage.training.updates for stage in run.stages] == [30, 20]


@pytest.mark.parametrize("budget", [1.0, 130.0, float("nan"), float("inf"), 1e300])
def test_budgets_that_whole_updates_miss_are_refused(configs, budget):
    """One update of `two` takes 104 passes."""
    with pytest.raises(ConfigError, match="--budget"):
        list(enter(configs[1], [budget], seeds=1))


def test_a_cache_is_paid_from_the_budget(tmp_path):
    """128 trajectories of 4 DDIM steps take 8 passes each, 50 updates of 8 samples 3 or more."""
    settings = {"name": "three", "method": "dmd", "settings": "{ratio: 1}", "updates": 50}
    file = tmp_path / "three.yaml"
    file.write_text(SMALL.format(**settings) + "cache: {samples: 128, steps: 4, path: kept}\n")
    run = read(str(file))
    (method,) = [load(stage.method)() for stage in run.stages]
    updates = 50 * 8 * method.passes(run.sampler).work(1)
    (entry,) = enter(run, [(updates + 128 * 8) / 2], seeds=1)
    assert entry.runs[0].cache.samples == 64 and entry.runs[0].cache.path == "kept-64"
    assert entry.runs[0].stages[0].training.updates == 25


def test_a_contest_is_summed_up_over_seeds(configs, tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    found = benchmark(configs, [200.0], 2, runs, out, (20, 2), QUIET)
    rows = read_results(out / "results.json")
    for summary, config in zip(found, ("one", "two")):
        own = [r for r in rows if f"/{config}-200-" in r.source and r.model == "student"]
        mine = [r.value("frechet") for r in own]
        assert summary.scores.keys() == {"frechet", "frechet_random"}
        assert len(mine) == 2 and summary.scores["frechet"][0] == pytest.approx(sum(mine) / 2)
        low, high = summary.scores["frechet"][1:]
        mean, reach = sum(mine) / 2, 12.706 * abs(mine[0] - mine[1]) / 2  # Student's t, 1 degree
        assert (low, high) == pytest.approx((mean - reach, mean + reach), rel=1e-3)
        assert summary.seconds > 0 and summary.bytes > 0
    text = (out / "comparison.md").read_text()
    assert "| `one` | 200 | 1 |" in text and "| teacher | – | 2 |" in text
    assert (out / "comparison.png").stat().st_size > 10_000
    assert json.loads((out / "comparison.json").read_text())[0]["config"] == "one"


def committed() -> list[Summary]:
    """The digits comparison in `eval/results`, which was written before scores had names."""
    found = json.loads((RESULTS / "comparison.json").read_text())
    scores = [{name: s.pop(name) for name in ("frechet", "frechet_random")} for s in found]
    return [Summary(**s, scores=each) for s, each in zip(found, scores, strict=True)]


def test_the_readme_shows_the_committed_comparison():
    largest = max(s.budget for s in committed())
    found: dict[str, dict[int, Summary]] = {}
    for summary in committed():
        if summary.budget == largest:
            found.setdefault(summary.config, {})[summary.steps] = summary
    section = README.read_text(encoding="utf-8").split("## Which method?")[1].split("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("| `")]
    for line in shown:
        name, *cells, seconds, mebibytes = (cell.strip(" `") for cell in line.split("|")[1:-1])
        mine = found.pop(name)
        for steps, cell in zip((1, 2, 4), cells, strict=True):
            one = mine.get(steps)
            said = one and " / ".join(f"{score[0]:.3f}" for score in one.scores.values())
            assert cell == (said or "–"), (name, steps)
        (cost,) = {(f"{s.seconds:,.0f}", f"{s.bytes / 2**20:.1f}") for s in mine.values()}
        assert (seconds, mebibytes) == cost
    assert not found


@pytest.mark.full(shard="digits-comparison")
@pytest.mark.parametrize("config", ["digits-scm", "digits-pcm", "digits-sid", "digits-vsd"])
@pytest.mark.usefixtures("one_thread")  # as the committed runs were trained
def test_the_committed_comparison_lies_inside_a_reruns_intervals(config, tmp_path):
    """One of each family, at the smaller budget."""
    least = min(s.budget for s in committed())
    n = read_results(RESULTS / "results.json")[0].n // BLOCKS
    size, folders = (n, BLOCKS), (tmp_path / "runs", tmp_path / "out")
    found = benchmark([read(config)], [least], 3, *folders, size, QUIET)
    before = {s.steps: s for s in committed() if s.config == config and s.budget == least}
    assert before.keys() == {s.steps for s in found}
    for summary in found:
        for name, (_, low, high) in summary.scores.items():
            assert low <= before[summary.steps].scores[name][0] <= high
