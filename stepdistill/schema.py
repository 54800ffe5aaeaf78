"""Plain values, as YAML gives them, fitted to dataclasses: the types of the fields are the schema.

    bool  int  float  str  Literal  X | None  list[X]  tuple[X, ...]  tuple[X, Y]  dict[str, Any]
    Annotated[X, Range(low, high)]                                      and dataclasses of these

Nothing is converted but whole numbers where a field is a float: "3" is no number, true is no 1.
Numbers are finite and texts one printable line. A value that does not fit is refused with one line
that begins with its dotted key, like stages.0.training.updates. A dataclass may say which of its
keys have another name now, `renamed = {"old": "new"}`; an old one is refused with the new.
With `shorthand = "key"` a text alone stands for a mapping of that key.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # of whole numbers: what seeds and tensors can hold
DEEPEST = 8  # levels of a free mapping
SHOWN = 40  # characters of a value in a message


class ConfigError(ValueError):
    """Input that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; the ends belong to it unless `above` or `below` says not."""

    low: float = -inf
    high: float = inf
    above: bool = False
    below: bool = False

    def check(self, value: float, key: str) -> None:
        """Raise ConfigError if `value` lies outside."""
        if value < self.low or (self.above and value == self.low):
            limit = f"{'above' if self.above else 'at least'} {self.low}"
        elif value > self.high or (self.below and value == self.high):
            limit = f"{'below' if self.below else 'at most'} {self.high}"
        else:
            return
        raise ConfigError(f"{key}: must be {limit}, got {shown(value)}")


Count = Annotated[int, Range(1, 10**9)]
Whole = Annotated[int, Range(0, 10**9)]
Seed = Annotated[int, Range(0, LARGEST)]
Steps = Annotated[int, Range(1, 10_000)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
Bend = Annotated[float, Range(0.01, 100)]  # shifts and exponents of grids
Start = Annotated[float, Range(0.1, 1)]  # of a grid, a share of the way from clean data to noise


def fit(kind: Any, value: Any, key: str = "") -> Any:
    """`value` as a `kind`. Raises ConfigError naming the key below `key` that does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return fit_dataclass(kind, value, key)
    if origin is Annotated:
        fitted = fit(arguments[0], value, key)
        for limit in arguments[1:]:
            limit.check(fitted, key)
        return fitted
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is NoneType:
        return None if value is None else fit(arguments[0], value, key)
    if origin is Literal:
        return require_choice(value, arguments, key)
    if origin in (list, tuple):
        return origin(fit_items(origin, arguments, value, key))
    if origin is dict:
        return {k: plain(v, below(key, k)) for k, v in mapping(value, key).items()}
    return fit_scalar(kind, value, key)


def fit_items(origin: type, kinds: tuple, value: Any, key: str) -> list[Any]:
    """The entries of a list or tuple."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key}: needs a list, like [1, 2], got {shown(value)}")
    if origin is list or kinds[1:] == (...,):
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"{key}: needs {len(kinds)} values, got {shown(value)}")
    return [fit(k, v, f"{key}.{i}") for i, (k, v) in enumerate(zip(kinds, value))]


def fit_dataclass(kind: type, value: Any, key: str) -> Any:
    """A dataclass from a mapping of its fields."""
    try:
        hints = get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise ConfigError(f"{key}: unknown types in {kind.__name__}: {error}") from error
    known = {f.name: f for f in fields(kind) if f.init}
    shorthand = getattr(kind, "shorthand", None)
    given = {shorthand: value} if shorthand and isinstance(value, str) else mapping(value, key)
    require_current(given, getattr(kind, "renamed", {}), key)
    require_known(given, known, key)
    for name, field in known.items():
        if is_required(field) and name not in given:
            raise ConfigError(f"{below(key, name)}: missing, and it has no default")
    fitted = {k: fit(hints[k], v, below(key, k)) for k, v in given.items()}
    try:
        return kind(**fitted)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}" if key else str(error)) from error


def check_fields(settings: Any) -> None:
    """Raise ConfigError unless the fields of a dataclass fit their types.

    Fields that are dataclasses themselves have been checked when they were made."""
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not is_dataclass(value):
            fit(hints[field.name], value, field.name)


def is_required(field: Field) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def mapping(value: Any, key: str) -> dict[str, Any]:
    """`value` if it maps texts to values. Raises ConfigError otherwise."""
    if not isinstance(value, dict):
        where = f"{key}: " if key else ""
        raise ConfigError(f"{where}needs keys with values, like {{a: 1}}, got {shown(value)}")
    for name in value:
        if not isinstance(name, str) or not name.isprintable():
            raise ConfigError(f"{below(key, name)}: keys are plain words")
    return value


def require_current(given: Collection[str], renamed: Mapping[str, str], key: str) -> None:
    """Raise ConfigError for the first of `given` that has another name now."""
    for name in given:
        if name in renamed:
            raise ConfigError(f"{below(key, name)}: is called '{renamed[name]}' now: rename it")


def require_known(given: Collection[str], known: Collection[str], key: str) -> None:
    """Raise ConfigError for the first of `given` that is not among `known`."""
    for name in given:
        if name not in known:
            listed = ", ".join(known) if known else "none"
            advice = did_you_mean(name, known) or f"; the keys here: {listed}"
            raise ConfigError(f"{below(key, name)}: unknown key{advice}")


def require_choice(value: Any, choices: Collection[Any], key: str) -> Any:
    """`value` if it is one of `choices`. Raises ConfigError otherwise."""
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    offered = ", ".join(map(str, choices))
    advice = did_you_mean(value, choices)
    raise ConfigError(f"{key}: {shown(value)} is none of {offered}{advice}")


def fit_scalar(kind: Any, value: Any, key: str) -> Any:
    """A bool, int, float or str, as it is."""
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str:
        return text(value, key)
    if kind in (int, float) and type(value) in (int, kind):
        return finite(value, key) if kind is int else float(finite(value, key))
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind)
    if wanted is None:
        raise ConfigError(f"{key}: fields of type {kind} cannot be set in a configuration")
    raise ConfigError(f"{key}: needs {wanted}, got {shown(value)}")


def text(value: Any, key: str) -> str:
    """One printable line."""
    if not isinstance(value, str):
        quoted = "" if isinstance(value, dict | list | None) else ": write it in quotes"
        raise ConfigError(f"{key}: needs a text, got {shown(value)}{quoted}")
    if not (value and value.isprintable()):
        raise ConfigError(f"{key}: needs a text of one printable line, got {shown(value)}")
    return value


def finite(value: float, key: str) -> float:
    """A number that computers can count with."""
    if not isfinite(value) if isinstance(value, float) else abs(value) > LARGEST:
        raise ConfigError(f"{key}: needs a finite number of usual size, got {shown(value)}")
    return value


def plain(value: Any, key: str) -> Any:
    """A value JSON can hold: numbers, texts, true, false, null, lists and mappings of them."""
    if key.count(".") > DEEPEST:
        raise ConfigError(f"{key}: nested too deeply")
    if isinstance(value, dict):
        return {k: plain(v, below(key, k)) for k, v in mapping(value, key).items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{key}.{i}") for i, v in enumerate(value)]
    if isinstance(value, str):
        return text(value, key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return finite(value, key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{key}: {type(value).__name__}s cannot be set in a configuration")
    return value


def below(key: str, name: Any) -> str:
    """The dotted key of `name` inside `key`."""
    word = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) and len(name) <= SHOWN
    last = name if word else shown(name)
    return f"{key}.{last}" if key else last


def shown(value: Any) -> str:
    """`value` as a message shows it: one short line."""
    try:
        written = "nothing" if value is None else repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        written = "an enormous number"
    return written if len(written) <= SHOWN else f"{written[: SHOWN - 1]}…"


def printable(text: str) -> str:
    """`text` with what a terminal would obey, or nobody can see, written out; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def did_you_mean(word: Any, known: Collection[Any]) -> str:
    """The words "; did you mean …?" with the nearest of `known`, or nothing."""
    names = {str(name).lower(): name for name in known}
    near = get_close_matches(str(word).lower()[:SHOWN], names, n=1)
    return f"; did you mean '{names[near[0]]}'?" if near else ""
