"""Image folders: pixels and labels as they are on disk, and every unfit file named."""

import inspect
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shelf import Looker, pixels, png, save

from stepdistill.data.sources.folder import Folder
from stepdistill.schema import ConfigError

GREY, RGB = (1, 6, 4), (3, 6, 4)


def load_folder(
    folder: Path, event: tuple[int, int, int], classes: int | None, **settings: object
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All images and labels of a folder for a teacher of these images."""
    samples = Folder(str(folder), **settings).open(Looker(event[0], classes, event[1:]))
    return tuple(samples.rows(torch.arange(len(samples))))


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
    names = ["b.png", "a/10.png", "a/2.png", "c/d/e.webp", "A.PNG"]
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


def test_class_folders_come_as_people_count(tmp_path):
    for seed, name in enumerate(["2", "10", "1", "3b", "3a"]):
        save(tmp_path / name / "1.png", pixels(seed))
    samples = Folder(str(tmp_path)).open(Looker(1, 5))
    assert samples.names == ("1", "2", "3a", "3b", "10")
    images, labels = samples.rows(torch.arange(5))
    assert labels.tolist() == [0, 1, 2, 3, 4]
    for image, seed in zip(images, [2, 0, 4, 3, 1]):
        torch.testing.assert_close(image, as_tensor(pixels(seed)), rtol=0, atol=2e-7)


def test_classes_may_be_named_in_the_teacher_s_order(tmp_path):
    for seed, name in enumerate(["a", "b", "c"]):
        save(tmp_path / name / "1.png", pixels(seed))
    named = Folder(str(tmp_path), classes=("c", "a", "b")).open(Looker(1, 3))
    assert named.names == ("c", "a", "b") and named.labels.tolist() == [1, 2, 0]
    with pytest.raises(ConfigError, match="1.png: label 'c': not among x, a, b"):
        Folder(str(tmp_path), classes=("x", "a", "b")).open(Looker(1, 3))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m"])
def test_a_class_whose_name_no_line_can_hold_is_refused(name, tmp_path):
    save(tmp_path / name / "1.png", pixels(0))
    assert "needs a name of one printable line" in said(tmp_path, GREY, 1)


def test_folders_that_are_links_are_refused(tmp_path):
    save(tmp_path / "elsewhere" / "1.png", pixels(0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "elsewhere")
    assert f"{tmp_path / 'data' / 'a'}: a link" in said(tmp_path / "data", GREY, 1)
    assert f"{tmp_path / 'data' / 'a'}: not an image" in said(tmp_path / "data")


def test_a_photograph_is_turned_as_the_camera_was_held(tmp_path):
    """Lossless, so by PNG: all eight orientations against the standard's own words."""
    upright = pixels(0, 3)
    turned = {  # where row 0 and column 0 of what is stored are, seen upright: EXIF 2.32, 4.6.4
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    for number, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = number
        save(tmp_path / f"{number}.png", np.ascontiguousarray(stored), exif=exif)
    images, _ = load_folder(tmp_path, RGB, None)
    for number, image in enumerate(images, 1):
        assert torch.allclose(image, as_tensor(upright), atol=2e-7), number


def test_a_photograph_that_lies_is_not_of_the_teacher_s_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "1.png", pixels(0), exif=exif)
    assert "6×4 pixels, but the teacher takes 4×6" in said(tmp_path)


def test_the_first_view_of_a_phone_s_picture_is_taken(tmp_path):
    flat = np.full((6, 4), 100, np.uint8)
    views = [Image.fromarray(flat), Image.fromarray(flat + 100)]
    views[0].save(tmp_path / "1.jpg", "MPO", save_all=True, append_images=views[1:])
    with Image.open(tmp_path / "1.jpg") as image:
        assert image.format == "MPO" and image.n_frames == 2
    images, _ = load_folder(tmp_path, GREY, None)
    torch.testing.assert_close(images, as_tensor(flat).expand(1, *GREY), rtol=0, atol=0.02)


def dig(folder: Path, name: str, depth: int) -> None:
    """Folders of this name in each other, also where a path to them is too long for the system."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        here, above = os.open(name, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)


def test_more_folders_in_each_other_than_calls(tmp_path):
    dig(tmp_path, "d", 400)
    (tmp_path.joinpath(*"d" * 400) / "1.png").write_bytes(png(pixels(0)))
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 300)
    try:
        assert len(load_folder(tmp_path, GREY, None)[0]) == 1
    finally:
        sys.setrecursionlimit(usual)


def test_a_path_longer_than_the_system_s(tmp_path):
    dig(tmp_path, "d" * 200, 30)
    message = said(tmp_path)
    assert "not a readable folder (File name too long)" in message and len(message) < 1000


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
    "damaged (image file is truncated": lambda file: file.write_bytes(png(pixels(0))[:-30]),
    "damaged (broken": lambda file: file.write_bytes(
        png(pixels(0))[:60] + b"\0\0\0" + png(pixels(0))[63:]
    ),
    "not an image": lambda file: file.symlink_to("nowhere"),
    "not an image (": lambda file: file.symlink_to(file.parent, target_is_directory=True),
}


@pytest.mark.parametrize("words", ODD)
def test_an_unfit_file_is_named(words, tmp_path):
    save(tmp_path / "1.png", pixels(0))
    ODD[words](tmp_path / "odd.png")
    message = said(tmp_path)
    assert message.startswith(f"settings.path: {tmp_path / 'odd.png'}: ") and words in message


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
    assert said(tmp_path, (5, 6, 4)) == "source: images have 1 to 4 channels, the teacher 5"


def test_opacity_is_a_channel_where_the_teacher_has_it(tmp_path):
    save(tmp_path / "1.png", pixels(0, 4))
    torch.testing.assert_close(
        load_folder(tmp_path, (4, 6, 4), None)[0][0], as_tensor(pixels(0, 4)), rtol=0, atol=2e-7
    )
    grey = pixels(1, 2)
    save(tmp_path / "1.png", grey)
    torch.testing.assert_close(
        load_folder(tmp_path, (2, 6, 4), None)[0][0], as_tensor(grey), rtol=0, atol=2e-7
    )
