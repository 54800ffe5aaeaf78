"""Folders from somebody else: they run no code, read no secret, hang nothing, and what is wrong
with them is one line.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stepdistill import cli
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.report.report import Report, markdown, page, read_results
from stepdistill.export.model_card import fenced, front_matter
from stepdistill.files import remove
from stepdistill.jobs import distill as job
from stepdistill.jobs import samplers
from stepdistill.jobs.suites import load
from stepdistill.method import Method
from stepdistill.resources import named
from stepdistill.runs.config import read
from stepdistill.runs.folder import RunFolder
from stepdistill.runs.yaml import find
from stepdistill.schema import ConfigError, printable
from stepdistill.training.checkpoint import CheckpointError, read_state
from stepdistill.training.trainer import Trainer

pytestmark = pytest.mark.xdist_group("warm")
EVIL = "from pathlib import Path\nPath('PWNED').touch()\n"
SECONDS = 5  # what waits longer than this hangs


class Accepted(BaseException):
    """The input passed every check, and the work would begin."""


@pytest.fixture(scope="module")
def stock(warm, tmp_path_factory) -> Path:
    """A finished run's folder."""
    runs = tmp_path_factory.mktemp("stock")
    job.distill(read("smoke"), runs)
    return runs / "smoke"


@pytest.fixture
def here(stock, tmp_path, monkeypatch) -> Path:
    """A copy of it, `runs/smoke`, in the working folder; work that would begin does not."""

    def accept(*_: object, **__: object) -> None:
        raise Accepted

    shutil.copytree(stock, tmp_path / "runs" / "smoke")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    monkeypatch.setattr(Trainer, "step", accept)
    monkeypatch.setattr(job, "complete", accept)
    real = samplers.sampled
    monkeypatch.setattr(samplers, "sampled", lambda *given: real(*given[:-1], accept))
    monkeypatch.setattr("stepdistill.export.export.pipeline_for", accept)
    return tmp_path


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail if the block waits longer."""

    def late(*_: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


COMMANDS = {
    "run": ("run", "smoke"),
    "eval": ("eval", "runs/smoke", "--n", "20", "--blocks", "2"),
    "sample": ("sample", "runs/smoke", "out.png"),
    "export": ("export", "runs/smoke", "out"),
}


def refusal(*arguments: str) -> str:
    """The one line by which a command refuses its input."""
    with within(SECONDS):
        answer = CliRunner().invoke(cli.app, list(arguments))
    assert answer.exit_code == 2, (answer.output, answer.exception)
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
    assert answer.stderr[:-1].isprintable() and not answer.stdout
    return answer.stderr


def edited(old: str, new: str) -> None:
    """Change the received folder's configuration."""
    config = Path("runs/smoke/config.yaml")
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))


NAMES = {
    "method": ("method: consistency", "method: {}"),
    "source": ("source: digits", "source: {}"),
    "backbone": ("backbone: null", "backbone: {}"),
    "codec": ("codec: null", "codec: {}"),
}
PLACES = {
    "evil_in_folder": "runs/smoke/evil.py",
    "beside": "evil_beside.py",
    "package": "evil_package/__init__.py",
}
MODULES = ("runs.smoke.evil", "evil_beside", "evil_package", "this", "json.tool")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", NAMES)
def test_a_received_folder_runs_no_code(here, command, kind):
    for place in PLACES.values():
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text(EVIL)
    config, before = Path("runs/smoke/config.yaml").read_text(), set(sys.modules)
    for module in MODULES:
        old, new = NAMES[kind]
        edited(old, new.format(module))
        line = refusal(*COMMANDS[command])
        assert kind in line and module in line and not Path("PWNED").exists()
        Path("runs/smoke/config.yaml").write_text(config)
    assert not {*MODULES, "evil_package"} & (set(sys.modules) - before)


def test_a_folder_of_one_s_own_method_is_opened_when_that_is_trusted(here):
    shipped = Path(sys.modules["stepdistill.methods.consistency"].__file__).read_text()
    Path("own_method.py").write_text(shipped.replace("from ..", "from stepdistill."))
    edited("method: consistency", "method: own_method")
    for command in ("eval", "sample", "export"):
        assert "--trust-method own_method" in refusal(*COMMANDS[command])
        with pytest.raises(Accepted):
            arguments = [*COMMANDS[command], "--trust-method", "own_method"]
            CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("this", "module of Python itself"),
        ("os.path", "module of Python itself"),
        ("nothing_of_the_kind", "nor an importable module"),
        ("folder", "folders run no code"),
        ("folder.evil", "folders run no code"),
        ("package.evil", "folders run no code"),
        ("rich.console", "defines 0 classes"),
    ],
)
def test_only_a_file_beside_you_or_an_installed_module_is_yours(here, name, words):
    for place in ("folder/evil.py", "package/evil.py", "package/__init__.py"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).write_text(EVIL)
    with pytest.raises(ValueError, match=words):
        named("methods", name, Method)
    assert not Path("PWNED").exists()


# What a configuration may refer to.


@pytest.mark.parametrize(
    "text",
    ["${oc.env:SECRET}", "x${oc.env:SECRET}y", "${${seed}:SECRET}", "${oc.env:A,${oc.env:SECRET}}"],
)
@pytest.mark.parametrize("key", ["name", "teacher.path", "data.settings.path"])
def test_a_configuration_reads_no_environment(tmp_path, monkeypatch, text, key):
    monkeypatch.setenv("SECRET", "hunter2")
    shipped = find("smoke").read_text()
    (tmp_path / "a.yaml").write_text(shipped.replace("name: smoke", f"name: '{text}'"))
    for source, overrides in ((str(tmp_path / "a.yaml"), ()), ("smoke", (f"{key}={text}",))):
        with pytest.raises(ConfigError, match="key of another value alone") as raised:
            read(source, overrides)
        assert "hunter2" not in str(raised.value)


def test_references_to_keys_and_escaped_ones_stay(tmp_path):
    assert read("smoke", ("seed=${stages.0.training.updates}",)).seed == 5
    assert read("smoke", (r"name=\${oc.env:HOME}",)).name == "${oc.env:HOME}"


@pytest.mark.parametrize("folder", ["configs", "eval/suites"])
def test_a_name_that_means_two_is_refused(tmp_path, monkeypatch, folder):
    name = "smoke" if folder == "configs" else "digits"
    monkeypatch.chdir(tmp_path)
    shipped = find(name, folder)
    for own in (name, f"{name}.yaml"):
        Path(own).write_text("name: mine\n")
        with pytest.raises(ConfigError, match=f"write ./{own} for the latter"):
            find(name, folder)
        assert find(f"./{own}", folder) == Path(own)
        Path(own).unlink()
    Path(f"{name}.yaml").symlink_to(shipped)  # the very same
    assert find(name, folder) == shipped
    with pytest.raises(ConfigError, match="no such file"):
        find(f"./{name}", folder)


# What is printed and written of foreign words.

TAG, ESCAPE = "<img src=x onerror=alert(1)>", "\x1b[31m\x07"


def test_nothing_printed_moves_the_terminal(capsys):
    for what in (f"report: {ESCAPE}", cli.Table(ESCAPE * 9, ESCAPE), cli.Text(ESCAPE)):
        cli.console.print(what)
    cli.errors.print(ESCAPE)
    seen = capsys.readouterr()
    assert "\x1b" not in seen.out + seen.err and "\x07" not in seen.out + seen.err
    assert "report: \\x1b[31m" in seen.out and "┃ \\x1b" in seen.out
    assert printable("a\nb\u202e") == "a\nb\\u202e"


def test_pages_hold_foreign_words_as_words(stock):
    rows = [replace(row, source=TAG + ESCAPE) for row in read_results(stock / "results.json")]
    suite = load("digits", Kind((1, 8, 8), 10))
    words = {"a": TAG, "b": f"&lt;script> {ESCAPE}"}
    report = Report(TAG + ESCAPE, rows, suite, words, remark=TAG, costs=words, config=TAG + ESCAPE)
    for text in (markdown(report), page(report)):
        assert "<img src=x" not in text and "\x1b" not in text and "\x07" not in text
        assert "&lt;img src=x" in text and "&amp;lt;script" in text


def test_nothing_in_a_configuration_ends_its_block(tmp_path):
    text = f"a: |\n  x\n```\n{TAG}\n"
    first, *inside, last = fenced(text).splitlines()
    assert first == "````yaml" and last == "````" and inside == text.splitlines()
    assert "license: apache-2.0\n" in front_matter("apache-2.0", "dmd")
    assert 'license: "a: b"\n' in front_matter("a: b", "dmd")


# What is no file, or an enormous one.

FILES = {
    "config.yaml": (*COMMANDS,),
    "results.json": ("run", "export"),
    "costs.json": ("run",),
    "checkpoints/000005/SHA256SUMS": ("eval", "sample", "export"),
    "checkpoints/000005/state.json": ("sample",),
    "checkpoints/000005/state.safetensors": ("sample",),
}
SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "noise": lambda path: path.symlink_to("/dev/urandom"),
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path),
    "gigabytes": lambda path: path.write_bytes(b"") or os.truncate(path, 2**33),
}


@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_file_of_a_run_is_refused_at_once(here, special):
    for file, commands in FILES.items():
        if special == "gigabytes" and file.endswith((".safetensors", "state.json")):
            continue  # its checksum takes as long as it takes
        os.rename(Path("runs/smoke", file), "kept")
        SPECIAL[special](Path("runs/smoke", file))
        for command in commands:
            if file in ("results.json", "costs.json") and special != "gigabytes":
                with pytest.raises(Accepted), within(SECONDS):  # what is no file is not there
                    CliRunner().invoke(cli.app, list(COMMANDS[command]), catch_exceptions=False)
            else:
                assert "runs/smoke" in refusal(*COMMANDS[command]), file
        remove(Path("runs/smoke", file))
        os.rename("kept", Path("runs/smoke", file))


@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_log_is_refused_at_once(here, special):
    Path("runs/smoke/costs.json").unlink()
    Path("runs/smoke/log.jsonl").unlink()
    SPECIAL[special](Path("runs/smoke/log.jsonl"))
    assert "log.jsonl" in refusal("run", "smoke")


def test_a_batch_that_no_memory_holds_is_refused_before_anything_is_made(here):
    line = refusal("train", "smoke", "name=large", "stages.0.training.batch=1000000000")
    assert "stages.0.training.batch" in line and not Path("runs/large").exists()


# Damaged content whose checksums are right.

CHECKPOINT = Path("runs/smoke/checkpoints/000005")


def sealed() -> None:
    """Make the checksums right."""
    names = ("state.safetensors", "state.json")
    digests = [hashlib.sha256((CHECKPOINT / name).read_bytes()).hexdigest() for name in names]
    sums = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names))
    (CHECKPOINT / "SHA256SUMS").write_text(sums)


def numbers(**changes: object) -> str:
    """A state's JSON with other numbers."""
    found = json.loads((CHECKPOINT / "state.json").read_text())
    return json.dumps({"score": None, "numbers": found["numbers"] | changes})


MEANS = {"student": {"count": 1, "sums": {"x": "y"}}}
HEALTH = {"turn": 0, "skipped": 0, "lags": [], "out": {}, "start": {}}
STATES: dict[str, Callable[[], str]] = {
    "not JSON": lambda: "{",
    "deep": lambda: "[" * 100_000,
    "a list": lambda: "[]",
    "no numbers": lambda: '{"score": null}',
    "numbers of a list": lambda: '{"score": null, "numbers": []}',
    "a score of text": lambda: '{"score": "x", "numbers": {}}',
    "empty": lambda: '{"score": null, "numbers": {}}',
    **{f"turn {v}": lambda v=v: numbers(turn=v) for v in ("x", -1, None, [], 1.5)},
    **{f"stage {v}": lambda v=v: numbers(stage=v) for v in ("x", -1, None, 7, True)},
    **{f"skipped {v}": lambda v=v: numbers(skipped=v) for v in ("x", None, -1)},
    **{f"pending {v}": lambda v=v: numbers(pending=v) for v in (1, "x", [1], {"a": 1}, MEANS)},
    **{
        f"health {v}": lambda v=v: numbers(health=v)
        for v in (1, "x", {"turn": 1}, HEALTH | {"lags": ["x"]}, HEALTH | {"out": {"a": []}})
    },
    **{f"averages {v}": lambda v=v: numbers(averages=v) for v in (1, {}, {"average": "x"})},
}


def test_states_of_other_types_are_one_line(here):
    Path("runs/smoke/costs.json").unlink()
    whole = (CHECKPOINT / "state.json").read_text()
    for i, (name, made) in enumerate(STATES.items()):
        (CHECKPOINT / "state.json").write_text(made())
        sealed()
        assert "runs/smoke" in refusal(*COMMANDS["sample" if i % 4 else "run"]), name
        (CHECKPOINT / "state.json").write_text(whole)


@pytest.mark.parametrize("change", ["lost", "odd", "misshapen"])
def test_tensors_of_another_run_are_one_line(here, change):
    file = CHECKPOINT / "state.safetensors"
    tensors = {k: v.clone() for k, v in load_file(file).items()}
    name = sorted(k for k in tensors if k.startswith("optimiser/"))[-1]
    value = tensors.pop(name)
    if change == "odd":
        tensors["optimiser/student/x/k"] = value
    elif change == "misshapen":
        net = sorted(k for k in tensors if k.startswith("net/"))[0]
        tensors |= {name: value, net: tensors[net].flatten()[:1].clone()}
    save_file(tensors, file)
    sealed()
    Path("runs/smoke/costs.json").unlink()
    if change != "lost":  # an optimiser without one is as a new one
        assert "runs/smoke" in refusal("run", "smoke")
    file.write_bytes(b"\xff" * 99)
    sealed()
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state(CHECKPOINT)


WHERE = {"stage": 0, "turn": 1, "update": 1, "player": "student"}
ROWS = (
    '{"stage": "x", "turn": 1, "update": 1, "player": "student"}',
    json.dumps(WHERE | {"turn": None}),
    json.dumps(WHERE | {"player": []}),
    json.dumps(WHERE | {"seconds": "x", "loss": 1}),
    json.dumps(WHERE | {"loss": "x"}),
    json.dumps(WHERE | {"loss": [1]}),
    json.dumps(WHERE | {"loss": None}),
    json.dumps(WHERE | {"update": -1}),
    json.dumps(WHERE | {"alarm": "lag"}),
    json.dumps(WHERE | {"alarm": [], "begins": True, "text": "x"}),
    "[" * 100_000,
    "null",
)


def test_rows_of_a_log_that_are_none_are_left_out(stock, tmp_path, warm):
    shutil.copytree(stock, tmp_path / "smoke")
    log = tmp_path / "smoke" / "log.jsonl"
    whole = log.read_text()
    log.write_text("".join(f"{row}\n" for row in ROWS) + whole)
    (tmp_path / "smoke" / "costs.json").unlink()
    job.distill(read("smoke"), tmp_path)
    assert log.read_text().endswith(whole)


RESULTS = (
    "",
    "[]",
    "{",
    "[" * 100_000,
    '{"rows": 1, "floor": []}',
    '{"rows": [1], "floor": []}',
    '{"rows": [{"scores": 1}], "floor": []}',
)
VALUES = {
    "frechet": lambda row, v: row["scores"]["frechet"].update(value=v),
    "low": lambda row, v: row["scores"]["frechet"].update(low=v),
    "steps": lambda row, v: row.update(steps=v),
    "seconds": lambda row, v: row.update(seconds=v),
    "model": lambda row, v: row.update(model=v),
    "source": lambda row, v: row.update(source=v),
}


def test_results_that_are_none_are_one_line(here):
    file = Path("runs/smoke/results.json")
    found = file.read_text()
    changed = []
    for change in VALUES.values():
        for value in ([], {}, True, float("nan")):
            results = json.loads(found)
            change(results["rows"][0], value)
            changed.append(json.dumps(results))
    results = json.loads(found)
    results["rows"][0]["model"] = ESCAPE
    for text in (*RESULTS, *changed, json.dumps(results)):
        file.write_text(text)
        assert "results.json: damaged" in refusal("run", "smoke"), text[:100]
    file.unlink()  # as the message says
    with pytest.raises(Accepted):
        CliRunner().invoke(cli.app, ["run", "smoke"], catch_exceptions=False)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 100_000, '{"difference": "x", "seconds": {}}']
    + ['{"difference": 0, "seconds": []}', '{"difference": 0, "seconds": {"a": "x"}}'],
)
def test_costs_that_are_none_are_one_line(here, text):
    Path("runs/smoke/costs.json").write_text(text)
    assert "costs.json: damaged" in refusal("run", "smoke")
    Path("runs/smoke/costs.json").unlink()
    with pytest.raises(Accepted):
        CliRunner().invoke(cli.app, ["run", "smoke"], catch_exceptions=False)


# Another run's folder.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=3", "seed: 0 there, 3 here: choose"),
        ("stages.0.training.updates=6", "stages.0.training.updates: 5 there, 6 here: --extend"),
        ("evaluation.teacher_steps=[1]", "evaluation.teacher_steps: (1, 2) there, (1,) here: --ex"),
        ("save_every=7", "save_every: 500 there, 7 here: --extend goes on"),
        ("health.share=0.5", "--extend goes on"),
    ],
)
def test_a_folder_of_another_run_says_what_differs(here, override, words):
    assert words in refusal("run", "smoke", override)


def test_a_link_to_an_empty_folder_is_where_a_run_goes(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "smoke").symlink_to(tmp_path / "disk")
    RunFolder(tmp_path / "smoke").open(read("smoke"))
    assert (tmp_path / "disk" / "config.yaml").is_file() and (tmp_path / "smoke").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "smoke"]
