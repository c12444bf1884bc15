"""MMM-CLIP's methods with the faults of its code."""

import numpy as np
import pytest
from zero_shot.prompt_tables import at_cosine, table

from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.zero_shot.list_all import list_all
from mlclip_jax.zero_shot.prompts import NOTHING
from mlclip_jax.zero_shot.published import (
    decode_by_substring,
    list_all_as_published,
    published_map,
    top_all_as_published,
    yes_no_as_published,
)
from mlclip_jax.zero_shot.top_all import top_all

IMAGE = np.array([[2.0, 0.0]], np.float32)
# MMM-CLIP's ten classes, and how many of its 7,843 lines of labels each has.
COUNTS = {
    "motorcycle": 1241,
    "truck": 1015,
    "boat": 1573,
    "bus": 661,
    "cycle": 1449,
    "sitar": 401,
    "ektara": 330,
    "flutes": 552,
    "tabla": 1478,
    "harmonium": 613,
}


def kaggle_labels():
    """Labels with those counts, in which nobody is a motorcycle and a cycle, as there."""
    labels = np.zeros((7843, len(COUNTS)), np.int8)
    for k, count in enumerate(COUNTS.values()):
        labels[(np.arange(count) + 1300 * k) % len(labels), k] = 1
    assert not (labels[:, 0] & labels[:, 4]).any()
    return labels


def test_yes_or_no_has_no_blank_before_the_class():
    encode = table(
        {
            "A photo of acat": at_cosine(0.5),
            "A photo without acat": at_cosine(0.4),
            "A photo of adog": at_cosine(0.3),
            "A photo without adog": at_cosine(0.3),
        }
    )
    decided = yes_no_as_published(IMAGE, encode, ["cat", "dog"])
    np.testing.assert_array_equal(decided.scores, [[1, 0]])  # equal ones are a no, as by argmax
    np.testing.assert_array_equal(decided.labels, [[True, False]])
    assert decided.scores.dtype == np.float32


def test_list_all_takes_a_motorcycle_for_a_cycle():
    names = ["motorcycle", "cycle"]
    encode = table(
        {
            NOTHING: at_cosine(0.1),
            "A photo of a motorcycle": at_cosine(0.9),
            "A photo of a cycle": at_cosine(0.2),
            "A photo of a motorcycle,and a cycle": at_cosine(0.8),
        }
    )
    decided = list_all_as_published(IMAGE, encode, names)
    assert decided.prompts == ("A photo of a motorcycle",)
    np.testing.assert_array_equal(decided.scores, [[1, 1]])
    bare = table({NOTHING: (0, 1), "motorcycle": (1, 0), "cycle": (0, 1), "motorcycle, cycle": (0, 1)})
    np.testing.assert_array_equal(list_all(IMAGE, bare, names).labels, [[True, False]])


def test_top_all_takes_a_motorcycle_for_a_cycle():
    names = ["motorcycle", "cycle"]
    encode = table(
        {
            NOTHING: at_cosine(0.1),
            "A photo of motorcycle": at_cosine(0.9),
            "A photo of cycle": at_cosine(0.2),
            "motorcycle": at_cosine(0.9),
            "motorcycle, cycle": at_cosine(0.8),
        }
    )
    decided = top_all_as_published(IMAGE, encode, names)
    assert decided.prompts == ("motorcycle",)
    np.testing.assert_array_equal(decided.scores, [[1, 1]])
    np.testing.assert_array_equal(top_all(IMAGE, encode, names).labels, [[True, False]])


def test_captions_of_a_language_model_are_decoded_likewise():
    """The nearest caption is of both; it names no truck, and a bus only in "busy"."""
    captions = {("bus",): "A bus.", ("truck",): "A truck.", ("bus", "truck"): "A busy road of lorries."}
    encode = table(
        {
            NOTHING: at_cosine(0.1),
            "A bus.": at_cosine(0.7),
            "A truck.": at_cosine(0.2),
            "A busy road of lorries.": at_cosine(0.9),
        }
    )

    def write(combinations):
        return [captions[tuple(names)] for names in combinations]

    decided = top_all_as_published(IMAGE, encode, ["bus", "truck"], write_class=write, write=write)
    np.testing.assert_array_equal(decided.labels, [[True, False]])
    indexed = top_all(IMAGE, encode, ["bus", "truck"], write_class=write, write=write)
    np.testing.assert_array_equal(indexed.labels, [[True, True]])


def test_substrings_count_wherever_they_are():
    found = decode_by_substring(["a hot dog", NOTHING], ["dog", "hot dog", "photo", "cat"])
    np.testing.assert_array_equal(found, [[True, True, False, False], [False, False, True, False]])
    assert decode_by_substring([], ["dog"]).shape == (0, 1)


def test_who_predicts_nothing_reads_half_and_half_of_the_prevalence():
    """55.9 on Kaggle's labels, of which average precision says 11.9."""
    labels = kaggle_labels()
    nothing = np.zeros(labels.shape, bool)
    prevalence = np.mean(list(COUNTS.values())) / len(labels)
    np.testing.assert_allclose(published_map(nothing, labels), (1 + prevalence) / 2, atol=1e-6)
    assert round(100 * published_map(nothing, labels), 1) == 55.9
    assert round(100 * float(mean_average_precision(nothing.astype(np.float32), labels)[0]), 1) == 11.9


def test_a_perfect_method_reads_97_7_once_decoded_by_substrings():
    labels = kaggle_labels()
    names = list(COUNTS)
    prompts = [", ".join(name for name, there in zip(names, row) if there) for row in labels]
    decided = decode_by_substring(prompts, names)
    assert published_map(labels == 1, labels) == pytest.approx(1)
    assert round(100 * published_map(decided[:, 4:5], labels[:, 4:5]), 1) == 76.9
    assert round(100 * published_map(decided, labels), 1) == 97.7


def test_the_metric_is_scikit_learns_area_over_decisions():
    from sklearn.metrics import auc, precision_recall_curve

    generator = np.random.default_rng(0)
    labels = (generator.random((60, 5)) < 0.3).astype(np.int8)
    decided = generator.random((60, 5)) < 0.4
    areas = []
    for k in range(5):
        precision, recall, _ = precision_recall_curve(labels[:, k], decided[:, k].astype(float))
        areas.append(auc(recall, precision))
    np.testing.assert_allclose(published_map(decided, labels), np.mean(areas), atol=1e-6)
