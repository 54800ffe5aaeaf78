"""What one sampler scores in one block, on disk as soon as it is made.

The file's first line says what is evaluated; each further one is the score of one sampler in one
block. So a stopped evaluation goes on; what belongs to another one, or is damaged, is made anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import whole_lines, write_whole


@dataclass(frozen=True)
class Block:
    """What one sampler scores in one block: the values of each metric, and seconds an image."""

    values: dict[str, list[float]]
    seconds: list[float]


class Scored(dict[tuple[int, int], Block]):
    """Scores by (sampler, block), in memory and, where there is a file, in it.

    of: what no other evaluation shares.
    """

    def __init__(self, file: Path | None, of: str) -> None:
        self.file = file
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"of": of}) + "\n"
        first, *lines = whole_lines(file) or [""]
        self.update(read(lines) if first == head else {})
        write_whole(file, "".join([head, *(lines if self else [])]))

    def add(self, sampler: int, block: int, score: Block) -> None:
        """Keep one score."""
        self[sampler, block] = score
        if self.file is not None:
            row = {"sampler": sampler, "block": block} | asdict(score)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read(lines: list[str]) -> dict[tuple[int, int], Block]:
    """The scores in a file's lines, none if any is damaged."""
    try:
        rows = [json.loads(line) for line in lines]
        return {(row.pop("sampler"), row.pop("block")): Block(**row) for row in rows}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
