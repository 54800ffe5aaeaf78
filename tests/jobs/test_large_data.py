"""A set of 100,000 images from archives: each seen once a round, in little memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shelf import pack, png

N, SHARDS, BATCH = 100_000, 20, 128
READ = """
import json, resource, sys, time
import torch
from stepdistill.data.loader import stream
from stepdistill.runs.config import read
from stepdistill.runs.setup import data_of, teacher_of

run = read("smoke", (sys.argv[1],))
begun = time.perf_counter()
data = data_of(run, teacher_of(run))
opened = time.perf_counter()
seen = torch.zeros(int(sys.argv[2]), dtype=torch.int64)
batches = -(-len(seen) // int(sys.argv[3]))
for number in range(batches):
    drawn = data.batch(number, int(sys.argv[3]), stream(0, 1, number))
    digits = ((drawn.x0[:, 0, 0, :3] + 1) * 127.5).round().long()
    which = digits @ torch.tensor([65536, 256, 1])
    assert torch.equal(drawn.cond["label"], which % 10)
    start = number * int(sys.argv[3])
    seen += torch.bincount(which[: len(seen) - start], minlength=len(seen))
assert (seen == 1).all()
done = time.perf_counter()
mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"open": opened - begun, "batch": (done - opened) / batches, "mib": mib}))
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Picture k says k in its first three pixels, and is of class k mod 10."""
    folder = tmp_path_factory.mktemp("archives")
    for shard in range(SHARDS):
        members = {}
        for k in range(shard * N // SHARDS, (shard + 1) * N // SHARDS):
            array = np.zeros((8, 8), np.uint8)
            array[0, :3] = k >> 16, k >> 8 & 255, k & 255
            members |= {f"{k:06d}.png": png(array), f"{k:06d}.cls": str(k % 10).encode()}
        pack(folder / f"{shard:05d}.tar", members)
    return folder


@pytest.mark.full(shard="data")
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_hundred_thousand_images_fit_into_little_memory(streaming, archives, figure):
    """Less than 1.5 GB for the whole process, PyTorch and the teacher with it."""
    data = f"data={{source: webdataset, settings: {{path: {archives}, streaming: {streaming}}}}}"
    command = [sys.executable, "-c", READ, data, str(N), str(BATCH)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    name = "streamed" if streaming == "true" else "held"
    figure(f"{name}, resident", found["mib"], "MiB")
    figure(f"{name}, opened", found["open"], "s")
    figure(f"{name}, a batch of {BATCH}", found["batch"] * 1000, "ms")
    assert found["mib"] * 2**20 < 1.5e9
