"""Scores by patches, from images to scores: what streams, what is switched on, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_clip import config_with, write_clip
from tiny_models import write_case

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones.aspect import native_pixels, native_size
from mlclip_jax.backbones.dense import dense_features
from mlclip_jax.data.images import UnreadableImage
from mlclip_jax.data.sources import Source
from mlclip_jax.patches import (
    PatchSettings,
    batches,
    cosines_of_crops,
    learn_gaussians,
    name_vectors,
    patch_scores,
    score_patches,
)
from mlclip_jax.texts.vocabulary import background_words
from mlclip_jax.zero_shot import (
    add_patches,
    attention_affinity,
    cosine_scores,
    crop_scores,
    empty_bank,
    gaussian_probabilities,
    merged,
    patch_probabilities,
    pooled,
    refined,
)

NAMES = ("dog", "photo", "two dogs")
DEEP = config_with({"vision_config.num_hidden_layers": 4})
TEMPLATE = "a photo of {labels}."
PLAIN = PatchSettings("plain", background=False, global_weight=0.0, templates=TEMPLATE, batch_size=8)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return mlclip_jax.load_backbone(write_clip(tmp_path_factory.mktemp("clip"), DEEP))


@pytest.fixture(scope="module")
def images():
    """Ten images of three aspect ratios."""
    random = np.random.RandomState(5)
    shapes = [(40, 40), (30, 40), (60, 40)]
    return [random.randint(0, 256, (*shapes[i % 3], 3)).astype(np.uint8) for i in range(10)]


@pytest.fixture(scope="module")
def classes(backbone):
    return name_vectors(backbone, NAMES, TEMPLATE)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (224, 304)),  # 4 / 3 is 298.7, the nearest multiple of 16 is 304
        (640, 480, (304, 224)),
        (500, 500, (224, 224)),
        (400, 600, (224, 336)),
        (500, 520, (224, 224)),
        (100, 900, (224, 448)),  # longer than 2 to 1
    ],
)
def test_images_come_to_few_sizes_near_their_own_ratio(height, width, expected):
    assert native_size(height, width, 224, 16) == expected


def test_there_are_seven_sizes_and_little_is_squashed():
    sizes, worst = set(), 1.0
    for width in range(200, 401):
        for height in (200, 401):
            size = native_size(height, width, 320, 16)
            sizes.add(size)
            if max(height / width, width / height) <= 2:
                worst = max(worst, size[1] / size[0] * height / width, size[0] / size[1] * width / height)
    assert len(sizes | {native_size(w, h, 320, 16) for h, w in sizes}) == 7
    assert worst < 1.17


def test_native_pixels_show_the_whole_image(backbone):
    """The four quarters stay where they are, upright where EXIF turns the file."""
    quarters = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2) * 60, 20, 0), 40, 1)
    image = Image.fromarray(np.stack([quarters] * 3, axis=-1))
    pixels = native_pixels(backbone.image_processor, image, 16, 8)
    assert pixels.shape == (16, 32, 3)
    np.testing.assert_array_equal(pixels[[0, 0, -1, -1], [0, -1, 0, -1], 0], [0, 60, 120, 180])
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(native_pixels(backbone.image_processor, turned, 16, 8), pixels)


def test_batches_are_of_one_size_and_hold_every_image_once(backbone, images):
    settings = dataclasses.replace(PLAIN, short_side=24, batch_size=4)
    seen = []
    for rows, pixels in batches(backbone, images, settings):
        assert len(pixels) == 4
        assert not pixels[len(rows) :].any()
        for row, own in zip(rows, pixels):
            expected = native_pixels(backbone.image_processor, images[row], 24, 8)
            np.testing.assert_array_equal(own, expected)
        seen += rows.tolist()
    assert sorted(seen) == list(range(10))


def test_plain_patches_are_the_highest_softmax_of_local_features(backbone, images, classes):
    scores = score_patches(backbone, images, classes, None, PLAIN)
    local = backbone.encode_images(images, local=True).local
    np.testing.assert_allclose(scores, pooled(patch_probabilities(local, classes)), atol=1e-5)


def test_every_step_is_the_function_of_its_name(backbone, images, classes):
    """All but the Gaussian classifier, at native aspect ratios, image by image."""
    settings = PatchSettings(
        "surgery", refine=True, global_weight=0.3, short_side=24, templates=TEMPLATE, batch_size=4
    )
    scores = patch_scores(backbone, images[:6], NAMES, settings)
    words = name_vectors(backbone, background_words(NAMES), TEMPLATE)

    @jax.jit
    def written_out(pixels):
        dense = dense_features(backbone, backbone.parameters, pixels, "surgery", maps=True)
        grid = pixels.shape[1] // 8, pixels.shape[2] // 8
        probabilities = patch_probabilities(dense.local, classes, words)
        highest = pooled(refined(probabilities, attention_affinity(dense.maps), grid))
        return merged(highest, cosine_scores(dense.embeddings, classes), global_weight=0.3)

    for row, image in enumerate(images[:6]):
        pixels = native_pixels(backbone.image_processor, image, 24, 8)[None]
        np.testing.assert_allclose(scores[row], written_out(pixels)[0], atol=1e-5)


def test_gaussians_are_taught_by_unlabelled_images(backbone, images, classes):
    unlabelled = [image[::-1] for image in images for _ in range(2)]
    settings = dataclasses.replace(PLAIN, gaussian=True, patch_scale=7.0)
    scores = score_patches(backbone, images, classes, None, settings, unlabelled=unlabelled)
    gaussians = learn_gaussians(backbone, unlabelled, classes, None, settings)
    local = backbone.encode_images(images, local=True).local
    expected = merged(pooled(gaussian_probabilities(gaussians, local)), patch_scale=7.0)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    # What pads the batches, and in which sizes they come, teaches nothing.
    again = dataclasses.replace(settings, batch_size=4)
    np.testing.assert_allclose(
        score_patches(backbone, images, classes, None, again, unlabelled=unlabelled), scores, atol=1e-5
    )
    # Words for the background teach where they are switched on alone.
    words = name_vectors(backbone, ["sky", "wall"], TEMPLATE)
    for background in (False, True):
        own = dataclasses.replace(settings, background=background)
        taught = learn_gaussians(backbone, unlabelled, classes, words, own)
        assert (taught.counts.tolist() != gaussians.counts.tolist()) == background
    # The bank is another where the images to score are their own.
    alone = score_patches(backbone, images, classes, None, settings)
    assert np.abs(alone - scores).max() > 1e-6


def test_the_steps_are_programs_for_accelerators(backbone, classes):
    def step(parameters, pixels, bank):
        dense = dense_features(backbone, parameters, pixels, "sc_clip", maps=True)
        probabilities = patch_probabilities(dense.local, classes)
        scores = pooled(refined(probabilities, attention_affinity(dense.maps), (3, 3)))
        return scores, add_patches(bank, dense.local.reshape(-1, 20), probabilities.reshape(-1, len(NAMES)))

    arguments = backbone.parameters, np.zeros((2, 24, 24, 3), np.uint8), empty_bank(len(NAMES), 20)
    exported = jax.export.export(jax.jit(step), platforms=["tpu", "cuda"])(*arguments)
    assert exported.platforms == ("tpu", "cuda")
    assert exported.out_avals[0].shape == (2, len(NAMES))


def test_crops_overlap_by_half_and_the_whole_is_among_them(backbone, images, classes):
    cosines = cosines_of_crops(backbone, images, classes, 2, batch_size=8)
    for row in (0, 1, 2):
        image, (height, width) = images[row], images[row].shape[:2]
        down, across = (
            np.array([0, side / 3, 2 * side / 3, side]).round().astype(int) for side in (height, width)
        )
        parts = [image] + [
            image[down[i] : down[i + 2], across[j] : across[j + 2]] for i in (0, 1) for j in (0, 1)
        ]
        embeddings = backbone.encode_images([np.ascontiguousarray(part) for part in parts])
        np.testing.assert_allclose(cosines[row], crop_scores(embeddings[None], classes)[0], atol=1e-5)
    settings = dataclasses.replace(PLAIN, global_weight=1.0, global_scale=1.0, crops=2)
    scores = score_patches(backbone, images, classes, None, settings)
    np.testing.assert_allclose(scores, jax.nn.softmax(cosines, axis=1), atol=1e-5)


def test_a_source_is_read_as_a_list_is(backbone, images, classes, tmp_path):
    for i, image in enumerate(images[:3]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    source = mlclip_jax.data.sources.read_folder(tmp_path)
    expected = score_patches(backbone, images[:3], classes, None, PLAIN)
    np.testing.assert_allclose(score_patches(backbone, source, classes, None, PLAIN), expected, atol=1e-6)

    def read(index):
        raise UnreadableImage(f"number {index} is torn")

    torn = Source("torn", ["a.jpg"], read)
    with pytest.raises(InputError, match=r"cannot read image a\.jpg: number 0 is torn; repair"):
        score_patches(backbone, torn, classes, None, PLAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "scclip"}, r"invalid attention=scclip \(did you mean s\w+\?\): must be one of plain"),
        ({"global_weight": 1.5}, r"invalid global_weight=1\.5: must be in \[0, 1\]"),
        ({"batch_size": 0}, "invalid batch_size=0: must be at least 1"),
        ({"temperature": 0.0}, r"invalid temperature=0\.0: must be finite and positive"),
        ({"crops": 2}, "crops=2 are part of the scores of whole images, which global_weight=0 leaves out"),
    ],
)
def test_invalid_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_what_cannot_be_scored_is_refused(backbone, images, tmp_path):
    resnet = mlclip_jax.load_backbone(write_case(tmp_path, "open_clip_resnet"))
    with pytest.raises(InputError, match="has no attention among patches to change"):
        patch_scores(resnet, images, NAMES, PLAIN)
    with pytest.raises(InputError, match="names 'dog' more than once"):
        patch_scores(backbone, images, ["dog", "dog"], PLAIN)
    with pytest.raises(InputError, match="give a list of images, not"):
        patch_scores(backbone, "photo.jpg", NAMES, PLAIN)
    few = dataclasses.replace(PLAIN, gaussian=True)
    with pytest.raises(InputError, match=r"a bank of \d+ confident patches is too small"):
        patch_scores(backbone, images[:1], NAMES, few)


def test_too_many_labels_for_gaussians_are_refused_before_an_image_is_read(backbone):
    classes = np.zeros((20_000, 512), np.float32)
    with pytest.raises(InputError, match=r"holds 512 patches of each label, 20 GiB of 20,000 labels; give"):
        learn_gaussians(backbone, [], classes, None, PatchSettings(gaussian=True))
