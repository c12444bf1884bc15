"""CLIP from files in Hugging Face's format, against outputs of torch that are stored here."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from clip_cases import CASES, TEXTS, images
from PIL import Image
from safetensors.numpy import save_file
from tiny_clip import MERGES, TINY, config_with, random_weights, write_clip, write_processing

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones.tokenizer import Tokenizer

GOLDEN = Path(__file__).with_name("clip_golden.npz")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return mlclip_jax.load_backbone(write_clip(tmp_path_factory.mktemp("clip")))


@pytest.mark.parametrize("case", CASES)
def test_embeddings_are_torchs(tmp_path, case):
    backbone = mlclip_jax.load_backbone(write_clip(tmp_path, CASES[case]))
    with np.load(GOLDEN) as golden:
        image, text = golden[f"{case}/image"], golden[f"{case}/text"]
    np.testing.assert_allclose(backbone.encode_images(images()), image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(backbone.encode_texts(TEXTS), text, rtol=0, atol=1e-5)


@pytest.mark.parametrize("end_token", [5, 100])
def test_texts_are_pooled_at_the_first_end_token_whatever_its_id(tmp_path, end_token):
    """What follows the end token must not count, nor may a larger id be taken for it."""
    config = config_with({"text_config.eos_token_id": end_token})
    folder = write_clip(tmp_path, config)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"]["sep"] = [
        Tokenizer(folder, 16, 1000)._tokenizer.id_to_token(end_token),
        end_token,
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    backbone = mlclip_jax.load_backbone(folder)

    def embed(*token_ids):
        return np.asarray(backbone.text(backbone.parameters, np.array([token_ids], np.int32))[0])

    embedding = embed(519, 300, 90, end_token, 400, end_token)
    np.testing.assert_allclose(embed(519, 300, 90, end_token, 7, 7), embedding, rtol=0, atol=1e-6)
    for changed in [(519, 301, 90, end_token, 400, 7), (519, 300, 91, end_token, 400, 7)]:
        assert np.abs(embed(*changed) - embedding).max() > 1e-3


def test_half_precision_files_load_as_float32(tmp_path):
    backbone = mlclip_jax.load_backbone(write_clip(tmp_path / "bf16", dtype=ml_dtypes.bfloat16))
    full = mlclip_jax.load_backbone(write_clip(tmp_path / "f32"))
    embeddings = backbone.encode_texts(TEXTS)
    assert embeddings.dtype == np.float32
    difference = np.abs(embeddings - full.encode_texts(TEXTS)).max()
    assert 0 < difference < 0.1


def test_images_come_as_arrays_pictures_or_paths(backbone, tmp_path):
    array = images()[1]
    Image.fromarray(array).save(tmp_path / "image.png")
    kinds = [array, Image.fromarray(array), str(tmp_path / "image.png"), tmp_path / "image.png"]
    embeddings = backbone.encode_images(kinds)
    assert embeddings.shape == (4, 20)
    np.testing.assert_array_equal(embeddings, np.broadcast_to(embeddings[:1], (4, 20)))


def test_batches_do_not_show(backbone):
    many = images() * 3
    whole = backbone.encode_images(many)
    # 4 devices: batches of 3 become 4, and the last is filled up.
    np.testing.assert_allclose(backbone.encode_images(many, batch_size=3), whole, rtol=0, atol=1e-6)
    one_by_one = np.concatenate([backbone.encode_images([image]) for image in many])
    np.testing.assert_allclose(one_by_one, whole, rtol=0, atol=1e-6)
    assert backbone.encode_images([]).shape == (0, 20)


def test_long_texts_are_cut_and_counted(backbone):
    long = "dog " * 40
    with pytest.warns(UserWarning, match="2 of 3 texts were cut to 16 tokens"):
        embeddings = backbone.encode_texts([long, "dog", long + "photo"])
    np.testing.assert_allclose(embeddings[0], embeddings[2], rtol=0, atol=1e-6)
    assert backbone.tokenizer.count_cut([long, "dog", long + "photo"]) == 2
    assert backbone.tokenizer.count_cut([]) == 0


def test_the_hub_name_is_found_in_the_cache(tmp_path, monkeypatch):
    """The hub's own cache layout, offline, as after an earlier download."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny-clip"
    folder = write_clip(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone = mlclip_jax.load_backbone("someone/tiny-clip")
    assert backbone.origin.name == "someone/tiny-clip"
    assert backbone.origin.revision == revision
    assert backbone.origin.sha256 == mlclip_jax.load_backbone(folder).origin.sha256
    with pytest.raises(InputError, match="'someone/other' is no folder here, and cannot be downloaded"):
        mlclip_jax.load_backbone("someone/other")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"cannot read .*config\.json as JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "model_type 'bert'"),
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04"), "cannot read .* as safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda f: (f / "tokenizer.json").write_text("[]"), r"cannot read .*tokenizer\.json"),
        (lambda f: (f / "preprocessor_config.json").unlink(), r"preprocessor_config\.json is missing"),
        (lambda f: (f / "preprocessor_config.json").write_text("{}"), "describes no image_processor"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "clip", "vision_config": 3}'),
            "describes no CLIP",
        ),
        (
            lambda f: write_clip(f, config_with({"vision_config.num_attention_heads": 5})),
            r"describes no CLIP: .* is not a multiple of the number of attention heads \(5\)",
        ),
        (
            lambda f: write_processing(f, config_with({"vision_config.image_size": 32})),
            r"makes images of \(32, 32\) pixels, and the config asks for \(24, 24\)",
        ),
        (
            lambda f: write_processing(f, merges=[*MERGES, ("d", "a")]),
            "has 522 tokens, and the config a vocabulary of 521",
        ),
        (
            lambda f: write_clip(f, config_with({"vision_config.hidden_act": "swish"})),
            "hidden_act 'swish' is not one of quick_gelu, gelu",
        ),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, damage, message):
    damage(write_clip(tmp_path))
    with pytest.raises(InputError, match=message) as raised:
        mlclip_jax.load_backbone(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_folder_is_not_looked_for_on_the_hub():
    with pytest.raises(InputError, match=r"no such folder of a backbone: \./nowhere"):
        mlclip_jax.load_backbone("./nowhere")


def test_an_unreadable_image_is_named(backbone, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    with pytest.raises(InputError, match=r"cannot read image .*broken\.jpg"):
        backbone.encode_images([tmp_path / "broken.jpg"])
    with pytest.raises(InputError, match=r"cannot read image .*none\.jpg: no such file or directory; repair"):
        backbone.encode_images([tmp_path / "none.jpg"])
    with pytest.raises(InputError, match=r"give a list of images, not 'cat\.jpg' alone"):
        backbone.encode_images("cat.jpg")
    with pytest.raises(InputError, match=r"uint8 \(h, w, 3\); got float32 \(2, 2\)"):
        backbone.encode_images([np.zeros((2, 2), np.float32)])


def test_nan_never_passes_for_an_embedding(tmp_path):
    weights = random_weights(TINY, 0)

    weights["visual_projection.weight"][0, 0] = np.nan
    save_file(weights, write_clip(tmp_path) / "model.safetensors")
    backbone = mlclip_jax.load_backbone(tmp_path)
    with pytest.raises(InputError, match="gives NaN or infinity for 5 of 5 images"):
        backbone.encode_images(images())
    token = backbone.tokenizer(["e"])[0][0, 1]
    weights["text_model.embeddings.token_embedding.weight"][token] = np.nan
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="for 1 of 2 texts, the first 'e'; its weights or that input"):
        mlclip_jax.load_backbone(tmp_path).encode_texts(["dog", "e"])


def test_the_tiny_configuration_is_not_square_anywhere():
    """A transposed weight must change a shape, or it could go unnoticed."""
    for tower in (TINY["vision_config"], TINY["text_config"]):
        assert len({tower["hidden_size"], tower["intermediate_size"], TINY["projection_dim"]}) == 3
