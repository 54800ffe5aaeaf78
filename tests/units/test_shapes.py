"""Coloured shapes: their drawing against exact areas, and the reader that inverts it.

Mutations that must each fail a test here: shapes of another area; labels in another order; a margin
that lets shapes touch the border; a reader that guesses where there is nothing.
"""

import math
from dataclasses import replace

import pytest
import torch

from stepdistill.data.loader import Loader, stream
from stepdistill.data.shapes import CLASSES, NAMES, PALETTE, RADII, SHAPES, Scenes
from stepdistill.data.sources.shapes_classes import ShapesClasses
from stepdistill.evaluation.reference import Kind
from stepdistill.evaluation.shape_reader import areas, border
from stepdistill.evaluation.suites import shapes_classes as suite
from stepdistill.schema import ConfigError
from stepdistill.teachers.loading import new_pipeline
from stepdistill.teachers.teacher import Teacher

SIZES = ((32, 32), (16, 16), (24, 40), (40, 24), (64, 64))
AREAS = {
    "circle": math.pi,
    "square": 4 * 0.86**2,
    "triangle": 3 * 3**0.5 * 0.6**2,
    "cross": 4 * 0.6 - 0.6**2,
    "ring": math.pi * (1 - 0.6**2),
    "diamond": 2 * 1.2**2,
}


def unet_teacher(size: tuple[int, int], classes: int | None) -> Teacher:
    unet = {"sample_size": size, "in_channels": 3, "out_channels": 3, "layers_per_block": 1}
    unet |= {"block_out_channels": [8, 8], "norm_num_groups": 4}
    unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    unet |= {"num_class_embeds": None if classes is None else classes + 1}
    return Teacher.from_pipeline(new_pipeline(unet, "FlowMatchEulerDiscreteScheduler", {}, 0))


def scenes(n: int, seed: int = 0) -> Scenes:
    return Scenes.drawn(torch.arange(n) % CLASSES, torch.Generator().manual_seed(seed))


def test_areas_are_those_of_the_shapes():
    exact = torch.tensor([AREAS[shape] for shape in SHAPES])
    torch.testing.assert_close(areas(), exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("noise", [0, 8 / 255], ids=["clean", "noisy"])
def test_the_reader_is_exact(size, noise):
    drawn = scenes(10 * CLASSES)
    images = drawn.images(*size)
    images = images + 2 * noise * torch.randn(images.shape, generator=stream(7))
    read = suite.ShapeReader(size)(images.clamp(-1, 1).flatten(1)).argmax(1)
    assert torch.equal(read, drawn.labels)


def test_the_reader_sees_nothing_where_there_is_nothing():
    plain = torch.rand(50, 3, 1, 1, generator=stream(1)).expand(-1, -1, 32, 32)
    garbage = torch.rand(50, 3, 32, 32, generator=stream(2))
    reader = suite.ShapeReader((32, 32))
    for images in (plain, garbage):
        assert (reader(images.flatten(1) * 2 - 1).argmax(1) == CLASSES).all()


def test_names_and_labels_agree():
    """Class 6 k + s is shape s in colour k, seen by colour alone in the middle of a full shape."""
    label = NAMES.index("blue square")
    drawn = Scenes.drawn(torch.tensor([label] * 20), torch.Generator().manual_seed(0))
    blue = torch.tensor(PALETTE["blue"]) / 255
    pixels = drawn.images(32, 32) / 2 + 0.5
    nearest = (pixels - blue[:, None, None]).abs().amax(1).flatten(1).min(1).values
    assert nearest.max() <= 8 / 255 + 1e-6


def test_scenes_are_uniform_and_never_touch_the_border():
    drawn = scenes(100 * CLASSES)
    radii = drawn.radii.double().sort().values
    even = torch.linspace(*RADII, len(radii), dtype=torch.float64)
    assert (radii - even).abs().max() / (RADII[1] - RADII[0]) < 1.63 / len(radii) ** 0.5  # 99 %
    images = drawn[torch.arange(10 * CLASSES)].images(24, 40)
    rim = border(images)
    assert torch.equal(rim, rim[:, :, :1].expand_as(rim))


def test_a_scene_looks_alike_at_every_size():
    drawn = scenes(CLASSES)
    drawn = replace(drawn, places=torch.full((CLASSES, 2), 0.5))
    small = torch.nn.functional.avg_pool2d(drawn.images(64, 64), 2)
    assert (small - drawn.images(32, 32)).abs().mean() < 0.01


def test_the_source_draws_what_a_teacher_takes():
    teacher = unet_teacher(size=(16, 24), classes=CLASSES)
    samples = ShapesClasses(n=96).open(teacher)
    rows = samples.rows(torch.tensor([5, 53]))
    assert rows.images.shape == (2, 3, 16, 24) and rows.asked.tolist() == [5, 5]
    assert samples.names == NAMES
    assert torch.equal(samples.rows(torch.tensor([5])).images[0], rows.images[0])
    drawn = Loader(samples, teacher).batch(3, 8, stream(0))
    assert drawn.x0.shape == (8, 3, 16, 24) and drawn.cond["label"].shape == (8,)
    with pytest.raises(ConfigError, match="48 classes or none"):
        ShapesClasses().open(unet_teacher(size=(16, 24), classes=9))
    with pytest.raises(ConfigError, match="at least 16 pixels"):
        ShapesClasses().open(unet_teacher(size=(8, 24), classes=None))


def test_the_reference_is_no_training_data():
    kind = Kind((3, 32, 32), CLASSES)
    reference = suite.ShapesClasses(n=480).open(kind, None)
    trained = scenes(480).images(32, 32)
    assert reference.images.shape == trained.shape
    assert (reference.images - trained).flatten(1).abs().amax(1).min() > 0.05
    asked = reference.asked(96, torch.Generator().manual_seed(3))
    assert asked.bincount().tolist() == [2] * CLASSES
    with pytest.raises(ValueError, match="scores RGB images"):
        suite.ShapesClasses().open(Kind((1, 32, 32), CLASSES), None)
