"""What `stepdistill eval` scores: runs, our students, other pipelines, and folders of images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from ..data.listing import listed
from ..evaluation.collection import Collection, collection_of, is_collection
from ..evaluation.evaluate import Requests, Sampled
from ..evaluation.reference import Brought, Kind
from ..evaluation.rows import STUDENT, TEACHER
from ..evaluation.suite import Suite
from ..export.export import is_export
from ..runs.config import RunConfig, guidance_of
from ..runs.folder import RunFolder
from ..runs.settings import DataSettings
from ..runs.stages import reopen
from ..schema import ConfigError
from ..teachers.folder import INDEX, read_json
from ..teachers.hub import located
from ..teachers.loading import FEW_STEP
from ..teachers.schedulers import FEW_STEP_SCHEDULER
from ..teachers.teacher import Teacher
from .foreign import Call, CallFailed, Foreign, collect, missing, places, too_many
from .foreign import sampled as of_pipeline
from .layouts import Layout, lay_out, planned
from .samplers import UNTRAINED, of_folder, of_run
from .suites import brought, brought_by, kind_of, load, shape_of

IMAGES = "images"  # in the report's folder, those of pipelines that are not ours
DEFAULT = "digits"  # the suite of our pipelines that come without a run
PROMPTS, OTHERS = "prompts", "folder"  # the suites of other models


@dataclass(frozen=True)
class Opening:
    """How sources are opened.

    steps: of exported pipelines, their fewest by default. trusted: modules that run folders may
    name, besides those that are shipped. guidance: of other pipelines, their own by default. code:
    whether code in the folders of other pipelines is run. teacher: the source that is the teacher
    of the others, called with its own defaults.
    """

    steps: int | None = None
    trusted: tuple[str, ...] = ()
    guidance: float | None = None
    code: bool = False
    teacher: Path | None = None

    def call(self, source: Path) -> Call:
        """How a pipeline that is not ours is called."""
        return Call() if source == self.teacher else Call(self.steps, self.guidance)


class Against(NamedTuple):
    """What sources are measured against; None for what their own runs say.

    suite: a shipped one, or a YAML file. reference: a folder of real images, or a published file
    .npz. prompts: a file. layout: how images of other pipelines are laid out for other people's
    scorers, too."""

    suite: str | None = None
    reference: str | None = None
    prompts: str | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class Gathered:
    """What sources hold. kind: of all. samplers, teacher, runs: of our students and runs. others:
    pipelines that are not ours. collections: folders of images. taught_by: the source among both
    that is the teacher of the others. made: what other pipelines made. unkept: those
    that make more than is kept, and how many bytes. failed: those whose call fails, and why."""

    kind: Kind
    samplers: list[Sampled]
    teacher: Teacher | None
    runs: list[RunConfig]
    others: list[Foreign]
    collections: dict[Path, Collection]
    taught_by: Path | None = None
    made: dict[Path, Collection] = field(default_factory=dict)
    unkept: dict[str, int] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)

    def suite(self, against: Against) -> Suite:
        """The suite that scores them. Raises ConfigError where the runs say several."""
        named = sorted({run.evaluation.suite for run in self.runs})
        if against.suite is None and len(named) > 1:
            several = ", ".join(named)
            raise ConfigError(f"eval: one suite a table, got {several}: choose by --suite")
        name = against.suite or (named[0] if named else self._usual(against))
        kind = classed(self.kind, self.collections, against.reference)
        images = self._images(against.reference, kind)
        return load(name, kind, images, against.prompts)

    @property
    def remarks(self) -> dict[str, str]:
        """What a reader must know of images that are not kept."""
        sizes = self.unkept.items()
        return {f"images of {name}": f"not kept, {size / 1e9:.0f} GB" for name, size in sizes}

    def _usual(self, against: Against) -> str:
        """The suite of models that come without a run."""
        if against.prompts is not None or self.kind.prompts:
            return PROMPTS
        return OTHERS if self.teacher is None or against.reference else DEFAULT

    def _images(self, reference: str | None, kind: Kind) -> Brought:
        """Those of a folder, else what the runs name, if all name the same."""
        said = {repr((uncached(run.data), run.evaluation.reference)) for run in self.runs}
        if reference is None and len(said) == 1:
            return brought_by(self.runs[0], self.teacher)
        return brought(reference, None, self.teacher or shape_of(kind))

    def make(
        self,
        wanted: Requests,
        store: Path,
        part: tuple[int, int],
        observe: Callable[[int, int, str], None],
    ) -> None:
        """Make the images of pipelines that are not ours.

        part: which of how many processes this is."""
        done, total = 0, len(wanted) * len(self.others)

        def advance(made: int) -> None:
            nonlocal done
            done += made
            observe(done, total, "")

        for model in self.others:
            if size := too_many(model, wanted):
                self.unkept[str(model.folder)] = size
                continue
            with left_out(model.folder, self.failed):
                own = wanted.of(model.kind)
                self.made[model.folder] = collect(model, own, store, part, advance)

    def all(self, wanted: Requests) -> list[Sampled]:
        """The samplers of all, when all processes have made their images.

        Raises ConfigError where every source failed."""
        for folder, kept in self.made.items():
            if reason := missing(kept):
                self.failed[folder] = reason
        found = list(self.samplers)
        for model in (each for each in self.others if each.folder not in self.failed):
            kept = self.made.get(model.folder)
            sampler = of_pipeline(model, wanted.of(model.kind), kept)
            found.append(self._as(model.folder, sampler))
        if not found and not self.collections:
            raise ConfigError(next(iter(self.failed.values())))
        return found + [
            self._as(path, of_collection(path, c, self.kind.classes))
            for path, c in self.collections.items()
        ]

    def _as(self, source: Path, sampler: Sampled) -> Sampled:
        return replace(sampler, model=TEACHER) if source == self.taught_by else sampler


def uncached(data: DataSettings) -> DataSettings:
    """What data are, wherever their latents are kept."""
    return replace(data, cache=None, dtype="float32")


def as_folders(sources: Sequence[Path], opening: Opening) -> tuple[list[Path], Opening]:
    """Sources, and how they are opened, with those of the hub as folders. Raises ConfigError."""
    if opening.teacher is not None:
        opening = replace(opening, teacher=located(opening.teacher))
    return [located(source) for source in sources], opening


def gather(sources: list[Path], opening: Opening) -> Gathered:
    """What all sources hold; a guided teacher that several runs share appears once."""
    found: dict[tuple[object, str, int], Sampled] = {}
    kinds, runs, teacher, others, collections, failed = set(), [], None, [], {}, {}
    for source in sources:
        if RunFolder(source).is_run:
            trained = reopen(source, Accelerator(), trusted=opening.trusted)
            teacher = trained.teacher
            kinds.add(kind_of(teacher))
            runs.append(trained.run)
            shared = f"{trained.run.teacher or source}, {guidance_of(trained.run)}"
            for c in of_run(trained):
                # Untrained students differ by how they are sampled.
                same = {TEACHER: shared, UNTRAINED: repr(trained.run.sampler)}.get(c.model, source)
                owner = shared if c.model == TEACHER else str(source)
                found.setdefault((same, c.model, c.steps), replace(c, source=owner))
        elif is_collection(source):
            collections[source] = collection_of(source)
        elif is_other(source):
            model = Foreign.of(source, opening.call(source), opening.code)
            with left_out(source, failed):
                kinds.add(model.kind)
                others.append(model)
        else:
            student, teacher = of_folder(source, opening.steps, opening.guidance, alone=False)
            kinds.add(kind_of(teacher))
            key = (source, student.model, student.steps)
            found[key] = replace(student, source=str(source))
    if not (kinds or collections):
        raise ConfigError(next(iter(failed.values())))
    kind = one_kind(kinds, collections)
    teachers = {owner for owner, model, _ in found if model == TEACHER}
    if len(teachers) > 1:
        raise ConfigError(f"eval: one teacher a table, got {'; '.join(sorted(teachers))}")
    if opening.teacher is not None and opening.teacher not in sources:
        raise ConfigError(f"--teacher {opening.teacher}: is none of the sources: add it to them")
    ours, taught_by = list(found.values()), opening.teacher
    return Gathered(kind, ours, teacher, runs, others, collections, taught_by, failed=failed)


@contextmanager
def left_out(source: Path, failed: dict[Path, str]) -> Iterator[None]:
    """Go on without a source whose call fails."""
    try:
        yield
    except CallFailed as error:
        failed[source] = str(error)


class Shelves(NamedTuple):
    """Where other pipelines' images of prompts are laid out for other people's scorers.

    of: the folder of each pipeline. prompts: of the images, in order, and the file of all."""

    layout: Layout
    of: dict[Path, Path]
    prompts: list[str]
    file: Path


def shelves(
    gathered: Gathered, against: Against, wanted: Requests, out: Path, names: Mapping[str, str]
) -> Shelves | None:
    """Where what is made will be laid out, by the names of sources in the report; None where no
    layout is asked for. `out/images` is where it is kept.

    Raises ConfigError, before anything is made, for sources that are ours, for what is not kept,
    and where other images are there already."""
    if against.layout is None:
        return None
    if gathered.samplers:
        ours = ", ".join(sorted({c.source or c.model for c in gathered.samplers}))
        raise ConfigError(
            f"--layout {against.layout}: copies what other pipelines make of prompts: leave out "
            f"our own {ours}"
        )
    models = [model for model in gathered.others if model.kind.prompts]
    of = {m.folder: out / against.layout / as_name(names[str(m.folder)]) for m in models}
    prompts, file = [request.asked for request in wanted.each], Path(against.prompts)
    for model in models:
        own = wanted.of(model.kind)
        if too_many(model, own):
            raise ConfigError(f"--layout: images of {model.folder} are too many to keep")
        images = places(model, own, out / IMAGES)
        planned(against.layout, images, prompts, of[model.folder], file)
    return Shelves(against.layout, of, prompts, file)


def as_name(path: str) -> str:
    """A path's end as the name of one folder, which it stays where it is dots alone."""
    return path.replace("/", "_").strip(".") or "pipeline"


def lay_all(gathered: Gathered, where: Shelves | None) -> None:
    """Write what other pipelines made in the layout that is asked for, a folder each."""
    for folder, place in (where.of if where else {}).items():
        if folder not in gathered.failed:
            lay_out(where.layout, gathered.made[folder].files, where.prompts, place, where.file)


def one_kind(kinds: set[Kind], collections: dict[Path, Collection]) -> Kind:
    """Of what a table asks: prompts if a model takes them, else labels if one does.

    Raises ConfigError where sizes, or numbers of labels, do not agree."""
    first = next(iter(collections.values()), None)
    kinds = kinds or {Kind((3, *first.size), prompts=first.prompts is not None)}
    sizes, prompts = {kind.size for kind in kinds}, any(kind.prompts for kind in kinds)
    labels = {kind.classes for kind in kinds if not (prompts or kind.classes is None)}
    if len(sizes) > 1 or len(labels) > 1:
        several = "; ".join(sorted(map(str, kinds)))
        raise ConfigError(f"eval: models of one kind a table, got {several}")
    kind = Kind(sizes.pop(), labels.pop() if labels else None, prompts)
    for path, collection in collections.items():
        if (3, *collection.size) != kind.size:
            raise ConfigError(f"{path}: images of {(3, *collection.size)} beside {kind}")
    return kind


def classed(kind: Kind, collections: dict[Path, Collection], reference: str | None) -> Kind:
    """The same; of images that lie in subfolders, where the reference has subfolders of the same
    names, it has these classes."""
    named = {collection.classes for collection in collections.values()}
    if kind.classes is None and not kind.prompts and len(named) == 1 and reference is not None:
        (classes,) = named
        place = Path(reference)
        if classes and place.is_dir() and {*classes} == {e.name for e in listed(place)}:
            return replace(kind, classes=len(classes))
    return kind


def require_images(collections: dict[Path, Collection], count: int) -> None:
    """Raise ConfigError for a folder that has fewer images than are scored."""
    for path, collection in collections.items():
        if len(collection) < count:
            raise ConfigError(
                f"{path}: has {len(collection):,} images of the {count:,} that are scored: "
                "lower --n or --blocks"
            )


def is_other(folder: Path) -> bool:
    """Whether a folder holds a pipeline that is none of our students."""
    try:
        index = read_json(folder / INDEX)
    except ValueError:
        return False
    name, scheduler = index.get("_class_name"), index.get("scheduler")
    ours = FEW_STEP in (name if isinstance(name, list) else [name]) or is_export(folder)
    return not ours and FEW_STEP_SCHEDULER not in (scheduler or [])


def of_collection(folder: Path, collection: Collection, classes: int | None) -> Sampled:
    """A row of a table: a folder of images, made by whatever made them. classes: of the others in
    the table, which are the folder's own where it has as many."""
    labels = collection.labels if classes in (None, len(collection.classes)) else None

    def made(first: int, count: int):
        rows = slice(first, first + count)
        if collection.prompts is None:
            asked = None if labels is None else torch.tensor(labels[rows])
        else:
            asked = collection.prompts[rows]
        return collection.images(first, count), asked

    classes = None if labels is None else len(collection.classes)
    kind = Kind((3, *collection.size), classes, collection.prompts is not None)
    return Sampled(STUDENT, 0, 0, 0, (), None, str(folder), made, kind)
