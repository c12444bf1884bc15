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
    describe_templates,
    fill,
    imagenet_templates,
    inflect_engine,
    noun_phrase,
    read_templates,
    record_templates,
    tagclip_templates,
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


def test_tagclips_templates_are_clips_and_five_more():
    templates = tagclip_templates()
    assert templates[:80] == imagenet_templates()
    assert len(set(templates)) == 85
    for template in templates[80:]:
        check_template(template)
        assert template.endswith(" in the scene.")


@pytest.mark.parametrize(
    "template", ["a {} and a {}.", "{labels} and {labels}", "{} beside {labels}", "{0}, {0}"]
)
def test_a_template_has_one_place(template):
    with pytest.raises(InputError, match=r"has 2 places for the name; leave one"):
        check_template(template)


def test_templates_are_given_by_name_as_a_file_or_themselves(tmp_path):
    assert read_templates("imagenet") == imagenet_templates()
    assert read_templates("templates") == TEMPLATES
    assert read_templates("This is a photo of a {}.") == ("This is a photo of a {}.",)
    file = tmp_path / "my templates.txt"
    file.write_text("a photo of {labels}.\n\n  the {}\n", encoding="utf-8")
    assert read_templates(str(file)) == ("a photo of {labels}.", "the {}")


@pytest.mark.parametrize("given", ["imagenet", "a {}", "a {}\nthe {}"])
def test_what_is_recorded_of_templates_reads_the_same(given):
    assert record_templates(given) == given
    assert read_templates(record_templates(given)) == read_templates(given)


def test_a_file_of_templates_is_recorded_by_what_it_holds(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("a {}\nthe {}\n", encoding="utf-8")
    assert record_templates(str(file)) == "a {}\nthe {}"
    assert describe_templates("a {}\nthe {}") == "the mean of 2 templates, 'a {}' to 'the {}'"
    assert describe_templates("a {}") == "'a {}'"
    assert describe_templates("imagenet").startswith(
        "imagenet, the mean of 80 templates, 'a bad photo of a {}.'"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "imagnet",
            r"no set of templates or file 'imagnet' \(did you mean imagenet\?\); give one of templates,",
        ),
        ("", "no set of templates or file ''"),
        ("a photo", "the template 'a photo' has no place for the name: write {labels} in it"),
        ("a photo of a {} and a {}", "has 2 places for the name; leave one"),
        ("{labels", "cannot be filled"),
    ],
)
def test_templates_that_are_none_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        read_templates(given)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no line of text"), ("a {}\na photo\n", "'a photo' has no place"), ("{}, {}", "2 places")],
)
def test_a_file_of_templates_is_refused_that_has_none_or_a_bad_one(tmp_path, content, message):
    (tmp_path / "file.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_templates(str(tmp_path / "file.txt"))


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
