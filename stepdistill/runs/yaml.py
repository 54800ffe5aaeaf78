"""YAML files: where they lie, plain values from one, changed by `key=value`, and back into YAML.

OmegaConf does the work; here are the limits and the error messages. Its YAML is version 1.1, but
1e-3 is a number and no key is given twice; ${seed} is the value of another key of the file.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from ..resources import shipped, shipped_names
from ..schema import ConfigError, did_you_mean, shown

LARGEST_FILE = 2**16  # bytes
MOST_OPENED = 10_000  # brackets and dashes: nested without a limit, they crash the C parser
LISTED = 8  # names in a message
MOST_REFERENCES = 12  # to values that hold references themselves, and so on: the sizes multiply


def load_values(path: Path, overrides: tuple[str, ...] = ()) -> Any:
    """The values in a YAML file, overridden and resolved. Raises ConfigError if there are none."""
    with one_line():
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError("larger than 64 KiB: not a configuration")
        config = OmegaConf.load(StringIO(shallow(path.read_text(encoding="utf-8-sig"))))
        if not config:
            raise ConfigError("is empty: write keys with values, like `name: run`")
        require_plain(config)
        for assignment in overrides:
            override(config, assignment)
        if str(config).count("${") > MOST_REFERENCES:
            raise ConfigError(f"more than {MOST_REFERENCES} references like ${{seed}}")
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def override(config: DictConfig, assignment: str) -> None:
    """Set `stages.0.training.updates=3` in `config`; mappings are merged, all else is replaced."""
    with one_line(f"override {shown(assignment)}: "):
        key, equals, _ = shallow(assignment).partition("=")
        if not equals or not all(key.split(".")):  # OmegaConf sets None, or a key of no letters
            raise ConfigError("write key=value, with a dotted key like stages.0.training.updates")
        require_plain(OmegaConf.from_dotlist([assignment]))
        config.merge_with_dotlist([assignment])


def require_plain(config: DictConfig) -> None:
    """Raise ConfigError for references to anything but keys: OmegaConf's read the environment."""
    for text in texts(OmegaConf.to_container(config, resolve=False)):
        for escapes, key in re.findall(r"(\\*)\$\{([^}]*)", text):
            if len(escapes) % 2 == 0 and not re.fullmatch(r"[\w.\[\]-]+", key):
                raise ConfigError(
                    f"{shown(text)}: a reference is the key of another value alone, like ${{seed}}"
                )


def texts(value: Any) -> Iterator[str]:
    """Every text in plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def written(values: dict[str, Any]) -> str:
    """The YAML text that `load` reads as `values`."""
    return OmegaConf.to_yaml(literal(values))


def literal(value: Any) -> Any:
    """`value` with the texts escaped that OmegaConf would take for references or missing values."""
    if isinstance(value, dict):
        return {key: literal(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [literal(each) for each in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", re.sub(r"\A(\\*\?{3})\Z", r"\\\1", value))
    return value


def shallow(text: str) -> str:
    """`text`. Raises ConfigError if it might be nested deeper than the parser's stack."""
    if sum(map(text.count, "[{?-")) > MOST_OPENED:
        raise ConfigError(f"nested too deeply: more than {MOST_OPENED:,} of [ {{ ? and -")
    return text


@contextmanager
def one_line(label: str = "") -> Iterator[None]:
    """Errors as ConfigError. All of them: YAML's tags, like !!int x, raise whatever Python does."""
    try:
        yield
    except Exception as error:
        raise ConfigError(label + problem_of(error)) from error


def problem_of(error: Exception) -> str:
    """What an error says, without what libraries add for their programmers."""
    said = str(error).partition("\n")[0]
    match error:
        case OmegaConfBaseException() if error.full_key:
            return f"{error.full_key}: {said}"
        case OSError() if error.strerror:
            return f"cannot be read: {error.strerror}"
        case UnicodeDecodeError():
            return "not a text file in UTF-8"
        case RecursionError():
            return "not valid YAML: nested too deeply"
        case MarkedYAMLError(problem=str(problem), problem_mark=mark) if mark:
            said = re.split(r"\. |\n", problem)[0]
            return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {said}"
        case YAMLError():
            return f"not valid YAML: {said}"
    return said or type(error).__name__


def find(source: str, folder: str = "configs", kind: str = "config") -> Path:
    """The file of a path or of a shipped name; what has a separator in it is a path.

    Raises ConfigError if there is none, or if a name means two."""
    known = shipped(folder) / f"{source}.yaml"
    named = os.sep not in source and is_file(known)
    own = [path for path in (Path(source), Path(f"{source}.yaml")) if is_file(path)]
    if named and any(not path.samefile(known) for path in own):
        raise ConfigError(
            f"{kind} {source}: shipped, and a file where you are: write ./{own[0]} for the "
            "latter, or rename it"
        )
    if named or is_file(Path(source)):
        return known if named else Path(source)
    names = shipped_names(folder, ".yaml")
    more = f", … {len(names)} in all" if len(names) > LISTED else ""
    advice = did_you_mean(source, names) or f" ({', '.join(names[:LISTED])}{more})"
    raise ConfigError(f"{kind} {shown(source)}: no such file, and not a shipped name{advice}")


def is_file(path: Path) -> bool:
    """Whether a file is there; none can have some names, as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
