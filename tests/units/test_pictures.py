"""Pictures made to fit: resized, cut, mirrored and changed in colour, only as asked."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from shelf import Looker, pixels, save

from stepdistill.data.loader import stream
from stepdistill.data.pictures import Fit, covering
from stepdistill.data.sources.folder import Folder
from stepdistill.schema import ConfigError

N = 400


def opened(folder, teacher=None, **settings):
    return Folder(str(folder), **settings).open(teacher or Looker())


@pytest.mark.parametrize("picture", [(60, 40), (41, 97), (16, 16), (5, 9)])
@pytest.mark.parametrize(("size", "side"), [((16, 16), 16), ((16, 16), 20), ((16, 24), 16)])
def test_a_resized_picture_just_covers_what_is_cut(picture, size, side):
    wide, high = covering(picture, size, side)
    least = [length * side / min(size) for length in size]
    assert wide >= size[1] and high >= size[0]
    assert min(wide / least[1], high / least[0]) == pytest.approx(1, abs=0.5 / side)
    stretch = (wide / picture[0]) / (high / picture[1])
    assert abs(stretch - 1) < 1 / min(wide, high)


def test_resizing_is_antialiased_and_bicubic():
    """Against torch's own; PIL rounds to eighths of a percent between its two passes."""
    array = pixels(3, 3, (97, 60))
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    seen = Fit((16, 16), 3, side=20).read(file, "1.png")
    assert seen.shape == (32, 20, 3)
    planes = torch.from_numpy(array).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, (32, 20), mode="bicubic", antialias=True)
    difference = torch.from_numpy(seen).permute(2, 0, 1) - expected[0].clamp(0, 255)
    assert difference.abs().max() < 1.5


def test_the_middle_is_cut_unless_places_are_drawn(tmp_path):
    array = pixels(0, size=(10, 4))
    save(tmp_path / "1.png", array)
    samples = opened(tmp_path, size=4)  # the width stays as it is
    images, _ = samples.rows(torch.zeros(3, dtype=int), stream(0))
    expected = torch.from_numpy(array[2:8]).float() / 127.5 - 1
    assert all(torch.equal(image[0], expected) for image in images)


def test_cuts_are_drawn_evenly_from_the_batch_s_own_stream(tmp_path):
    save(tmp_path / "1.png", np.arange(10 * 4, dtype=np.uint8).reshape(10, 4))
    samples = opened(tmp_path, size=4, crop="random")
    index, before = torch.zeros(N, dtype=int), torch.random.get_rng_state()
    images, _ = samples.rows(index, stream(1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(images, samples.rows(index, stream(1)).images)
    tops = ((images[:, 0, 0, 0] + 1) * 127.5 / 4).round().long()
    counts = torch.bincount(tops, minlength=5)
    assert len(counts) == 5 and (counts - N / 5).abs().max() < 5 * (N / 5) ** 0.5
    unmoved = samples.rows(index[:3]).images
    assert (
        torch.equal(unmoved[0], unmoved[1])
        and round(float(unmoved[0, 0, 0, 0] + 1) * 127.5) == 4 * 2
    )


def test_every_second_picture_is_mirrored(tmp_path):
    array = pixels(0)
    save(tmp_path / "1.png", array)
    samples = opened(tmp_path, flip=True)
    images, _ = samples.rows(torch.zeros(N, dtype=int), stream(1))
    usual = torch.from_numpy(array).float() / 127.5 - 1
    mirrored = [torch.equal(image[0], usual.flip(1)) for image in images]
    assert all(m or torch.equal(image[0], usual) for m, image in zip(mirrored, images))
    assert abs(sum(mirrored) - N / 2) < 5 * (N / 4) ** 0.5


def test_colours_become_grey_where_that_is_asked(tmp_path):
    """ITU-R 601: 0.299 R + 0.587 G + 0.114 B."""
    array = pixels(0, 3)
    save(tmp_path / "1.png", array)
    with pytest.raises(ConfigError, match="has colours, .* set channels: grey"):
        opened(tmp_path)
    expected = array @ np.array([0.299, 0.587, 0.114])
    for channels in (1, 3):
        images, _ = opened(tmp_path, Looker(channels), channels="grey").rows(torch.tensor([0]))
        seen = (images[0] + 1) * 127.5
        assert seen.shape[0] == channels
        assert (seen - torch.from_numpy(expected)).abs().max() < 1


def test_colours_of_print_are_converted_where_that_is_asked(tmp_path):
    flat = Image.new("CMYK", (4, 6), (255, 0, 0, 0))  # cyan
    flat.save(tmp_path / "1.jpg", quality=100)
    with pytest.raises(ConfigError, match="1.jpg: mode CMYK; .* set channels: rgb"):
        opened(tmp_path, Looker(3))
    images, _ = opened(tmp_path, Looker(3), channels="rgb").rows(torch.tensor([0]))
    assert ((images[0].mean((1, 2)) - torch.tensor([-1.0, 1, 1])).abs() < 0.05).all()


def test_16_bits_are_refused_whatever_is_asked(tmp_path):
    save(tmp_path / "1.png", pixels(0).astype(np.uint16))
    for channels in (None, "grey", "rgb"):
        with pytest.raises(ConfigError, match="1.png: mode I;16; save it with 8 bits"):
            opened(tmp_path, size=4, channels=channels)


def test_mixed_sizes_are_taken_where_a_size_is_asked(tmp_path):
    for seed, size in enumerate([(6, 4), (30, 40), (9, 200), (5, 3)]):
        save(tmp_path / f"{seed}.png", pixels(seed, 3, size))
    with pytest.raises(ConfigError, match="1.png: 40×30 pixels, .* or set size: 4"):
        opened(tmp_path, Looker(3))
    for settings in ({"size": 4}, {"size": 5, "crop": "random"}):
        samples = opened(tmp_path, Looker(3), **settings)
        assert samples.rows(torch.arange(4), stream(0)).images.shape == (4, 3, 6, 4)
    with pytest.raises(ConfigError, match=r"settings\.size: the teacher takes 4×6"):
        opened(tmp_path, Looker(3), size=3)


def test_pictures_that_fill_memory_are_read_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("stepdistill.data.images.HELD", 2 * 6 * 4)
    for k in range(3):
        save(tmp_path / f"{k}.png", pixels(k))
    samples = opened(tmp_path)
    assert samples.pixels is None
    images, _ = samples.rows(torch.tensor([2, 0]))
    assert torch.equal(images[0, 0], torch.from_numpy(pixels(2)).float() / 127.5 - 1)
    (tmp_path / "1.png").unlink()
    with pytest.raises(ConfigError, match="1.png: unreadable or damaged"):
        samples.rows(torch.tensor([1]))
