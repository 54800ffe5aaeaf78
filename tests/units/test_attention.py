"""What computes attention, chosen by name, in families with diffusers' dispatcher and without."""

from dataclasses import replace

import pytest
import torch
import twins
from accelerate import Accelerator
from diffusers import UNet2DModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch._subclasses import FakeTensorMode

from stepdistill.networks import attention
from stepdistill.networks.attention import set_attention
from stepdistill.runs.config import read
from stepdistill.runs.setup import Setup, teacher_of
from stepdistill.runs.stages import Stages
from stepdistill.schema import ConfigError
from stepdistill.teachers.codec import Latents
from stepdistill.teachers.loading import load_pipeline
from stepdistill.teachers.teacher import Teacher


def processors(net):
    return {type(part.processor).__name__ for part in net.modules() if hasattr(part, "processor")}


def test_another_formula_answers_the_same():
    net = twins.conditioned().eval()
    torch.manual_seed(0)
    given = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 16)
    usual = net(*given).sample
    set_attention(net, "eager")
    assert processors(net) == {"AttnProcessor"}
    other = net(*given).sample
    assert not torch.equal(other, usual)
    torch.testing.assert_close(other, usual, rtol=1e-4, atol=1e-5)
    set_attention(net, "sdpa")
    assert processors(net) == {"AttnProcessor2_0"}
    assert torch.equal(net(*given).sample, usual)


def test_a_family_with_the_dispatcher_changes_and_no_other():
    net, other = twins.wan().transformer.eval(), twins.wan().transformer
    torch.manual_seed(0)
    config = net.config
    x = torch.randn(1, config.in_channels, 1, 4, 4)
    given = {
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 3, config.text_dim),
    }
    usual = net(x, **given).sample
    before = _AttentionBackendRegistry.get_active_backend()
    set_attention(net, "eager")
    assert _AttentionBackendRegistry.get_active_backend() == before
    asked = {
        part.processor._attention_backend for part in net.modules() if hasattr(part, "processor")
    }
    assert {each.value for each in asked} == {"_native_math"}
    assert all(
        part.processor._attention_backend is None
        for part in other.modules()
        if hasattr(part, "processor")
    )
    torch.testing.assert_close(net(x, **given).sample, usual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make, kind", [(twins.conditioned, "AttnProcessor2_0"), (twins.joint, "JointAttnProcessor2_0")]
)
def test_a_family_without_the_dispatcher_says_what_it_knows(make, kind):
    net = make()
    with pytest.raises(ValueError, match=f"'flash' is not known to its {kind}: one of sdpa"):
        set_attention(net, "flash")
    assert processors(net) == {kind}


def test_half_a_network_is_never_changed():
    net = twins.conditioned()
    last = [part for part in net.modules() if hasattr(part, "processor")][-1]
    last.processor = object()
    with pytest.raises(ValueError, match="'eager' is not known to its object"):
        set_attention(net, "eager")
    assert processors(net) == {"AttnProcessor2_0", "object"}


def test_a_network_without_attention_is_refused():
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    net = UNet2DModel(
        block_out_channels=(8,), norm_num_groups=4, add_attention=False, **kinds, layers_per_block=1
    )
    with pytest.raises(ValueError, match="UNet2DModel has none: leave it out"):
        set_attention(net, "eager")


def test_xformers_is_asked_for_before_anything_changes(monkeypatch):
    net = twins.conditioned()
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install 'stepdistill\\[xformers\\]'"):
        set_attention(net, "xformers")
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU of CUDA"):
        set_attention(net, "xformers")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    set_attention(net, "xformers")
    assert processors(net) == {"XFormersAttnProcessor"}


def test_a_run_says_so_by_its_key(tmp_path):
    run = read("shapes-tdm-lora", ("attention=eager",))
    stages = Stages.of(run, tmp_path, Accelerator(cpu=True))
    assert processors(stages.setup.teacher.denoiser.net.net) == {"AttnProcessor"}
    assert processors(stages.student().net) == {"AttnProcessor2_0"}  # as it will be called
    with pytest.raises(ConfigError, match="^attention: 'flash' is not known"):
        Setup.of(replace(run, attention="flash"), Accelerator(cpu=True))
    with pytest.raises(ConfigError, match="^attention: UNet2DModel has none"):
        Setup.of(replace(read("digits-consistency"), attention="eager"), Accelerator(cpu=True))


def test_a_dispatched_backend_needs_its_package():
    net = twins.wan().transformer
    for name in ("flash", "sage"):
        with pytest.raises(ValueError, match="(?i)install"):
            set_attention(net, name)
    with pytest.raises(ValueError, match="'flash_hub' is not known"):
        set_attention(net, "flash_hub")


def test_what_is_offloaded_stays():
    run = read("shapes-tdm-lora", ("teacher={path: shapes, offload: true}",))
    assert teacher_of(run).offload and not teacher_of(read("shapes-tdm-lora")).offload
    moved = []
    teacher = Teacher.from_pipeline(load_pipeline("shapes"))
    for part in (teacher.pipeline.vae, teacher.pipeline.text_encoder):
        part.to = moved.append
    replace(teacher, offload=True).to(torch.device("cpu"))
    assert not moved
    teacher.to(torch.device("cpu"))
    assert moved == [torch.device("cpu")] * 2


def test_a_codec_works_where_its_network_is():
    """States of a GPU that is not there, and the VAE on the CPU."""
    with FakeTensorMode():
        codec = Latents(twins.vae(), 2)
        images = torch.randn(2, 3, 8, 8, device="cuda")
        x0 = codec.encode(images)
        assert x0.device.type == "cpu"
        assert codec.decode(x0.to("cuda")).shape == images.shape
