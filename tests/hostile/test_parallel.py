"""Two processes equal one process with two accumulated micro-batches: GAN head, carried samples,
statistics of a whole turn and masks of dropout included.

Gradients are averaged explicitly, once per optimiser step, so no wrapper can skip them.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parents[1] / "toy" / "parallel_worker.py"


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr.decode()


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    ranks = [common | {"RANK": r, "LOCAL_RANK": r} for r in "01"]
    jobs = [[str(folder / "two"), [1], rank] for rank in ranks]
    jobs.append([str(folder / "one"), [2, 1], {}])
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, str(WORKER)]
    subprocess.run(command, env=env, input=json.dumps(jobs), text=True, timeout=300, check=True)
    files = {"two": "two-1", "one": "one-2", "alone": "one-1"}
    return {name: load_file(folder / file) for name, file in files.items()}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).double().norm() / b.double().norm().clamp(min=1e-30))


def test_two_processes_equal_two_accumulated_micro_batches(runs, figure):
    two, one = runs["two"], runs["one"]
    assert two.keys() == one.keys()
    assert "f_distill/kept/bins" in one and float(one["f_distill/kept/bins"].std()) > 0
    worst = {k: relative(two[k], one[k]) for k in one}
    figure("two processes, largest relative difference", max(worst.values()), "")
    assert max(worst.values()) <= 1e-5, max(worst, key=worst.get)


def test_the_second_rank_matters(runs):
    # Guards the test above: one micro-batch alone must not give the same weights.
    for method in ("cycle", "f_distill", "dropout"):
        name = next(k for k in runs["one"] if k.startswith(f"{method}/net/student"))
        assert relative(runs["alone"][name], runs["one"][name]) > 1e-4
        norms = f"{method}/norms"
        assert relative(runs["alone"][norms], runs["one"][norms]) > 1e-3


@pytest.mark.full(shard="parallel")
def test_a_whole_run_on_two_processes(tmp_path):
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    code = "import sys; from stepdistill.cli import main; sys.argv[0] = 'stepdistill'; main()"
    command = [sys.executable, "-c", code, "run", "smoke", "--runs", str(tmp_path)]
    ranks = [os.environ | common | {"RANK": r, "LOCAL_RANK": r} for r in "01"]
    finish(*(subprocess.Popen(command, env=env, stderr=subprocess.PIPE) for env in ranks))
    rows = [json.loads(row) for row in (tmp_path / "smoke" / "log.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2, 3, 4, 5]
    for made in ("report.html", "costs.json", "student/model_index.json"):
        assert (tmp_path / "smoke" / made).is_file()
