"""What made this: origins come back from JSON, say what they are, and tell trainings apart."""

import dataclasses
import json

import numpy as np
import pytest

from mlclip_jax.embeddings.rows import Rows
from mlclip_jax.provenance import UNKNOWN, Origin, count_known, digest, fingerprint, hash_names, row_hashes

BACKBONE = Origin("openai/clip", "0123456789abcdef", "ab" * 32, image_size=(32, 48), template="a {labels}")
WHOLE = Origin("classes.npz", "", "cd" * 32, labels="ee" * 32, examples="ff" * 32, backbone=BACKBONE)


@pytest.mark.parametrize("origin", [BACKBONE, WHOLE, UNKNOWN, WHOLE.replace(backbone=UNKNOWN)])
def test_it_comes_back_from_json(origin):
    assert Origin.from_dict(json.loads(json.dumps(origin.to_dict()))) == origin


@pytest.mark.parametrize("foreign", [None, "flickr", [1], 3, {}, {"name": "x", "sha256": "00"}])
def test_what_others_write_is_no_origin(foreign):
    assert Origin.from_dict(foreign) is None


def test_what_a_later_version_adds_is_left_out():
    assert Origin.from_dict(BACKBONE.to_dict() | {"moon": "full", "resize": None}) == BACKBONE


def test_it_says_what_it_is():
    assert str(BACKBONE) == "openai/clip@0123456789ab (sha256 abababababab)"
    expected = "classes.npz (sha256 cdcdcdcdcdcd, labels eeeeeeeeeeee, examples ffffffffffff)"
    assert str(WHOLE) == expected


def test_the_backbone_behind_it():
    alone = Origin(BACKBONE.name, BACKBONE.revision, BACKBONE.sha256)
    assert BACKBONE.encoder == WHOLE.encoder == alone
    assert BACKBONE.prompt == WHOLE.prompt == "a {labels}"
    # A file whose maker is not known was made by something, not by itself.
    assert WHOLE.replace(backbone=UNKNOWN).encoder is None
    assert UNKNOWN.encoder is None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Origin)])
def test_a_run_resumes_under_the_same_weights_prompts_labels_examples_and_beginning(field):
    decides = field in ("sha256", "template", "labels", "examples", "init")
    other = {"image_size": (1, 2), "backbone": UNKNOWN}.get(field, "other")
    assert WHOLE.same_training(WHOLE.replace(**{field: other})) == (not decides)


def test_the_fingerprint_of_files(tmp_path):
    for name, content in (("a", b"ab"), ("b", b"c")):
        (tmp_path / name).write_bytes(content)
    whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert fingerprint("x", "main", [tmp_path / "a", tmp_path / "b"]) == Origin("x", "main", whole)


def test_digests_are_of_the_content_wherever_it_lies(tmp_path):
    array = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    for shard in range(2):
        np.save(tmp_path / f"{shard}.npy", array[3 * shard :][:3])
    rows = Rows([tmp_path / "0.npy", tmp_path / "1.npy"])
    assert digest([array]) == digest([rows])
    assert digest([array]) != digest([array + np.float32(1e-6)])
    np.testing.assert_array_equal(row_hashes(array), row_hashes(rows))
    assert count_known(array[[0, 4]], row_hashes(rows)) == 2
    assert count_known(array + 1, row_hashes(rows)) == 0
    assert hash_names(["a", "b"]) != hash_names(["b", "a"])
