"""30,000 images scored against 30,000 real ones: memory does not grow with either."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepdistill.evaluation.report.report import read_results

N, SMALL, SIDE, MOST = 30_000, 3000, 64, 1.5e9
# VmHWM, unlike the maximum of getrusage, is of this process alone, not of who started it.
EVAL = """
import json, sys, time
from stepdistill.cli import app

begun = time.perf_counter()
try:
    app(sys.argv[1:])
except SystemExit as done:
    if done.code:
        raise
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
seconds = time.perf_counter() - begun
print(json.dumps({"bytes": int(status["VmHWM"].split()[0]) * 1024, "seconds": seconds}))
"""


def pictures(folder: Path, count: int, seed: int) -> Path:
    """Coarse colours, no two alike."""
    folder.mkdir()
    draws = np.random.default_rng(seed)
    for i in range(count):
        coarse = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        fine = coarse.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
        Image.fromarray(fine).save(folder / f"{i:05d}.png", compress_level=1)
    return folder


def evaluated(scored: Path, real: Path, count: int, out: Path) -> dict[str, float]:
    """What `stepdistill eval` of all images takes, in a process of its own."""
    size = ["--n", str(count // 2), "--blocks", "2", "--out", str(out)]
    command = ["eval", str(scored), "--suite", "folder", "--reference", str(real), *size]
    environment = os.environ | {"XDG_CACHE_HOME": str(out.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", EVAL, *command], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.full(shard="memory-eval")
def test_memory_does_not_grow_with_images(tmp_path, figure):
    scored, real = pictures(tmp_path / "scored", N, 1), pictures(tmp_path / "real", N, 2)
    few = pictures(tmp_path / "few", SMALL, 3)
    runs = {
        f"{SMALL:,}": (scored, few, SMALL),
        f"{N:,}": (scored, real, N),
        f"{N:,}, the reference known": (scored, real, N),
    }
    results = []
    for name, given in runs.items():
        found = evaluated(*given, tmp_path / "out")
        figure(f"peak memory, {name} images", found["bytes"] / 2**20, "MiB")
        figure(f"time, {name} images", found["seconds"], "s")
        assert found["bytes"] <= MOST
        results.append(read_results(tmp_path / "out" / "results.json"))
    assert results[1] == results[2]
    (row, floor) = results[1]
    assert row.n == floor.n == N
    assert set(row.scores) == {"frechet_random", "kid", "precision", "recall"}
