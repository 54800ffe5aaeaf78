"""The stages of a run, one after the other: each has its teacher and its trainer, and begins from
the averaged student of the one before. What comes out at the end is a `TrainedRun`.
"""

from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..data import latents
from ..data.loader import Data, Loader
from ..data.texts import kept
from ..data.trajectories import Cache, build, load_cache, times_of, trajectories
from ..denoiser import Denoiser
from ..method import Method
from ..networks.attention import set_attention
from ..networks.inputs import INPUTS, KEPT_INPUTS
from ..networks.lora import AdapterView, LowRank, low_rank
from ..networks.views import load_own, own_tensors, standalone
from ..schema import ConfigError
from ..teachers.teacher import Teacher
from ..training.checkpoint import State, best, finished, fitting, latest, read_state
from ..training.players import PlayerSettings, make_players
from ..training.trainer import Trainer
from .config import RunConfig, labelled
from .folder import RunFolder
from .settings import Stage
from .setup import Setup


@dataclass(frozen=True)
class TrainedRun:
    """A run and the student it has come to: what export, evaluation and reports are made of.

    student: averaged, a plain network with weights of its own. stage, update: where training is.
    skipped: turns that were not finite. ended: whether training came to its end. role: the student
    as a correction of the teacher's network, None where it is none.
    """

    setup: Setup
    folder: RunFolder
    student: Denoiser
    stage: int
    update: int
    skipped: int
    ended: bool
    role: LowRank | None = None

    @property
    def run(self) -> RunConfig:
        return self.setup.run

    @property
    def teacher(self) -> Teacher:
        return self.setup.teacher


class Stages:
    """The present stage of a run in its folder: its teacher, its trainer, and how it is left.

    pending, health: of the checkpoint that was taken up, means that are not yet logged and the
    state of the stage's monitor.
    """

    def __init__(self, setup: Setup, folder: RunFolder) -> None:
        self.setup, self.folder = setup, folder
        self.cache: Data | None = None
        self.pending: dict[str, dict[str, Any]] = {}
        self.health: dict[str, Any] = {}
        self.stage, self.teacher = 0, setup.teacher
        # Networks are big: those of a stage that a checkpoint is beyond are never made.
        self._made = None if finished(folder.checkpoints) else self._trainer(self._beginning())

    @classmethod
    def of(cls, run: RunConfig, folder: Path, accelerator: Accelerator) -> "Stages":
        """Raises ConfigError for a run that cannot be trained."""
        return cls(Setup.of(run, accelerator), RunFolder(folder))

    @property
    def trainer(self) -> Trainer:
        """The present stage's."""
        if self._made is None:
            self._made = self._trainer(self._beginning())
        return self._made

    @property
    def settings(self) -> Stage:
        """The present stage's."""
        return self.setup.run.stages[self.stage]

    @property
    def method(self) -> Method:
        return self.setup.methods[self.stage]

    @property
    def finished(self) -> bool:
        return self.stage + 1 == len(self.setup.run.stages) and self.trainer.done

    def next_stage(self, start: dict[str, Tensor] | None = None) -> None:
        """Start the next stage from the averaged student of this one, or from these tensors.

        A critic goes on where it was."""
        start, critic = start or self.trainer.averaged(), self.trainer.players.critic
        taught = self.setup.run.stages[self.stage + 1].teacher == "last"
        kept = taught or self.setup.methods[self.stage + 1].needs.initial
        if kept and self.setup.accelerator.is_main_process:
            self.folder.keep_student(self.stage, start)
        self.teacher = self._taught() if taught else self.setup.teacher
        self.stage += 1
        self.health = {}
        self._made = self._trainer(start, critic and own_tensors(critic.denoiser.net))

    def open_cache(self, observe: Callable[[int, int], None]) -> None:
        """Build what is missing of the run's trajectories, with all processes, and open them."""
        run, teacher = self.setup.run, self.setup.teacher
        needed = any(method.needs.trajectories for method in self.setup.methods)
        if run.cache is None or not needed:
            return
        folder = Path(run.cache.path) if run.cache.path else self.folder.trajectories
        part, wait = self._shared()
        build(folder, teacher, run.cache, part, observe)
        wait()
        self.cache = load_cache(folder, teacher, run.cache, run.seed)
        self._renew_data()

    def open_texts(self, observe: Callable[[int, int], None]) -> None:
        """Encode what is missing of the run's prompts, with all processes, and open them all. Then
        what encodes them leaves the device, where training asks for no others."""
        setup, asked = self.setup, self.setup.run.prompts
        if asked is None or asked.cache is None:
            return
        folder, (part, wait) = Path(asked.cache), self._shared()
        texts = kept(folder, setup.teacher, asked.dtype, part, wait, observe)
        if not any(method.needs.data for method in setup.methods):  # whose captions may be others
            setup.teacher.backbone.to(torch.device("cpu"))
        self.setup, self.teacher = setup.reading(texts), replace(self.teacher, texts=texts)
        self._renew_data()

    def open_latents(self, observe: Callable[[int, int], None]) -> None:
        """Encode what is missing of the run's images, with all processes, and open them all."""
        setup, asked = self.setup, self.setup.run.data
        if asked.cache is None or not isinstance(setup.data, Loader):
            return
        folder, (part, wait) = Path(asked.cache), self._shared()
        data = latents.kept(folder, setup.data, asked.dtype, part, wait, observe)
        self.setup = replace(setup, data=data)
        self._renew_data()

    def rehearse_cache(self) -> None:
        """A few trajectories in memory, in place of those that training will build."""
        settings, teacher = self.setup.run.cache, self.setup.teacher
        if settings is not None:
            few = replace(settings, samples=1, shard=1)
            self.cache = Cache(times_of(teacher, few), [trajectories(teacher, few, 0)], 1)
            self.trainer.data = self._data()

    def student(self) -> Denoiser:
        """The averaged student, a plain network with weights of its own."""
        student = self.trainer.players.student
        student = replace(student, net=deepcopy(student.net))
        load_own(student.net, self.trainer.averaged())
        student = replace(student, net=standalone(student.net))
        if self.setup.run.attention is not None:  # a plain call of what is exported has none of it
            set_attention(student.net, "sdpa")
        student.net.eval().requires_grad_(False)
        return student

    def result(self) -> TrainedRun:
        """What the run has come to, as it stands; prompts are encoded, as its users' will be."""
        self.setup.teacher.to(self.setup.accelerator.device)
        return TrainedRun(
            setup=self.setup.reading(None),
            folder=self.folder,
            student=self.student(),
            stage=self.stage,
            update=self.trainer.update,
            skipped=self.trainer.skipped,
            ended=self.finished,
            role=self._role(),
        )

    def _role(self) -> LowRank | None:
        net = self.trainer.players.student.net
        return low_rank(net, self.trainer.averaged()) if isinstance(net, AdapterView) else None

    def restore(self) -> list[str]:
        """Continue from the newest readable checkpoint, if any; warnings about damaged ones.

        Raises CheckpointError if none of them can be read, or if it is no state of this run."""
        state, warnings = latest(self.folder.checkpoints)
        if state is not None:
            self.go_on_from(state, self.folder.checkpoints)
        return warnings

    def go_on_from(self, state: State, folder: Path) -> None:
        """Take up a state read from `folder`. Raises CheckpointError if it is not of this run."""
        with fitting(folder):
            counted = [state.numbers[name] for name in ("stage", "turn", "skipped")]
            if not all(type(number) is int and number >= 0 for number in counted):
                raise TypeError("counts")
            self._call_teachers(counted[0])
            self.stage, self.pending = counted[0], of_means(state.numbers["pending"])
            self.health = of_monitor(state.numbers["health"])
            self._made = self._trainer(self._initial())
            self.trainer.restore(state)

    def _call_teachers(self, until: int) -> None:
        """Give stage `until` the teacher it has. Raises CheckpointError if it was not kept."""
        self.teacher = self.setup.teacher
        for stage in range(until):
            taught = self.setup.run.stages[stage + 1].teacher == "last"
            if taught:
                self.stage = stage
                self._made = self._trainer(self.folder.kept_student(stage))
            self.teacher = self._taught() if taught else self.setup.teacher

    def _taught(self) -> Teacher:
        """The teacher of the next stage: the present one's student as it is."""
        return replace(self.setup.teacher, guided=self.student())

    def _initial(self) -> dict[str, Tensor] | None:
        """What the present stage started from, if its method needs it again."""
        if self.stage == 0:
            return self._beginning()
        if not self.method.needs.initial:
            return None
        return self.folder.kept_student(self.stage - 1)

    def _beginning(self) -> dict[str, Tensor] | None:
        """What the first stage starts from, None for the teacher."""
        found = self.setup.beginning
        return None if found is None else found.tensors

    def _shared(self) -> tuple[tuple[int, int], Callable[[], None]]:
        """(rank, processes) of those that share a build, and how they wait for one another."""
        accelerator = self.setup.accelerator
        part = accelerator.process_index, accelerator.num_processes
        return part, accelerator.wait_for_everyone

    def _renew_data(self) -> None:
        """Give a trainer that is made already what was opened since."""
        if self._made is not None:
            self._made.data = self._data()

    def _data(self) -> Data:
        """The data of the present stage; trajectories come with `open_cache`."""
        return self.cache if self.method.needs.trajectories else self.setup.data

    def _trainer(
        self, start: dict[str, Tensor] | None, critic: dict[str, Tensor] | None = None
    ) -> Trainer:
        run, training = self.setup.run, self.settings.training
        seeds = (run.seed, self.stage)
        settings = PlayerSettings(
            sampler=run.sampler,
            adapters=run.adapters,
            checkpointing=run.checkpointing,
            target=training.target_ema,
            skip=self._needs_skip(),
            inputs=self._inputs(),
            start=start,
            critic=critic,
            seed=seeds,
        )
        try:
            players = make_players(self.method, self.teacher, settings)
        except ValueError as error:
            raise ConfigError(f"stages.{self.stage}: {error}") from error
        return Trainer(self.method, players, self._data(), training, self.setup.accelerator, seeds)

    def _inputs(self) -> tuple[str, ...]:
        # An input a student's network has had stays in later stages; an output need not.
        before = {i for method in self.setup.methods[: self.stage] for i in method.needs.inputs}
        before |= set() if self.setup.beginning is None else {*self.setup.beginning.inputs}
        asked = (before & {*KEPT_INPUTS}) | {*self.method.needs.inputs}
        return tuple(name for name in INPUTS if name in asked)

    def _needs_skip(self) -> bool:
        # A student that has been a consistency function stays one in later stages.
        denoiser = self.setup.teacher.denoiser
        asked = any(method.needs.boundary for method in self.setup.methods[: self.stage + 1])
        asked |= self.setup.beginning is not None and self.setup.beginning.skip
        return asked and not denoiser.process.has_identity_at_clean(denoiser.prediction)


def of_means(state: dict[str, Any]) -> dict[str, Any]:
    """The state of the log's means, by player. Raises TypeError or LookupError for what is none."""
    for means in state.values():
        require_numbers(means["count"], *means["sums"].values())
    return state


def of_monitor(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a stage's monitor. Raises TypeError or LookupError for what is none."""
    if state:
        signals = (*state["out"].values(), *state["start"].values())
        require_numbers(state["turn"], state["skipped"], *state["lags"], *signals)
    return state


def require_numbers(*values: Any) -> None:
    """Raise TypeError unless all are numbers."""
    if not all(type(value) in (int, float) for value in values):
        raise TypeError("no numbers")


def reopen(
    folder: Path,
    accelerator: Accelerator,
    at_best: bool = False,
    trusted: Collection[str] = (),
) -> TrainedRun:
    """A trained run, at its end or at its best checkpoint.

    trusted: modules that it may name, and which then are run, besides those that are shipped.
    Raises ConfigError if it is not one, or not finished, CheckpointError if it is damaged."""
    run = RunFolder(folder).read(trusted)
    with labelled(str(folder)):
        stages = Stages.of(run, folder, accelerator)
    stages.restore()
    if not stages.finished:
        raise ConfigError(f"{folder}: its training is not finished; `stepdistill run` goes on")
    if at_best:
        checkpoint = best(stages.folder.checkpoints)
        if checkpoint is None:
            raise ConfigError(f"{folder}: no checkpoint has a score")
        stages.go_on_from(read_state(checkpoint), checkpoint)
    return stages.result()
