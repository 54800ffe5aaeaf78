"""The teachers of text as they are shipped: what their runs have made, in half precision.

    python eval/shapes_asset.py runs/shapes-teacher-fine/student stepdistill/assets/shapes
    python eval/shapes_asset.py runs/shapes-flow-teacher/student stepdistill/assets/shapes-flow
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.schedulers import is_flow


def main(student: Path, out: Path) -> None:
    """Write it beside its card."""
    pipeline = load_pipeline(str(student.absolute())).to(torch.float16)
    if is_flow(pipeline.scheduler):  # a teacher walks as its own kind does
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline.save_pretrained(out, safe_serialization=True)
    shutil.copy(student / "README.md", out / "README.md")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
