"""Images that are encoded once: the same latents, of this VAE and these images alone."""

from dataclasses import replace

import pytest
import torch
from others import PROMPTS, stable_diffusion
from rich.console import Console
from stopped import ended_before

from stepdistill.data import latents
from stepdistill.data.latents import kept, latent_bytes
from stepdistill.data.loader import InMemory, Loader, Rows, stream
from stepdistill.data.sources.shapes import Shapes
from stepdistill.jobs.distill import train_run
from stepdistill.runs.config import read
from stepdistill.runs.plan import plan
from stepdistill.runs.setup import data_of
from stepdistill.schema import ConfigError
from stepdistill.teachers.codec import Latents
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 11


class Told(InMemory):
    """Images with prompts."""

    def asked(self):
        return [PROMPTS[i % len(PROMPTS)] for i in range(len(self))]

    def rows(self, index, local=None):
        return Rows(self.images[index], [self.asked()[i] for i in index.tolist()])


def loader_of(pipeline=None, images=None, dropout=0.3):
    teacher = Teacher.from_pipeline(pipeline or stable_diffusion())
    if images is None:
        images = torch.rand(COUNT, 3, 16, 16, generator=stream(0, 1)) * 2 - 1
    return Loader(Told(images, None), teacher, dropout, seed=4)


def opened(folder, loader, dtype="float32"):
    return kept(folder, loader, dtype, (0, 1), lambda: None, lambda done, total: None)


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("dtype", "gap"), [("float32", 1e-5), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
def test_kept_latents_are_those_that_are_encoded(dtype, gap, tmp_path, monkeypatch):
    """Noise of the VAE's own and dropped conditions, too, in every epoch."""
    monkeypatch.setattr(latents, "SHARD", 4)
    fresh = loader_of()
    found = opened(tmp_path, fresh, dtype)
    batches = [fresh.batch(k, 4, stream(7, k)) for k in range(6)]
    monkeypatch.setattr(Latents, "encode", lambda *_: pytest.fail("encoded again"))
    for k, batch in enumerate(batches):
        drawn = found.batch(k, 4, stream(7, k))
        assert drawn.x0.dtype == torch.float32
        scale = float(batch.x0.abs().max())
        assert float((drawn.x0 - batch.x0).abs().max()) <= gap * scale
        assert torch.equal(drawn.cond["text"], batch.cond["text"])
    again = found.batch(0, 4, stream(8, 0)).x0
    assert not torch.allclose(again, batches[0].x0, atol=1e-3)


def test_its_size_is_said_before(tmp_path):
    for dtype in ("float32", "bfloat16"):
        opened(tmp_path / dtype, loader_of(), dtype)
        written = sum(f.stat().st_size for f in (tmp_path / dtype).glob("*.safetensors"))
        assert 0 <= written - latent_bytes(loader_of(), dtype) <= 1000


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 3)
    opened(tmp_path / "whole", loader_of())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        ended_before(patch, 1)
        opened(tmp_path / "cut", loader_of())
    opened(tmp_path / "cut", loader_of())
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def changed(part):
    pipeline = stable_diffusion()
    with torch.no_grad():
        next(pipeline.components[part].parameters()).add_(1)
    return pipeline


def scaled():
    pipeline = stable_diffusion()
    pipeline.vae.register_to_config(scaling_factor=3.0)
    return pipeline


def test_what_was_made_of_something_else_is_refused(tmp_path):
    opened(tmp_path, loader_of())
    before = contents(tmp_path)
    for loader, dtype, what in (
        (loader_of(changed("vae")), "float32", "vae"),
        (loader_of(scaled()), "float32", "vae"),
        (loader_of(images=torch.zeros(COUNT, 3, 16, 16)), "float32", "images"),
        (loader_of(), "float16", "dtype"),
    ):
        with pytest.raises(ConfigError, match=f"another {what}: choose another path"):
            opened(tmp_path, loader, dtype)
    assert contents(tmp_path) == before
    opened(tmp_path, loader_of(changed("unet")))


def test_a_teacher_of_pixels_has_none():
    run = read("digits-consistency", ("data.cache=kept",))
    with pytest.raises(ConfigError, match=r"^data.cache: the teacher works on pixels"):
        data_of(run, Teacher.from_pipeline(load_pipeline("digits")))


def test_a_codec_that_encodes_otherwise_than_its_posterior_is_refused(tmp_path):
    class Other(Latents):
        def encode(self, images, generator=None):
            return 2 * super().encode(images, generator)

    loader = loader_of()
    codec = loader.teacher.codec
    other = replace(loader.teacher, codec=Other(codec.vae, codec.factor))
    with pytest.raises(ConfigError, match="the posterior of Other is not what it encodes"):
        opened(tmp_path, replace(loader, teacher=other))


RUN = (
    "data={source: shapes, settings: {n: 40}, dropout: 0.1}",
    "stages.0.training.updates=3",
    "stages.0.training.batch=4",
    "save_every=3",
    "trackers=[]",
    "evaluation={suite: shapes, n: 20, blocks: 2, steps: [1], teacher_steps: []}",
    "validation.every=0",
)


def test_a_run_is_what_it_is_when_the_vae_runs_in_every_step(tmp_path, monkeypatch):
    """A source that draws nothing, but its fixed pictures and words."""
    monkeypatch.setattr(Shapes, "open", still(Shapes.open))
    weights = []
    for name, more in (("fresh", ()), ("once", (f"data.cache={tmp_path / 'kept'}",))):
        run = read("shapes-consistency", (*RUN, f"name={name}", *more))
        stages = train_run(run, tmp_path / name, Console(quiet=True))
        stages.setup.accelerator.end_training()
        weights.append(stages.trainer.averaged())
    gap = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert gap <= 1e-4
    assert (tmp_path / "kept/manifest.json").is_file()
    lines = dict(plan(read("shapes-consistency", (*RUN, f"data.cache={tmp_path / 'kept'}"))))
    assert lines["encoded images"] == "0.1 MB"


def still(opening):
    """A source whose samples draw nothing."""

    def opened(self, teacher):
        samples = opening(self, teacher)
        rows = samples.rows
        object.__setattr__(samples, "rows", lambda index, local=None: rows(index))
        return samples

    return opened


def test_a_run_that_looks_at_no_images_keeps_none(tmp_path):
    run = read("shapes-tdm-lora", (f"data.cache={tmp_path}",))
    teacher = Teacher.from_pipeline(load_pipeline("shapes"))
    with pytest.raises(ConfigError, match=r"^data.cache: no method looks at images: leave it out"):
        data_of(run, replace(teacher, prompts=("a",)), False)
