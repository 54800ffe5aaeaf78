"""Whether a change of the code changes what it computes: digests of short runs of every config.

Every stage of every shipped config makes three updates. Kept are

    tensors   SHA-256 over the sorted SHA-256 of each tensor of the last checkpoint, so that names
              may change
    scores    every number of the rows of results.json but seconds, in the order they are written

one JSON line a config in results/digests.jsonl, with the commit. Equal numbers need one machine and
one thread.

At 3fb2c59 guidance has moved from estimates to raw outputs, which rounds otherwise: in the three
configs with w ≠ 1 (digits-agd, digits-guidance, digits-lcm) weights after the three updates differ
by 7.2e-7, 1.2e-7 and 2.9e-7 at most, where the largest is 3.4; scores, distances of 20 images in 64
dimensions, by 3.6e-6.

Short runs have batches of 16, and of 40 where a method asks for so many samples a turn: f_distill
does since its bins are pooled, so that digits-f-distill no longer equals its first digest.

Without its GAN dmd2 looks at no data and draws its labels, so that shapes-classes no longer equals
its first digest.

    python eval/digests.py COMMIT-OR-NOTE [CONFIG ...]      appends, and says what differs from the
                                                            first digest of the config
    python eval/digests.py --table                          writes results/digests.md
"""

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

import stepdistill

HERE = Path(__file__).parent
FILE, TABLE = HERE / "results" / "digests.jsonl", HERE / "results" / "digests.md"
SHORT = (
    "name=digest",
    "trackers=[]",
    "evaluation.n=20",
    "evaluation.blocks=2",
    "evaluation.teacher_steps=[1,2]",
    "health.every=3",
    "health.samples=16",
)
STAGE = ("updates=3", "batch={batch}")
BATCH = 16  # of methods that do not ask for more
CACHE = ("samples=32", "shard=16", "steps=8")


def short(config: str) -> stepdistill.RunConfig:
    """The config with three updates of few samples."""
    whole = stepdistill.read(config)
    needed = [max(BATCH, stage.build().needs.batch) for stage in whole.stages]
    asked = [
        f"stages.{i}.training.{key.format(batch=n)}" for i, n in enumerate(needed) for key in STAGE
    ]
    asked += [f"cache.{key}" for key in CACHE] if whole.cache else []
    return stepdistill.read(config, (*SHORT, *asked))


def digest(config: str) -> dict[str, Any]:
    """The tensors and scores of the short run."""
    with TemporaryDirectory() as folder:
        result = stepdistill.distill(short(config), Path(folder))
        *_, last = sorted((result.folder / "checkpoints").iterdir())
        tensors = load_file(last / "state.safetensors")
        found = json.loads((result.folder / "results.json").read_text())
        student = load_file(result.student / "unet" / "diffusion_pytorch_model.safetensors")
    rows = [list(numbers(row)) for row in (*found["rows"], *found["floor"])]
    return {"config": config, "tensors": of(tensors), "student": of(student), "scores": rows}


def of(tensors: dict[str, torch.Tensor]) -> str:
    """The digest of a set of tensors, whatever they are called."""
    each = (sha256(t.contiguous().view(-1).view(torch.uint8).numpy()) for t in tensors.values())
    return sha256("".join(sorted(d.hexdigest() for d in each)).encode()).hexdigest()


def numbers(value: Any) -> Iterator[float]:
    """The numbers of a row, but its seconds."""
    if isinstance(value, dict):
        for key in sorted(value):
            if "seconds" not in key:
                yield from numbers(value[key])
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield float(value)


def known() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.is_file() else []


def difference(now: dict[str, Any], first: dict[str, Any]) -> tuple[bool, float]:
    """Whether the tensors are equal, and the largest difference of a score relative to 1 or it.

    A row may say more than it did: every number of the first is looked for among those of now."""
    found, wanted = (sum(d["scores"], []) for d in (now, first))
    gap = max((min(abs(x - y) for x in found) / max(1, abs(y)) for y in wanted), default=0.0)
    equal = now["tensors"] == first["tensors"] and now["student"] == first["student"]
    return equal, gap


def table(rows: list[dict[str, Any]]) -> str:
    """What every commit was compared with the first."""
    first = {}
    for row in rows:
        first.setdefault(row["config"], row)
    lines = ["# Digests", "", __doc__.partition("\n\n")[2], ""]
    lines += ["| commit | configs | tensors equal | largest difference of a score |"]
    lines += ["|---|---:|---:|---:|"]
    for commit, group in groupby(rows, lambda row: row["commit"]):
        found = [difference(row, first[row["config"]]) for row in group]
        equal, gap = sum(e for e, _ in found), max(g for _, g in found)
        lines.append(f"| {commit} | {len(found)} | {equal} | {gap:.1e} |")
    return "\n".join([*lines, ""])


def main(commit: str, configs: list[str]) -> None:
    torch.set_num_threads(1)
    shipped = sorted(p.stem for p in (HERE.parent / "configs").glob("*.yaml"))
    first = {}
    for row in known():
        first.setdefault(row["config"], row)
    for config in configs or shipped:
        row = {"commit": commit} | digest(config)
        equal, gap = difference(row, first.get(config, row))
        print(f"{config}: {'equal' if equal else 'OTHER TENSORS'}, scores within {gap:.1e}")
        with FILE.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        TABLE.write_text(table(known()))
    else:
        main(sys.argv[1], sys.argv[2:])
