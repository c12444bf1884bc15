"""Images of every kind, whole and broken: read as what they are, or refused with the reason."""

import contextlib
import os

import numpy as np
import pytest
from broken_images import GREEN, READABLE, RED, SIDE, UNREADABLE, write_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from real_data import PHOTOGRAPHS, needs_real_data

from mlclip_jax import InputError
from mlclip_jax.data import images
from mlclip_jax.data.images import UnreadableImage, decode_image, printable, read_file, read_image


def test_images_are_rgb_and_upright(tmp_path):
    stored = Image.new("L", (4, 2), 7)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    stored.save(tmp_path / "x.png", exif=exif)
    image = read_image(tmp_path / "x.png")
    assert (image.mode, image.size) == ("RGB", (2, 4))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_unreadable_images(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read image .*x\.jpg: .*; repair or remove it") as raised:
        read_image(tmp_path / "x.jpg")
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what is damaged, and reads on
def test_a_damaged_exif_block_loses_no_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9003] = "2020:01:01"
    Image.new("RGB", (8, 6)).save(tmp_path / "x.jpg", exif=exif)
    content = bytearray((tmp_path / "x.jpg").read_bytes())
    block = content.index(b"Exif") + 6
    for offset in range(
        block, block + 40
    ):  # some of these make the block unreadable, none may lose the image
        damaged = content.copy()
        damaged[offset] ^= 0xFF
        (tmp_path / "y.jpg").write_bytes(damaged)
        assert sorted(read_image(tmp_path / "y.jpg").size) == [6, 8]


def test_truncated_image(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="truncated"):
        read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize("name", READABLE)
def test_what_can_be_read_is_read_as_it_looks(tmp_path, name):
    data, edges = READABLE[name]
    (tmp_path / name).write_bytes(data)
    image = read_image(tmp_path / name)
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    for edge, colour in zip((pixels[:, 0], pixels[:, -1]), edges or ()):
        if colour is not None:
            assert np.abs(edge - colour).max() <= 12  # JPEG's loss
    if name == "exif.jpg":
        assert np.abs(pixels[-1] - RED).max() <= 12
        assert np.abs(pixels[0] - GREEN).max() <= 12


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_says_why(tmp_path, name):
    write_all(tmp_path)
    with pytest.raises(UnreadableImage, match=UNREADABLE[name][1]) as raised:
        decode_image(read_file(tmp_path / name))
    assert str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_a_name_that_is_no_utf_8(tmp_path):
    name = os.fsdecode(write_all(tmp_path))
    assert read_image(tmp_path / name).size == (SIDE, SIDE)
    assert printable(name) == r"caf\xe9.jpg"
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"caf\\xe9.jpg: an empty file"):
        read_image(tmp_path / name)


@given(st.binary(max_size=400), st.integers(0, 10_000))
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_whatever_the_bytes_are_it_is_an_image_or_a_reason(noise, place):
    for name in ("plain.jpg", "png_named.jpg", "still.gif", "exif.jpg", "lossless.webp"):
        data = READABLE[name][0]
        place %= len(data)
        with contextlib.suppress(UnreadableImage):
            assert decode_image(data[:place] + noise + data[place + len(noise) :]).mode == "RGB"


def test_two_decoders_give_the_same_pixels(monkeypatch):
    for name, (data, _) in READABLE.items():
        fast = np.asarray(decode_image(data))
        with monkeypatch.context() as patch:
            patch.setattr(images, "_decode_jpeg", lambda *_: None)
            np.testing.assert_array_equal(fast, np.asarray(decode_image(data)), err_msg=name)


@needs_real_data
def test_two_decoders_give_the_same_photographs(monkeypatch):
    paths = sorted((PHOTOGRAPHS / "images").glob("*.jpg"))
    decoded = [np.asarray(read_image(path)) for path in paths]
    monkeypatch.setattr(images, "_decode_jpeg", lambda *_: None)
    for path, fast in zip(paths, decoded):
        np.testing.assert_array_equal(fast, np.asarray(read_image(path)), err_msg=path.name)


def test_a_reduced_scale_is_never_too_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    for at_least in (1, 30, 37, 38, 100, 149, 150, 151, 224, 299, 300):
        assert at_least <= min(decode_image(data, at_least).size) <= max(at_least + 300 / 8, 300 / 8 + 1)
    assert decode_image(data, 301).size == (500, 300)
    assert decode_image(data).size == (500, 300)
