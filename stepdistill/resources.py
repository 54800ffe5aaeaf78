"""What travels with the package, by name: configs, pipelines, assets, and one-file parts; and
whether more may be fetched."""

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Downloads:
    """Of the process: whether what is not on this machine may be fetched. Only who was asked to may
    allow it."""

    allowed: bool = False


DOWNLOADS = Downloads()
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


def cache_folder() -> Path | None:
    """Where what can be made again is kept between runs; None for a user without a home."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(home) / "stepdistill"


def pipeline_class(file: str, name: str) -> type:
    """A class of a self-contained file, `pipelines/<file>.py`."""
    return vars(pipeline_module(file))[name]


def named(room: str, name: str, base: type[T]) -> type[T]:
    """The one subclass of `base` in module `name`: a file of stepdistill/<room>, or one of yours.

    room: a dotted place in this package, like "methods". Yours is NAME.py in the working folder, or
    installed; a folder of the working folder holds data, which run no code, and Python's own
    modules hold nothing of the kind. Raises ValueError if there is no such module, or not exactly
    one such class in it.
    """
    if is_shipped(room, name):
        place = f"stepdistill.{room}.{name.rpartition('.')[2]}"
        return _only(import_module(place), base)
    kind = base.__name__.lower()
    require_yours(name, kind)
    try:
        return _only(import_module(name), base)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
    raise ValueError(f"{kind} '{name}': neither a shipped {kind} nor an importable module")


def is_shipped(room: str, name: str) -> bool:
    """Whether a file of stepdistill/<room> is meant."""
    return name.removeprefix(f"stepdistill.{room}.") in shipped_modules(room)


def require_yours(name: str, kind: str) -> None:
    """Raise ValueError for a module that no user of this package has written; imports nothing."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        raise ValueError(f"{kind} '{name}': '{top}' is a module of Python itself")
    try:
        spec = find_spec(top)
    except ValueError:  # __main__ has none
        spec = None
    if spec is None:
        raise ValueError(f"{kind} '{name}': neither a shipped {kind} nor an importable module")
    here = Path.cwd()
    if any(Path(p).parent.resolve() == here for p in spec.submodule_search_locations or ()):
        raise ValueError(
            f"{kind} '{name}': '{top}' is a folder where you are, and folders run no code: put the "
            "file itself there, or install the package"
        )


def shipped_modules(room: str) -> list[str]:
    """Names of the modules in a room of this package."""
    return sorted(p.stem for p in PACKAGE.joinpath(*room.split(".")).glob("[!_]*.py"))


def _only(module: ModuleType, base: type[T]) -> type[T]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == vars(module)["__name__"]
    ]
    if len(found) != 1:
        where, kind = vars(module)["__name__"], base.__name__.lower()
        raise ValueError(f"module '{where}' defines {len(found)} classes of kind {kind}, not 1")
    return found[0]


@cache
def pipeline_module(name: str) -> ModuleType:
    """The module of a self-contained pipeline file, `pipelines/<name>.py`."""
    file = shipped("pipelines") / f"{name}.py"
    spec = spec_from_file_location(f"stepdistill_pipelines_{name}", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
