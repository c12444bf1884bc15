"""Augmentations: as random as they say, whatever the image, and torchvision's."""

import re

import numpy as np
import pytest
import torchvision_outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision_outputs import CROPPED, MAGNITUDES, RATIOS, SCALES, SIZES, noise

from mlclip_jax import InputError
from mlclip_jax.data import augmentation
from mlclip_jax.data.augmentation import (
    OPERATIONS,
    cutout,
    make_augment,
    rand_augment,
    random_flip,
    random_resized_crop,
)

EVERY = "random_resized_crop,flip,cutout,rand_augment"
SIDES = st.integers(1, 300)


def smooth(width, height):
    """From 20 to 230, each colour in a direction of its own."""
    x, y = np.linspace(20, 230, width)[None], np.linspace(20, 230, height)[:, None]
    return Image.fromarray(np.stack(np.broadcast_arrays(x, y, (x + y) / 2), axis=-1).astype(np.uint8))


def pixels(image):
    return np.asarray(image, int)


def test_the_same_generator_gives_the_same_image():
    image = noise(50, 40)
    augment = make_augment(EVERY)
    once, again, other = (augment(np.random.default_rng(seed), image, (32, 48)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(pixels(once), pixels(again))
    assert not np.array_equal(pixels(once), pixels(other))


@pytest.mark.parametrize("names", ["random_resized_crop", "flip", "cutout", "rand_augment", EVERY])
def test_an_image_is_changed_in_a_copy(names):
    image = noise(50, 40)
    before = image.tobytes()
    changed = 0
    for seed in range(30):
        after = make_augment(names)(np.random.default_rng(seed), image, (24, 32))
        assert image.tobytes() == before
        assert after.mode == "RGB"
        assert after.size == ((32, 24) if "random_resized_crop" in names else (50, 40))
        changed += after.tobytes() != before
    assert changed > 8


@pytest.mark.parametrize("width_height", [(1, 1), (1000, 2), (2, 1000), (1, 7), (3, 1)])
def test_no_image_is_too_extreme(width_height):
    image = noise(*width_height)
    augment, without_crop = make_augment(EVERY), make_augment("flip,cutout,rand_augment")
    for seed in range(60):
        assert augment(np.random.default_rng(seed), image, (9, 8)).size == (8, 9)
        assert without_crop(np.random.default_rng(seed), image, (9, 8)).size == width_height
    for apply, strongest, _ in OPERATIONS.values():
        for value in {0, strongest, -strongest} if strongest < 1 or strongest == 30 else {0, strongest}:
            assert apply(image, value).size == width_height


@settings(max_examples=300)
@given(SIDES, SIDES, st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.3, 1))
def test_a_crop_lies_in_the_image_and_within_its_bounds(width, height, seed, scale, other_scale, narrowest):
    scales, ratios = sorted([scale, other_scale]), (narrowest, 1 / narrowest)
    draws = augmentation._crop_box(np.random.default_rng(seed), width, height, scales, ratios)
    left, top, right, bottom = draws
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    w, h = right - left, bottom - top
    # Both sides are rounded, so each of the bounds is as loose as half a pixel makes it.
    assert (w - 0.5) / (h + 0.5) <= ratios[1]
    assert (w + 0.5) / (h - 0.5) >= ratios[0]
    least, most = scales[0] * width * height * ratios[0], scales[1] * ratios[1]
    if least >= 1 and most <= min(width / height, height / width):
        # There is room for every such crop, so this is not the fallback.
        assert (w - 0.5) * (h - 0.5) <= scales[1] * width * height
        assert (w + 0.5) * (h + 0.5) >= scales[0] * width * height


def test_crops_are_spread_over_scales_ratios_and_places():
    random = np.random.default_rng(0)
    boxes = np.array(
        [augmentation._crop_box(random, 1000, 1000, (0.1, 0.5), (3 / 4, 4 / 3)) for _ in range(2000)]
    )
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, ratio = w * h / 1e6, np.log(w / h)
    np.testing.assert_allclose(np.quantile(share, [0, 0.5, 1]), [0.1, 0.3, 0.5], atol=0.02)
    np.testing.assert_allclose(np.quantile(ratio, [0, 0.5, 1]), [np.log(3 / 4), 0, np.log(4 / 3)], atol=0.02)
    place = boxes[:, 0] / (1000 - w)
    np.testing.assert_allclose(np.quantile(place, [0, 0.25, 0.5, 1]), [0, 0.25, 0.5, 1], atol=0.05)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(2000, 90, (940, 0, 1060, 90)), (90, 2000, (0, 940, 90, 1060)), (90, 100, (0, 0, 90, 100))],
)
def test_where_no_crop_fits_it_is_the_middle(width, height, box):
    scale = (2, 3) if width == 90 and height == 100 else (1, 1)  # more than the image has
    assert augmentation._crop_box(np.random.default_rng(0), width, height, scale, (3 / 4, 4 / 3)) == box


def test_a_crop_is_of_what_is_there():
    """Its corners are pixels of the image; what lies around the box is not mixed in."""
    image = smooth(200, 100)
    crop = random_resized_crop(np.random.default_rng(1), image, (60, 80))
    box = augmentation._crop_box(np.random.default_rng(1), 200, 100, (0.08, 1), (3 / 4, 4 / 3))
    expected = pixels(image)[box[1] : box[3], box[0] : box[2]]
    assert np.abs(pixels(crop).min((0, 1)) - expected.min((0, 1))).max() <= 3
    assert np.abs(pixels(crop).max((0, 1)) - expected.max((0, 1))).max() <= 3


def test_every_other_image_is_mirrored():
    image = noise(5, 4)
    random = np.random.default_rng(0)
    mirrored = 0
    for _ in range(1000):
        after = pixels(random_flip(random, image))
        if not np.array_equal(after, pixels(image)):
            np.testing.assert_array_equal(after, pixels(image)[:, ::-1])
            mirrored += 1
    assert 450 < mirrored < 550


@settings(max_examples=100)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32), st.floats(0.05, 1))
def test_a_cut_out_box_has_one_colour_and_its_size(width, height, seed, fraction):
    # A grey that no box's colour has in all its parts, or else the box could not be seen.
    image = Image.new("RGB", (width, height), (128, 128, 128))
    cut = pixels(cutout(np.random.default_rng(seed), image, fraction))
    rows, columns = np.nonzero((cut != 128).any(axis=-1))
    lengths = [int(fraction * side + 0.5) for side in (width, height)]
    if 0 in lengths:
        assert rows.size == 0
        return
    box = cut[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert len(np.unique(box.reshape(-1, 3), axis=0)) == 1
    assert box.shape[0] * box.shape[1] == rows.size
    for found, length in zip((box.shape[1], box.shape[0]), lengths):
        assert (length + 1) // 2 <= found <= length


def test_boxes_are_centred_anywhere_and_of_any_colour():
    random = np.random.default_rng(0)
    image = Image.new("RGB", (40, 40), (128, 128, 128))
    cuts = np.stack([pixels(cutout(random, image)) for _ in range(1500)])
    hit = (cuts != 128).any(axis=-1).mean(axis=0)
    assert hit[20, 20] == pytest.approx(0.25, abs=0.04)
    assert hit[0, 0] == pytest.approx(0.0625, abs=0.03)
    colours = np.array([cut[(cut != 128).any(axis=-1)][0] for cut in cuts])
    np.testing.assert_allclose(colours.mean(axis=0), 127.5, atol=8)
    np.testing.assert_allclose(colours.std(axis=0), 256 / 12**0.5, atol=5)


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"AutoContrast", "Equalize"}))
def test_without_magnitude_an_operation_changes_nothing(name):
    apply, strongest, _ = OPERATIONS[name]
    image = smooth(60, 50)  # without white, which Solarize turns black from the start
    assert np.abs(pixels(apply(image, 0.0)) - pixels(image)).max() <= 1
    if strongest:
        image = noise(60, 50)
        assert np.abs(pixels(apply(image, strongest)) - pixels(image)).mean() > 3


def test_operations_do_what_they_are_called():
    image = smooth(662, 331)  # translated by 300 and by 150 pixels at the most
    before = pixels(image)

    def after(name, value=None):
        apply, strongest, _ = OPERATIONS[name]
        return pixels(apply(image, strongest if value is None else value))

    np.testing.assert_array_equal(after("TranslateX")[:, 300:], before[:, :-300])
    assert after("TranslateX")[:, :300].max() == 0
    np.testing.assert_array_equal(after("TranslateX", -150 / 331)[:, :-300], before[:, 300:])
    np.testing.assert_array_equal(after("TranslateY")[150:], before[:-150])
    np.testing.assert_array_equal(after("TranslateY", -150 / 331)[:-150], before[150:])
    np.testing.assert_array_equal(after("ShearX")[100, :600], before[100, 30:630])
    np.testing.assert_array_equal(after("ShearY")[:200, 100], before[30:230, 100])
    np.testing.assert_array_equal(after("Rotate", 180), before[::-1, ::-1])
    np.testing.assert_allclose(after("Brightness", -0.5), before / 2, atol=1)
    assert np.ptp(after("Color", -1), axis=-1).max() == 0
    assert np.ptp(after("Contrast", -1), axis=(0, 1)).max() == 0
    np.testing.assert_array_equal(after("Posterize"), before & 0b11110000)
    np.testing.assert_array_equal(after("Solarize"), 255 - before)
    np.testing.assert_array_equal(after("Solarize", 127), np.where(before < 128, before, 255 - before))
    assert (after("AutoContrast").min(), after("AutoContrast").max()) == (0, 255)
    assert np.bincount(after("Equalize").ravel() // 64, minlength=4).min() > 0.2 * before.size


def test_operations_are_drawn_alike_and_their_signs_too(monkeypatch):
    drawn = []
    noting = {
        name: (lambda image, value, name=name: drawn.append((name, value)) or image, strongest, either_sign)
        for name, (_, strongest, either_sign) in OPERATIONS.items()
    }
    monkeypatch.setattr(augmentation, "OPERATIONS", noting)
    random, image = np.random.default_rng(0), Image.new("RGB", (4, 4))
    for _ in range(1400):
        rand_augment(random, image, num_ops=2, magnitude=15)
    assert len(drawn) == 2800
    for name, (_, strongest, either_sign) in noting.items():
        values = [value for own, value in drawn if own == name]
        assert 150 < len(values) < 250
        signs = (-1, 1) if either_sign else (1,)
        assert sorted(set(values)) == pytest.approx([sign * strongest / 2 for sign in signs])
        if either_sign:
            assert 0.35 < np.mean(np.array(values) > 0) < 0.65


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("flip,blur", "no augmentation 'blur' (in 'flip,blur'); there are random_resized_crop, flip, cutout"),
        ("flip,", "no augmentation ''"),
        ("flip,flip", "augmentation flip is named twice"),
        ("flip,random_resized_crop", "random_resized_crop must be the first augmentation; it is not, in"),
    ],
)
def test_names_that_cannot_be_are_refused(names, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_augment(names)


def test_no_name_is_no_augmentation():
    assert make_augment("") is make_augment(" ") is None
    assert make_augment(" flip , cutout") is not None


def test_parts_are_applied_in_their_order(monkeypatch):
    calls = []
    for name in ("random_flip", "cutout", "rand_augment"):
        noting = lambda _, image, name=name: calls.append(name) or image  # noqa: E731
        monkeypatch.setattr(augmentation, name, noting)
    make_augment("rand_augment,flip,cutout")(np.random.default_rng(0), noise(4, 4), (4, 4))
    assert calls == ["rand_augment", "random_flip", "cutout"]


@pytest.fixture(scope="module")
def torchvisions():
    with np.load(torchvision_outputs.FILE) as outputs:
        return dict(outputs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_operations_are_torchvisions(torchvisions, size, magnitude):
    assert dict(zip(torchvisions["names"], torchvisions["either_sign"])) == {
        name: either_sign for name, (_, _, either_sign) in OPERATIONS.items()
    }
    for name, (apply, strongest, either_sign) in OPERATIONS.items():
        for sign in (1, -1) if either_sign else (1,):
            ours = pixels(apply(noise(*size), sign * strongest * magnitude / 30))
            difference = ours != torchvisions[torchvision_outputs.key(name, size, magnitude, sign)]
            # Rounded matrices may tell a pixel's neighbour apart otherwise, here and there.
            assert difference.any(axis=-1).mean() < (0.02 if "Shear" in name else 1e-9), name


def test_the_fallback_is_torchvisions(torchvisions):
    for size, (top, left, height, width) in zip(CROPPED, torchvisions["crops"], strict=True):
        box = augmentation._crop_box(np.random.default_rng(0), *size, SCALES, RATIOS)
        assert box == (left, top, left + width, top + height)
