"""Distances against numpy, pseudo-Huber's limits, and LPIPS without and with backbone weights."""

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from cases import close, normal

from stepdistill.losses import distances
from stepdistill.losses.distances import distance

GUESS, GOAL = normal(1, 4, 3, 5), normal(2, 4, 3, 5)
D = 15


def test_distances_are_the_formulas():
    d = (GUESS - GOAL).reshape(4, D).numpy()
    close(distance("l2", GUESS, GOAL), (d**2).mean(1), rtol=1e-13)
    close(distance("l1", GUESS, GOAL), np.abs(d).mean(1), rtol=1e-13)
    norm = np.sqrt((d**2).sum(1))
    close(distance("pseudo_huber", GUESS, GOAL), norm, rtol=1e-13)
    close(distance("pseudo_huber", GUESS, GOAL, 0.3), np.sqrt(norm**2 + 0.09) - 0.3, rtol=1e-13)


@pytest.mark.parametrize("name", ["l2", "l1", "pseudo_huber"])
def test_distances_vanish_only_at_the_goal_and_are_symmetric(name):
    assert float(distance(name, GOAL, GOAL, 0.1).abs().max()) == 0
    assert float(distance(name, GUESS, GOAL, 0.1).min()) > 0
    close(distance(name, GUESS, GOAL, 0.1), distance(name, GOAL, GUESS, 0.1), rtol=1e-15)


def test_pseudo_huber_is_quadratic_near_and_linear_far():
    c, norm = 0.5, (GUESS - GOAL).flatten(1).norm(dim=1)
    near = distance("pseudo_huber", GOAL + 1e-4 * (GUESS - GOAL), GOAL, c)
    close(near, (1e-4 * norm) ** 2 / (2 * c), rtol=1e-5)
    far = distance("pseudo_huber", GOAL + 1e4 * (GUESS - GOAL), GOAL, c)
    close(far, 1e4 * norm - c, rtol=1e-7)


@pytest.mark.parametrize("c", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("far", [0.0, 1e-3, 1.0, 1e3])
def test_pseudo_huber_pulls_with_a_force_of_at_most_one(c, far):
    guess = (GOAL + far * (GUESS - GOAL)).requires_grad_()
    distance("pseudo_huber", guess, GOAL, c).sum().backward()
    force = guess.grad.flatten(1).norm(dim=1)
    d = far * (GUESS - GOAL).flatten(1).norm(dim=1)
    close(force, d / (d**2 + c**2).sqrt() if far else 0 * d, rtol=1e-9)
    assert float(force.max()) <= 1 + 1e-12


@pytest.fixture
def no_lpips(monkeypatch, tmp_path):
    """An empty torch hub without a network; LPIPS forgotten before and after."""

    def offline(*_arguments, **_options):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    distances._lpips_network.cache_clear()
    yield tmp_path / "hub"
    distances._lpips_network.cache_clear()


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_says_which_file_it_misses(no_lpips):
    images = normal(1, 1, 3, 64, 64, dtype=torch.float32)
    with pytest.raises(ValueError, match="vgg16-397923af.pth") as raised:
        distance("lpips", images, images)
    assert str(no_lpips / "checkpoints") in str(raised.value)
    assert "\n" not in str(raised.value)


def draw_vgg(path: Path) -> None:
    """A VGG-16 state dict: random features; a classifier of zeros that takes no space."""
    with torch.device("meta"):
        shapes = torchvision.models.vgg16().state_dict()
    weights = {
        name: normal(i, *like.shape, dtype=torch.float32) / like[0].numel() ** 0.5
        if name.startswith("features")
        else torch.zeros(1).expand(like.shape)
        for i, (name, like) in enumerate(shapes.items())
    }
    path.parent.mkdir(parents=True)
    torch.save(weights, path)


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_with_a_backbone(no_lpips):
    draw_vgg(no_lpips / "checkpoints" / "vgg16-397923af.pth")
    goal = normal(1, 2, 1, 16, 16, dtype=torch.float32).tanh()
    guess = (goal + 0.1 * normal(2, 2, 1, 16, 16, dtype=torch.float32)).requires_grad_()
    d = distance("lpips", guess, goal)
    assert d.shape == (2,) and bool((d > 0).all())
    d.sum().backward()
    assert bool(torch.isfinite(guess.grad).all()) and float(guess.grad.abs().min(0)[0].max()) > 0
    assert distance("lpips", goal, goal).tolist() == [0, 0]
    farther = goal + 2 * (guess.detach() - goal)
    assert bool((distance("lpips", farther, goal) > d).all())
    colour = [x.expand(-1, 3, -1, -1) for x in (guess, goal)]
    close(distance("lpips", *colour), d, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 8, 8), (2, 3, 2, 8, 8)])
def test_lpips_compares_pictures_only(shape):
    with pytest.raises(ValueError, match=r"lpips compares images \(b, 1\|3, h, w\)"):
        distance("lpips", normal(1, *shape), normal(2, *shape))
