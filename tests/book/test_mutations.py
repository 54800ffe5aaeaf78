"""The tests notice numerical slips: each edit of tests/mutations.py makes a named test fail.

`make test` runs four: the sign of v, dσ/dt of VP, a missing detach of the consistency target, and
Heun without its correction ("averaged Heun"). `make test-all` runs them all.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import FIRST, MUTATIONS, Mutation

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "stepdistill"
PYTHON_ALONE = shutil.ignore_patterns("assets", "__pycache__")


def run_tests(nodes: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run tests on the copy of the package in `folder`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "", "-o", f"pythonpath={folder} {TESTS / 'toy'}"]
    command += [str(TESTS / node) for node in nodes]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package, whose front door does not import the whole stack."""
    shutil.copytree(PACKAGE, tmp_path / "stepdistill", ignore=PYTHON_ALONE)
    (tmp_path / "stepdistill" / "__init__.py").write_text("")
    (tmp_path / "stepdistill" / "assets").symlink_to(PACKAGE / "assets")
    for folder in ("pipelines", "configs", "eval"):
        (tmp_path / folder).symlink_to(PACKAGE.parent / folder)
    return tmp_path


def mutate(folder: Path, mutation: Mutation) -> None:
    path = folder / "stepdistill" / mutation.file
    text = path.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file}: not once: {mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new))


def check(mutation: Mutation, copy: Path) -> None:
    mutate(copy, mutation)
    done = run_tests(list(mutation.tests), copy)
    assert done.returncode == 1, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    noticed = r"^E +(assert|AssertionError|Failed: DID NOT RAISE)"
    assert re.search(noticed, done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("mutation", FIRST, ids=lambda m: m.name)
def test_named_mutations_are_noticed(mutation: Mutation, copy: Path) -> None:
    check(mutation, copy)


@pytest.mark.full(shard="mutations")
@pytest.mark.parametrize("mutation", MUTATIONS[len(FIRST) :], ids=lambda m: m.name)
def test_mutations_are_noticed(mutation: Mutation, copy: Path) -> None:
    check(mutation, copy)


@pytest.mark.full(shard="mutations")
def test_the_same_tests_pass_without_mutation(copy: Path) -> None:
    nodes = sorted({node for mutation in MUTATIONS for node in mutation.tests})
    done = run_tests(nodes, copy)
    assert done.returncode == 0, done.stdout


def test_every_mutation_still_applies(copy: Path) -> None:
    for mutation in MUTATIONS:
        mutate(copy, mutation)
        original = (PACKAGE / mutation.file).read_text()
        (copy / "stepdistill" / mutation.file).write_text(original)
