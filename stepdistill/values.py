"""Plain values from one YAML file, changed by `key=value`, and back into YAML.

Stricter than PyYAML: a key is given once, and plain words are numbers, true, false or null as in
YAML 1.2's core schema: 1e-3 is a number; no, 007 and 2026-01-01 are texts.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from .schema import ConfigError, below, shown

LARGEST_FILE = 2**20  # bytes
MOST_VALUES = 10_000  # in a file; references to the same text count each
WORDS = {  # what else than a text a plain word can be, and how it begins
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)\Z", "-+0123456789"),
    "float": (
        r"(?:[-+]?(?:[0-9]+(?:\.|(?=[eE]))[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)\Z",
        "-+.0123456789",
    ),
    "null": (r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    "merge": (r"<<\Z", "<"),
}


class StrictLoader(yaml.SafeLoader):
    """Builds plain values only, and refuses a key that is given twice."""

    yaml_implicit_resolvers: dict[str, list] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {shown(key.value)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class StrictDumper(yaml.SafeDumper):
    """Quotes what the loader would not read as a text."""

    yaml_implicit_resolvers: dict[str, list] = {}


for _word, (_pattern, _first) in WORDS.items():
    for _side in (StrictLoader, StrictDumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_word}", re.compile(_pattern), _first)


def written(values: dict[str, Any]) -> str:
    """The YAML text that `parse` reads as `values`."""
    return yaml.dump(values, Dumper=StrictDumper, sort_keys=False, allow_unicode=True)


def parse(text: str) -> Any:
    """The values of a YAML text. Raises ConfigError naming the line that is not YAML."""
    try:
        values = yaml.load(text, StrictLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise ConfigError("not valid YAML: nested too deeply") from error
    except Exception as error:  # explicit tags, like !!int x, raise whatever Python does
        raise ConfigError(f"not valid YAML: {str(error).splitlines()[0]}") from error
    require_few(values)
    return values


def require_few(values: Any) -> None:
    """Raise ConfigError for more values than a run has, as nested references easily make."""
    count, waiting = 0, [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            count += len(value)
            if count > MOST_VALUES:
                raise ConfigError(f"more than {MOST_VALUES:,} values: not a configuration")
            waiting += value.values() if isinstance(value, dict) else value


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError if it is not one."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError("larger than 1 MiB: not a configuration")
        values = parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("not a text file in UTF-8") from error
    if not isinstance(values, dict):
        content = "empty" if values is None else shown(values)
        raise ConfigError(f"needs keys with values, like `name: run`, but is {content}")
    return values


def override(values: dict[str, Any], assignment: str) -> None:
    """Set `stages.0.training.updates=3` in `values`; mappings are merged, all else is replaced.

    Raises ConfigError for what is no assignment, and for keys that lead nowhere."""
    key, equals, written = assignment.partition("=")
    try:
        if not equals or not all(key.split(".")):
            raise ConfigError("write key=value, with a dotted key like stages.0.training.updates")
        set_below(values, "", key.split("."), parse(written))
    except ConfigError as error:
        raise ConfigError(f"override {shown(assignment)}: {error}") from error


def set_below(place: dict | list, path: str, names: list[str], value: Any) -> None:
    """Set the value at `names` below `place`, which lies at `path`."""
    (name, *rest), key = names, below(path, names[0])
    index = index_in(place, name, path) if isinstance(place, list) else name
    old = place[index] if isinstance(place, list) else place.get(index)
    if rest and not isinstance(old, dict | list | None):
        raise ConfigError(f"{key} is {shown(old)}, which has no keys")
    if rest:
        place[index] = {} if old is None else old
        set_below(place[index], key, rest, value)
    elif isinstance(old, dict) and isinstance(value, dict):
        for inner, each in value.items():
            set_below(old, key, [inner], each)
    else:
        place[index] = value


def index_in(items: list, name: str, key: str) -> int:
    """The position `name` in a list. Raises ConfigError if it has none there."""
    if not (name.isascii() and name.isdecimal() and len(name) < 6 and int(name) < len(items)):
        held = f"{len(items)} entr{'y' if len(items) == 1 else 'ies'}, counted from 0"
        raise ConfigError(f"{below(key, name)}: no such entry; {key} has {held}")
    return int(name)
