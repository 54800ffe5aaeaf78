"""Pixel pipelines of any size, as diffusers saves them: what the teacher answers, how it walks,
what its students are exported as, and every method on each.
"""

from dataclasses import replace

import pytest
import torch
from cycles import noise, same_when_exported, two_cycles
from pixels import PIPELINES, called, saved, walked
from torch import Tensor

from stepdistill.export.export import allowed
from stepdistill.jobs.samplers import of_teacher
from stepdistill.method import load
from stepdistill.resources import shipped_modules
from stepdistill.solver import Sampler
from stepdistill.teachers.teacher import Teacher, teacher_sampler
from stepdistill.times import Grid

METHODS = shipped_modules("methods")


@pytest.fixture(params=PIPELINES)
def name(request) -> str:
    return request.param


def asked(teacher: Teacher) -> Tensor | None:
    return None if teacher.classes is None else torch.tensor([1, 2])


def test_the_network_is_called_as_its_pipeline_calls_it(name, tmp_path):
    """For times of its own for each sample, too."""
    pipeline = PIPELINES[name]()
    teacher = saved(pipeline, tmp_path)
    x, labels = noise(teacher), asked(teacher)
    last, unit = teacher.denoiser.process.t_max, teacher.backbone.time(torch.ones(1)).item()
    t = torch.tensor([0.9, 0.2], dtype=torch.float64) * last
    t = t if unit != 1 else t.round()
    ours = teacher.denoiser.output(x, t, teacher.conditions(labels))
    theirs = called(pipeline.unet, x, (t * unit).float(), labels)
    assert float((ours - theirs).abs().max()) <= 2e-5
    assert float(ours.std()) > 0.1 and ours.shape == x.shape


FULL = pytest.mark.full(shard="teachers")


@pytest.mark.parametrize("n", [4, pytest.param(10, marks=FULL)])
def test_the_teacher_walks_as_its_pipeline_does(name, n, tmp_path):
    pipeline = PIPELINES[name]()
    teacher = saved(pipeline, tmp_path)
    pipeline.unet.double()
    teacher.denoiser.net.double()
    x, labels = noise(teacher).double(), asked(teacher)
    theirs = walked(pipeline, x, n, labels)
    row = of_teacher(teacher, n).sample(x, labels, torch.Generator())
    assert float((row - theirs.clamp(-1, 1)).abs().max()) <= 1e-5
    sampler, cond = teacher_sampler(teacher), teacher.conditions(labels)
    with torch.no_grad():
        ours = sampler.draw(teacher.guided, x, n, cond, None)
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


SAMPLERS = {
    "walked": Sampler((1, 2), Grid("uniform"), 0.0),
    "re-noised": Sampler((1, 2), Grid("uniform"), 0.6),
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_student_is_exported_called_saved_again_and_read(name, kind, tmp_path):
    teacher, sampler = saved(PIPELINES[name](), tmp_path / "teacher"), SAMPLERS[kind]
    flow_like = teacher.denoiser.process.t_clean == 0
    if kind == "walked" and not flow_like and teacher.denoiser.process.t_max % 2:
        sampler = replace(sampler, grid=Grid("trailing"))
    student = teacher.denoiser
    same_when_exported(teacher, sampler, asked(teacher), allowed(student, sampler), tmp_path)


# Each pipeline once; together they are all methods' rooms: one a family, and all in full.
SOME = [
    ("sid", "labels, clipped"),
    ("dmd2", "learned variance"),
    ("ctm", "v at zero SNR"),
    ("consistency", "x0, four channels"),
    ("tcd", "two channels, no end"),
    ("vsd", "cosine, clipped"),
    ("lcm", "flow, labels"),
]


@pytest.mark.parametrize(("method", "pipeline"), SOME)
def test_a_method_trains_on_a_pipeline(method, pipeline, tmp_path):
    two_cycles(method, saved(PIPELINES[pipeline](), tmp_path))


@FULL
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_every_pipeline(method, name, tmp_path):
    needs, teacher = load(method)().needs, saved(PIPELINES[name](), tmp_path)
    if teacher.null or not (needs.guidance or needs.trajectories):  # else there is none to learn
        two_cycles(method, teacher)
