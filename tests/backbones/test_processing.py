"""Pixels and token ids against transformers' own, which need no torch."""

import csv
import json
import re

import numpy as np
import pytest
from clip_cases import TEXTS, images
from PIL import Image
from real_data import DATA, PHOTOGRAPHS, VOCABULARY, needs_real_data
from tiny_clip import VIT_B_32, read_merges, write_processing
from tiny_models import PRETRAINED_CFG, WORDS, write_bert_tokenizer, write_preprocessor

from mlclip_jax import InputError
from mlclip_jax.backbones.processing import (
    open_clip_processor,
    timm_processor,
    transformers_processor,
)
from mlclip_jax.backbones.saving import byte_alphabet
from mlclip_jax.backbones.tokenizer import Tokenizer, clean_text
from mlclip_jax.data.images import read_image, upright_rgb


def reference_pixels(folder, pictures):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(p) for p in pictures], return_tensors="np")["pixel_values"]
    return pixels.transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_size": {"height": 20, "width": 30}},
        {"crop_size": {"height": 30, "width": 30}},  # beyond the image: filled with zeros
        {"do_center_crop": False, "size": {"height": 18, "width": 26}},  # squashed
        {"resample": 2},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=lambda changes: "-".join(changes) or "clip",
)
def test_pixels_are_transformers(tmp_path, changes):
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    processor = transformers_processor(tmp_path, "CLIP")
    ours = np.stack([processor.normalise(processor.pixels(picture)) for picture in images()])
    # To rounding: bytes are rescaled and normalised in float32 on both sides.
    np.testing.assert_allclose(ours, reference_pixels(tmp_path, images()), rtol=1e-5, atol=1e-5)


def test_sizes_may_be_plain_numbers(tmp_path):
    """As in OpenAI's first files on the hub."""
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    expected = transformers_processor(tmp_path, "CLIP")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": 24, "crop_size": 24}))
    assert transformers_processor(tmp_path, "CLIP") == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"do_center_crop": False},
        {"size": {"longest_edge": 24}, "do_center_crop": False},
        {"resample": 17},
        {"crop_size": "large"},
        {"crop_size": -3},
        {"size": {"shortest_edge": 0}},
        {"size": {"shortest_edge": "24"}},
        {"image_mean": [0.5]},
        {"image_std": ["a", "b", "c"]},
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_an_error(tmp_path, changes):
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=r"preprocessor_config\.json"):
        transformers_processor(tmp_path, "CLIP")


def test_token_ids_are_transformers(tmp_path):
    from transformers import AutoTokenizer

    write_processing(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    texts = [*TEXTS, "DOG photo", "naïve – café 東京 🐕", "dog\n\t  photo", "dog " * 30]
    ids, _, cut = Tokenizer(tmp_path, 16, 1000)(texts)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    expected = reference(texts, padding="max_length", truncation=True, max_length=16, return_tensors="np")
    np.testing.assert_array_equal(ids, expected["input_ids"])
    assert (ids.dtype, ids.shape, cut) == (np.int32, (len(texts), 16), 2)  # of many bytes, of many words


@needs_real_data
def test_clips_own_vocabulary_gives_clips_own_ids(tmp_path):
    write_processing(tmp_path, VIT_B_32, read_merges(VOCABULARY))
    ids, _, _ = Tokenizer(tmp_path, 77, 49408)(["a photo of a cat", "A  Photo of a CAT"])
    assert ids.shape == (2, 77)
    expected = [49406, 320, 1125, 539, 320, 2368, 49407]
    np.testing.assert_array_equal(ids, [expected + [49407] * 70] * 2)


def saved(folder, image, name, **settings):
    image.save(folder / name, **settings)
    return folder / name


def picture():
    """An upright RGB picture whose every corner differs."""
    return Image.fromarray(images()[2]).resize((60, 40), Image.Resampling.BICUBIC)


def turned(exif_orientation):
    """The picture as a camera would store it that was held so, with the tag that says it."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[exif_orientation]
    exif = Image.Exif()
    exif[0x0112] = exif_orientation
    return picture().transpose(stored), exif


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_turned_upright(tmp_path, orientation):
    image, exif = turned(orientation)
    path = saved(tmp_path, image, "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(picture()))
    with Image.open(path) as opened:  # given as a picture, it is turned too, and the one given stays as it is
        np.testing.assert_array_equal(np.asarray(upright_rgb(opened)), np.asarray(picture()))
        assert opened.size == image.size


def grey_16_bits():
    return np.linspace(0, 65535, 60 * 40).astype(np.uint16).reshape(40, 60)


KINDS = {
    "RGB": lambda: picture(),
    "grey": lambda: picture().convert("L"),
    "grey and alpha": lambda: picture().convert("LA"),
    "bilevel": lambda: picture().convert("1"),
    "palette": lambda: picture().quantize(64),
    "palette with a transparent colour": lambda: with_transparency(picture().quantize(64), 3),
    "palette with transparencies": lambda: with_transparency(picture().quantize(64), bytes(range(64))),
    "alpha": lambda: with_alpha(picture()),
    "CMYK": lambda: picture().convert("CMYK"),
    "YCbCr": lambda: picture().convert("YCbCr"),
    "16 bits": lambda: Image.fromarray(grey_16_bits()),
    "32 bits": lambda: Image.fromarray(grey_16_bits().astype(np.int32)),
}
FORMATS = {"CMYK": "jpg", "YCbCr": "jpg", "32 bits": "tif"}


def with_alpha(image):
    image.putalpha(Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)))
    return image


def with_transparency(image, transparency):
    image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_becomes_rgb(tmp_path, kind):
    path = saved(tmp_path, KINDS[kind](), f"picture.{FORMATS.get(kind, 'png')}")
    with Image.open(path) as opened:
        mode = opened.mode
        upright = read_image(path)
        np.testing.assert_array_equal(np.asarray(upright_rgb(opened)), np.asarray(upright))
        opened.load()
        if kind in ("16 bits", "32 bits"):
            expected = np.round(grey_16_bits() / 257)[..., None].repeat(3, axis=2)
            assert np.abs(np.asarray(upright, float) - expected).max() <= 0.5
            assert np.asarray(upright).max() == 255
        elif kind == "palette with transparencies":
            np.testing.assert_array_equal(np.asarray(upright), np.asarray(opened.convert("RGBA"))[..., :3])
        else:
            np.testing.assert_array_equal(np.asarray(upright), np.asarray(opened.convert("RGB")))
    assert (upright.mode, upright.size) == ("RGB", (60, 40)), mode


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_kind_are_transformers(tmp_path, kind):
    """Of our upright RGB: transformers itself turns nothing, and clips 16 bits."""
    write_processing(tmp_path)
    path = saved(tmp_path, KINDS[kind](), f"picture.{FORMATS.get(kind, 'png')}")
    processor = transformers_processor(tmp_path, "CLIP")
    ours = processor.normalise(processor.pixels(path))[None]
    theirs = reference_pixels(tmp_path, [np.asarray(read_image(path))])
    assert np.abs((ours - theirs) * processor.std).max() <= 1 / 255


def test_floating_point_pixels_are_refused(tmp_path):
    image = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(InputError, match="floating-point pixels have no fixed range"):
        read_image(saved(tmp_path, image, "float.tif"))
    write_processing(tmp_path)
    with pytest.raises(InputError, match="floating-point pixels have no fixed range"):
        transformers_processor(tmp_path, "CLIP").pixels(image)


@needs_real_data
def test_pixels_of_real_photographs_are_transformers(tmp_path):
    write_processing(tmp_path, VIT_B_32)
    processor = transformers_processor(tmp_path, "CLIP")
    paths = sorted((PHOTOGRAPHS / "images").glob("*.jpg"))
    assert len(paths) == 179
    for path in paths:
        ours = processor.normalise(processor.pixels(path))[None]
        theirs = reference_pixels(tmp_path, [np.asarray(read_image(path))])
        assert np.abs((ours - theirs) * processor.std).max() <= 1 / 255, path.name


def test_pixels_of_blip_are_transformers(tmp_path):
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    write_preprocessor(tmp_path, "BlipImageProcessor", size={"height": 30, "width": 22})
    processor = transformers_processor(tmp_path, "Blip")
    theirs = BlipImageProcessorPil.from_pretrained(tmp_path)([Image.fromarray(i) for i in images()])
    for image, expected in zip(images(), theirs["pixel_values"]):
        ours = processor.normalise(processor.pixels(image)).transpose(2, 0, 1)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "output"), [(24, 24), (400, 400)])
def test_pixels_of_convnext_are_transformers(tmp_path, size, output):
    """What transformers' ResNets are processed with: below 384 pixels cropped, from there on squashed."""
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    write_preprocessor(tmp_path, "ConvNextFeatureExtractor", size=size, crop_pct=0.8)
    processor = transformers_processor(tmp_path, "ConvNext")
    assert processor.output_size == (output, output)
    reference = ConvNextImageProcessorPil(
        size={"shortest_edge": size},
        crop_pct=0.8,
        image_mean=list(processor.mean),
        image_std=list(processor.std),
        resample=3,
    )
    theirs = reference([Image.fromarray(i) for i in images()])
    for image, expected in zip(images(), theirs["pixel_values"]):
        ours = processor.normalise(processor.pixels(image)).transpose(2, 0, 1)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_open_clip_and_timm_round_the_margin_as_torchvision_does():
    """Of 5 pixels, torchvision cuts off 2 at the start; of 7, 4; transformers 2 and 3."""
    processor = open_clip_processor("config", {}, 8)
    columns = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (8, 40, 3))
    for margin, first in ((5, 2), (7, 4), (9, 4), (6, 3)):
        pixels = processor.pixels(np.ascontiguousarray(columns[:, : 8 + margin]))
        assert pixels[0, :, 0].tolist() == list(range(first, first + 8))
    assert timm_processor("config", PRETRAINED_CFG).round_offset
    assert timm_processor("config", PRETRAINED_CFG).cover == (73, 73)  # 64 / 0.875, rounded down


def test_another_size_is_made_as_the_checkpoint_makes_its_own(tmp_path):
    write_processing(tmp_path)
    clip = transformers_processor(tmp_path, "CLIP")
    assert clip.at_size((48, 48)) == clip._replace(cover=(48, 48), crop=(48, 48))
    assert clip.at_size((48, 32)).output_size == (48, 32)
    assert clip.at_size((48, 48), "squash") == clip._replace(cover=None, size=(48, 48), crop=None)
    timm = timm_processor("config", PRETRAINED_CFG)
    for side in (128, 288, 320, 384, 448):
        assert timm.at_size((side, side)).cover == (int(side / 0.875),) * 2  # as timm computes it
    write_preprocessor(tmp_path, "BlipImageProcessor", size=24)
    blip = transformers_processor(tmp_path, "Blip")
    assert blip.at_size((48, 32)).size == (48, 32)
    assert blip.at_size((48, 32), "crop").crop == (48, 32)


@pytest.mark.parametrize("size", [(24, 24), (40, 16), (16, 40)])
def test_a_crop_fills_its_size_from_any_shape(size):
    processor = open_clip_processor("config", {}, 24).at_size(size)
    for height, width in ((24, 24), (100, 7), (7, 100), (1, 1), (33, 50)):
        pixels = processor.pixels(np.full((height, width, 3), 200, np.uint8))
        assert pixels.shape == (*size, 3)
        assert (pixels == 200).all()  # no black beyond an edge


def test_a_processor_config_may_hold_the_image_processor(tmp_path):
    """As transformers 5 writes both processors of a model into one file."""
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    expected = transformers_processor(tmp_path, "CLIP")
    whole = {"image_processor": json.loads(path.read_text()), "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    path.unlink()
    assert transformers_processor(tmp_path, "CLIP") == expected
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"processor_config\.json cannot be followed"):
        transformers_processor(tmp_path, "CLIP")


@needs_real_data
def test_token_ids_of_real_captions_are_transformers(tmp_path):
    """Of 10,000 captions, and of what no caption holds. Theirs is made of merges, ours of tokenizer.json."""
    from transformers import CLIPTokenizer

    merges = read_merges(VOCABULARY)
    write_processing(tmp_path, VIT_B_32, merges)
    with (DATA / "captions" / "multiclip_test.csv").open(encoding="utf-8") as file:
        captions = [row["Caption"] for row in csv.DictReader(file)]
    assert len(captions) == 10_000
    odd = [
        "",
        " ",
        "!",
        "dog!",
        "A DOG'S  bowl\n\t& the cats' 3 balls",
        "emoji 🐕🏽‍🦺 and 👨‍👩‍👧",
        "Žluťoučký kůň, naïve café, İstanbul, straße",
        "東京タワー 서울 Москва",
        "<|endoftext|> within",
        "x" * 5_000,
        "dog " * 500,
        "\u0000\u200b\ufeff",
    ]
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    reference = CLIPTokenizer(vocab=vocabulary, merges=merges)
    expected = reference(captions + odd, padding="max_length", truncation=True, max_length=77)["input_ids"]
    ids, lengths, cut = Tokenizer(tmp_path, 77, 49408)(captions + odd)
    np.testing.assert_array_equal(ids, expected)
    assert cut == sum(len(tokens) > 77 for tokens in reference(captions + odd)["input_ids"]) >= 2
    assert lengths.max() == 77


TRICKY = [
    *TEXTS,
    "",
    "DOG'S  bowl\n& 3 balls",
    "naïve – café 東京 🐕",
    "<|endoftext|> within",
    "<s> x </s><mask>",
]


def write_vocabulary(folder, vocabulary, merges):
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_vocabulary_and_merges_are_clips_tokenizer(tmp_path):
    from transformers import CLIPTokenizer

    write_processing(tmp_path)
    whole = Tokenizer(tmp_path, 32, 1000)(TRICKY)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    write_vocabulary(tmp_path, model["vocab"], model["merges"])
    ids, lengths, cut = Tokenizer(tmp_path, 32, 1000)(TRICKY)
    for own, theirs in zip((ids, lengths, cut), whole):
        np.testing.assert_array_equal(own, theirs)
    reference = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    expected = reference(TRICKY, padding="max_length", truncation=True, max_length=32)["input_ids"]
    np.testing.assert_array_equal(ids, expected)


def test_a_vocabulary_and_merges_are_robertas_tokenizer(tmp_path):
    from transformers import RobertaTokenizer

    merges = [("d", "o"), ("do", "g"), ("Ġ", "p"), ("Ġp", "h"), ("Ġ", "o"), ("Ġo", "f")]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet(), *map("".join, merges), "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    write_vocabulary(tmp_path, vocabulary, merges)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}')
    ids, _, _ = Tokenizer(tmp_path, 64, 1000)(TRICKY)
    reference = RobertaTokenizer(vocab=vocabulary, merges=merges)
    expected = reference(TRICKY, padding="max_length", truncation=True, max_length=64)["input_ids"]
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        (
            {"a": 0, "a</w>": 1},
            "",
            "has no token '<|endoftext|>'; it is neither of CLIP's kind nor of RoBERTa's",
        ),
        ({"a": 0}, "", "has no token '</s>'"),
        ({"<s>": 0, "</s>": "1"}, "", "must hold an object from tokens to their numbers"),
        ({"<s>": 0, "</s>": 1}, "x y\n", "do not belong together: "),
    ],
)
def test_vocabularies_that_are_none(tmp_path, vocabulary, merges, message):
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(InputError, match=re.escape(message)):
        Tokenizer(tmp_path, 16, 1000)


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("it’s a “dog”", 'it\'s a "dog"'),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("sch\u00c3\u00b6n", "schön"),
        (" two\n\t blanks ", "two blanks"),
        ("plain", "plain"),
    ],
)
def test_texts_are_repaired_where_the_layout_does(tmp_path, text, repaired):
    write_processing(tmp_path)
    plain, clean = (Tokenizer(tmp_path, 32, 1000, clean=clean) for clean in (False, True))
    assert clean_text(text) == repaired
    np.testing.assert_array_equal(clean([text])[0], plain([repaired])[0])


@pytest.mark.parametrize("size", [(24, 24), (32, 48), (12, 12)])
def test_squashed_and_cropped_at_any_size_alike(tmp_path, size):
    """Of an image that fills 32 x 40 pixels, the inner 24 x 24, or as much of it at another size."""
    changes = {"size": {"height": 32, "width": 40}, "crop_size": {"height": 24, "width": 24}}
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    own = transformers_processor(tmp_path, "CLIP")
    processor = own.at_size(size)
    assert processor.resize == own.resize == "squash and crop"
    assert processor == own or size != (24, 24)
    assert processor.size == (size[0] * 32 // 24, size[1] * 40 // 24)
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    height, width = processor.size
    whole = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    inner = np.asarray(whole)[top : top + size[0], left : left + size[1]]
    np.testing.assert_array_equal(processor.pixels(picture), inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.pop("image_mean"), "it has no image_mean; CLIP's is [0.48145466, "),
        (lambda config: config.pop("image_std"), "it has no image_std"),
        (lambda config: config.update(size=[24, 24]), "size [24, 24] is neither a number nor an object"),
        (lambda config: config.update(crop_size=[24, 24]), "crop_size [24, 24] is neither"),
        (lambda config: config.clear(), "it describes no image_processor"),
    ],
)
def test_a_processor_config_names_what_it_lacks(tmp_path, change, message):
    write_processing(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(f"{path} cannot be followed: {message}")):
        transformers_processor(tmp_path, "CLIP")


def test_texts_are_padded_as_the_checkpoint_says(tmp_path):
    write_processing(tmp_path)
    end = Tokenizer(tmp_path, 16, 1000)
    zero = Tokenizer(tmp_path, 16, 1000, padding=0)  # open_clip's files
    ids, lengths, _ = end(["dog!", "a photo"])
    zeros, _, _ = zero(["dog!", "a photo"])
    for row, other, length in zip(ids, zeros, lengths):
        np.testing.assert_array_equal(row[:length], other[:length])  # a "!" is no padding, though its id is 0
        assert set(row[length:]) == {row[length - 1]}
        assert set(other[length:]) == {0}
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "<|nothing|>"}')
    with pytest.raises(InputError, match=r"no token '<\|nothing\|>', which texts are padded with"):
        Tokenizer(tmp_path, 16, 1000)


def test_token_ids_of_blip_are_transformers(tmp_path):
    from transformers import BertTokenizerFast

    write_bert_tokenizer(tmp_path)
    texts = ["A photo of two DOGS !", "", "dog, cat.", "zebra", "cat " * 50]
    ids, lengths, cut = Tokenizer(tmp_path, 32, len(WORDS), padding=0)(texts)
    reference = BertTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    expected = reference(texts, padding="max_length", truncation=True, max_length=32)
    np.testing.assert_array_equal(ids, expected["input_ids"])
    np.testing.assert_array_equal(lengths, np.sum(expected["attention_mask"], axis=1))
    assert cut == 1


def torchvision_pixels(image, edge, crop, resample):
    """What torchvision's Resize(edge) and CenterCrop(crop) make of a PIL image."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = edge, int(edge * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((new_width, new_height), resample)
    top, left = round((new_height - crop) / 2.0), round((new_width - crop) / 2.0)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


@needs_real_data
def test_pixels_of_open_clip_and_timm_are_torchvisions():
    open_clip = open_clip_processor("config", {}, 224)
    timm = timm_processor("config", PRETRAINED_CFG | {"input_size": [3, 224, 224]})
    for path in sorted((PHOTOGRAPHS / "images").glob("*.jpg"))[:40]:
        image = read_image(path)
        expected = torchvision_pixels(image, 224, 224, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(open_clip.pixels(path), expected)
        expected = torchvision_pixels(image, 256, 224, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(timm.pixels(path), expected)
