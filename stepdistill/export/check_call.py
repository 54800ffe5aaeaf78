"""What a user of an exported folder does, in a process that cannot see this toolkit.

    python check_call.py REQUEST.json IMAGES.safetensors

The request names the folder, the seed, what each call is given and the numbers of steps; the
answer holds the images (n, h, w, c) in [0, 1] of each plain call `pipe(num_inference_steps=N)`.
It ends when its standard input does, and takes with it the folder that it lies in.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from threading import Thread


class Absent:
    """Makes `import stepdistill` fail, as on a machine where it is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "stepdistill":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def main(request: dict, answer: Path) -> None:
    sys.meta_path.insert(0, Absent())
    import torch
    from diffusers import DiffusionPipeline
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    given = dict.fromkeys(request["absent"])
    if request["custom"]:
        given["trust_remote_code"] = True
    pipe = DiffusionPipeline.from_pretrained(request["folder"], local_files_only=True, **given)
    pipe.set_progress_bar_config(disable=True)
    images = {}
    for n in request["steps"]:
        seeded = torch.Generator().manual_seed(request["seed"])
        out = pipe(num_inference_steps=n, generator=seeded, output_type="np", **request["call"])
        images[str(n)] = torch.from_numpy(out.images).float().contiguous()
    save_file(images, answer)


def follow() -> None:
    """End with the process that asked: the system closes our input, whatever ended that one."""
    os.read(0, 1)  # not sys.stdin, whose lock is needed when this process ends
    shutil.rmtree(Path(__file__).parent, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    Thread(target=follow, daemon=True).start()
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
