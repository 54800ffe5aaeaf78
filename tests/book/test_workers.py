"""Files of a group run in one process, every other file by itself."""

import os
import subprocess
import sys
from pathlib import Path

import workers

MARK = 'import pytest\npytestmark = [pytest.mark.xdist_group("shared"), pytest.mark.full]\n'
TESTS = """
import os, pytest
@pytest.mark.parametrize("n", range(3))
def test_it(n):
    print(f"in {__name__}: {os.environ['PYTEST_XDIST_WORKER']}")
"""


def test_a_group_runs_in_one_process(tmp_path: Path):
    for name in ("workers.py", "limits.py", "conftest.py"):
        (tmp_path / name).write_text((Path(workers.__file__).parent / name).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    full: long\n    bench: timing\n")
    for k in range(8):
        head = MARK if k % 2 else ""
        (tmp_path / f"test_{k}.py").write_text(head + TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rP", "-n", "3", "--dist", "loadfile"],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    where: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("in test_"):
            file, worker = line.removeprefix("in ").split(": ")
            where.setdefault(file, set()).add(worker)
    assert len(where) == 8 and all(len(seen) == 1 for seen in where.values())
    assert len(set.union(*(where[f"test_{k}"] for k in (1, 3, 5, 7)))) == 1
    assert len(set.union(*where.values())) > 1
