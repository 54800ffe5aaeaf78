"""Parts from outside the package, one file each, found by name: a backbone with its pipeline's
state of five dimensions and a condition of three named tensors, a codec, a source.

Every method's losses run on them, and nothing but `conditions` looks inside a condition.
"""

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from cases import close

from stepdistill.conditions import NOTHING, choose, join, move, repeat
from stepdistill.data.loader import Loader, Source
from stepdistill.method import Batch, load
from stepdistill.resources import named, shipped_modules
from stepdistill.runs.config import read
from stepdistill.runs.setup import Setup
from stepdistill.schema import ConfigError
from stepdistill.solver import Sampler, Trajectory, states
from stepdistill.teachers.teacher import Teacher
from stepdistill.training.players import PlayerSettings, make_players
from stepdistill.training.trainer import Optimiser, Trainer, Training

EVENT = (2, 3, 4, 4)  # channels, frames, height, width
BACKBONE = """
    import torch
    from diffusers import DDPMScheduler, DiffusionPipeline
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.modeling_utils import ModelMixin
    from torch import nn

    from stepdistill.teachers.backbone import Backbone
    from stepdistill.teachers.codec import Codec


    class Clips(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, channels: int = 2, width: int = 8):
            super().__init__()
            self.embed = nn.Linear(1, width)
            self.first = nn.Conv3d(channels, width, 1)
            self.text = nn.Linear(5, width)
            self.pooled = nn.Linear(3, width)
            self.middle = nn.Conv3d(width, width, 3, padding=1)
            self.last = nn.Conv3d(width, channels, 1)

        def forward(self, x, t, text, mask, pooled):
            told = (self.text(text) * mask[..., None]).mean(1) + self.pooled(pooled)
            told = told + self.embed(t[:, None].to(x) / 1000)
            return self.last(self.middle(torch.tanh(self.first(x) + told[..., None, None, None])))


    class ClipsPipeline(DiffusionPipeline):
        def __init__(self, transformer, scheduler):
            super().__init__()
            self.register_modules(transformer=transformer, scheduler=scheduler)


    class Toy(Backbone):
        pipelines = ("ClipsPipeline",)
        time_embedding = "embed"
        tap = "middle"
        classes = 4
        size = (8, 8)

        def codec(self):
            raise ValueError("name one: teacher.codec")

        def call(self, net, x, t, cond, w):
            return net(x, t, cond["text"], cond["mask"], cond["pooled"])

        def encode(self, asked, size):
            text = torch.linspace(0, 1, 20).reshape(4, 5).expand(len(asked), 4, 5)
            text = text * (1 + asked[:, None, None])
            mask = (torch.arange(4) <= asked[:, None]).float()
            return {"text": text, "mask": mask, "pooled": text[:, 0, :3]}

        def null(self, size):
            return {name: 0 * row for name, row in self.encode(torch.zeros(1), size).items()}


    def pipeline():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ClipsPipeline(Clips(), DDPMScheduler(clip_sample=False))
"""
CODEC = """
    from stepdistill.teachers.codec import Codec


    class Halved(Codec):
        \"\"\"Three frames of half an image each, in two channels.\"\"\"

        def __init__(self, pipeline):
            self.channels = pipeline.transformer.config.channels

        def event(self, size):
            return (self.channels, 3, size[0] // 2, size[1] // 2)

        def encode(self, images, generator=None):
            small = images[:, :, ::2, ::2]
            return small[:, :2, None].expand(-1, -1, 3, -1, -1) / 2

        def decode(self, x0):
            half = 2 * x0.mean(2)
            full = half.repeat_interleave(2, -1).repeat_interleave(2, -2)
            return full[:, [0, 1, 1]]
"""
SOURCE = """
    from dataclasses import dataclass

    import torch

    from stepdistill.data.loader import InMemory, Source
    from stepdistill.schema import Count


    @dataclass(frozen=True)
    class Stripes(Source):
        \"\"\"n: how many.\"\"\"

        n: Count = 8

        def open(self, teacher):
            labels = torch.arange(self.n) % teacher.classes
            return InMemory(labels[:, None, None, None].expand(-1, 3, 8, 8) / 4, labels)
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files beside the user, and the module of the backbone."""
    import sys

    files = {"toy_backbone": BACKBONE, "toy_codec": CODEC, "toy_source": SOURCE}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text).replace('\\"', '"'))
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(tmp_path)
    import toy_backbone

    return toy_backbone


@pytest.fixture
def teacher(toys) -> Teacher:
    return Teacher.from_pipeline(toys.pipeline(), 2.0, None, "toy_backbone", "toy_codec")


def test_a_backbone_and_a_codec_of_one_s_own_make_a_teacher(teacher):
    assert teacher.event == EVENT and teacher.nfe == 2 and teacher.size == (8, 8)
    cond = teacher.some(3)
    assert {name: tuple(v.shape) for name, v in cond.items()} == {
        "text": (3, 4, 5),
        "mask": (3, 4),
        "pooled": (3, 3),
    }
    x, t = torch.randn(3, *EVENT), torch.tensor([10.0, 300.0, 900.0])
    given, free = teacher.denoiser(x, t, cond), teacher.denoiser(x, t, repeat(teacher.null, 3))
    guided = teacher.guided(x, t, cond)
    close(guided.x0, given.x0 + given.x0 - free.x0, rtol=1e-4, atol=1e-4)
    images = torch.rand(2, 3, 8, 8)
    assert teacher.codec.encode(images).shape == (2, *EVENT)
    assert teacher.codec.decode(teacher.codec.encode(images)).shape == images.shape


def test_a_source_of_one_s_own_is_read_by_name(teacher):
    run = read("digits-teacher", ("data={source: toy_source, settings: {n: 6}}",))
    loader = Loader(run.data.build().open(teacher), teacher, dropout=0.5)
    drawn = loader.batch(0, 6, torch.Generator().manual_seed(1))
    assert drawn.x0.shape == (6, *EVENT) and set(drawn.cond) == {"text", "mask", "pooled"}
    with pytest.raises(ConfigError, match=r"data\.settings\.n: must be at least 1"):
        read("digits-teacher", ("data={source: toy_source, settings: {n: 0}}",))
    with pytest.raises(ConfigError, match="data.source: .*did you mean 'digits'"):
        read("digits-teacher", ("data.source=digit",))


STEPS = {"pcm": Sampler((4,), gamma=0.0), "tdm": Sampler((2,), gamma=0.0), "dmd": Sampler((1,))}


def path_of(teacher: Teacher, n: int) -> Trajectory:
    """A trajectory of the guided teacher, as a cache holds it."""
    times = torch.tensor([999.0, 500.0, 0.0, -1.0], dtype=torch.float64)
    noise, cond = torch.randn(n, *EVENT), teacher.some(n)
    with torch.no_grad():
        walk = list(states(teacher.guided, noise, times[:-1], cond, None, 0.0))
        x0 = [teacher.guided(x, t.expand(n), cond).x0 for x, t in zip(walk, times)]
    return Trajectory(
        times, torch.stack([*walk, x0[-1]], 1), torch.stack(x0, 1), torch.full((n,), 2.0)
    )


@pytest.mark.parametrize("name", shipped_modules("methods"))
def test_every_methods_losses_take_any_state_and_condition(name, teacher):
    """Two cycles by the trainer: all are finite, and every player that has a turn is moved."""
    method = load(name)()
    sampler = STEPS.get(name, Sampler((1, 2)))
    settings = PlayerSettings(sampler, target=0.9, inputs=method.needs.inputs)
    players = make_players(method, teacher, settings)
    drawn = Batch(torch.randn(2, *EVENT), teacher.some(2), torch.Generator(), torch.Generator())
    path = path_of(teacher, 2) if method.needs.trajectories else None

    class Given:
        def batch(self, number, size, local):
            return drawn.x0, drawn.cond, path

    training = Training(2, batch=2, optimiser=Optimiser(lr=1e-3))
    trainer = Trainer(method, players, Given(), training, Accelerator(cpu=True))
    before = {n: [p.detach().clone() for p in moved] for n, moved in trainer.moved.items()}
    while not trainer.done:
        assert not trainer.step().skipped
    for name, moved in trainer.moved.items():
        assert any(not torch.equal(p, q) for p, q in zip(moved, before[name])), name


def test_conditions_are_taken_apart_and_put_together_in_one_place():
    a = {"text": torch.arange(6.0).reshape(3, 2), "mask": torch.ones(3)}
    b = {"text": -torch.ones(1, 2), "mask": torch.zeros(1)}
    assert repeat(b, 2)["text"].tolist() == [[-1, -1]] * 2
    assert join(a, repeat(b, 1))["mask"].tolist() == [1, 1, 1, 0]
    mixed = choose(torch.tensor([True, False, True]), a, b)
    assert mixed["text"].tolist() == [[0, 1], [-1, -1], [4, 5]] and mixed["mask"].tolist() == [
        1,
        0,
        1,
    ]
    assert choose(torch.tensor([True, False, False]), b, a)["mask"].tolist() == [0, 1, 1]
    assert move(a, "cpu")["mask"].tolist() == [1, 1, 1]
    for made in (repeat(NOTHING, 2), join({}, {}), move({}, "cpu")):
        assert made == {}


def test_a_run_names_its_parts(toys, tmp_path):
    """From the configuration: backbone, codec and source, each by name."""
    toys.pipeline().save_pretrained(tmp_path / "clips")
    assert json.loads((tmp_path / "clips" / "model_index.json").read_text())["_class_name"]
    assert named("data.sources", "toy_source", Source).__name__ == "Stripes"
    named_backbone = "teacher={path: digits-vp, backbone: nowhere}"
    with pytest.raises(ConfigError, match="backbone 'nowhere': neither a shipped backbone"):
        Setup.of(read("digits-consistency-vp", (named_backbone,)), Accelerator(cpu=True))
    run = read("smoke", ("teacher={path: digits, size: [16, 16]}", "data.source=toy_source"))
    assert replace(run, teacher=None).teacher is None and run.teacher.size == (16, 16)
