"""The vocabulary that ships."""

import re

from mlclip_jax.texts.vocabulary import everyday_nouns


def test_the_vocabulary_is_of_distinct_names_in_order():
    nouns = everyday_nouns()
    assert len(nouns) == 2_225
    assert list(nouns) == sorted(set(nouns))
    assert {"dog", "umbrella", "banana", "mountain", "tennis racket"} < set(nouns)
    for noun in nouns:
        assert re.fullmatch("[a-z]+( [a-z]+)?", noun)
