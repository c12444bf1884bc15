"""The vocabulary that ships."""

import re

from mlclip_jax.texts.vocabulary import background_words, everyday_nouns


def test_the_vocabulary_is_of_distinct_names_in_order():
    nouns = everyday_nouns()
    assert len(nouns) == 2_225
    assert list(nouns) == sorted(set(nouns))
    assert {"dog", "umbrella", "banana", "mountain", "tennis racket"} < set(nouns)
    for noun in nouns:
        assert re.fullmatch("[a-z]+( [a-z]+)?", noun)


def test_background_words_that_are_labels_are_left_out():
    words = background_words()
    assert len(words) == len(set(words)) == 45
    assert words == background_words(["dog", "Skyscraper"])
    without = background_words(["Sky", "clouds", "water ", "stop sign", "traffic_light"])
    assert set(words) - set(without) == {"sky", "cloud", "water"}
