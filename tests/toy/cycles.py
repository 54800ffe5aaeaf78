"""Two updates of a method on a teacher, and exported folders as their users open them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

from stepdistill.denoiser import Denoiser
from stepdistill.export.export import call_of, code_of, pipeline_for
from stepdistill.jobs.samplers import of_folder
from stepdistill.method import Method, load
from stepdistill.solver import Sampler, Trajectory, states
from stepdistill.teachers.backbone import Asked
from stepdistill.teachers.loading import absent
from stepdistill.teachers.teacher import Teacher
from stepdistill.times import Grid
from stepdistill.training.players import PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training


def noise(teacher: Teacher, n: int = 2) -> Tensor:
    return torch.randn(n, *teacher.event, generator=torch.Generator().manual_seed(5))


def opened(folder: Path, parts: Sequence[str] = ()) -> DiffusionPipeline:
    """An exported folder as its users open it; parts: that it does without."""
    code = any(folder.rglob("*.py"))
    without = dict.fromkeys(parts)
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=code, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same_when_exported(
    teacher: Teacher, sampler: Sampler, asked: Asked, most: float, folder: Path
) -> None:
    """A student that is its teacher, exported, called, saved again and read: the same pictures, to
    `most` in [0, 1]."""
    pipeline_for(teacher, teacher.denoiser, sampler).save_pretrained(folder / "out")
    parts = absent(teacher.pipeline)
    opened(folder / "out", parts).save_pretrained(folder / "again")
    assert code_of(folder / "again") == code_of(folder / "out")
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(2, *teacher.event, generator=generator)
    state = generator.get_state()
    with torch.no_grad():
        ours = sampler.draw(teacher.denoiser, start, 2, teacher.conditions(asked), generator)
        wanted = (teacher.codec.decode(ours) / 2 + 0.5).clamp(0, 1)
    few = call_of(teacher, teacher.denoiser, asked, 2)
    for place in (folder / "out", folder / "again"):
        seeded = torch.Generator().manual_seed(3)
        pipe = opened(place, parts)
        made = pipe(num_inference_steps=2, generator=seeded, output_type="pt", **few)
        assert float((made.images - wanted).abs().max()) <= most
    if code_of(folder / "again"):
        found, _ = of_folder(folder / "again", 2)
        read = found.sample(start, asked, torch.Generator().set_state(state))
        assert float((read / 2 + 0.5 - wanted).abs().max()) <= most


STEPS = {"pcm": Sampler((4,), gamma=0.0), "tdm": Sampler((2,), gamma=0.0), "dmd": Sampler((1,))}


def path_of(teacher: Teacher, n: int) -> Trajectory:
    """A trajectory of the guided teacher, as a cache holds it."""
    times = Grid("uniform").times(teacher.denoiser.process, 3)
    cond = teacher.some(n)
    with torch.no_grad():
        walk = list(states(teacher.guided, noise(teacher, n), times[:-1], cond, None, 0.0))
        x0 = [teacher.guided(x, t.expand(n), cond).x0 for x, t in zip(walk, times)]
    w = torch.full((n,), 2.0)
    return Trajectory(times, torch.stack([*walk, x0[-1]], 1), torch.stack(x0, 1), w)


def two_cycles(method_name: str, teacher: Teacher, method: Method | None = None) -> Denoiser:
    """By the trainer: all is finite, and every player that has a turn is moved. The student, of the
    method as it is by default, or of this one."""
    method = method or load(method_name)()
    sampler = STEPS.get(method_name, Sampler((1, 2)))
    players = make_players(
        method, teacher, PlayerSettings(sampler, target=0.9, inputs=method.needs.inputs)
    )
    path = path_of(teacher, 2) if method.needs.trajectories else None
    x0 = noise(teacher).clamp(-1, 1)

    class Given:
        def batch(self, number, size, local):
            return x0, teacher.some(2), path

    training = Training(2, batch=2, optimiser=Optimiser(lr=1e-4))
    trainer = Trainer(method, players, Given(), training, Accelerator(cpu=True))
    before = {n: [p.detach().clone() for p in moved] for n, moved in trainer.moved.items()}
    while not trainer.done:
        assert not trainer.step().skipped
    for player, moved in trainer.moved.items():
        assert any(not torch.equal(p, q) for p, q in zip(moved, before[player])), player
        assert all(bool(p.isfinite().all()) for p in moved), player
    return players.student
