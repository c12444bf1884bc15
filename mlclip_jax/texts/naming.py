"""Which labels a text names: by their names and synonyms, in the singular and the plural.

Source of the idea: TaI-DPT, which labels COCO's captions so. There one name is looked for after another, in
an order that changes from run to run; here the longest name comes first, and then the first in the text.
"""

import functools
import importlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json
from mlclip_jax.progress import note
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.texts.templates import inflect_engine
from mlclip_jax.wording import counted, listed

SYNONYMS = {
    name: Path(__file__).parent / f"data/synonyms_{name}.json" for name in ("voc", "coco", "nus_wide")
}

# A word, with the apostrophes in it; or a sign, across which no name is read. A hyphen is as a blank.
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s'-]")
# Plural nouns whose singular says something else: a short man may wear no shorts.
PLURAL_NOUNS = frozenset("clothes glasses goggles jeans news overalls pants shorts tights trunks".split())


class _Word(NamedTuple):
    """A word of a text, in lower case, its singular, and whether it can be a noun."""

    text: str
    singular: str
    noun: bool = True


def label_finder(
    label_names: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    *,
    spacy_model: str | None = None,
) -> Callable[[Iterable[str]], Iterator[list[int]]]:
    """What tells of texts which labels they name.

    A text names a label by its name or a synonym, in the singular or the plural, with its blanks or without
    them ("air plane", "airplane"); capitals, hyphens and possessives make no difference. The longest name
    comes first, and words that it has used are used up: a hot dog is no dog. What is the name of one label
    and a synonym of another means the former; a synonym of two labels means both.

    Args:
      label_names: K names.
      synonyms: other names of labels, by label; see `read_synonyms`.
      spacy_model: a model of spaCy, such as "en_core_web_sm". Names of one word then count only where it is a
        noun: "a man trains his dog" names no train. By default they count everywhere.

    Returns:
      A function of texts that gives, for each, the indices of the labels that it names, in ascending order.

    Raises:
      InputError: names or synonyms are invalid, or spaCy or its model is missing.
    """
    phrases = _phrases(label_names, synonyms or {})
    lengths = sorted(set(map(len, phrases)), reverse=True)
    read = _read_words if spacy_model is None else functools.partial(_tag_words, _load_spacy(spacy_model))
    return lambda texts: (_find(phrases, lengths, words) for words in read(texts))


def read_synonyms(name_or_path: str | os.PathLike, label_names: Sequence[str]) -> dict[str, list[str]]:
    """Synonyms of labels. What the table has of others is ignored, and said.

    Args:
      name_or_path: voc, coco or nus_wide, which are TaI-DPT's tables; or the path of a JSON file,
        `{"dog": ["puppy", "pup"]}`.
      label_names: K names. Capitals, hyphens and underscores make no difference.

    Returns:
      The synonyms of each label that the table has.

    Raises:
      InputError: there is no such table, or the file is no table.
    """
    path = SYNONYMS.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise InputError(f"no synonyms {str(path)!r}; give {', '.join(SYNONYMS)}, or the path of a JSON file")
    table = read_json(path)
    _check_synonyms(path, table)
    label_of = {tuple(_split(label)): label for label in label_names}
    synonyms, others = {}, []
    for name, own in table.items():
        label = label_of.get(tuple(_split(name)))
        if label is None:
            others.append(name)
        else:
            synonyms.setdefault(label, []).extend(own)
    if others:
        classes = counted(len(others), "class that is no label", "classes that are no labels")
        note(f"{path}: ignored {classes}: {listed(others)}")
    return synonyms


def _check_synonyms(where, table):
    if not isinstance(table, Mapping):
        raise InputError(f'{where} must be an object of labels and synonyms, {{"dog": ["puppy"]}}')
    for label, names in table.items():
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise InputError(f"{where} must have a list of synonyms for {label!r}; got {names!r:.60}")
        for name in names:
            if not isinstance(name, str) or not _has_word(name):
                raise InputError(
                    f"{where} has {name!r:.60} as a synonym of {label!r}; give a word, or several"
                )


def _phrases(label_names, synonyms):
    """The labels that each sequence of words stands for."""
    check_label_names(label_names, "label_names")
    _check_synonyms("synonyms", synonyms)
    strange = [name for name in synonyms if name not in label_names]
    if strange:
        raise InputError(f"synonyms has {strange[0]!r}, which is no label; correct or remove it")
    # The strongest first: names, what is derived from them, synonyms, what is derived from these.
    claims = [defaultdict(set) for _ in range(4)]
    for k, label in enumerate(label_names):
        for strength, name in ((0, label), *((2, synonym) for synonym in synonyms.get(label, ()))):
            if not _has_word(name):
                raise InputError(f"no text can name the label {name!r}, which has no word; rename it")
            words = tuple(_split(name))
            claims[strength][words].add(k)
            for last in (words[-1], inflect_engine().plural_noun(words[-1]), _singular_name(words[-1])):
                derived = (*words[:-1], last)
                claims[strength + 1][derived].add(k)
                claims[strength + 1][("".join(derived),)].add(k)
    return {words: labels for claim in reversed(claims) for words, labels in claim.items()}


def _has_word(name):
    return any(letter.isalnum() for letter in name)


def _split(text):
    text = unicodedata.normalize("NFC", text).lower().replace("’", "'")
    return [word.removesuffix("'s") for word in WORD.findall(text)]


def _singular_name(word):
    return word if word in PLURAL_NOUNS else _singular(word)


@functools.lru_cache(maxsize=100_000)
def _singular(word):
    return inflect_engine().singular_noun(word) or word


def _read_words(texts):
    for text in texts:
        yield [_Word(word, _singular(word)) for word in _split(text)]


def _tag_words(tagger, texts):
    """As `_read_words`, with what spaCy says of nouns."""
    document = importlib.import_module("spacy.tokens").Doc
    for tagged in tagger.pipe(document(tagger.vocab, words=_split(text)) for text in texts):
        # In "a man running" a tagger sees a verb, and people the label running.
        yield [
            _Word(
                token.text,
                _singular(token.text),
                token.pos_ in ("NOUN", "PROPN") or token.text.endswith("ing"),
            )
            for token in tagged
        ]


def _load_spacy(model):
    try:
        tagger = importlib.import_module("spacy").load(model, exclude=["parser", "lemmatizer", "ner"])
    except ImportError as error:
        raise InputError(
            f"spacy_model={model!r} needs spaCy, which is not installed: pip install spacy"
        ) from error
    except OSError as error:
        raise InputError(f"spaCy has no model {model!r}: python -m spacy download en_core_web_sm") from error
    if not tagger("dog").has_annotation("POS"):
        raise InputError(
            f"spaCy's model {model!r} has no tagger; choose one that has, such as en_core_web_sm"
        )
    return tagger


def _find(phrases, lengths, words):
    named, words = set(), list(words)
    for length in lengths:
        for start in range(len(words) - length + 1):
            span = words[start : start + length]
            labels = None if None in span else _labels_of(phrases, span)
            if labels:
                named |= labels
                words[start : start + length] = [None] * length  # used up
    return sorted(named)


def _labels_of(phrases, span):
    if len(span) == 1 and not span[0].noun:
        return None
    written = tuple(word.text for word in span)
    return phrases.get(written) or phrases.get((span[0].singular, *written[1:]))  # persons, glasses of wine
