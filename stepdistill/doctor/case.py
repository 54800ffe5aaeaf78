"""What the rules look at: what was asked, and what a student was trained for."""

from dataclasses import dataclass

from diffusers import SchedulerMixin

from .evidence import FEW, OWN, Trained
from .opened import FLOW, TABLE, Opened, process_of
from .recording import Recording

CLOSE, CLOSE_INDEX = 0.005, 0.015  # of σ, and of a table's length: rounding, and grids of 50
CLEAN = 0.02  # of the whole time: below it an evaluation is wasted on a few-step student
NOISE = 0.9  # of the whole time: below it the first state cannot be pure noise


@dataclass(frozen=True)
class Case:
    """All that rules look at. judged: the call in question; seen: this one and those of other
    numbers of steps; trained: what the folder is believed to be, None for no student."""

    folder: Opened
    scheduler: SchedulerMixin
    judged: Recording
    seen: list[Recording]
    trained: Trained | None

    @property
    def process(self) -> str:
        return process_of(self.scheduler)

    @property
    def has_clock(self) -> bool:
        """Whether times of this process are understood."""
        return self.process in (FLOW, TABLE)

    @property
    def length(self) -> int:
        return self.scheduler.config.get("num_train_timesteps", 1000)

    @property
    def span(self) -> float:
        """The whole of the process's clock."""
        return 1.0 if self.process == FLOW else float(self.length)

    def expected(self, seen: Recording) -> tuple[float, ...] | None:
        """The trained times of as many steps as were asked; None where they are not known."""
        known = self.trained is not None and self.has_clock and seen.steps > 0
        return self.trained.at(seen.steps, self.length) if known else None

    @property
    def timed(self) -> list[Recording]:
        """Recordings whose trained times are known: the judged one, or else all others."""
        found = [seen for seen in self.seen if self.expected(seen) is not None]
        return found[:1] if self.judged in found else found

    @property
    def few(self) -> Recording | None:
        """Of a student whose times nobody knows: the judged call, or one of fewer steps."""
        trained = self.trained
        if trained is None or self.timed or trained.grid == OWN or not self.has_clock:
            return None
        found = [seen for seen in self.seen if 0 < seen.steps <= FEW]
        meant = [seen for seen in found if seen is self.judged or seen.steps in trained.steps]
        return next(iter(meant or found[::-1]), None)

    def apart(self, ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
        """Whether times are not the same, as far as CLOSE explains."""
        most = CLOSE if self.process == FLOW else CLOSE_INDEX * self.length
        return len(ours) != len(theirs) or any(abs(a - b) > most for a, b in zip(ours, theirs))
