"""Zero-shot methods as recipes name them: each calls its function with its settings."""

import json

import numpy as np
import pytest
from flax import nnx
from zero_shot.prompt_tables import random_encoder

from mlclip_jax import methods, recipes
from mlclip_jax.embeddings.store import Embeddings, write_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.label_texts import read_bank
from mlclip_jax.provenance import Origin
from mlclip_jax.texts.templates import fill
from mlclip_jax.texts.vocabulary import everyday_nouns
from mlclip_jax.zero_shot import (
    centred,
    compound_prompts,
    cosine_scores,
    fuse_compounds,
    mean_direction,
    merged_scores,
    ridge_scores,
    self_distilled_scores,
    standardise,
)
from mlclip_jax.zero_shot.list_all import list_all
from mlclip_jax.zero_shot.prompts import LabelTexts, write_sentences, write_words
from mlclip_jax.zero_shot.published import (
    list_all_as_published,
    top_all_as_published,
    yes_no_as_published,
)
from mlclip_jax.zero_shot.top_all import top_all
from mlclip_jax.zero_shot.yes_no import yes_no

NAMES = ("cat", "motorcycle", "cycle", "traffic light")
TEMPLATES = ("a photo of {labels}.", "art of the {}.")
WIDTH = 16
OWN = Origin("own", sha256="1" * 64)


def texts(number=4, **changes):
    encode = random_encoder(WIDTH)
    names = NAMES[:number]
    embeddings = encode([fill(TEMPLATES[0], [name]) for name in names])
    own = Embeddings({"text": embeddings}, names, origin=Origin("labels", backbone=OWN))
    return LabelTexts(
        names, embeddings, TEMPLATES, encode, read_bank=lambda path: read_bank(path, own)
    )._replace(**changes)


def images(number=5, seed=0):
    return np.random.default_rng(seed).normal(size=(number, WIDTH)).astype(np.float32)


def decide(name, known=None, labels=None, **settings):
    method = methods.find({"name": name} | settings)
    assert method.at_once
    assert method.trainable == ()
    assert method.uses
    labels = labels or texts()
    made = method.make()
    made.check(labels)
    return made.decide({"image": images() if known is None else known}, labels)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.prompts == expected.prompts


@pytest.mark.parametrize("absent", ["nothing", "without", "no"])
def test_yes_or_no(absent):
    found = decide("yes_no", absent=absent, logit_scale=10.0)
    assert_same(found, yes_no(images(), random_encoder(), NAMES, absent=absent, logit_scale=10.0))


def test_list_all_in_a_form():
    found = decide("list_all", form="words", logit_scale=10.0)
    assert_same(found, list_all(images(), random_encoder(), NAMES, write=write_words, logit_scale=10.0))


def test_top_all_in_a_form_and_to_a_depth():
    found = decide("top_all", form="sentences", deepest=2)
    assert_same(found, top_all(images(), random_encoder(), NAMES, write=write_sentences, deepest=2))


def test_top_all_puts_as_many_classes_into_a_prompt_as_fit():
    def count_cut(texts):
        return sum(len(text.split(", ")) > 2 for text in texts)

    labels = texts(count_cut=count_cut)
    assert_same(decide("top_all", labels=labels), decide("top_all", deepest=2))
    with pytest.raises(InputError, match="would be cut"):
        decide("top_all", labels=labels, published=True)


def test_a_language_model_writes_both_stages_from_its_file(tmp_path):
    answers = tmp_path / "captions.jsonl"
    with pytest.raises(InputError, match="no file of captions is named; give answers=FILE"):
        decide("language_model_top_all")
    with pytest.raises(InputError, match=r"lacks the captions of 2 combinations .* no language model"):
        decide("language_model_top_all", answers=str(answers), labels=texts(2))
    captions = {("cat",): "a cat sleeps", ("motorcycle",): "a fast one", ("cat", "motorcycle"): "a cat rides"}
    lines = [
        json.dumps({"combination": i, "labels": names, "text": text})
        for i, (names, text) in enumerate(captions.items())
    ]
    answers.write_text("\n".join(lines) + "\n")

    def write(combinations):
        return [captions[tuple(sorted(names))] for names in combinations]

    found = decide("language_model_top_all", answers=str(answers), labels=texts(2))
    expected = top_all(images(), random_encoder(), NAMES[:2], write_class=write, write=write)
    assert_same(found, expected)
    hard = decide("language_model_top_all", answers=str(answers), labels=texts(2), published=True)
    np.testing.assert_array_equal(hard.labels[:, 0], ["cat" in prompt for prompt in hard.prompts])


def test_as_published():
    for name, published in {
        "yes_no": yes_no_as_published,
        "list_all": list_all_as_published,
        "top_all": top_all_as_published,
    }.items():
        found = decide(name, published=True)
        assert_same(found, published(images(), random_encoder(), NAMES))
        assert set(np.unique(found.scores)) <= {0, 1}
    # Who predicts a motorcycle predicts "cycle" too; by index it is a class of its own.
    by_name, by_index = (decide("list_all", images(40), published=p).labels for p in (True, False))
    assert not (by_name[:, 1] & ~by_name[:, 2]).any()
    assert (by_index[:, 1] & ~by_index[:, 2]).any()


def nouns_mean(encode):
    """Each noun in one of the two templates, these in turn."""
    filled = [fill(TEMPLATES[i % 2], [noun]) for i, noun in enumerate(everyday_nouns())]
    return mean_direction(encode(filled))


def test_ridge_centred_on_a_vocabulary(tmp_path):
    labels = texts()
    expected = standardise(
        ridge_scores(images(), centred(labels.embeddings, nouns_mean(random_encoder())), 2.0)
    )
    found = decide("zero_shot_centred", penalty=2.0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-6)
    assert found.labels is None
    (tmp_path / "nouns.txt").write_text("cat\ndog\nowl\n")
    own = decide("zero_shot_centred", vocabulary=str(tmp_path / "nouns.txt"), penalty=2.0)
    encode = random_encoder()
    mean = mean_direction(encode(["a photo of a cat.", "art of the dog.", "a photo of an owl."]))
    expected = standardise(ridge_scores(images(), centred(labels.embeddings, mean), 2.0))
    np.testing.assert_allclose(own.scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by", ["scores", "ranks", "maximum"])
def test_templates_one_by_one(by):
    """Here with two templates, written out."""
    encode = random_encoder()
    scores = [
        np.asarray(standardise(cosine_scores(images(), encode([fill(template, [name]) for name in NAMES]))))
        for template in TEMPLATES
    ]
    made_one = {
        "scores": lambda a, b: (a + b) / 2,
        "ranks": lambda a, b: (a.argsort(1).argsort(1) + b.argsort(1).argsort(1)) / 2 + 1,
        "maximum": np.maximum,
    }[by]
    found = decide("zero_shot_per_template", by=by, rule="standardised")
    np.testing.assert_allclose(found.scores, made_one(*scores), rtol=1e-5, atol=1e-5)
    assert decide("zero_shot_per_template", labels=texts(1), rule="cosine").scores.shape == (5, 1)
    with pytest.raises(InputError, match="there is one label"):
        decide("zero_shot_per_template", labels=texts(1), by=by)


def test_compound_prompts_of_every_pair():
    labels = texts(3)
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    compound = cosine_scores(images(), random_encoder()(compound_prompts(NAMES[:3], pairs)))
    expected = fuse_compounds(cosine_scores(images(), labels.embeddings), compound, pairs)
    found = decide("zero_shot_compound", labels=labels)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-6)
    many = texts()._replace(names=tuple(f"thing {i}" for i in range(257)))
    with pytest.raises(InputError, match=r"Compound prompts of 257 labels are 32,896 pairs, too many"):
        decide("zero_shot_compound", labels=many)


def test_a_bank_teaches(tmp_path):
    labels, bank, mean = texts(), images(160, seed=1), nouns_mean(random_encoder())
    origin = Origin("the bank", backbone=OWN)
    write_embeddings(tmp_path / "bank.npz", Embeddings({"image": bank}, origin=origin))
    found = decide("self_distilled", bank=str(tmp_path / "bank.npz"))
    expected = self_distilled_scores(images(), labels.embeddings, bank, mean)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5)
    # By default the images are their own bank.
    found = decide("self_distilled", bank)
    expected = self_distilled_scores(bank, labels.embeddings, bank, mean)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5)


def test_a_bank_must_be_large_enough_and_of_the_same_backbone(tmp_path):
    def bank_of(vectors, origin):
        write_embeddings(tmp_path / "bank.npz", Embeddings({"image": vectors}, origin=origin))
        return str(tmp_path / "bank.npz")

    with pytest.raises(InputError, match="a bank of 5 images is too small"):
        decide("self_distilled")
    other = Origin("x", backbone=Origin("other", sha256="2" * 64))
    with pytest.raises(
        InputError, match=r"was made by other .*, and the labels are embedded by own .*; embed"
    ):
        decide("self_distilled", bank=bank_of(images(160), other))
    with pytest.raises(InputError, match=r"is 8 wide, and the embeddings of the labels 16; embed the bank"):
        decide("self_distilled", bank=bank_of(images(160)[:, :8], Origin("", sha256="")))
    with pytest.raises(InputError, match="nowhere"):
        decide("self_distilled", bank=str(tmp_path / "nowhere.npz"))


def test_a_calibration_belongs_to_what_files_hold(tmp_path):
    """What a rule knows from files is part of the digest; a bank makes an image's scores its own."""

    def known(name, **settings):
        made = methods.find({"name": name} | settings).make()
        return b"".join(made.known(texts())), made.scores_alone

    bank = str(tmp_path / "bank.npz")
    write_embeddings(bank, Embeddings({"image": images(160)}))
    assert known("self_distilled", bank=bank) == (images(160).tobytes(), True)
    assert known("self_distilled") == (b"", False)
    (tmp_path / "nouns.txt").write_text("cat\ndog\n")
    assert known("zero_shot_centred", vocabulary=str(tmp_path / "nouns.txt")) == (b"catdog", True)
    assert known("zero_shot_patches", gaussian=True) == (b"", False)
    assert known("zero_shot_patches", gaussian=True, unlabelled="scenes:train,number=2")[1]
    assert known("yes_no") == (b"", True)
    # Files are opened once for a run, not once for each question that it is asked.
    method = methods.find({"name": "zero_shot_patches", "unlabelled": "scenes:train,number=2"})
    assert method.make() is method.make()


def test_patches_beside_the_whole_image():
    patches = np.random.default_rng(2).normal(size=(5, 6, WIDTH)).astype(np.float32)
    classes = texts().embeddings
    method = methods.find({"name": "zero_shot_local", "sharpness": 20.0, "weight": 0.3})
    assert (method.reads, method.at_once, method.trainable) == (("image", "image_local"), False, ())
    module = method.make(classes, rngs=nnx.Rngs(0))
    found = module({"image": images(), "image_local": patches})
    merged = merged_scores(images(), patches, classes, sharpness=20.0, weight=0.3)
    np.testing.assert_allclose(found, standardise(merged), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["zero_shot_centred", "zero_shot_compound", "self_distilled"])
def test_one_label_is_refused(name):
    with pytest.raises(InputError, match="there is one label; give more, or choose the rule cosine"):
        decide(name, labels=texts(1))


def test_every_rule_of_the_recipe_is_a_method_that_needs_no_training():
    config = recipes.read("zero_shot:all,bank=B,answers=A")
    assert config.options.to_dict() == {
        "bank": "B",
        "unlabelled": "",
        "answers": "A",
        "model": "",
        "address": "",
    }
    for rule in config.rules:
        method = methods.find(recipes.read(f"zero_shot:{rule}").method)
        assert method.trainable == ()
        assert method.uses
    assert recipes.read("zero_shot:self_distilled,bank=B").method.bank == "B"
    with pytest.raises(InputError, match="Zero-shot has no setting 'bank'"):
        recipes.read("zero_shot:ridge,bank=B")
