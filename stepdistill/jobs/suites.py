"""The suite that scores what a run or an exported pipeline makes: a YAML and the parts it names."""

from pathlib import Path

from ..evaluation.features.space import FeatureSpace
from ..evaluation.metric import Metric
from ..evaluation.reference import Kind, Task
from ..evaluation.suite import Suite, SuiteSettings, Unfit, opened
from ..runs.config import RunConfig, find, part
from ..runs.plan import rehearsal
from ..runs.yaml import load_values
from ..schema import ConfigError, fit
from ..teachers.teacher import Teacher

BESIDE_TEACHER = "teacher"  # the suite that takes any teacher
Parts = tuple[SuiteSettings, Task, tuple[Metric, ...]]


def kind_of(teacher: Teacher) -> Kind:
    """What a teacher and its students make, and are asked for."""
    return Kind((teacher.codec.channels, *teacher.size), teacher.classes)


def load(name: str, kind: Kind) -> Suite:
    """The suite of a shipped name or a YAML file, for samplers of this kind.

    Raises Unfit where the suite cannot score them, and ConfigError for a YAML or a part of it that
    is none."""
    return opened(Path(name).stem, *require(name), kind)


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


def require(name: str) -> Parts:
    """What a suite says and names. Raises ConfigError where there is none, or none of these."""
    path = find(name, "eval/suites", "suite")
    try:
        return parts(fit(SuiteSettings, load_values(path)))
    except ConfigError as error:
        raise ConfigError(f"suite {name}: {error}") from error


def parts(settings: SuiteSettings) -> Parts:
    """The task and the metrics that a suite names. Raises ConfigError for what there is not."""
    kind = part("evaluation.suites", settings.task, Task, "task")
    task = fit(kind, settings.settings, "settings")
    metrics = []
    for i, asked in enumerate(settings.metrics):
        key = f"metrics.{i}"
        kind = part("evaluation.metrics", asked.metric or asked.name, Metric, key)
        metric = fit(kind, asked.settings, f"{key}.settings")
        metric.name = asked.name
        if metric.space is not None:
            part("evaluation.features", metric.space.replace("-", "_"), FeatureSpace, key)
        metrics.append(metric)
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ConfigError("metrics: two of one name: give each a name of its own")
    if not settings.headline or not {*settings.headline} <= {*names}:
        listed = ", ".join(names) or "none"
        raise ConfigError(
            f"headline: {list(settings.headline)}: name some of the metrics: {listed}"
        )
    return settings, task, tuple(metrics)
