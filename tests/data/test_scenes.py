"""The built-in world: the same scenes for everybody, labels that are true, captions that do not lie."""

import csv
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from mlclip_jax import InputError
from mlclip_jax.cli import main
from mlclip_jax.data import scenes as world
from mlclip_jax.data.images import read_image
from mlclip_jax.data.scenes import DEFAULT, LABELS, OTHER_LABELS, Difficulty, Scenes, write_scenes
from mlclip_jax.data.tables import read_labels, read_table
from mlclip_jax.texts.templates import noun_phrase

ALL = LABELS + OTHER_LABELS


def test_the_label_sets_are_large_and_disjoint():
    assert len(LABELS) >= 20
    assert len(OTHER_LABELS) >= 8
    assert len(set(ALL)) == len(ALL)
    icons = world.ICONS | world.OTHER_ICONS
    assert len(set(icons.values())) == len(icons)


def test_every_icon_is_in_the_font_and_unlike_the_others():
    missing = world._font(256).getmask("\uffff").getbbox()
    shapes = {}
    for name in ALL:
        assert world._font(256).getmask((world.ICONS | world.OTHER_ICONS)[name]).getbbox() != missing
        shape = np.zeros((32, 32))
        icon = world._icon(name, 32, 0.0)
        shape[: icon.shape[0], : icon.shape[1]] = icon
        shapes[name] = shape
    for one in ALL:
        for other in ALL[: ALL.index(one)]:
            a, b = shapes[one], shapes[other]
            assert np.minimum(a, b).sum() / np.maximum(a, b).sum() < 0.75, (one, other)


def test_the_font_is_the_one_that_matplotlib_ships():
    assert isinstance(world._font(20), ImageFont.FreeTypeFont)
    assert world._font(20).getname() == ("DejaVu Sans", "Book")


def test_a_scene_is_a_function_of_seed_and_index():
    some, again = Scenes(5, 100), Scenes(5, 1_000_000)
    for index in (3, 0, 99, 3):  # in any order, of any length
        ours, theirs = some[index], again[index]
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.caption == theirs.caption
    assert not np.array_equal(some[3].image, some[4].image)
    assert not np.array_equal(some[3].image, Scenes(6, 100)[3].image)


def test_iterating_ends_after_the_last_scene():
    assert len(list(Scenes(0, 7))) == len(Scenes(0, 7)) == 7
    with pytest.raises(IndexError, match="scene 7 of 7"):
        Scenes(0, 7)[7]


difficulties = st.builds(
    Difficulty,
    min_objects=st.integers(1, 3),
    max_objects=st.integers(3, 6),
    min_size=st.floats(0.05, 0.3),
    max_size=st.floats(0.3, 0.7),
    overlap=st.floats(0, 1),
    rotation=st.floats(0, 180),
    clutter=st.integers(0, 12),
    noise=st.floats(0, 60),
)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1), difficulties, st.integers(16, 100), st.floats(0, 1)
)
def test_any_world_has_whole_scenes(seed, index, difficulty, side, partial):
    scenes = Scenes(seed, 2**32, label_names=ALL, difficulty=difficulty, side=side, partial=partial)
    image, labels, caption, _ = scenes[index]
    assert image.shape == (side, side, 3)
    assert image.dtype == np.uint8
    assert labels.dtype == np.int8
    assert set(np.unique(labels)) <= {0, 1}
    assert 1 <= labels.sum() <= difficulty.max_objects
    assert caption


def named_in(caption):
    """The labels that a caption names, as whole words."""
    return {name for name in ALL if re.search(rf"\b{re.escape(noun_phrase(name))}\b", caption)}


def test_captions_name_what_is_there_all_of_it_or_part_of_it():
    complete, partial, mixed = (Scenes(1, 400, label_names=ALL, partial=p) for p in (0, 1, 0.5))
    for index in range(400):
        present = {ALL[k] for k in np.flatnonzero(complete[index].labels)}
        assert named_in(complete[index].caption) == present
        assert set() < named_in(partial[index].caption) <= present
    cut = [len(named_in(scene.caption)) < scene.labels.sum() for scene in mixed]
    assert 0.1 < np.mean(cut) < 0.5
    assert len({re.sub(r"^.*? of ", "", scene.caption)[:4] for scene in mixed}) > 15


def test_labels_are_what_is_drawn(monkeypatch):
    """Painted by an accomplice that notes each icon: no label without its icon, no icon without its label."""
    drawn = []

    def noting(name, size, angle, icon=world._icon):
        drawn.append((name, icon(name, size, angle)))
        return drawn[-1][1]

    painted = []

    def blending(image, mask, top, left, colour, blend=world._blend):
        before = image.copy()
        blend(image, mask, top, left, colour)
        painted.append((mask, np.abs(image - before).max()))

    monkeypatch.setattr(world, "_icon", noting)
    monkeypatch.setattr(world, "_blend", blending)
    scenes = Scenes(3, 200)
    for index in range(200):
        drawn.clear()
        painted.clear()
        labels = scenes[index].labels
        visible = {name for name, icon in drawn for mask, change in painted if mask is icon and change > 20}
        assert {LABELS[k] for k in np.flatnonzero(labels)} == visible


def test_difficulty_sets_how_many_objects_there_are():
    easy, hard = (
        Scenes(0, 300, difficulty=DEFAULT._replace(min_objects=n, max_objects=n, overlap=1.0)) for n in (1, 4)
    )
    assert {int(scene.labels.sum()) for scene in easy} == {1}
    assert {int(scene.labels.sum()) for scene in hard} == {4}
    crowded = DEFAULT._replace(min_objects=6, max_objects=6, min_size=0.5, max_size=0.6, overlap=0.0)
    # What finds no place is left out of the labels too.
    assert max(scene.labels.sum() for scene in Scenes(0, 100, difficulty=crowded)) < 5


def test_every_label_occurs_about_equally():
    counts = sum(scene.labels.astype(int) for scene in Scenes(0, 1500, label_names=ALL))
    assert counts.min() > 0.7 * counts.mean()
    assert counts.max() < 1.3 * counts.mean()


@pytest.mark.slow  # which depends on the machine, and on what else it does
def test_a_core_makes_500_scenes_a_second():
    scenes = Scenes(0, 2_000, label_names=ALL)
    list(Scenes(1, 500, label_names=ALL))  # icons are drawn once
    start = time.process_time()
    number = sum(1 for _ in zip(range(500), scenes))
    assert number / (time.process_time() - start) > 500


def test_written_as_jpeg_the_scenes_stay_what_they_are(tmp_path):
    scenes = Scenes(4, 30)
    write_scenes(scenes, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == [f"{i:06}.jpg" for i in range(30)]
    for scene, file in zip(scenes, files):
        pixels = np.asarray(read_image(file), int)
        assert np.abs(pixels - scene.image).mean() < 4
    labels = read_labels(tmp_path / "labels.csv", [file.name for file in files], LABELS)
    np.testing.assert_array_equal(labels, [scene.labels for scene in scenes])
    captioned = read_table(tmp_path / "labels.csv", images=tmp_path / "images")
    assert [example.caption for example in captioned] == [scene.caption for scene in scenes]
    columns = [LABELS.index(name) for name in captioned.label_names]
    np.testing.assert_array_equal([e.labels for e in captioned], [scene.labels[columns] for scene in scenes])


def test_the_command_writes_scenes(tmp_path, capsys):
    arguments = [f"--output={tmp_path}", "--number=3", "--labels=other", "--side=48", "--max_objects=1"]
    assert main(["scenes", *arguments]) == 0
    assert "3 scenes" in capsys.readouterr().out
    assert read_image(tmp_path / "images/000002.jpg").size == (48, 48)
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert {row["labels"] for row in csv.DictReader(file)} <= set(OTHER_LABELS)


def test_scenes_are_not_written_among_others(tmp_path):
    write_scenes(Scenes(0, 2), tmp_path)
    with pytest.raises(InputError, match="holds images or labels already"):
        write_scenes(Scenes(1, 2), tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_names": ("dragon",)}, "the world has no 'dragon'; it has airplane,"),
        ({"label_names": ("star", "star")}, "names a label twice"),
        ({"side": 8}, r"side=8 is outside \[16, 512\]"),
        ({"partial": 2}, "partial=2 is outside"),
        ({"difficulty": DEFAULT._replace(min_objects=0)}, "min_objects=0 is less than 1"),
        ({"difficulty": DEFAULT._replace(max_size=0.9)}, "max_size=0.9 is more than 0.7"),
        ({"difficulty": DEFAULT._replace(clutter=-1)}, "clutter=-1"),
    ],
)
def test_a_world_that_cannot_be_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        Scenes(0, 10, **settings)
