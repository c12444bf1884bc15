"""Tables and pictures."""

import numpy as np
import pytest
from PIL import Image

from mlclip_jax import InputError
from mlclip_jax.report import (
    EMPTY,
    MISSED,
    RIGHT,
    SIDE,
    WRONG,
    _label_lines,
    draw_grid,
    draw_predictions,
    markdown_table,
)

NAMES = ("cat", "dog", "$owl$", "bus")


def test_a_table_is_markdown():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_an_aligned_table_lines_up_as_plain_text():
    assert markdown_table(["label", "n"], [["a", "1000"], ["long label", "7"]], "lr").splitlines() == [
        "| label      |    n |",
        "| ---------- | ---: |",
        "| a          | 1000 |",
        "| long label |    7 |",
    ]


def test_labels_are_written_by_probability_and_coloured_by_truth():
    probabilities = np.array([0.6, 0.9, 0.1, 0.3])
    half = probabilities >= 0.5
    assert _label_lines(probabilities, NAMES, half, np.array([0, 1, 0, 1])) == [
        ("dog 90%", RIGHT),
        ("cat 60%", WRONG),
        ("missed: bus 30%", MISSED),
    ]
    # What is unknown is neither right nor wrong.
    assert _label_lines(probabilities, NAMES, half, np.array([-1, 1, 0, 0]))[1] == ("cat 60%", "black")
    assert _label_lines(probabilities, NAMES, half, None) == [("dog 90%", "black"), ("cat 60%", "black")]
    own = probabilities >= np.array([0.7, 0.5, 0.05, 0.5])
    assert [text for text, _ in _label_lines(probabilities, NAMES, own, None)] == ["dog 90%", "$owl$ 10%"]
    many = _label_lines(np.ones(500), [f"${k}$" for k in range(500)], np.ones(500, bool), None)
    assert many[-1] == ("and 490 more", MISSED)
    assert _label_lines(probabilities, NAMES, np.zeros(4, bool), None) == [("no label", MISSED)]
    scores = _label_lines(probabilities, NAMES, half, None, percent=False)
    assert scores == [("dog 0.90", "black"), ("cat 0.60", "black")]


@pytest.mark.parametrize("number", [1, 5, 8])
def test_a_picture_shows_every_image(tmp_path, number):
    colours = np.random.default_rng(0).integers(0, 256, (number, 3), dtype=np.uint8)
    images = [np.broadcast_to(colour, (20, 20, 3)) for colour in colours]
    probabilities = np.random.default_rng(1).random((number, 4))
    draw_predictions(
        tmp_path / "x.png", images, probabilities, NAMES, predicted=probabilities >= 0.5, columns=3
    )
    with Image.open(tmp_path / "x.png") as picture:
        shown = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {tuple(colour) for colour in colours} <= shown


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        draw_predictions(
            tmp_path / "file/x.png",
            [np.zeros((4, 4, 3))],
            np.ones((1, 4)),
            NAMES,
            predicted=np.ones((1, 4), bool),
        )


def drawn(path, *arguments):
    draw_grid(path, *arguments)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_tile_without_an_image_is_empty(tmp_path):
    image = np.full((8, 16, 3), (255, 0, 0), np.uint8)
    pixels = drawn(tmp_path / "x.png", [image, None], [[("a", "black")], [("b", "black")]])
    left, right = pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]
    assert (left == (255, 0, 0)).all(axis=-1).sum() == pytest.approx(SIDE * SIDE / 2, rel=0.03)
    grey = tuple(int(EMPTY[i : i + 2], 16) for i in (1, 3, 5))
    assert (right == grey).all(axis=-1).sum() == pytest.approx(SIDE * SIDE, rel=0.03)


@pytest.mark.parametrize("text", ["W" * 400, "i" * 60, "short", "猫" * 50, "$x^2$" * 30, ""])
def test_a_text_stays_below_its_image(tmp_path, text):
    """However long it is, and whether the font has it or not."""
    image = np.full((9, 9, 3), 255, np.uint8)
    pixels = drawn(tmp_path / "x.png", [image] * 3, [[], [(text, "black")], []])
    columns = np.nonzero((pixels < 128).any(axis=(0, 2)))[0]
    assert (columns.size > 0) == bool(text)
    assert ((columns >= 15 + SIDE) & (columns <= 2 * (15 + SIDE) + 3)).all()
    if len(text) > 5:
        assert np.ptp(columns) > 0.85 * SIDE
