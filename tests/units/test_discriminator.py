"""Realness heads: one logit a sample, from every number of the features, whatever their shape."""

import pytest
import torch
from cases import close, normal
from torch import nn

from stepdistill.networks.discriminator import LEFT, ConvHead, head_for, projection_for

# channels, height, width and how often the head halves them
SHAPES = [(8, 8, 8, 1), (16, 4, 4, 0), (8, 32, 32, 3), (12, 5, 7, 1), (9, 2, 3, 0), (8, 4, 16, 0)]
shapes = pytest.mark.parametrize("channels, height, width, halvings", SHAPES)


def head_of(*shape, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return head_for(torch.zeros(1, *shape))


@shapes
def test_a_head_gives_one_logit_a_sample(channels, height, width, halvings):
    head = head_of(channels, height, width)
    x = normal(1, 3, channels, height, width, dtype=torch.float32)
    logits = head(x)
    assert logits.shape == (3, 1, 1, 1) and isinstance(head, ConvHead)
    assert logits.flatten().unique().numel() == 3
    alone = torch.cat([head(sample[None]) for sample in x])
    assert torch.allclose(logits, alone, atol=1e-5)
    strided = [m for m in head if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == halvings
    assert all(conv.in_channels == conv.out_channels == channels for conv in strided)


@shapes
def test_every_number_of_the_features_matters(channels, height, width, halvings):
    """Also after group normalisation, which would erase features it has for itself alone."""
    head = head_of(channels, height, width)
    x = normal(2, 2, channels, height, width, dtype=torch.float32).requires_grad_()
    (slope,) = torch.autograd.grad(head(x).sum(), x)
    assert float(slope.abs().min()) > 1e-8
    typical = slope.abs().flatten().quantile(0.05) / slope.abs().median()
    assert float(typical) > 0.01


def test_where_a_pattern_lies_matters():
    """A head that only averaged over places would not see the difference."""
    head, x = head_of(8, 8, 8), normal(3, 1, 8, 8, 8, dtype=torch.float32)
    moved = x[..., torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    logits = [float(head(z).detach()) for z in (x, moved, x.flip(2))]
    assert min(abs(a - b) for a, b in zip(logits, logits[1:])) > 1e-3


@shapes
def test_convolutions_meet_what_is_left_in_one_position(channels, height, width, halvings):
    head = head_of(channels, height, width)
    sizes, x = [], torch.zeros(1, channels, height, width)
    for layer in head:
        x = layer(x)
        sizes.append(tuple(x.shape[2:]))
    assert sizes[-4:] == [(1, 1)] * 4
    for k in range(halvings):
        assert sizes[3 * k] == (height // 2 ** (k + 1), width // 2 ** (k + 1))
    assert min(height, width) // 2**halvings <= LEFT


@pytest.mark.parametrize("channels", [1, 2, 7, 13, 17, 24, 320])
def test_any_number_of_channels_can_be_grouped(channels):
    head = ConvHead(channels, 8, 8)
    norms = [m for m in head if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 2 and all(channels % m.num_groups == 0 for m in norms)
    assert all(channels // m.num_groups >= min(8, channels) for m in norms)


def test_flat_features_are_judged_too():
    head, x = head_of(6), normal(4, 5, 6, dtype=torch.float32).requires_grad_()
    logits = head(x)
    (slope,) = torch.autograd.grad(logits.sum(), x)
    assert logits.shape == (5, 1) and float(slope.abs().min()) > 0


def test_the_frames_of_a_clip_are_planes_under_one_head():
    """The mean of what the head for planes makes of each."""
    x = normal(5, 3, 8, 2, 4, 4, dtype=torch.float32)
    for head in (head_for(x), projection_for(x)):
        frames = torch.stack([head.head(x[:, :, i]).flatten() for i in range(2)])
        close(head(x).flatten(), frames.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5, 6, 7), (2,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=rf"\(b, c\[, \[frames,\] h, w\]\), got {len(shape)} axes"):
        head_for(torch.zeros(shape))
