"""Labels in, English out."""

import numpy as np
import pytest
import typeguard

from mlclip_jax import InputError
from mlclip_jax.texts.label_sets import sample_label_sets
from mlclip_jax.texts.templates import (
    TEMPLATE_SETS,
    TEMPLATES,
    check_template,
    fill,
    imagenet_templates,
    inflect_engine,
    noun_phrase,
    write_texts,
)

NAMES = ["dog", "umbrella", "scissors", "broccoli", "traffic_light", "bus"]


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("dog", "a dog"),
        ("umbrella", "an umbrella"),
        ("hour glass", "an hour glass"),
        ("unicorn", "a unicorn"),
        ("traffic_light", "a traffic light"),
        ("scissors", "scissors"),
        ("skis", "skis"),
        ("flowers", "flowers"),
        ("people", "people"),
        ("broccoli", "broccoli"),
        ("sky", "sky"),
        ("bus", "a bus"),
        ("wine glass", "a wine glass"),
        ("sheep", "a sheep"),
        ("sports ball", "a sports ball"),
        ("glass of water", "a glass of water"),
        ("pair of scissors", "a pair of scissors"),
        ("TV", "a TV"),
    ],
)
def test_articles(name, phrase):
    assert noun_phrase(name) == phrase


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (["umbrella"], "there is an umbrella in the photo."),
        (["skis"], "there are skis in the photo."),
        (["dog", "umbrella"], "there are a dog and an umbrella in the photo."),
        (["dog", "scissors", "bus"], "there are a dog, scissors and a bus in the photo."),
    ],
)
def test_lists_and_verbs(labels, sentence):
    assert fill("there {is} {labels} in the photo.", labels) == sentence


def test_a_template_may_end_a_word_in_an_a_but_not_repeat_an_article():
    for template in (
        "a kennel bigger than {labels}.",
        "you can see a cat and {labels}.",
        "here {is} {labels}.",
    ):
        check_template(template)
    for template in ("a photo of a {labels}.", "A {labels}.", "an {labels}.", "the {labels}."):
        with pytest.raises(InputError, match="repeats an article"):
            check_template(template)


def test_every_template_reads_for_one_label_and_for_several():
    for template in TEMPLATES:
        for labels in (["dog"], ["dog", "owl", "cat"]):
            text = fill(template, labels)
            assert "{" not in text
            assert text.endswith(".")
            assert ("a dog" if len(labels) == 1 else "a dog, an owl and a cat") in text


def test_other_programs_templates_take_names_as_they_are():
    """One name as `str.format` writes it, which published class embeddings were made with."""
    assert fill("a photo of a {}.", ["aeroplane"]) == "a photo of a aeroplane."
    assert fill("a photo of a {}.", ["traffic_light"]) == "a photo of a traffic light."
    assert (
        fill("there are {} in the photo.", ["dog", "cat", "owl"])
        == "there are dog, cat and owl in the photo."
    )
    check_template("a photo of a {}.")


def test_clips_own_templates_are_all_there():
    templates = imagenet_templates()
    assert len(set(templates)) == 80
    assert templates[0] == "a bad photo of a {}."
    assert templates[-1] == "a tattoo of the {}."
    for template in templates:
        check_template(template)


@pytest.mark.parametrize("template", ["a photo", "{dog}", "{labels", "a photo of {0.x}", "{1}"])
def test_templates_that_nothing_fills_are_refused(template):
    with pytest.raises(InputError, match=r"cannot be filled|has no place for the name"):
        check_template(template)


@pytest.mark.parametrize("source", TEMPLATE_SETS)
def test_texts_differ_in_labels_and_words(source):
    label_sets = sample_label_sets(0, 2_000, 80, 5)
    texts = write_texts(label_sets, [f"thing {i}" for i in range(80)], 0, TEMPLATE_SETS[source]())
    assert len(set(texts)) > 1_800


def test_texts_name_their_labels_and_no_others():
    generator = np.random.default_rng(0)
    label_sets = (generator.random((300, len(NAMES))) < 0.4).astype(np.int8)
    label_sets = label_sets[label_sets.any(axis=1)]
    texts = write_texts(label_sets, NAMES, seed=1)
    for labels, text in zip(label_sets, texts):
        named = [noun_phrase(name) in text for name in NAMES]
        np.testing.assert_array_equal(named, labels)
    assert texts == write_texts(label_sets, NAMES, seed=1)
    assert texts != write_texts(label_sets, NAMES, seed=2)


def test_templates_and_orders_vary():
    texts = write_texts(np.ones((400, 2), np.int8), ["dog", "cat"], seed=0)
    assert {text.index("dog") < text.index("cat") for text in texts} == {True, False}
    assert len(set(texts)) == 2 * len(TEMPLATES)


def test_inflect_does_without_typeguard_which_stays_for_others():
    checked = typeguard.typechecked
    engine = inflect_engine()
    assert typeguard.typechecked is checked
    assert "typeguard" not in engine.a.__code__.co_names
