"""The suite that scores what a run or an exported pipeline makes: a YAML and the parts it names,
and the real images that a user brings for it.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..data.images import Pictures
from ..data.listing import listed
from ..data.loader import Samples
from ..data.pictures import Fit
from ..data.resize import Resize
from ..data.sources.folder import Folder
from ..data.stored import numbered
from ..evaluation.features.space import FeatureSpace
from ..evaluation.gallery import Gallery, Some, at_once
from ..evaluation.metric import Metric
from ..evaluation.published import SUFFIX, published
from ..evaluation.reference import Brought, Kind, NoneBrought, RealImages, Task, in_turn
from ..evaluation.suite import Suite, SuiteSettings, Unfit, opened
from ..evaluation.summary import places
from ..runs.config import RunConfig, labelled
from ..runs.plan import rehearsal
from ..runs.settings import DataSettings, part
from ..runs.yaml import find, load_values
from ..schema import ConfigError, fit
from ..teachers.teacher import Teacher

BESIDE_TEACHER = "teacher"  # the suite that takes any teacher
Parts = tuple[SuiteSettings, Task, tuple[Metric, ...]]


class Shape(NamedTuple):
    """What a source of images asks of a teacher: height and width, channels as a codec has them,
    and classes."""

    size: tuple[int, int]
    codec: Kind
    classes: int | None
    prompted: bool = False  # of captions nothing is asked where images are a reference


def shape_of(kind: Kind) -> Shape:
    """Of samplers without a teacher that we know."""
    return Shape(kind.size[1:], kind, kind.classes)


def kind_of(teacher: Teacher) -> Kind:
    """What a teacher and its students make, and are asked for."""
    size = teacher.codec.channels, *teacher.size
    return Kind(size, teacher.classes, prompts=teacher.prompted)


def brought(reference: str | None, data: DataSettings | None, teacher: Teacher | Shape) -> Brought:
    """The images of a folder, or what a published file holds, else the images that a run's data
    holds out, as a teacher's.

    Raises NoneBrought, when they are read, where there are none, ConfigError where they do not
    fit, as a folder without classes does not where it must be labelled."""

    def read(resize: Resize | None = None, labelled: bool = True) -> RealImages:
        if reference is not None and reference.endswith(SUFFIX):
            return resized(of_file(Path(reference), teacher.classes), resize)
        if reference is not None:
            looker = teacher if labelled else without_classes(reference, teacher)
            found = in_folder(reference, looker, resize)
            about = f"{reference}, {len(found)} images"
            return of_samples(found, about)._replace(groups=groups_of(found))
        if data is None:
            return nothing_brought()
        try:
            found = data.build().open_held_out(teacher)
        except ConfigError as error:
            raise NoneBrought(str(error)) from error
        held_out = of_samples(found, f"{len(found)} images held out of the run's data")
        return resized(held_out, resize)

    return read


def in_folder(path: str, teacher: Teacher | Shape, resize: Resize | None) -> Pictures:
    """The images of a folder, as they are or, by what a suite says, made smaller."""
    if resize is None:
        return Folder(path=path).open(Shape(teacher.size, teacher.codec, teacher.classes))
    stored = Folder(path=path).find(teacher.classes)
    fit = Fit((resize.side, resize.side), teacher.codec.channels, convert="rgb", resize=resize)
    labels = None
    if teacher.classes is not None:
        labels = torch.from_numpy(numbered(stored, stored.names, teacher.classes)[0])
    return Pictures(stored, fit, np.arange(len(stored)), labels)


def groups_of(pictures: Pictures) -> list[str] | None:
    """The subfolder that each lies in; None where one lies in none."""
    parts = [pictures.stored.key(number).split("/") for number in pictures.taken.tolist()]
    return [part[0] for part in parts] if min(map(len, parts)) > 1 else None


def resized(real: RealImages, resize: Resize | None) -> RealImages:
    """The same, made smaller when they are read. Statistics are of what they are of."""
    if resize is None or real.images is None:
        return real
    everyone = torch.arange(len(real.images))
    return real._replace(images=Gallery(Some(real.images, everyone, resize)))


def of_samples(samples: Samples, about: str) -> RealImages:
    """The images of samples, which are read when they are looked at."""
    return RealImages(Gallery(samples), samples.asked(), about)


def without_classes(path: str, teacher: Teacher | Shape) -> Teacher | Shape:
    """The same teacher, or one without classes where all images of a folder lie in it loosely."""
    loose = not any(entry.is_dir() for entry in listed(path))
    return Shape(teacher.size, teacher.codec, None) if loose else teacher


def of_file(path: Path, classes: int | None) -> RealImages:
    """What a published file holds, see `published`. Raises ConfigError for other labels than the
    teacher's."""
    found = published(path)
    if found.images is None:
        return RealImages(None, None, f"{path}, SHA-256 {found.sha256[:12]}", found.statistics)
    labels = None if classes is None else found.images.labels
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(f"{path}: labels {labels.min()} … {labels.max()}, not 0 … {classes - 1}")
    about = f"{path}, {len(found.images)} images"
    return RealImages(Gallery(found.images), labels, about, found.statistics)


def nothing_brought(resize: Resize | None = None, labelled: bool = True) -> RealImages:
    """For who brings no real images."""
    raise NoneBrought(
        "real images are needed: give a folder of them, --reference DIR, or a published file .npz"
    )


def brought_by(run: RunConfig, teacher: Teacher) -> Brought:
    """The real images that a run names, see `brought`."""
    return brought(run.evaluation.reference, run.data, teacher)


def load(
    name: str, kind: Kind, images: Brought = nothing_brought, prompts: str | None = None
) -> Suite:
    """The suite of a shipped name or a YAML file, for samplers of this kind.

    prompts: a file of them in place of the suite's own. Raises Unfit where the suite cannot score
    them, and ConfigError for a YAML or a part of it that is none."""
    settings, task, metrics = require(name, prompts)
    if not task.needs_labels:
        images = partial(images, labelled=False)
    if settings.brings.reference is not None:
        images = wanted(images, settings.brings.reference)
    return opened(Path(name).stem, settings, task, metrics, kind, images)


def wanted(images: Brought, words: str) -> Brought:
    """The same, which says in these words what is to be brought where nothing is."""

    def read(resize: Resize | None = None) -> RealImages:
        try:
            return images() if resize is None else images(resize)
        except NoneBrought as error:
            raise ConfigError(f"needs --reference: {words}") from error

    return read


def suite_for(run: RunConfig, teacher: Teacher) -> tuple[Suite, str]:
    """The run's suite and nothing; or, where that does not fit the teacher, the one that compares
    students with their teacher alone, and a sentence that says why."""
    kind, images = kind_of(teacher), brought_by(run, teacher)
    try:
        return asking(load(run.evaluation.suite, kind, images), teacher), ""
    except Unfit as error:
        beside = "No suite fits, so students are compared with their teacher alone"
        return asking(load(BESIDE_TEACHER, kind, images), teacher), f"{beside}: {error}."


def asking(suite: Suite, teacher: Teacher) -> Suite:
    """The suite, asking for the run's prompts where it asks for nothing and the teacher takes
    some."""
    if suite.reference.ask is not None or not teacher.prompts:
        return suite
    told = f"{len(teacher.prompts):,} of the run, SHA-256 {teacher.prompts_hash[:12]}"
    reference = replace(suite.reference, ask=in_turn(teacher.prompts), prompts=told)
    return replace(suite, reference=reference)


def require_suite(run: RunConfig) -> Suite:
    """The run's suite, before the run is trained. Raises ConfigError where it does not fit."""
    with rehearsal(run) as stages:
        teacher = stages.setup.teacher
        return load(run.evaluation.suite, kind_of(teacher), brought_by(run, teacher))


def require_images(settings: SuiteSettings, task: Task, run: RunConfig, teacher: Teacher) -> None:
    """Raise ConfigError unless the real images that the task of the run's suite needs can be
    read."""
    if task.needs_images:
        try:
            images = brought_by(run, teacher)(settings.resize, task.needs_labels).images
            some = places(0 if images is None else len(images))
            for numbers in some.split(at_once(kind_of(teacher).size)):
                images[numbers]  # so that a damaged one shows before training
        except ConfigError as error:
            hint = "set evaluation.reference, a folder, or hold out a share of the data"
            raise ConfigError(f"suite {run.evaluation.suite}: {error}: {hint}") from error


def require(name: str, prompts: str | None = None) -> Parts:
    """What a suite says and names. Raises ConfigError where there is none, or none of these."""
    path = find(name, "eval/suites", "suite")
    with labelled(f"suite {name}"):
        settings = fit(SuiteSettings, load_values(path))
        if prompts is not None:
            settings = replace(settings, settings=settings.settings | {"prompts": prompts})
        return parts(settings)


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
            space = metric.space.partition(":")[0].replace("-", "_")
            part("evaluation.features", space, FeatureSpace, key)
        metrics.append(metric)
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ConfigError("metrics: two of one name: give each a name of its own")
    require_headline(settings)
    return settings, task, tuple(metrics)


def require_headline(settings: SuiteSettings) -> None:
    """Raise ConfigError where rows are compared by no metric, or by one of each category."""
    several = [each.name for each in settings.metrics if each.each is not None]
    whole = [each.name for each in settings.metrics if each.each is None]
    for name in settings.headline:
        if name in several:
            raise ConfigError(f"headline: {name}: is one of each category: name one of all images")
    if not settings.headline or not {*settings.headline} <= {*whole}:
        known = ", ".join(whole) or "none"
        raise ConfigError(f"headline: {list(settings.headline)}: name some of the metrics: {known}")
