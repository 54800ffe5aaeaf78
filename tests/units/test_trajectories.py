"""The teacher's cache: what is in it, the same however it came about, and refused elsewhere."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from stopped import ended_before

from stepdistill.data import trajectories as cache
from stepdistill.data.loader import stream
from stepdistill.data.trajectories import CacheSettings, build, load_cache
from stepdistill.networks.lora import AdapterView, add_adapter
from stepdistill.runs.costs import trajectory_bytes, trajectory_passes
from stepdistill.schema import ConfigError
from stepdistill.solver import ddim_step, heun_step, start
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher

SETTINGS = CacheSettings(samples=10, steps=3, shard=4, guidance=(1.0, 4.0), seed=3)


@pytest.fixture(scope="module")
def teacher():
    return Teacher.from_pipeline(load_pipeline("digits"), 2.0)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def built(teacher, tmp_path):
    build(tmp_path / "one", teacher, SETTINGS)
    return tmp_path / "one"


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_trajectories_are_the_guided_teachers(teacher, solver):
    settings = replace(SETTINGS, solver=solver)
    shard = cache.trajectories(teacher, settings, 1)
    g = stream(3, cache.CACHED, 1)
    noise = torch.randn(4, 1, 8, 8, generator=g)
    w = 1 + 3 * torch.rand(4, generator=g)
    cond = {"label": torch.randint(10, (4,), generator=g)}
    assert torch.equal(shard["w"], w) and torch.equal(shard["cond.label"], cond["label"])
    guided = replace(teacher.guided, w=w)
    times = torch.tensor([1, 2 / 3, 1 / 3, 0], dtype=torch.float64)
    x = start(guided.process, noise, times[0])
    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(times)):
            t, s = t.expand(4), s.expand(4)
            assert torch.equal(shard["states"][:, i], x)
            at_t = guided(x, t, cond)
            assert torch.allclose(shard["answers"][:, i], at_t.x0, atol=1e-6)
            step = heun_step(guided, x, t, s, cond) if solver == "heun" else None
            x = ddim_step(guided.process, at_t, s) if step is None else step
    assert torch.allclose(shard["states"][:, -1], x, atol=1e-6)


@pytest.mark.parametrize("w, told", [(1.0, None), (2.0, None), (2.0, (1.0, 4.0))])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_its_passes_are_those_that_the_network_sees(w, told, solver):
    teacher = Teacher.from_pipeline(load_pipeline("digits"), w)
    settings = replace(SETTINGS, guidance=told, solver=solver)
    seen = []
    teacher.denoiser.net.register_forward_hook(lambda net, given, out: seen.append(len(given[0])))
    for k in range(settings.shards):
        cache.trajectories(teacher, settings, k)
    assert sum(seen) == trajectory_passes(teacher, settings)


def test_an_interrupted_build_equals_one_that_was_not(teacher, built, tmp_path, monkeypatch):
    """Killed between shards, with one half-written and one damaged: bit for bit the same."""
    other = tmp_path / "other"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        ended_before(patch, 2)
        build(other, teacher, SETTINGS)
    (other / "00002.safetensors").write_bytes(b"half")
    damaged = bytearray((other / "00000.safetensors").read_bytes())
    damaged[-1] ^= 1
    (other / "00000.safetensors").write_bytes(bytes(damaged))
    build(other, teacher, SETTINGS)
    assert contents(other) == contents(built)


def test_several_processes_build_the_same(teacher, built, tmp_path):
    for rank in (1, 0):
        build(tmp_path / "two", teacher, SETTINGS, (rank, 2))
    assert contents(tmp_path / "two") == contents(built)


def test_nothing_is_computed_twice(teacher, built, monkeypatch):
    monkeypatch.setattr(cache, "trajectories", lambda *_: pytest.fail("computed again"))
    build(built, teacher, SETTINGS)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"steps": 4}, "steps"),
        ({"solver": "heun"}, "solver"),
        ({"guidance": (1.0, 5.0)}, "guidance"),
        ({"seed": 4}, "seed"),
        ({"samples": 11}, "samples"),
    ],
)
def test_a_cache_of_other_settings_is_refused(teacher, built, change, what):
    before = contents(built)
    with pytest.raises(ConfigError, match=f"another {what}: choose another path"):
        build(built, teacher, replace(SETTINGS, **change))
    assert contents(built) == before


def test_a_cache_of_another_teacher_is_refused(built):
    other = Teacher.from_pipeline(load_pipeline("digits"), 2.0)
    with torch.no_grad():
        next(other.denoiser.net.parameters()).add_(1e-3)
    with pytest.raises(ConfigError, match="another teacher"):
        load_cache(built, other, SETTINGS, 0)


def test_the_runs_guidance_where_none_is_asked(teacher, tmp_path):
    settings = replace(SETTINGS, guidance=None)
    build(tmp_path / "fixed", teacher, settings)
    assert load_file(tmp_path / "fixed" / "00000.safetensors")["w"].tolist() == [2.0] * 4
    with pytest.raises(ConfigError, match="another guidance"):
        build(tmp_path / "fixed", Teacher.from_pipeline(load_pipeline("digits"), 3.0), settings)


def test_damage_is_named(teacher, built):
    (built / "00001.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="shard 00001 is missing or damaged"):
        load_cache(built, teacher, SETTINGS, 0)
    (built / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="manifest.json: damaged"):
        load_cache(built, teacher, SETTINGS, 0)


def test_its_size_is_known_before(teacher, built):
    written = sum(p.stat().st_size for p in built.glob("*.safetensors"))
    assert trajectory_bytes(teacher, SETTINGS) == pytest.approx(written, abs=400 * 3)


def test_batches_walk_through_all_of_it(teacher, built):
    opened = load_cache(built, teacher, SETTINGS, seed=1)
    everything = torch.cat([opened.batch(k, 5, stream(k)).path.w for k in range(2)])
    stored = torch.cat([load_file(f)["w"] for f in sorted(built.glob("*.safetensors"))])
    assert sorted(everything.tolist()) == sorted(stored.tolist())
    drawn = opened.batch(7, 4, stream(0))
    assert torch.equal(drawn.x0, drawn.path.x[:, -1]) and drawn.path.x.shape == (4, 4, 1, 8, 8)
    again = load_cache(built, teacher, SETTINGS, seed=1).batch(7, 4, stream(9))
    assert torch.equal(again.path.x, drawn.path.x) and torch.equal(
        again.cond["label"], drawn.cond["label"]
    )
    assert drawn.path.times.tolist() == json.loads((built / "manifest.json").read_text())["times"]


def test_an_unconditional_teacher_has_no_labels(tmp_path):
    free = Teacher.from_pipeline(load_pipeline("digits-vp"))
    settings = CacheSettings(samples=3, steps=2, shard=2)
    build(tmp_path / "free", free, settings)
    opened = load_cache(tmp_path / "free", free, settings, 0)
    drawn = opened.batch(0, 3, stream(0))
    assert drawn.cond == {} and drawn.path.times.tolist() == [999, 499, -1]


def test_the_hash_is_of_the_base_whatever_roles_are_on_it():
    """Else a cache that runs share would be refused for another seed, rank or method."""
    plain, adapted = (Teacher.from_pipeline(load_pipeline("digits")) for _ in range(2))
    net = adapted.denoiser.net
    add_adapter(net, "student", rank=2)
    seen = adapted.with_net(AdapterView(net, None))
    assert seen.hash == plain.hash
    with torch.no_grad():
        next(p for n, p in net.named_parameters() if ".lora_" not in n).add_(1)
    assert seen.hash == plain.hash  # hashed once: a teacher's weights are frozen
    assert replace(seen).hash != plain.hash
