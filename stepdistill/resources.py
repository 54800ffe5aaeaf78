"""Where the files that travel with the package are: configs, pipelines, protocols, assets."""

from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
# Modules that an exported network may carry beside it, and their files in pipelines/.
INPUTS = {"ExtraInputs": "extra_inputs", "GuidanceAdapters": "guidance_adapters"}


def shipped(folder: str) -> Path:
    """`configs`, `pipelines` or `eval`: inside an installed wheel, or beside the package."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def shipped_names(folder: str, suffix: str) -> list[str]:
    """Names, without suffix, of the shipped files of a kind."""
    return sorted(p.stem for p in shipped(folder).glob(f"*{suffix}"))


def pipeline_class(file: str, name: str) -> type:
    """A class of a self-contained file, `pipelines/<file>.py`."""
    return vars(pipeline_module(file))[name]


@cache
def pipeline_module(name: str) -> ModuleType:
    """The module of a self-contained pipeline file, `pipelines/<name>.py`."""
    file = shipped("pipelines") / f"{name}.py"
    spec = spec_from_file_location(f"stepdistill_pipelines_{name}", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
