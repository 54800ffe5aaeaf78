"""Which tests share a process, where there are several: those of a file, and files of a group.

`pytestmark = pytest.mark.xdist_group("NAME")` puts a file into a group: its tests share something
that is dear to make, such as a browser. (xdist's own `loadgroup` finds no groups under pytest 9.2,
whose node ids cannot be set.)
"""

import re
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

GROUP = re.compile(r'^pytestmark = .*xdist_group\("(\w+)"\)', re.MULTILINE)


def group_of(file: Path) -> str | None:
    """The group that a file of tests names, if it does."""
    found = GROUP.search(file.read_text(encoding="utf-8"))
    return found and found[1]


class ByGroup(LoadFileScheduling):
    """Hands out whole files, or all files of a group, in the order of their collection."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)
        self.groups: dict[str, str] = {}

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if file not in self.groups:
            self.groups[file] = group_of(self.config.rootpath / file) or file
        return self.groups[file]
