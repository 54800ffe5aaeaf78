"""Plain calls of exported folders, as a clean process makes them, without waiting for new ones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors.torch import load_file
from torch import Tensor

from stepdistill.resources import PACKAGE

# Answers plain calls as a clean process does, from children of one that has imported torch already,
# and the pipelines: diffusers imports what a name stands for when it is first asked.
CALLER = """
import json, os, runpy, sys, traceback
from pathlib import Path
import torch, safetensors.torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline, UNet2DModel
main = runpy.run_path(sys.argv[1])["main"]
for line in sys.stdin:
    request, answer = json.loads(line)
    if (child := os.fork()) == 0:
        try:
            main(request, Path(answer))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def plain_caller(folder: Path) -> Iterator[Callable[[dict], dict[str, Tensor]]]:
    """What `export.call_plainly` does. The process works and keeps its modules in `folder`."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder)}
    command = [sys.executable, "-c", CALLER, str(PACKAGE / "export" / "check_call.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:

        def call(request: dict) -> dict[str, Tensor]:
            answer = folder / f"{uuid4()}.safetensors"
            print(json.dumps([request, str(answer)]), file=process.stdin, flush=True)
            assert int(process.stdout.readline()) == 0, "the exported pipeline does not run"
            return load_file(answer)

        yield call
        process.stdin.close()
