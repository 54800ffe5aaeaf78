"""What a suite's YAML names: spaces, metrics and tasks, one a file, ours or anyone's.

A name is that of a file in a folder of this package, or of any importable module; nothing is
registered anywhere.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TypeVar

from ..resources import PACKAGE
from ..schema import ConfigError, did_you_mean, shown

Kind = TypeVar("Kind")


def module_of(name: str, room: str, key: str) -> ModuleType:
    """The module `name` of evaluation/`room`, or any importable one. Raises ConfigError with `key`.

    "-" in a name is "_" in the file's."""
    plain = name.replace("-", "_")
    if not all(part.isidentifier() for part in plain.split(".")):
        raise ConfigError(f"{key}: {shown(name)} is not the name of a module")
    known = [p.stem for p in (PACKAGE / "evaluation" / room).glob("[!_]*.py")]
    path = f"stepdistill.evaluation.{room}.{plain}" if plain in known else plain
    try:
        return import_module(path)
    except Exception as error:  # importing runs whatever stands in the user's module
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            reason = f"'{name}' is neither one of {', '.join(sorted(known))} nor importable"
        raise ConfigError(f"{key}: {reason}{did_you_mean(name, known)}") from error


def class_of(name: str, room: str, base: type[Kind], key: str) -> type[Kind]:
    """The one subclass of `base` in module `name`. Raises ConfigError with `key`."""
    module = module_of(name, room, key)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{key}: {module.__name__} defines {len(found)} {base.__name__}s, not 1")
    return found[0]
