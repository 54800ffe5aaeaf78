"""What a table holds: a row for each sampler at a number of steps, a score for each metric.

results.json has models in "rows" and resampled real images in "floor", and in "protocol" what the
numbers of each metric rest on. Rows written before scores had names of their own, {"frechet": 0.3,
"low": 0.2, …}, are read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from ..schema import Whole, fit, shown
from .costs import Cost

TEACHER, STUDENT, REAL = "teacher", "student", "real"
Scored = TypeVar("Scored")  # of a source, at a number of steps

# Scores of an old row: the fields of value, low, high and error.
OLD = {
    "frechet": ("frechet", "low", "high", None),
    "frechet_random": ("frechet_random", "low_random", "high_random", None),
    "kid": ("kid", None, None, "kid_error"),
    "precision": ("precision", None, None, None),
    "recall": ("recall", None, None, None),
    "accuracy": ("accuracy", None, None, None),
    "diversity": ("diversity", None, None, None),
    "paired": ("paired", None, None, None),
}


@dataclass(frozen=True)
class Score:
    """A number, and how sure it is: a 95 % interval from low to high, or a standard error.

    blocks: independent numbers of which it is the mean, in the order of their noise, so that those
    of two rows are pairs; none in rows written before these were kept.
    """

    value: float
    low: float | None = None
    high: float | None = None
    error: float | None = None
    blocks: tuple[float, ...] = ()

    @property
    def ends(self) -> tuple[float, float]:
        """Where its interval, or its standard error, ends; the value twice if it has neither."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        error = self.error or 0.0
        return self.value - error, self.value + error


@dataclass(frozen=True)
class Row:
    """A sampler at a number of steps, and its scores by metric; a score that does not exist is
    left out.

    model: "teacher", "student", "untrained-student" or "real". nfe: network evaluations an image.
    n: images in total. source: the run or folder it comes from, where a table has several.
    seconds: an image of the batches that are scored, None where none is generated. costs: of an
    image, as measured beside its scores; None where it was not, as for images that exist already.
    protocol: what each score rests on, of rows that were read, where their file says so.
    """

    model: str
    steps: int
    nfe: int
    n: int
    source: str
    parameters: int
    seconds: float | None
    scores: dict[str, Score]
    costs: Cost | None = None
    protocol: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def value(self, metric: str) -> float:
        """The value of a score the row has."""
        return self.scores[metric].value


@dataclass(frozen=True)
class _Place:
    """What a row says beside its scores, as a file has it."""

    model: str
    steps: Whole
    nfe: Whole
    n: Whole
    parameters: int
    seconds: float | None


def fewest(students: Sequence[Scored]) -> list[Scored]:
    """Of each source the one at fewest steps; rows, or samplers that become some."""
    least = {row.source: row.steps for row in sorted(students, key=lambda row: -row.steps)}
    return [row for row in students if row.steps == least[row.source]]


def timing(rows: Sequence[Row]) -> Callable[[Row], float | None]:
    """Seconds an image of a table's rows, of all in the same way: alone where that was measured,
    else in the batches that are scored."""
    if any(row.costs is not None for row in rows):
        return lambda row: None if row.costs is None else row.costs.latency
    return lambda row: row.seconds


def written(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """The contents of results.json."""
    models = [entry(row) for row in rows if row.model != REAL]
    return {"rows": models, "floor": [entry(row) for row in rows if row.model == REAL]}


def entry(row: Row) -> dict[str, Any]:
    """A row as it is written."""
    found = asdict(row)
    del found["protocol"]  # once for all rows of a file
    return found


def read(results: Mapping[str, Any]) -> list[Row]:
    """The rows in the contents of results.json, the floor last.

    Raises LookupError, TypeError or ValueError where they are not such."""
    rows = [*results["rows"], *results["floor"]]
    protocol = results.get("protocol", {})
    if not all(isinstance(each, dict) for each in (protocol, *protocol.values())):
        raise TypeError("protocol: needs a mapping for each metric")
    found = [_row(row) if "scores" in row else _old_row(row) for row in rows]
    return [replace(row, protocol=protocol) for row in found]


def _row(row: Mapping[str, Any]) -> Row:
    """A row of the right types. Raises ValueError for others."""
    source = row["source"]
    if not isinstance(source, str):
        raise TypeError(f"source: needs a text, got {shown(source)}")
    scores = {name: fit(Score, score, name) for name, score in row["scores"].items()}
    apart = ("source", "scores", "costs")
    place = {key: value for key, value in row.items() if key not in apart}
    costs = fit(Cost | None, row.get("costs"), "costs")
    return Row(**asdict(fit(_Place, place)), source=source, scores=scores, costs=costs)


def _old_row(row: Mapping[str, Any]) -> Row:
    scores = {}
    for name, keys in OLD.items():
        if row[name] is not None:
            numbers = (key and row[key] for key in keys)
            scores[name] = dict(zip(("value", "low", "high", "error"), numbers, strict=True))
    place = {key: row[key] for key in ("model", "steps", "nfe", "n", "parameters")}
    seconds, source = row["seconds_per_image"], row.get("source", "")
    return _row(place | {"source": source, "seconds": seconds, "scores": scores})
