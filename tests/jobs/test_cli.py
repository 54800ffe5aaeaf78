"""The command line as a user meets it: exit codes, one-line errors, a run's folder."""

import json
import sys
from runpy import run_module
from types import ModuleType

import pytest
from PIL import Image
from typer.testing import CliRunner

from stepdistill.cli import app, main
from stepdistill.runs import plan

pytestmark = [pytest.mark.xdist_group("caller"), pytest.mark.usefixtures("warm")]


def call(*arguments: str, expect: int = 0) -> str:
    answer = CliRunner().invoke(app, list(arguments))
    assert answer.exit_code == expect, answer.output
    return answer.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm):
    folder = tmp_path_factory.mktemp("runs")
    output = call("run", "smoke", "--runs", str(folder))
    return folder, output


def test_a_run_leaves_everything_in_its_folder(runs):
    folder, output = runs
    assert "student" in output and "report.html" in output
    made = {p.name for p in (folder / "smoke").iterdir()}
    assert {"config.yaml", "checkpoints", "log.jsonl", "student", "results.json"} <= made
    rows = json.loads((folder / "smoke" / "results.json").read_text())["rows"]
    assert [(r["model"], r["steps"], r["nfe"]) for r in rows] == [
        ("teacher", 1, 1), ("teacher", 2, 2), ("untrained-student", 1, 1), ("student", 1, 1),
    ]  # fmt: skip
    by = {(r["model"], r["steps"]): r for r in rows}
    # The student of five updates differs from its start, and one step costs less than two.
    frechet = {key: row["scores"]["frechet"] for key, row in by.items()}
    assert frechet["student", 1] != frechet["untrained-student", 1] == frechet["teacher", 1]
    assert all(score["low"] <= score["value"] <= score["high"] for score in frechet.values())
    assert {r["n"] for r in rows} == {80}


def test_the_same_config_reopens_its_folder_and_another_is_refused(runs):
    folder, _ = runs
    before = (folder / "smoke" / "results.json").stat().st_mtime_ns
    assert "finished" in call("run", "smoke", "--runs", str(folder))
    assert (folder / "smoke" / "results.json").stat().st_mtime_ns == before
    output = call("run", "smoke", "seed=9", "--runs", str(folder), expect=2)
    assert "another configuration" in output and "Traceback" not in output


def test_training_goes_on_from_its_checkpoint(tmp_path):
    call("train", "smoke", "--runs", str(tmp_path))
    log = (tmp_path / "smoke" / "log.jsonl").read_text()
    call("train", "smoke", "--runs", str(tmp_path))
    assert (tmp_path / "smoke" / "log.jsonl").read_text() == log
    call("run", "smoke", "--runs", str(tmp_path))
    assert (tmp_path / "smoke" / "report.html").is_file()


def test_a_runs_teacher_is_drawn_below_each_row(runs, tmp_path):
    folder, _ = runs
    run, drawn = folder / "smoke", {}
    for name, more in (("alone", ()), ("1", ("--teacher", "1")), ("2", ("--teacher", "2"))):
        call("sample", str(run), str(tmp_path / f"{name}.png"), "--count", "20", *more)
        drawn[name] = Image.open(tmp_path / f"{name}.png")
    width, height = drawn["alone"].size
    row = height // 2
    for name in ("1", "2"):
        assert drawn[name].size == (width, 2 * height)
        for i in range(2):
            ours = drawn[name].crop((0, 2 * i * row, width, (2 * i + 1) * row))
            alone = drawn["alone"].crop((0, i * row, width, (i + 1) * row))
            assert ours.tobytes() == alone.tobytes()
    assert drawn["1"].tobytes() != drawn["2"].tobytes()
    student = str(run / "student")
    refused = call("sample", student, str(tmp_path / "e.png"), "--teacher", "2", expect=2)
    assert "is no run, and says no teacher" in refused


def test_sample_export_and_eval_take_a_run_or_a_pipeline(runs, tmp_path):
    folder, _ = runs
    run, out = folder / "smoke", tmp_path / "out"
    call("sample", str(run), str(tmp_path / "a.png"), "--count", "12", "--seed", "3")
    call("export", str(run), str(out))
    call("sample", str(out), str(tmp_path / "b.png"), "--count", "12", "--seed", "3")
    a, b = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert a.size == (10 * 9 * 8, 2 * 9 * 8) and a.tobytes() == b.tobytes()
    table = call(
        "eval", str(run), str(out), "--n", "40", "--blocks", "2", "--out", str(tmp_path / "e")
    )
    assert "teacher" in table and "real" in table
    rows = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    students = {
        r["source"]: r["scores"]["frechet"]["value"] for r in rows if r["model"] == "student"
    }
    assert students.keys() == {str(run), str(out)}
    assert students[str(run)] == pytest.approx(students[str(out)], rel=1e-6)
    assert {r["source"] for r in rows if r["model"] == "teacher"} == {"digits, w = 1"}
    assert str(out) in (tmp_path / "e" / "report.md").read_text()
    # The card of an export made later knows what the run scored.
    assert "| student | 1 | 1 |" in (out / "README.md").read_text()


def test_a_student_in_a_stock_pipeline_is_scored_as_a_student(tmp_path):
    short = ["stages.0.training.updates=2", "stages.0.training.batch=4", "trackers=[]"]
    quick = ["evaluation={n: 40, blocks: 2, steps: [1], teacher_steps: [1]}"]
    call("run", "digits-consistency-vp", *short, *quick, "--runs", str(tmp_path))
    run = tmp_path / "digits-consistency-vp"
    call("eval", str(run / "student"), "--n", "40", "--blocks", "2", "--out", str(tmp_path / "e"))
    made = json.loads((tmp_path / "e" / "results.json").read_text())["rows"]
    assert [(r["model"], r["steps"]) for r in made] == [("student", 1)]


def test_two_teachers_do_not_share_a_table(runs, tmp_path):
    folder, _ = runs
    call("train", "smoke", "guidance=2", "--runs", str(tmp_path))
    output = call("eval", str(folder / "smoke"), str(tmp_path / "smoke"), expect=2)
    assert "one teacher a table" in output and "w = 2" in output


def test_plan_says_what_a_run_costs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "MEASURED", (1, 0.0))
    output = call("plan", "demo")
    assert "268,769 parameters" in output and "min" in output
    words = " ".join(output.replace("│", " ").split())
    assert "1 forward+backward, 1 forward," in words and "2 teacher forward" in words
    assert "trajectories" not in words
    # 10 trajectories of 2 steps, in each an answer and Heun's two, of a guided teacher.
    cache = "cache={samples: 10, steps: 2, solver: heun, guidance: [1, 3]}"
    few = call("plan", "digits-agd", cache)
    assert "teacher's trajectories 120 forward, 0.0 MB" in " ".join(few.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_methods_are_listed():
    output = call("methods")
    assert "consistency" in output and "2303.01469" in output.replace("\n", "")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["run", "no-such-config"], "no-such-config"),
        (["run", "smoke", "guidanse=2"], "did you mean 'guidance'?"),
        (["run", "smoke", "teacher=no-such-teacher"], "no-such-teacher"),
        (["run", "digits-consistency-vp", "guidance=2"], "class-conditional"),
        (["eval", "nowhere"], "nowhere"),
        (["export", "nowhere", "out"], "nowhere"),
        (["sample", "nowhere", "a.png"], "nowhere"),
        (["sample", "nowhere", "a.txt"], ".png"),
        (["eval", "nowhere", "--suite", "coco"], "coco"),
        (["plan", "smoke", "stages.0.method=nope"], "nope"),
        (["run", "smoke", "name=../up"], "name"),
        (["run", "smoke", "sampler.steps=[1,3]"], "never trains"),
        (["run", "smoke", "sampler.grid.name=trailing"], "whole timesteps"),
        (["run", "smoke", "sampler.grid.rho=0"], "sampler.grid.rho: must be"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = call(*arguments, expect=2)
    assert named in output and "Traceback" not in output
    assert output.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_training_that_diverges_fails_with_one_line_and_keeps_its_last_checkpoint(tmp_path):
    hot = ["stages.0.training.optimiser.lr=1e30", "stages.0.training.skips=2"]
    output = call("run", "smoke", *hot, "--runs", str(tmp_path), expect=1)
    assert "2 steps of the student in a row were not finite" in output and "Traceback" not in output
    assert not (tmp_path / "smoke" / "student").exists()


def test_precision_is_a_run_s_own_whatever_ran_before(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16", "fp32"):
        runs = tmp_path / f"{precision}-{len(losses)}"
        call("train", "smoke", f"precision={precision}", "--runs", str(runs))
        rows = (runs / "smoke" / "log.jsonl").read_text().splitlines()
        losses[runs.name] = [json.loads(row)["consistency"] for row in rows]
    first, half, again = losses.values()
    assert first == again and first != half
    assert half == pytest.approx(first, rel=0.05)


def called(how: str, arguments: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and words printed by `stepdistill` ("script") or `python -m stepdistill`."""
    monkeypatch.setattr(sys, "argv", ["stepdistill", *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    with pytest.raises(SystemExit) as done:
        if how == "module":
            run_module("stepdistill", run_name="__main__", alter_sys=True)
        else:
            main()
    printed = capsys.readouterr()
    return done.value.code, " ".join((printed.out + printed.err).split())


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--help"], 0, "Usage: stepdistill [OPTIONS] COMMAND"),
        (["plan", "--help"], 0, "What a run will cost"),
        ([], 2, "Usage: stepdistill [OPTIONS] COMMAND"),
        (["methods"], 0, "2303.01469"),
        (["plan", "no-such-config"], 2, "error: config 'no-such-config'"),
        (["plan", "smoke", "--nonsense"], 2, "see stepdistill plan --help"),
        (["plan", "smoke"], 1, "error: the disk is gone"),
    ],
)
def test_the_module_is_the_command(arguments, code, named, monkeypatch, capsys):
    """`python -m stepdistill` prints and exits as the script does."""

    def broken(config):
        raise OSError("the disk is gone")

    monkeypatch.setattr("stepdistill.runs.plan.plan", broken)
    script = called("script", arguments, monkeypatch, capsys)
    exit_code, printed = called("module", arguments, monkeypatch, capsys)
    assert "python -m stepdistill" in printed or "Usage" not in printed
    assert script == (exit_code, printed.replace("python -m stepdistill", "stepdistill"))
    assert script[0] == code and named in script[1]
