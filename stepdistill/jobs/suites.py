"""The suite that scores what a run or an exported pipeline makes."""

from ..evaluation.reference import Kind
from ..evaluation.suite import Suite, Unfit, load
from ..runs.config import RunConfig
from ..runs.plan import rehearsal
from ..teachers.teacher import Teacher

BESIDE_TEACHER = "teacher"  # the suite that takes any teacher


def kind_of(teacher: Teacher) -> Kind:
    """What a teacher and its students make, and are asked for."""
    return Kind((teacher.codec.channels, *teacher.size), teacher.classes)


def suite_for(run: RunConfig, teacher: Teacher) -> tuple[Suite, str]:
    """The run's suite and nothing; or, where that does not fit the teacher, the one that compares
    students with their teacher alone, and a sentence that says why."""
    kind = kind_of(teacher)
    try:
        return load(run.evaluation.suite, kind), ""
    except Unfit as error:
        beside = "No suite fits, so students are compared with their teacher alone"
        return load(BESIDE_TEACHER, kind), f"{beside}: {error}."


def require_suite(run: RunConfig) -> Suite:
    """The run's suite, before the run is trained. Raises ConfigError where it does not fit."""
    with rehearsal(run) as stages:
        return load(run.evaluation.suite, kind_of(stages.setup.teacher))
