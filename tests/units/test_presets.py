"""Spaces and metrics that need weights of others: found or named, and equal to what libraries say.

The weights are random ones in the official formats. Mutations that must each fail a test here: the
checksum not looked at; downloads allowed by default; a missing weight raised as a plain ValueError;
`antialias` dropped in `inception_torchmetrics`; levels not rounded; the gap of means left out of
`Moments._thin_with`; a Cholesky root transposed; the prefix left out of the CLIP score; the weights
of Inception unpickled.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor, nn

from stepdistill.data.sources import digits
from stepdistill.evaluation import extractor, inception, moments, weights
from stepdistill.evaluation.features import (
    inception_clean,
    inception_tf,
    inception_torchmetrics,
)
from stepdistill.evaluation.features.space import FeatureSpace
from stepdistill.evaluation.metric import Made, Metric
from stepdistill.evaluation.metrics.clip_score import ClipScore
from stepdistill.evaluation.metrics.cmmd import CMMD, mean_kernel
from stepdistill.evaluation.metrics.frechet import Frechet
from stepdistill.evaluation.metrics.inception_score import InceptionScore, inception_scores
from stepdistill.evaluation.metrics.kid import KID
from stepdistill.evaluation.metrics.precision import Precision
from stepdistill.evaluation.metrics.recall import Recall
from stepdistill.evaluation.moments import Moments, frechet_distance
from stepdistill.evaluation.reference import Kind, Reference
from stepdistill.evaluation.suite import Unfit
from stepdistill.evaluation.summary import Summary
from stepdistill.evaluation.weights import (
    File,
    Model,
    Unavailable,
    WeightsUnavailable,
    find_file,
    find_model,
)
from stepdistill.files import sha256
from stepdistill.jobs.suites import load
from stepdistill.resources import DOWNLOADS

FLAVOURS = {"tf": inception_tf, "clean": inception_clean, "torchmetrics": inception_torchmetrics}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, side: int = 32, seed: int = 0, channels: int = 3) -> Tensor:
    """Smooth random pictures (n, c, side, side) in [−1, 1], as 8 bits hold them."""
    coarse = torch.rand(n, channels, 6, 6, generator=rng(seed))
    fine = torch.rand(n, channels, side, side, generator=rng(seed + 1))
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return (smooth * 0.8 + fine * 0.2).mul(255).round() / 127.5 - 1


def measured(metric: Metric, reference: Reference, images: Tensor, asked=None) -> list[float]:
    """The values of a metric for images that come in two batches."""
    metric.open(reference)
    seen = metric.fresh()
    for rows in (slice(0, len(images) // 3), slice(len(images) // 3, None)):
        part = asked[rows] if asked is not None else None
        seen.update(Made(images[rows], part, None, reference))
    return seen.compute()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights, and without a network: whoever asks for it fails the test."""

    def network(*address: object) -> None:
        raise AssertionError(f"the network was asked for: {address}")

    monkeypatch.setattr(socket, "getaddrinfo", network)
    monkeypatch.setattr(socket.socket, "connect", network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("STEPDISTILL_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path


# Finding weights


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def known(path: Path, name: str = "net.pth") -> File:
    return File(name, 1.5, "https://example.org/net.pth", sha256(path))


def test_a_file_is_found_in_the_users_folder_then_in_torchs(nowhere):
    cached = put(nowhere / "torch/hub/checkpoints/net.pth")
    assert find_file(known(cached)) == cached
    own = put(nowhere / "own/net.pth")
    assert find_file(known(cached)) == own
    named = put(nowhere / "mine.pth", b"weights of mine")
    assert find_file(known(cached), str(named)) == named


def test_a_file_of_another_name_is_found_where_its_content_is_the_same(nowhere):
    other = put(nowhere / "own/other.pth")
    assert find_file(replace(known(other), also=("other.pth",))) == other


def test_another_content_is_refused_whether_the_checksum_is_known_or_in_the_name(nowhere):
    path = put(nowhere / "own/net.pth")
    assert "damaged, or another file" in refusal(replace(known(path), sha256="0" * 64))
    path = put(nowhere / "own/net-00000000.pth")
    assert "damaged, or another file" in refusal(File(path.name, 1.5, "https://example.org"))
    named = path.rename(path.with_name(f"net-{sha256(path)[:8]}.pth"))
    assert find_file(File(named.name, 1.5, "https://example.org")) == named


def refusal(file: File) -> str:
    try:
        find_file(file)
    except WeightsUnavailable as error:
        return str(error)
    return ""


def test_what_is_missing_is_said_in_one_line_without_asking_the_network(nowhere):
    wanted = File("net.pth", 95.6, "https://example.org/net.pth", "ab" * 32)
    folders = [str(nowhere / "own"), str(nowhere / "torch/hub/checkpoints")]
    for find, what, said in (
        (find_file, wanted, [wanted.name, "95.6 MB", wanted.source, wanted.sha256, *folders]),
        (find_model, Model("of/them", 12.3, "model.safetensors"), ["of/them", "12.3 MB"]),
    ):
        with pytest.raises(WeightsUnavailable) as caught:
            find(what)
        text = str(caught.value)
        assert "\n" not in text and "--download" in text
        assert all(word in text for word in said), text


def test_nothing_is_fetched_unless_it_is_allowed(nowhere, monkeypatch):
    source = put(nowhere / "far/net.pth")
    wanted = replace(known(source), source=source.as_uri())
    assert "allow downloads (--download)" in refusal(wanted)
    monkeypatch.setattr(DOWNLOADS, "allowed", True)
    found = find_file(wanted)
    assert found == nowhere / "torch/hub/checkpoints/net.pth"
    assert found.read_bytes() == source.read_bytes()


def test_a_fetched_file_of_another_content_is_refused_and_gone(nowhere, monkeypatch):
    monkeypatch.setattr(DOWNLOADS, "allowed", True)
    source = put(nowhere / "far/net.pth")
    wanted = File("net.pth", 1.5, source.as_uri(), "0" * 64)
    with pytest.raises(WeightsUnavailable, match="could not be downloaded"):
        find_file(wanted)
    assert list((nowhere / "torch/hub/checkpoints").iterdir()) == []
    with pytest.raises(WeightsUnavailable, match="could not be downloaded"):
        find_file(replace(wanted, source=(nowhere / "none").as_uri()))


def test_a_model_folder_is_found_in_the_users_folder_and_in_the_hubs_cache(nowhere):
    model = Model("of/them", 1.5, "model.safetensors")
    commit = "0" * 40
    snapshot = nowhere / "hub/models--of--them/snapshots" / commit
    put(snapshot / "config.json", b"{}")
    put(nowhere / "hub/models--of--them/refs/main", commit.encode())
    with pytest.raises(WeightsUnavailable):  # a config alone is no model
        find_model(model)
    put(snapshot / "model.safetensors")
    assert find_model(model) == snapshot
    with pytest.raises(WeightsUnavailable, match="damaged, or another file"):
        find_model(replace(model, sha256="0" * 64))
    own = put(nowhere / "own/them/config.json", b"{}").parent
    put(own / "pytorch_model.bin")
    assert find_model(model) == own


def test_what_a_user_names_must_be_there(nowhere):
    real = Reference((3, 8, 8))
    for space in ("inception-tf:nix.pth", "dinov2:nix", "clip-vision:ViT-B/31", "random-conv:nix"):
        with pytest.raises(ValueError, match=r"nix|ViT-B/31") as caught:
            real.space(space)
        assert not isinstance(caught.value, Unavailable), space  # that would be passed over


SUITE = """
task: digits
metrics:
  - {name: near, metric: frechet}
  - {name: fid-tf, metric: frechet, settings: {space: inception-tf}}
  - {name: fd-dinov2, metric: frechet, settings: {space: dinov2}}
  - {name: cmmd}
  - {name: prompts, metric: clip_score, optional: true}
headline: [fid-tf, near]
"""


def suite(folder: Path, text: str = SUITE):
    (folder / "mine.yaml").write_text(text)
    return load(str(folder / "mine.yaml"), Kind(digits.EVENT, 10))


def test_a_suite_skips_what_has_no_weights_and_says_so(nowhere):
    start = time.perf_counter()
    opened = suite(nowhere)
    assert time.perf_counter() - start < 20  # libraries that try again take 47
    assert [metric.name for metric in opened.metrics] == ["near"]
    assert opened.headline == ("near",)
    assert list(opened.skipped) == ["fid-tf", "fd-dinov2", "cmmd", "prompts"]
    assert "weights-inception-2015-12-05-6726825d.pth (95.6 MB" in opened.skipped["fid-tf"]
    assert "facebook/dinov2-large" in opened.skipped["fd-dinov2"]
    assert "clip-vit-large-patch14-336" in opened.skipped["cmmd"]
    assert opened.skipped["prompts"] == "the task asks for no prompts"
    assert not [name for name in opened.provenance if "skipped" in name]


def test_a_suite_of_which_nothing_is_left_is_refused_with_the_reason(nowhere):
    with pytest.raises(Unfit, match=r"fid-tf needs weights-inception.*6726825d"):
        suite(nowhere, SUITE.replace("[fid-tf, near]", "[fid-tf]"))


def test_without_the_extra_one_line_says_what_to_install(nowhere, monkeypatch):
    found = weights.find_spec
    absent = ("torch_fidelity", "transformers")
    monkeypatch.setattr(weights, "find_spec", lambda name: None if name in absent else found(name))
    skipped = suite(nowhere).skipped
    assert skipped["fid-tf"] == "needs torch_fidelity: pip install 'stepdistill[fid]'"
    assert skipped["cmmd"] == "needs transformers: pip install 'stepdistill[clip]'"


# Resizes of FID


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_resize_leaves_what_fits_and_what_is_constant(flavour: str):
    resize = FLAVOURS[flavour].resize
    fitting = torch.randint(0, 256, (2, 3, 299, 299), generator=rng()).float()
    torch.testing.assert_close(resize(fitting), fitting, rtol=0, atol=1e-3)
    flat = torch.full((1, 3, 20, 30), 77.0)
    torch.testing.assert_close(resize(flat), torch.full((1, 3, 299, 299), 77.0))


def test_the_flavours_differ_where_pictures_grow_and_where_they_shrink():
    for side in (32, 400):
        levels = inception.levels(pictures(2, side))
        tf, clean, smoothed = (flavour.resize(levels) for flavour in FLAVOURS.values())
        for a, b in ((tf, clean), (clean, smoothed), (tf, smoothed)):
            assert (a - b).abs().mean() > 0.1


def test_two_flavours_smooth_before_they_shrink():
    noise = torch.randint(0, 256, (1, 3, 1196, 1196), generator=rng()).float()
    kept = {name: flavour.resize(noise).std().item() for name, flavour in FLAVOURS.items()}
    assert kept["tf"] > 70 and kept["clean"] < 30 and kept["torchmetrics"] < 30


def test_levels_are_those_of_a_saved_file():
    every = torch.arange(256).reshape(1, 1, 16, 16)
    levels = inception.levels(every / 127.5 - 1 + 1e-3)
    assert levels.shape == (1, 3, 16, 16)
    assert torch.equal(levels[0, 2], every[0, 0].float())


# Inception score


def test_inception_score_of_known_answers():
    sure = 1e3 * torch.eye(8).repeat(5, 1)
    assert inception_scores(sure) == [pytest.approx(8, rel=1e-9)]
    assert inception_scores(torch.zeros(20, 8), 4) == [pytest.approx(1)] * 4
    assert len(inception_scores(sure, 1000)) == 40


def test_inception_score_is_torch_fidelitys():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(103, 20, generator=rng()) * 2
    theirs = isc_features_to_metric(logits, splits=10)
    ours = inception_scores(logits, 10)
    assert np.mean(ours) == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert np.std(ours) == pytest.approx(theirs["inception_score_std"], rel=1e-9)


# CMMD


def test_cmmd_equals_a_double_loop_and_does_not_depend_on_chunks():
    x, y = torch.randn(13, 4, generator=rng()), torch.randn(9, 4, generator=rng(1)) + 1
    loop = np.mean([[math.exp(-((a - b) ** 2).sum() / 8) for b in y] for a in x])
    for chunk in (1, 5, 1000):
        assert mean_kernel(x, y, 2.0, chunk) == pytest.approx(loop, rel=1e-6)


def test_cmmd_of_gaussians_is_the_closed_form():
    """E k(x, y) = (1 + 2/σ²)^(−d/2) exp(−|μ|² / 2(σ² + 2)) for x, y of N(0, I), N(μ, I)."""
    d, n, sigma = 3, 40, 2.0
    gap = torch.tensor([1.0, -0.5, 0.5])
    near = (1 + 2 / sigma**2) ** (-d / 2)
    far = near * math.exp(-float(gap @ gap) / (2 * (sigma**2 + 2)))
    expected = 1000 * (2 * (near + (1 - near) / n) - 2 * far)
    values = []
    for seed in range(300):
        draw = torch.randn(2, n, d, generator=rng(seed))
        known = {FLAT.identity: Summary(FLAT.identity, n, draw[0])}
        reference = Reference((1, 1, d), images=draw[0], _spaces={"x": FLAT}, _summaries=known)
        metric = CMMD(space="x", sigma=sigma)
        metric.open(reference)
        values.append(cmmd_of(metric, draw[1] + gap))
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - expected) < 3 * error < 0.1 * expected


FLAT = FeatureSpace("flat", nn.Flatten())


def cmmd_of(metric: CMMD, features: Tensor) -> float:
    seen = metric.fresh()
    seen.made.add(features)
    return seen.compute()[0]


# CLIP and DINOv2, tiny and random


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    shape = size | {"num_attention_heads": 2}
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
    config = CLIPConfig(
        text_config=shape | ends | {"vocab_size": len(vocab), "max_position_embeddings": 12},
        vision_config=shape | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        for parameter in model.parameters():  # as drawn, all images look alike
            parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    prepare = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(prepare, CLIPTokenizer(vocab=vocab, merges=[])).save_pretrained(folder)
    return folder


PROMPTS = ["a cat", "two dogs on a very long and winding road", "a cat", "sea", "b", "c d"]


def transformers_cosines(folder: Path, images: Tensor, prompts: list[str]) -> Tensor:
    """As its users call it: pictures of Pillow, the processor, the model's logits."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    files = [Image.fromarray(picture) for picture in saved(images)]
    read = processor(
        text=prompts,
        images=files,
        padding=True,
        truncation=True,
        max_length=12,
        return_tensors="pt",
    )
    with torch.no_grad():
        return (model(**read).logits_per_image / model.logit_scale.exp()).diagonal()


def saved(images: Tensor) -> np.ndarray:
    """What a file holds: (n, h, w, 3), 8 bits."""
    return (images + 1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


def eight_bits(images: Tensor) -> Tensor:
    return torch.from_numpy(saved(images)).permute(0, 3, 1, 2)


def prompted(images: Tensor | None = None) -> Reference:
    return Reference((3, 40, 48), lambda n, generator: PROMPTS[:n], images)


def test_clip_score_is_transformers_own(tiny_clip, nowhere, figure):
    images = nn.functional.interpolate(pictures(6, 40), (40, 48)).mul(127.5).round() / 127.5
    theirs = transformers_cosines(tiny_clip, images, PROMPTS).mean().item()
    (ours,) = measured(ClipScore(model=str(tiny_clip)), prompted(), images, PROMPTS)
    figure("CLIP score, relative gap to transformers", abs(ours - theirs) / abs(theirs))
    assert ours == pytest.approx(theirs, rel=1e-5)
    (with_prefix,) = measured(ClipScore(str(tiny_clip), "photo of "), prompted(), images, PROMPTS)
    prefixed = ["photo of " + prompt for prompt in PROMPTS]
    theirs = transformers_cosines(tiny_clip, images, prefixed).mean().item()
    assert with_prefix == pytest.approx(theirs, rel=1e-5) != ours


def test_clip_score_reads_a_prompt_once_and_no_other_thing(tiny_clip, monkeypatch):
    read: list[str] = []
    texts = extractor.CLIP.texts
    monkeypatch.setattr(extractor.CLIP, "texts", lambda s, p: read.extend(p) or texts(s, p))
    metric, reference = ClipScore(str(tiny_clip)), prompted()
    first = measured(metric, reference, pictures(6), PROMPTS)
    merged = metric.fresh()
    for rows in (slice(0, 4), slice(4, 6)):  # another sampler, in two processes
        part = metric.fresh()
        part.update(Made(pictures(6)[rows], PROMPTS[rows], None, reference))
        merged.merge(part)
    assert merged.compute() == pytest.approx(first, rel=1e-6)
    assert sorted(read) == sorted(set(PROMPTS))
    assert measured(metric, reference, pictures(6), torch.arange(6)) == []
    with pytest.raises(ValueError, match="no prompts"):
        ClipScore(str(tiny_clip)).open(Reference((3, 32, 32)))


def test_cmmds_space_is_transformers_image_side(tiny_clip, nowhere):
    from transformers import CLIPModel, CLIPProcessor

    images = pictures(5, 32)  # of CLIP's own size, so that no resize blurs the comparison
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    prepare = CLIPProcessor.from_pretrained(tiny_clip).image_processor
    pixels = prepare([Image.fromarray(p) for p in saved(images)], return_tensors="pt")
    with torch.no_grad():
        theirs = model.get_image_features(**pixels).pooler_output
    space = Reference((3, 32, 32)).space(f"clip-vision:{tiny_clip}")
    torch.testing.assert_close(space(images), nn.functional.normalize(theirs), rtol=1e-4, atol=1e-5)
    assert "resize to 32, transformers" in space.identity


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(image_size=70, patch_size=14, **size)).save_pretrained(folder)
    return folder


def test_dinov2s_space_is_transformers_class_token_of_pillows_picture(tiny_dino, nowhere):
    from transformers import Dinov2Model

    images = pictures(3, 300)
    model = Dinov2Model.from_pretrained(tiny_dino).eval()
    small = [Image.fromarray(p).resize((224, 224), Image.BICUBIC) for p in saved(images)]
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in small])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        theirs = model(pixel_values=pixels).last_hidden_state[:, 0]
    space = Reference((3, 300, 300)).space(f"dinov2:{tiny_dino}")
    torch.testing.assert_close(space(images), theirs, rtol=2e-3, atol=2e-3)


def test_another_network_is_no_clip(tiny_dino, nowhere):
    with pytest.raises(ValueError, match="holds no CLIPModel .*config is of a dinov2"):
        Reference((3, 32, 32)).space(f"clip-image:{tiny_dino}")


# A user's own extractor

OWN = """
from torch import nn
from stepdistill.evaluation.features.space import FeatureSpace


class Mine(FeatureSpace):
    @classmethod
    def at(cls, real, place):
        network = nn.Sequential(nn.AvgPool2d(int(place or 4)), nn.Flatten())
        head = nn.Linear(4, 10)
        return FeatureSpace("mine", network, "means of squares", f"squares of {place}", 7, head)
"""
MINE = """
task: digits
metrics:
  - {name: fd, metric: frechet, settings: {space: "own_extractor:4"}}
  - {name: fine, metric: frechet, settings: {space: "own_extractor:2"}}
  - {name: kid, settings: {space: "own_extractor:4"}}
  - {name: inception_score, settings: {space: "own_extractor:4", splits: 2}}
headline: [fd]
"""


def test_a_users_extractor_is_a_file_beside_the_suite(tmp_path, monkeypatch):
    (tmp_path / "own_extractor.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_extractor", raising=False)
    opened = suite(tmp_path, MINE)
    images, labels = digits.load()
    for metric in opened.metrics:
        seen = metric.fresh()
        seen.update(Made(images[:50], labels[:50], None, opened.reference))
        assert all(math.isfinite(value) for value in seen.compute()), metric.name
    first, second = (opened.provenance[f"space own_extractor:{side}"] for side in (4, 2))
    assert first.endswith("(squares of 4)") and second.endswith("(squares of 2)")
    expected = nn.functional.avg_pool2d(images, 4).flatten(1)
    torch.testing.assert_close(opened.reference.features("own_extractor:4"), expected)


# Fréchet distances of many features


def spread(n: int, d: int, seed: int) -> Tensor:
    """Features of a spectrum that falls, as networks give them."""
    widths = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
    turned = torch.linalg.qr(torch.randn(d, d, generator=rng(seed), dtype=torch.float64)).Q
    draw = torch.randn(n, d, generator=rng(seed + 1), dtype=torch.float64)
    return (draw * widths) @ turned + torch.randn(d, generator=rng(seed + 2)) / d


@pytest.mark.parametrize("n, m", [(20, 30), (30, 20), (20, 200), (200, 20), (200, 300)])
def test_large_spaces_take_another_route_to_the_same_distance(n: int, m: int, monkeypatch):
    x, y = spread(n, 64, 0), spread(m, 64, 3) + 0.1

    def found(parts: int) -> float:
        a, b = Moments.empty("test", 64), Moments.empty("test", 64)
        for part in x.tensor_split(parts):
            a = a.update(part)
        for part in y.tensor_split(parts):
            b = b.update(part)
        return frechet_distance(a, b)

    slow = found(1)
    monkeypatch.setattr(moments, "LARGE", 8)
    for parts in (1, 3, 20):
        assert found(parts) == pytest.approx(slow, rel=1e-6)
    whole = Moments.of(x, "test").merge(Moments.of(x[:5] + 1, "test"))
    torch.testing.assert_close(whole.root @ whole.root.T, whole.covariance, rtol=1e-9, atol=1e-9)


def test_a_root_of_features_that_repeat_one_another_is_found(monkeypatch):
    monkeypatch.setattr(moments, "LARGE", 8)
    x = spread(100, 20, 0)
    a = Moments.of(torch.cat([x, x], 1), "test")  # Cholesky has no such root
    assert a.thin is None
    torch.testing.assert_close(a.root @ a.root.T, a.covariance, rtol=1e-9, atol=1e-9)


# FID's Inception, with random weights in the official format


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights under the official name, where the libraries look for it."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Theirs

    file = tmp_path_factory.mktemp("torch") / "hub/checkpoints" / inception.FILE.name
    file.parent.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(Theirs, "load_state_dict", lambda self, state: None)
        patch.setattr("torch.load", lambda path, weights_only: {})
        net = Theirs("random", ["2048"], "nothing")
        for module in net.modules():
            if isinstance(module, nn.Conv2d):  # as drawn, nothing reaches the last layer
                nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), file)
    return file


@pytest.fixture
def cached(official: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(official.parents[2]))
    monkeypatch.setattr(inception, "FILE", replace(inception.FILE, sha256=sha256(official)))
    return official


def pngs(folder: Path, images: Tensor) -> str:
    folder.mkdir()
    for number, picture in enumerate(saved(images)):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return str(folder)


N = 24
QUIET = {"cuda": False, "save_cpu_ram": True, "cache": False, "verbose": False}
PRESETS = pytest.mark.full(shard="presets")


def preset(space: str, real: Tensor, made: Tensor) -> dict[str, float]:
    """What a preset says, features computed once for all."""
    reference = Reference(tuple(real.shape[1:]), images=real)
    metrics = {
        "fid": Frechet(space=space),
        "kid": KID(space=space),
        "is": InceptionScore(space=space, splits=2),
        "precision": Precision(space=space),
        "recall": Recall(space=space),
    }
    batch = Made(made, None, None, reference)
    found = {}
    for name, metric in metrics.items():
        metric.open(reference)
        seen = metric.fresh()
        seen.update(batch)
        found[name] = float(np.mean(seen.compute()))
    return found


def agree(ours: dict[str, float], theirs: dict[str, float], figure, who: str) -> None:
    for name, value in theirs.items():
        gap = abs(ours[name] - value) / abs(value)
        figure(f"{name}, relative gap to {who}", gap)
        assert gap <= 1e-4, (who, name, ours[name], value)


@pytest.fixture(scope="module")
def two() -> tuple[Tensor, Tensor]:
    """Real and made pictures: the latter blurred and darker."""
    return real_and_made(N)


def real_and_made(n: int) -> tuple[Tensor, Tensor]:
    real, made = pictures(n, 48), pictures(n, 48, seed=9)
    blurred = nn.functional.avg_pool2d(made, 3, stride=1, padding=1)
    return real, (0.7 * blurred).add(1).mul(127.5).round() / 127.5 - 1


@PRESETS
def test_fid_tf_is_torch_fidelitys(cached, two, figure, tmp_path):
    import torch_fidelity

    real, made = two
    theirs = torch_fidelity.calculate_metrics(
        input1=pngs(tmp_path / "made", made),
        input2=pngs(tmp_path / "real", real),
        isc=True,
        fid=True,
        kid=True,
        isc_splits=2,
        kid_subsets=1,
        kid_subset_size=N,
        batch_size=N,
        **QUIET,
    )
    names = {"fid": "frechet_inception_distance", "is": "inception_score_mean"}
    names |= {"kid": "kernel_inception_distance_mean"}
    values = {ours: theirs[name] for ours, name in names.items()}
    agree(preset("inception-tf", real, made), values, figure, "torch-fidelity")


@PRESETS
@pytest.mark.filterwarnings("ignore:Metric `", "ignore:std")
def test_fid_torchmetrics_is_torchmetrics(cached, two, figure):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore as Theirs
    from torchmetrics.image.kid import KernelInceptionDistance

    real, made = map(eight_bits, two)
    fid, kid = FrechetInceptionDistance(), KernelInceptionDistance(subsets=1, subset_size=N)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(made, real=False)
    one = Theirs(splits=1)
    one.update(made)
    theirs = {"fid": fid.compute().item(), "kid": kid.compute()[0].item()}
    ours = preset("inception-torchmetrics", *two)
    agree(ours, theirs, figure, "torchmetrics")
    # Its splits are drawn anew each time; without any there is nothing to draw.
    reference = Reference((3, 48, 48), images=two[0])
    (score,) = measured(InceptionScore("inception-torchmetrics", 1), reference, two[1])
    agree({"is": score}, {"is": one.compute()[0].item()}, figure, "torchmetrics")


@PRESETS
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Matrix is singular")
def test_fid_clean_is_clean_fids(cached, two, figure, tmp_path, monkeypatch):
    from cleanfid import fid, inception_torchscript

    script(cached, tmp_path / "inception-2015-12-05.pt")
    network = inception_torchscript.InceptionV3W
    # It keeps its TorchScript in /tmp, which is everybody's.
    monkeypatch.setattr(
        "cleanfid.features.InceptionV3W", lambda path, **k: network(str(tmp_path), **k)
    )
    real, made = two
    folders = pngs(tmp_path / "made", made), pngs(tmp_path / "real", real)
    settings = {"device": torch.device("cpu"), "num_workers": 0, "use_dataparallel": False}
    theirs = fid.compute_fid(*folders, mode="clean", verbose=False, **settings)
    agree(preset("inception-clean", real, made), {"fid": theirs}, figure, "clean-fid")


def script(weights_file: Path, out: Path) -> None:
    """The same weights as TorchScript in the form of NVIDIA's file: `layers` gives the features."""

    class Whole(nn.Module):
        def __init__(self, layers: nn.Module) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor, return_features: bool = True) -> Tensor:
            return self.layers(x)

    body = inception.load(weights_file, nn.Identity()).body
    traced = torch.jit.trace(body, torch.zeros(1, 3, 299, 299), check_trace=False)
    torch.jit.script(Whole(traced)).save(str(out))


@PRESETS
def test_the_libraries_file_may_have_any_of_its_names(cached, two, tmp_path, monkeypatch):
    space = Reference((1, 8, 8)).space("inception-tf")
    other = put(tmp_path / "own" / inception.FILE.also[0], cached.read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    again = Reference((1, 8, 8)).space("inception-tf")
    assert again.identity == space.identity and "torch-fidelity 0." in space.identity
    named = Reference((1, 8, 8)).space(f"inception-tf:{other}")
    assert named.identity == space.identity
    assert Reference((1, 8, 8)).space("inception-clean").identity != space.identity


def test_a_file_of_weights_runs_no_program(tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    file = tmp_path / "evil.pth"
    torch.save({"fc.weight": Program()}, file)
    with pytest.raises(WeightsUnavailable, match="holds no weights of FID's Inception"):
        Reference((3, 8, 8)).space(f"inception-tf:{file}")
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


# Timings


@pytest.mark.bench
@pytest.mark.usefixtures("one_thread")
def test_frechet_distance_is_five_times_as_fast_as_scipys_root(figure):
    d = 2048
    x, y = spread(3 * d, d, 0), spread(3 * d, d, 5) + 0.01
    a, b = Moments.of(x, "test"), Moments.of(y, "test")

    def scipys() -> float:
        gap, c_a, c_b = (a.mean - b.mean).numpy(), a.covariance.numpy(), b.covariance.numpy()
        root = scipy.linalg.sqrtm(c_a @ c_b)
        return float(gap @ gap + np.trace(c_a) + np.trace(c_b) - 2 * np.trace(root.real))

    fast, ours = timed(lambda: frechet_distance(a, b))
    again, _ = timed(lambda: frechet_distance(a, b))
    slow, theirs = timed(scipys)
    figure("Fréchet, relative gap to SciPy", abs(ours - theirs) / theirs)
    figure("Fréchet, SciPy's root / ours", slow / fast)
    figure("Fréchet, SciPy's root / ours with the reference's root kept", slow / again)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert slow / fast >= 5


def timed(run) -> tuple[float, float]:
    """Processor seconds, which others on the machine do not stretch, and the result."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


@pytest.mark.bench
@pytest.mark.filterwarnings("ignore:Metric `", "ignore:std")
def test_one_extraction_serves_all_metrics(cached, figure):
    """The bar is for 500 images; STEPDISTILL_BENCH_IMAGES sets another number."""
    import torch_fidelity
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore as Theirs
    from torchmetrics.image.kid import KernelInceptionDistance

    n = int(os.environ.get("STEPDISTILL_BENCH_IMAGES", 500))
    real, made = real_and_made(n)
    space = "inception-torchmetrics"

    def by_libraries() -> dict[str, float]:
        fid, kid = FrechetInceptionDistance(), KernelInceptionDistance(subsets=1, subset_size=n)
        score, (a, b) = Theirs(splits=1), (eight_bits(images) for images in (real, made))
        for metric in (fid, kid):
            for x, y in zip(a.split(32), b.split(32)):
                metric.update(x, real=True)
                metric.update(y, real=False)
        for y in b.split(32):
            score.update(y)
        torch_fidelity.calculate_metrics(
            input1=Pictures(b),
            input2=Pictures(a),
            feature_extractor="inception-v3-compat",
            feature_layer_prc="2048",
            prc=True,
            batch_size=32,
            **QUIET,
        )
        return {"fid": fid.compute().item(), "kid": kid.compute()[0].item()}

    fast, ours = timed(lambda: preset(space, real, made))
    slow, theirs = timed(by_libraries)
    agree(ours, theirs, figure, "torchmetrics")
    figure(f"extraction for each metric / one for all, {n} images", slow / fast)
    assert slow / fast >= 1.5


class Pictures(torch.utils.data.Dataset):
    """As torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]
