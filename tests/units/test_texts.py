"""Prompts that are encoded once: the same conditions, of these encoders and prompts alone."""

import json
from dataclasses import replace

import pytest
import torch
from others import PROMPTS, stable_diffusion, stable_diffusion_xl
from stopped import ended_before

from stepdistill.data import texts
from stepdistill.data.texts import kept, text_bytes
from stepdistill.schema import ConfigError
from stepdistill.teachers.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = (*PROMPTS, "", PROMPTS[0], "a prompt of its own")


def teacher_of(make, prompts=ASKED):
    return replace(Teacher.from_pipeline(make()), prompts=tuple(prompts))


def opened(folder, teacher, dtype="float32", part=(0, 1)):
    return kept(folder, teacher, dtype, part, lambda: None, lambda done, total: None)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("dtype", "gap"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl])
def test_kept_conditions_are_those_that_are_encoded(make, dtype, gap, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SHARD", 3)
    teacher = teacher_of(make)
    reading = replace(teacher, texts=opened(tmp_path, teacher, dtype))
    asked = [ASKED[2], ASKED[0], ASKED[-1], ""]
    fresh, found = teacher.conditions(asked), reading.conditions(asked)
    assert fresh.keys() == found.keys()
    for name, value in fresh.items():
        assert found[name].dtype == torch.float32
        scale = float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= gap * scale
    monkeypatch.setattr(type(teacher.backbone), "encode", lambda *_: pytest.fail("encoded again"))
    reading.conditions(asked)


def test_what_is_not_kept_is_encoded(tmp_path):
    teacher = teacher_of(stable_diffusion)
    reading = replace(teacher, texts=opened(tmp_path, teacher))
    asked = [PROMPTS[0], "another prompt"]
    for name, value in teacher.conditions(asked).items():
        assert torch.equal(reading.conditions(asked)[name], value)


def test_its_size_is_said_before(tmp_path):
    for dtype in ("float32", "bfloat16"):
        teacher = teacher_of(stable_diffusion_xl)
        opened(tmp_path / dtype, teacher, dtype)
        written = sum(f.stat().st_size for f in (tmp_path / dtype).glob("*.safetensors"))
        assert 0 <= written - text_bytes(teacher, dtype) <= 1000


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SHARD", 2)
    teacher = teacher_of(stable_diffusion)
    opened(tmp_path / "whole", teacher)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        ended_before(patch, 1)
        opened(tmp_path / "cut", teacher)
    opened(tmp_path / "cut", teacher)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def other_encoder():
    pipeline = stable_diffusion()
    with torch.no_grad():
        next(pipeline.text_encoder.parameters()).add_(1)
    return pipeline


@pytest.mark.parametrize(
    ("make", "prompts", "dtype", "what"),
    [
        (other_encoder, ASKED, "float32", "encoders"),
        (stable_diffusion, ASKED[1:], "float32", "prompts"),
        (stable_diffusion, ASKED, "float16", "dtype"),
    ],
)
def test_what_was_made_of_something_else_is_refused(make, prompts, dtype, what, tmp_path):
    opened(tmp_path, teacher_of(stable_diffusion))
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"another {what}: choose another path"):
        opened(tmp_path, teacher_of(make, prompts), dtype)
    assert contents(tmp_path) == before


def test_another_network_on_the_same_encoders_is_welcome(tmp_path):
    opened(tmp_path, teacher_of(stable_diffusion))
    pipeline = stable_diffusion()
    with torch.no_grad():
        next(pipeline.unet.parameters()).add_(1)
    opened(tmp_path, teacher_of(lambda: pipeline))
    assert json.loads((tmp_path / "manifest.json").read_text())["dtype"] == "float32"
