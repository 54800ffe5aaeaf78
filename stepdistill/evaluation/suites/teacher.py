"""A student beside its teacher, whatever they make: there are no real images to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from ..reference import Brought, Kind, Reference, Task, evenly


@dataclass(frozen=True)
class BesideTeacher(Task):
    """For images of any size, of every class equally often or of none."""

    def open(self, kind: Kind, brought: Brought) -> Reference:
        ask = None if kind.classes is None else evenly(kind.classes)
        return Reference(kind.size, ask, about="none")
