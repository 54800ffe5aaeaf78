"""The teacher of text as it is shipped: what the run `shapes-teacher-fine` has made, in half
precision.

    python eval/shapes_asset.py runs/shapes-teacher-fine/student stepdistill/assets/shapes
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from stepdistill.teachers.loading import load_pipeline


def main(student: Path, out: Path) -> None:
    """Write it beside its card."""
    pipeline = load_pipeline(str(student.absolute())).to(torch.float16)
    pipeline.save_pretrained(out, safe_serialization=True)
    shutil.copy(student / "README.md", out / "README.md")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
