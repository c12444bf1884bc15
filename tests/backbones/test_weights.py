"""Every key is used, every parameter filled, or loading fails and names them."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_clip import config_with, write_clip

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones.weights import fingerprint


@pytest.fixture
def folder(tmp_path):
    return write_clip(tmp_path)


def rewrite(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def test_an_unknown_key_is_named(folder):
    rewrite(folder, lambda arrays: arrays.update({"vision_model.extra.weight": np.ones(3, np.float32)}))
    with pytest.raises(InputError, match=r"1 keys \(vision_model\.extra\.weight\) unused, no key unfilled"):
        mlclip_jax.load_backbone(folder)


def test_a_layer_beyond_the_config_is_named(folder):
    write_clip(folder, config_with({"text_config.num_hidden_layers": 3}))
    (folder / "config.json").write_text((write_clip(folder.parent / "other") / "config.json").read_text())
    with pytest.raises(InputError, match=r"16 keys \(text_model\.encoder\.layers\.2\..*, \.\.\.\) unused"):
        mlclip_jax.load_backbone(folder)


def test_every_missing_key_is_noticed(folder):
    """One at a time: no parameter has a default that could hide the loss of its key."""
    whole = load_file(folder / "model.safetensors")
    for key in whole:
        save_file({k: v for k, v in whole.items() if k != key}, folder / "model.safetensors")
        with pytest.raises(InputError, match=r"no key unused, 1 keys \(.*\) unfilled"):
            mlclip_jax.load_backbone(folder)


def test_a_shape_that_differs_is_named(folder):
    rewrite(folder, lambda arrays: arrays.update({"visual_projection.weight": np.ones((20, 31), np.float32)}))
    message = "visual_projection.weight has shape (20, 31), which becomes (31, 20) where the config asks for"
    with pytest.raises(InputError, match=re.escape(message)):
        mlclip_jax.load_backbone(folder)


def test_position_ids_of_older_files_are_ignored(folder):
    before = mlclip_jax.load_backbone(folder).encode_texts(["dog"])
    ids = np.arange(16)[None]
    rewrite(folder, lambda arrays: arrays.update({"text_model.embeddings.position_ids": ids}))
    np.testing.assert_array_equal(mlclip_jax.load_backbone(folder).encode_texts(["dog"]), before)


def test_the_fingerprint_is_of_all_that_matters(folder, tmp_path):
    path = tmp_path / "some.bin"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert fingerprint("name", "main", [path]) == {"name": "name", "revision": "main", "sha256": digest}
    before = mlclip_jax.load_backbone(folder).fingerprint
    rewrite(folder, lambda arrays: arrays["logit_scale"].__iadd__(1))
    weights_changed = mlclip_jax.load_backbone(folder).fingerprint
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    config_changed = mlclip_jax.load_backbone(folder).fingerprint
    assert len({f["sha256"] for f in (before, weights_changed, config_changed)}) == 3


def test_integers_are_no_weights(folder):
    rewrite(folder, lambda arrays: arrays.update({"text_projection.weight": np.ones((20, 24), np.int8)}))
    with pytest.raises(InputError, match=r"text_projection.weight is int8; only floating-point"):
        mlclip_jax.load_backbone(folder)


def test_a_flat_patch_embedding_is_named(folder):
    name = "vision_model.embeddings.patch_embedding.weight"
    rewrite(folder, lambda arrays: arrays.update({name: np.ones((32, 192), np.float32)}))
    with pytest.raises(InputError, match=rf"{name} has shape \(32, 192\), which does not fit: axes"):
        mlclip_jax.load_backbone(folder)
