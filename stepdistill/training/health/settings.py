"""What is watched of a stage, what is allowed, and what watching may cost."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Annotated, NamedTuple

from ...schema import Count, NotNegative, Positive, Range, Share, Whole

TEACHER_STEPS = 32
FEWEST_STEPS = 4  # of the teacher, where it is dear
FEWEST = 16  # samples that can be compared


@dataclass(frozen=True)
class Health:
    """What is watched, and what is allowed.

    every: student updates between probes, at least; 0 to watch nothing. samples: of a probe, at
    most. share: the most of the stage's network passes that watching may cost. window: critic
    turns that `lag` averages. patience: probes in a row out of range that raise an alarm. stop:
    whether an alarm ends training, after a checkpoint.
    lag, mean, saturation, terms (of each pair of terms), dropped: the most that is allowed;
    std, colour, diversity: the least and the most. Measured healthy and broken runs lie well apart
    on both sides of the defaults: eval/results/health.md.
    """

    every: Whole = 50
    samples: Annotated[int, Range(FEWEST, 10_000)] = 128
    share: Positive = 0.02
    window: Count = 50
    patience: Count = 2
    stop: bool = False
    lag: NotNegative = 3.0
    mean: NotNegative = 0.25
    std: tuple[NotNegative, NotNegative] = (0.7, 1.3)
    saturation: NotNegative = 0.05
    colour: tuple[NotNegative, NotNegative] = (0.5, 1.5)
    diversity: tuple[NotNegative, NotNegative] = (0.5, 1.5)
    terms: NotNegative = 1.0
    dropped: Share = 0.05

    def __post_init__(self) -> None:
        for name in ("std", "colour", "diversity"):
            low, high = self.allowed(name)
            if not low < high:
                raise ValueError(f"{name}: needs the least and the most, got {[low, high]}")

    def allowed(self, name: str) -> tuple[float, float]:
        """The least and the most a signal may be; infinite where it is free."""
        if "/" in name:
            return 0.0, self.terms
        most = {"lag": self.lag, "mean": self.mean}
        most |= {"saturation": self.saturation, "dropped": self.dropped}
        between = {"std": self.std, "colour": self.colour, "diversity": self.diversity}
        low, high = between.get(name, (-inf, most.get(name, inf)))
        return low, high


class Watch(NamedTuple):
    """What watching a stage may cost: updates between probes, samples of each, teacher's steps.

    samples: 0 where even the least costs too much: then nothing is compared with the teacher.
    """

    every: int
    samples: int
    steps: int


def watch_of(health: Health, updates: int, work: float, teacher: int, student: int) -> Watch:
    """What fits into `health.share` of a stage of so many updates.

    work: network passes of one sample of an update, all its samples together. teacher: passes of a
    step of all the teacher's samples. student: of a probe's sample. Half of the share is for the
    teacher's samples: fewer of them, then fewer steps. The other is for probes: fewer of them.
    """
    if health.every == 0:
        return Watch(0, 0, 0)
    half = health.share * updates * work / 2
    samples = min(health.samples, int(half / (TEACHER_STEPS * teacher)))
    samples = max(samples, FEWEST)
    steps = min(TEACHER_STEPS, int(half / (samples * teacher)))
    if steps < FEWEST_STEPS or samples * student > half:
        return Watch(health.every, 0, 0)
    return Watch(max(health.every, ceil(updates * samples * student / half)), samples, steps)
