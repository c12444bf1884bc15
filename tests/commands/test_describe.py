"""What a set of images is said to hold: figures counted by hand, sheets that show what there is."""

import re

import numpy as np
import pytest
from PIL import Image

from mlclip_jax import InputError
from mlclip_jax import describe as describing
from mlclip_jax.commands.describe import define_flags, main
from mlclip_jax.commands.parsing import parse_flags
from mlclip_jax.data.images import read_file
from mlclip_jax.data.sources import Source, read_folder
from mlclip_jax.data.tables import read_table
from mlclip_jax.describe import describe, draw_sheet, with_labels
from mlclip_jax.report import MISSED, SIDE, WRONG

LABELS = np.array([[1, 1, 0], [1, 1, -1], [1, 0, 0], [0, -1, -1]], np.int8)
NAMES = ("cat", "dog", "a|b")


@pytest.fixture
def folder(tmp_path):
    """Four images, each of one colour, and the table of their labels."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (40 + number, 30), (60 * number, 0, 200)).save(tmp_path / f"images/{number}.png")
    rows = [f"{number}.png,{','.join(map(str, row))}" for number, row in enumerate(LABELS)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,cat,dog,a|b", *rows]) + "\n")
    return tmp_path


def read_nothing(_):
    raise AssertionError("nothing is to be read")


def a_source(**known):
    names = [f"{number}.png" for number in range(len(LABELS))]
    return Source("four images", names, read_nothing, **{"labels": LABELS, "label_names": NAMES, **known})


def shown(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return pixels, {tuple(pixel) for pixel in pixels.reshape(-1, 3)}


def test_figures_are_those_counted_by_hand():
    assert describe(a_source(remarks=["one file was left out"])) == "\n".join(
        [
            "four images",
            "  images            4",
            "  labels            3",
            "  labels per image  1.25 on average, from 0 to 2",
            "  without a label   1 of 4 (25.0%)",
            "  unknown entries   3 of 12 (25.0%)",
            "  remark            one file was left out",
            "",
            "| label | present | of known | absent | unknown |",
            "| ----- | ------: | -------: | -----: | ------: |",
            "| cat   |       3 |    75.0% |      1 |       0 |",
            "| dog   |       2 |    66.7% |      1 |       1 |",
            "| a\\|b  |       0 |     0.0% |      2 |       2 |",
            "",
            "| a   | b   | together | P(b given a) | P(a given b) |",
            "| --- | --- | -------: | -----------: | -----------: |",
            "| cat | dog |        2 |         0.67 |         1.00 |",
        ]
    )


def test_where_the_other_label_is_unknown_nothing_is_likely():
    labels = np.array([[1, 1], [1, 1], [1, 0], [1, -1], [1, -1], [-1, 1]], np.int8)
    source = Source("x", map(str, range(6)), read_nothing, labels=labels, label_names=("cat", "dog"))
    assert re.search(r"\| cat \| dog +\| +2 \| +0.67 \| +1.00 \|$", describe(source))


def test_the_captions_of_an_image_count_once():
    """Two images, of which the second has three captions and a label in one row only."""
    source = Source(
        "captions",
        ["a", "b", "b", "b"],
        read_nothing,
        labels=np.array([[0, 1], [0, -1], [1, -1], [0, 0]], np.int8),
        label_names=("cat", "dog"),
        captions=["A dog.", "A big cat", "cat", "A  cat, a\tcat"],
    )
    lines = describe(source).splitlines()
    assert lines[1:8] == [
        "  images            2",
        "  pairs             4, an image and one of its captions each",
        "  captions          4, of 2.5 words on average",
        "  labels            2",
        "  labels per image  1.00 on average, from 1 to 1",
        "  without a label   0 of 2 (0.0%)",
        "  unknown entries   0 of 4 (0.0%)",
    ]
    assert lines[-1] == "No two labels are present in the same image."


def test_names_that_repeat_are_told():
    source = Source("x", ["a", "b", "a"], read_nothing)
    assert describe(source).splitlines() == [
        "x",
        "  images  3",
        "  names   2 distinct ones",
        "  labels  0",
    ]


def test_of_many_labels_the_ends_are_shown():
    number = 240
    labels = np.tril(np.ones((number, number), np.int8))  # label k is in number - k images
    names = [f"label {k}" for k in range(number)]
    text = describe(Source("x", map(str, range(number)), read_nothing, labels=labels, label_names=names))
    assert "The 50 most and the 10 least frequent of 240 labels." in text
    there = [int(k) for k in re.findall(r"^\| label (\d+) +\| +\d+ \| +\d", text, re.MULTILINE)]
    assert there == [*range(50), *range(230, 240)]
    pairs = re.findall(r"^\| label (\d+) \| label (\d+) \| +(\d+) \|", text, re.MULTILINE)
    assert len(pairs) == 10
    assert [int(n) for *_, n in pairs] == [number - k for k in (1, 2, 2, 3, 3, 3, 4, 4, 4, 4)]
    whole = describe(
        Source("x", map(str, range(number)), read_nothing, labels=labels[:, :100], label_names=names[:100])
    )
    assert "least frequent" not in whole
    assert "| label 99 |" in whole


def test_a_sheet_shows_its_images(folder):
    source = read_table(folder / "labels.csv", images=folder / "images")
    draw_sheet(folder / "sheet.png", source, 24)
    pixels, colours = shown(folder / "sheet.png")
    assert {(60 * number, 0, 200) for number in range(4)} <= colours
    assert pixels.shape[1] == pytest.approx(4 * (SIDE + 15) + 15, abs=2)
    draw_sheet(folder / "two.png", source, 2)
    pixels, colours = shown(folder / "two.png")
    assert len({(60 * number, 0, 200) for number in range(4)} & colours) == 2
    assert pixels.shape[1] == pytest.approx(2 * (SIDE + 15) + 15, abs=2)


def lines_of(monkeypatch, source, number=24, **settings):
    drawn = []
    monkeypatch.setattr(describing, "draw_grid", lambda *given: drawn.extend(given))
    draw_sheet("x.png", source, number, **settings)
    _, tiles, lines = drawn
    return tiles, lines


def test_below_an_image_are_its_name_and_what_it_has(folder, monkeypatch):
    source = read_table(folder / "labels.csv", images=folder / "images")
    tiles, lines = lines_of(monkeypatch, source)
    assert [tile.size for tile in tiles] == [(40, 30), (41, 30), (42, 30), (43, 30)]
    assert lines == [
        [("0.png", MISSED), ("cat", "black"), ("dog", "black")],
        [("1.png", MISSED), ("cat", "black"), ("dog", "black"), ("a|b?", MISSED)],
        [("2.png", MISSED), ("cat", "black")],
        [("3.png", MISSED), ("dog?", MISSED), ("a|b?", MISSED)],
    ]
    many = Source(
        "x",
        source.names,
        source.read,
        labels=np.repeat([[1], [0], [1], [-1]], 9, axis=1).astype(np.int8),
        label_names=[f"label\n{k}" for k in range(9)],
    )
    _, lines = lines_of(monkeypatch, many)
    assert lines[0][1:] == [(f"label {k}", "black") for k in range(6)] + [("and 3 more", MISSED)]
    assert lines[1][1:] == [("no label", MISSED)]
    assert lines[3][1] == ("label 0?", MISSED)


def test_a_sheet_is_drawn_by_its_seed_and_reads_no_other_image(folder, monkeypatch):
    read = []
    source = Source(
        "x", map(str, range(1000)), lambda row: read.append(row) or read_file(folder / "images/0.png")
    )
    drawn = []
    for seed in (0, 0, 1):
        read.clear()
        tiles, lines = lines_of(monkeypatch, source, 7, seed=seed)
        assert len(tiles) == len(lines) == len(read) == 7
        drawn.append(tuple(read))
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_image_with_captions_is_drawn_once_with_the_first(folder, monkeypatch):
    names = ["0.png", "0.png", "1.png"]
    captions = ["word " * 40, "another", "A cat."]
    source = Source("x", names, lambda row: read_file(folder / "images" / names[row]), captions=captions)
    tiles, lines = lines_of(monkeypatch, source)
    assert len(tiles) == 2
    assert [text for text, _ in lines[0]] == ["0.png", *["word word word word word"] * 2, lines[0][3][0]]
    assert lines[0][3][0].endswith(" …")
    assert lines[1] == [("1.png", MISSED), ("A cat.", MISSED)]


def test_an_image_that_cannot_be_read_is_an_empty_tile(folder, monkeypatch):
    (folder / "images/1.png").write_bytes(b"no image")
    (folder / "images/2.png").unlink()
    source = read_table(folder / "labels.csv", images=folder / "images")
    draw_sheet(folder / "sheet.png", source, 24)
    assert {(0, 0, 200), (180, 0, 200), (0xE4, 0xE4, 0xE4)} <= shown(folder / "sheet.png")[1]
    tiles, lines = lines_of(monkeypatch, source)
    assert [tile is None for tile in tiles] == [False, True, True, False]
    assert lines[1][1:3] == [("no image format is", WRONG), ("recognised", WRONG)]
    assert lines[2] == [("2.png", MISSED), ("no such file or directory", WRONG), ("cat", "black")]


def test_labels_of_a_table_replace_the_sources_own(folder):
    source = with_labels(read_folder(folder / "images"), folder / "labels.csv")
    assert source.label_names == NAMES
    np.testing.assert_array_equal(source.labels, LABELS)
    (folder / "captions.csv").write_text("filename,caption\n0.png,A cat\n")
    with pytest.raises(InputError, match=r"captions.csv holds no labels: it needs a column labels"):
        with_labels(source, folder / "captions.csv")


def run(*arguments):
    main(parse_flags(["mlclip data describe", *map(str, arguments)], define_flags))


def test_the_command_describes_images(folder, capsys):
    labels = f"--labels={folder / 'labels.csv'}"
    run(f"--images={folder / 'images'}", labels, f"--output={folder}/new/sheet.png", "--number=3")
    printed = capsys.readouterr().out
    assert printed.startswith(f"{folder / 'images'}\n  images            4\n  labels            3\n")
    assert printed.endswith(f"\n3 of its images, chosen at random, are drawn in {folder}/new/sheet.png\n")
    pixels, _ = shown(folder / "new/sheet.png")
    assert np.ptp(pixels) == 255
    run(f"--images={folder / 'images'}")
    assert capsys.readouterr().out == f"{folder / 'images'}\n  images  4\n  labels  0\n"


def test_the_command_describes_what_a_recipe_reads(folder, capsys):
    images, labels = folder / "images", folder / "labels.csv"
    run(
        "--config=mmm_clip",
        f"--config.examples.images={images}",
        f"--config.evaluation.images={images}",
        f"--config.evaluation.labels={labels}",
        f"--output={folder}/sheet.png",
    )
    printed = capsys.readouterr().out
    assert printed.startswith(f"## examples.images\n\n{images}\n  images  4\n  labels  0\n\n4 of its images")
    assert f"\n\n## evaluation.images\n\n{images}\n  images            4\n" in printed
    assert (folder / "sheet_examples.png").is_file()
    assert (folder / "sheet_evaluation.png").is_file()
    run("--config=pretrain_captions", f"--config.images.source={images}")
    assert capsys.readouterr().out.startswith(f"## images.source\n\n{images}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --images=SPEC or --config=RECIPE"),
        (["--images=x", "--config=mmm_clip"], "give either --images=SPEC or --config=RECIPE"),
        (["--config=mmm_clip", "--labels=x.csv"], "--labels goes with --images; a recipe's are --config."),
        (["--config=mmm_clip"], "this recipe names no images: give --config.examples.images, --config.eval"),
        (["--config=tai"], "this recipe names no images"),
        (["--images=x", "--output=x.jpg"], "cannot draw 'x.jpg': its name must end in .png"),
        (["--images=x", "--number=0"], "--number"),
        (["--config=nothing"], "no recipe 'nothing'"),
    ],
)
def test_what_cannot_be_described_is_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run(*arguments)
