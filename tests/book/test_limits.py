"""A test and a tier that cost too much make a run fail, with or without workers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import limits
import pytest

TESTS = Path(limits.__file__).parent
SUITE = """
import subprocess, sys, pytest, limits
def burn(seconds):
    end = limits.spent() + seconds
    while limits.spent() < end: pass
def burn_in_child(seconds):
    code = "import time; [0 for _ in iter(lambda: time.process_time() < float(%r), False)]"
    subprocess.run([sys.executable, "-c", code % seconds], check=True)
"""
SETTINGS = """
[pytest]
testpaths = tests
addopts = -m 'not full and not bench'
markers =
    full: long
    bench: timing
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Where tests of a tier can be put that has 0.1 s for each and 0.5 s for all."""
    tier = tmp_path / "tests" / "maths"
    tier.mkdir(parents=True)
    for name in ("limits.py", "conftest.py"):
        shutil.copy(TESTS / name, tier.parent)
    with (tier.parent / "limits.py").open("a") as file:
        file.write('TIERS["maths"] = Tier(0.1, 0.5, fewest=2)\n')
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    return tmp_path


def run(project: Path, tests: str, *arguments: str, **environment: str):
    (project / "tests" / "maths" / "test_toy.py").write_text(SUITE + tests)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env=os.environ | {"PYTEST_ADDOPTS": ""} | environment,
        capture_output=True,
        text=True,
    )


def test_a_test_over_three_times_its_limit_fails_in_one_line(project: Path):
    tests = "def test_a(): burn(0.2)\ndef test_b(): burn(0.4)\ndef test_c(): burn_in_child(0.4)\n"
    done = run(project, tests, "-k", "test")
    assert done.returncode == 1 and "2 failed, 1 passed" in done.stdout
    assert "Traceback" not in done.stdout
    line = "s of processor time: a test in maths/ may take 0.1, and at worst 0.3"
    assert done.stdout.count(line) == 2


SLOW = """
@pytest.fixture
def shared():
    yield burn(0.1)
    burn(0.1)
@pytest.mark.parametrize("n", range(3))
def test_slow(shared, n): pass
@pytest.mark.full
def test_exempt(): burn(0.9)
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two workers"])
def test_a_tier_over_its_sum_fails_a_whole_run(project: Path, workers: tuple[str, ...]):
    record = project / "durations.json"
    done = run(project, SLOW, *workers, STEPDISTILL_DURATIONS=str(record))
    assert done.returncode == 1 and "3 passed" in done.stdout
    assert "processor time, may take 0.5; dearest: maths/test_toy.py::test_slow" in done.stdout
    found = json.loads(record.read_text())
    assert found["tiers"]["maths"]["tests"] == len(found["dearest"]) == 3
    assert 0.6 <= found["tiers"]["maths"]["seconds"] <= 1.5


def test_a_tier_with_too_few_tests_fails_a_whole_run(project: Path):
    done = run(project, "def test_alone(): pass\n")
    assert done.returncode == 1 and "maths/ has 1 tests, 2 are the least" in done.stdout


@pytest.mark.parametrize("part", [("tests/maths",), ("-m", "full"), ("-k", "1")], ids=str)
def test_a_part_of_the_tests_has_no_sum_and_nothing_is_written_unasked(project: Path, part):
    done = run(project, SLOW, *part)
    assert done.returncode == 0, done.stdout
    assert not list(project.rglob("durations*"))


def test_every_test_lies_in_a_tier():
    assert {path.parent for path in TESTS.rglob("test_*.py")} == {TESTS / t for t in limits.TIERS}
