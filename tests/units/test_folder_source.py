"""Image folders: pixels and labels as they are on disk, and every unfit file named."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stepdistill.data.sources.folder import load_folder
from stepdistill.schema import ConfigError

GREY, RGB = (1, 6, 4), (3, 6, 4)


def pixels(seed: int, channels: int = 1) -> np.ndarray:
    """Random bytes (6, 4) or (6, 4, channels)."""
    shape = (6, 4) if channels == 1 else (6, 4, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(file: Path, array: np.ndarray, **settings: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **settings)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """(c, h, w) in [−1, 1]: black −1, white 1, evenly between."""
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1) / 255 * 2 - 1


def said(folder: Path, event: tuple[int, ...] = GREY, classes: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_folder(folder, event, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flat_or_nested_folder_in_the_order_of_names(tmp_path):
    names = ["b.png", "a/2.png", "a/10.png", "c/d/e.webp", "A.PNG"]
    for seed, name in enumerate(names):
        lossless = {"lossless": True} if name.endswith("webp") else {}
        save(tmp_path / name, pixels(seed), **lossless)
    images, labels = load_folder(tmp_path, GREY, None)
    assert labels is None and images.dtype == torch.float32
    order = [4, 2, 1, 0, 3]
    expected = torch.stack([as_tensor(pixels(seed)) for seed in order])
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-7)
    assert images.min() >= -1 and images.max() <= 1


def test_the_ends_of_the_scale_are_exact(tmp_path):
    save(tmp_path / "black.png", np.zeros((6, 4), np.uint8))
    save(tmp_path / "white.png", np.full((6, 4), 255, np.uint8))
    images, _ = load_folder(tmp_path, GREY, None)
    assert images[0].eq(-1).all() and images[1].eq(1).all()


def test_subfolders_are_labels_in_the_order_of_their_names(tmp_path):
    for seed, name in enumerate(["cat/2.png", "ape/x/1.png", "dog/1.png", "cat/1.png"]):
        save(tmp_path / name, pixels(seed))
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_text("hidden")
    images, labels = load_folder(tmp_path, GREY, 3)
    assert labels.tolist() == [0, 1, 1, 2] and labels.dtype == torch.int64
    expected = torch.stack([as_tensor(pixels(seed)) for seed in (1, 3, 0, 2)])
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-7)


def test_a_class_folder_may_be_a_link(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", pixels(0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert load_folder(tmp_path / "data", GREY, 1)[1].tolist() == [0]


def test_grey_files_serve_a_colour_network_and_grey_colours_a_grey_one(tmp_path):
    grey, colour = tmp_path / "grey", tmp_path / "colour"
    save(grey / "1.png", pixels(0))
    save(colour / "1.png", np.repeat(pixels(0)[..., None], 3, axis=2))
    expected = as_tensor(pixels(0))
    for folder in (grey, colour):
        assert torch.equal(
            load_folder(folder, RGB, None)[0][0], load_folder(grey, GREY, None)[0][0].expand(RGB)
        )
        torch.testing.assert_close(
            load_folder(folder, GREY, None)[0][0], expected, rtol=0, atol=2e-7
        )


def test_colours_keep_their_channels(tmp_path):
    save(tmp_path / "1.png", pixels(0, 3))
    torch.testing.assert_close(
        load_folder(tmp_path, RGB, None)[0][0], as_tensor(pixels(0, 3)), rtol=0, atol=2e-7
    )


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_palettes_and_opaque_pictures_are_read(mode, tmp_path):
    picture = Image.fromarray(pixels(0)).convert(mode)
    picture.save(tmp_path / "1.png")
    expected = as_tensor(np.asarray(picture.convert("RGB")))
    torch.testing.assert_close(load_folder(tmp_path, RGB, None)[0][0], expected, rtol=0, atol=2e-7)


def test_a_jpeg_is_read(tmp_path):
    flat = np.full((6, 4), 100, np.uint8)
    save(tmp_path / "1.jpg", flat)
    save(tmp_path / "2.jpeg", flat)
    images, _ = load_folder(tmp_path, GREY, None)
    torch.testing.assert_close(images, as_tensor(flat).expand(2, *GREY), rtol=0, atol=0.02)


def png() -> bytes:
    """A PNG file."""
    file = BytesIO()
    Image.fromarray(pixels(0)).save(file, "PNG")
    return file.getvalue()


def deep_png() -> bytes:
    """A colour PNG of 16 bits a channel, which PIL reads as RGB without its low bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 4, 6, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(6 * (1 + 4 * 6)))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def transparent() -> np.ndarray:
    array = pixels(0, 4)
    array[..., 3] = 255
    array[2, 1, 3] = 254
    return array


ODD = {
    "colours, but": lambda file: save(file, pixels(0, 3)),
    "transparent": lambda file: save(file, transparent()),
    "5×6 pixels, but the teacher takes 4×6": lambda file: save(file, np.zeros((6, 5), np.uint8)),
    "4×7 pixels": lambda file: save(file, np.zeros((7, 4), np.uint8)),
    "mode I;16": lambda file: save(file, pixels(0).astype(np.uint16)),
    "8 bits": lambda file: file.write_bytes(deep_png()),
    "an animation": lambda file: Image.fromarray(pixels(0)).save(
        file, save_all=True, append_images=[Image.fromarray(pixels(1))]
    ),
    "not a PNG, JPEG or WebP": lambda file: save(file, pixels(0), format="GIF"),
    "WebP image inside": lambda file: file.write_text("no picture"),
    "damaged (image file is truncated": lambda file: file.write_bytes(png()[:-30]),
    "damaged (broken": lambda file: file.write_bytes(png()[:60] + b"\0\0\0" + png()[63:]),
    "not an image": lambda file: file.symlink_to("nowhere"),
    "not an image (": lambda file: file.symlink_to(file.parent, target_is_directory=True),
}


@pytest.mark.parametrize("words", ODD)
def test_an_unfit_file_is_named(words, tmp_path):
    save(tmp_path / "1.png", pixels(0))
    ODD[words](tmp_path / "odd.png")
    message = said(tmp_path)
    assert message.startswith(f"{tmp_path / 'odd.png'}: ") and words in message


def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "1.png")
    assert "1.png: " in said(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "labels.csv", "1.gif", "1.png~", "archive.zip"])
def test_other_files_are_named_unless_hidden(name, tmp_path):
    save(tmp_path / "1.png", pixels(0))
    (tmp_path / f".{name}").write_text("x")
    load_folder(tmp_path, GREY, None)
    (tmp_path / name).write_text("x")
    assert str(tmp_path / name) in said(tmp_path)


def test_unfit_folders_are_named(tmp_path):
    assert f"{tmp_path / 'none'}: not a readable folder" in said(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert "not a readable folder" in said(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: holds no images" in said(tmp_path / "empty")
    (tmp_path / "empty" / "emptier").mkdir()
    assert f"{tmp_path / 'empty'}: holds no images" in said(tmp_path / "empty")


def test_unfit_classes_are_named(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", pixels(0))
    assert "2 subfolders for the teacher's 3 classes" in said(tmp_path, GREY, 3)
    (tmp_path / "c").mkdir()
    assert f"{tmp_path / 'c'}: holds no images" in said(tmp_path, GREY, 3)
    save(tmp_path / "loose.png", pixels(0))
    assert f"{tmp_path / 'loose.png'}: lies in no subfolder" in said(tmp_path, GREY, 3)


def test_networks_of_other_channels_are_refused(tmp_path):
    save(tmp_path / "1.png", pixels(0))
    assert "1 or 3 channels, the teacher 4" in said(tmp_path, (4, 6, 4))
