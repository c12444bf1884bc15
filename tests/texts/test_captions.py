"""Captions in, labels out."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_data import CLASS_EMBEDDINGS, DATA

from mlclip_jax import InputError
from mlclip_jax.data.benchmarks import VOC_LABELS
from mlclip_jax.data.tables import labels_in_order, read_table
from mlclip_jax.files import read_json
from mlclip_jax.texts.captions import label_captions, read_captions
from mlclip_jax.texts.naming import SYNONYMS, label_finder, read_synonyms
from mlclip_jax.texts.templates import SINGULAR_NOUNS, inflect_engine, write_texts

MULTICLIP = DATA / "captions" / "multiclip_train.csv"
TABLES = {name: read_json(path) for name, path in SYNONYMS.items()}
COCO = list(TABLES["coco"])
# Words of which some name labels together, some alone, and some not at all.
WORDS = ("hot", "dog", "dogs", "stand", "fire", "truck", "truck's", "trucks", "car", "cargo", "a", ",")
NAMES = ("dog", "hot dog", "dog stand", "fire truck", "fire", "truck", "car", "a dog", "stand fire")
SYNONYM_SETS = {"dog": ["hot truck"], "car": ["truck car", "dog"], "fire": ["hot"], "truck": ["hot", "stand"]}


def named_labels(*arguments, **options):
    """`label_finder` of one text at a time."""
    find = label_finder(*arguments, **options)
    return lambda text: next(find([text]))


def names_in(text, label_names, synonyms=None, **options):
    return [label_names[k] for k in named_labels(label_names, synonyms, **options)(text)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A hot dog on a bun.", ["hot dog"]),
        ("A hot dog for a dog", ["dog", "hot dog"]),
        ("Hot-dogs!", ["hot dog"]),
        ("it is hot, dogs sleep", ["dog"]),
        ("the dog's bowl", ["dog"]),
        ("the dogs’ bowls", ["dog"]),
        ("in a bird’s nest", ["bird's nest"]),
        ("DOGS and mice", ["dog", "mouse"]),
        ("a dogged man's catalogue, cargo", []),
        ("TVs on the shelf", ["tv"]),
        ("buses in a bus lane", ["bus"]),
        ("sheep", ["sheep"]),
        ("a ski on the sky", ["skis"]),
        ("the skies", []),
        ("two wineglasses", ["wine glass"]),
        ("glasses of water", ["glass of water"]),
        ("persons", ["person"]),
        ("people", ["person"]),
        ("knives", ["knife"]),
        ("a short man in jean", []),
        ("blue shorts", ["shorts"]),
        ("beanies and axes", ["beanie", "ax"]),
        ("a cafe\u0301", ["café"]),
        ("", []),
    ],
)
def test_what_names_a_label(text, named):
    label_names = [*"dog|hot dog|car|cat|mouse|tv|bus|sheep|skis|wine glass|glass of water|person".split("|")]
    label_names += ["knife", "shorts", "beanie", "ax", "café", "bird's nest"]
    assert names_in(text, label_names) == named


def test_a_name_and_its_plural_are_stronger_than_a_synonym():
    assert names_in("a bench", ["chair", "bench"], {"chair": ["bench"]}) == ["bench"]
    assert names_in("one glass", ["glasses", "glass"]) == ["glass"]
    assert names_in("her glasses", ["glasses", "glass"]) == ["glasses"]
    assert names_in("two dogs", ["animal", "dog"], {"animal": ["dogs"]}) == ["dog"]
    assert names_in("one ski", ["boot", "skis"], {"boot": ["ski"]}) == ["skis"]
    assert names_in("one pane", ["pane of glass", "window"], {"window": ["panes"]}) == ["window"]


def test_labels_come_in_ascending_order():
    assert named_labels(COCO)("a boat, a person") == [COCO.index("person"), COCO.index("boat")]


def test_a_synonym_of_two_labels_means_both():
    assert names_in("a ball", ["a", "b"], {"b": ["ball"], "a": ["ball"]}) == ["a", "b"]


texts = st.lists(st.sampled_from(WORDS), max_size=10).map(" ".join)


@given(texts, st.permutations(NAMES), st.randoms())
def test_the_order_of_labels_and_synonyms_makes_no_difference(text, label_names, random):
    other = {name: random.sample(own, len(own)) for name, own in reversed(SYNONYM_SETS.items())}
    expected = names_in(text, NAMES, SYNONYM_SETS)
    assert sorted(names_in(text, label_names, other)) == sorted(expected)


def test_hashes_of_strings_make_no_difference():
    code = (
        "import json, sys; from mlclip_jax.texts.naming import label_finder\n"
        "texts, names, synonyms = json.load(sys.stdin); find = label_finder(names, synonyms)\n"
        "print(list(find(texts)))"
    )
    given = json.dumps([[" ".join(np.roll(WORDS, i)) for i in range(len(WORDS))], NAMES, SYNONYM_SETS])
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            input=given,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("[") == len(WORDS) + 1


def test_the_longest_name_comes_first_and_then_the_first_one():
    label_names = ["red fire", "fire truck", "fire truck door", "red", "truck", "door"]
    assert names_in("red fire truck door", label_names) == ["fire truck door", "red"]
    assert names_in("red fire truck", label_names) == ["red fire", "truck"]
    assert names_in("fire truck fire truck truck", label_names) == ["fire truck", "truck"]


@given(st.lists(st.sampled_from(NAMES), max_size=6), st.sampled_from([" ; ", " and ", ", the "]))
def test_names_beside_one_another_are_found_and_no_others(mentioned, between):
    assert set(names_in(between.join(mentioned), NAMES)) == set(mentioned)


@given(st.sampled_from(COCO), st.text("abcdefghijklmnoprtuvwxyz", min_size=1, max_size=3))
def test_no_name_is_found_within_a_word(name, letters):
    assert name not in names_in(f"{letters}{name}{letters}", COCO)


@given(st.text(max_size=40), st.lists(st.text("ab é'-犬1", min_size=1), min_size=1, max_size=4, unique=True))
def test_any_text_names_some_labels_or_none(text, label_names):
    try:
        find = named_labels(label_names)
    except InputError:
        return
    named = find(text)
    assert named == sorted(set(named))
    for k, name in enumerate(label_names):
        assert k in find(f"{text} ; {name}") or any(other in name for other in label_names if other != name)


@pytest.mark.parametrize("table", TABLES)
def test_every_name_and_synonym_is_found_in_singular_and_plural_with_blanks_and_without(table):
    label_names = list(TABLES[table])
    find = named_labels(label_names, TABLES[table])
    for k, (label, synonyms) in enumerate(TABLES[table].items()):
        for name in (label, *synonyms):
            for form in {name, plural(name)}:
                assert find(f"Two {form}!") == [k], form
                assert find(form.replace(" ", "")) == [k], form


def plural(name):
    *words, last = name.split()
    is_plural = last not in SINGULAR_NOUNS and inflect_engine().singular_noun(last)
    return name if is_plural or last == "tennis" else " ".join([*words, inflect_engine().plural_noun(last)])


@pytest.mark.skipif(
    not CLASS_EMBEDDINGS.exists(), reason=f"needs the names of LVIS beside {CLASS_EMBEDDINGS}"
)
def test_every_name_of_lvis_is_found_in_singular_and_plural():
    with np.load(CLASS_EMBEDDINGS.with_name("lvis1203.npz")) as arrays:
        label_names = [name.replace("_", " ") for name in arrays["names"].tolist()]
    find = named_labels(label_names)
    for k, name in enumerate(label_names):
        assert find(f"two {name} here") == [k]
        if "(" not in name:
            assert find(f"two {plural(name)} here") == [k], plural(name)


@given(st.lists(st.sets(st.sampled_from(range(len(COCO))), min_size=1, max_size=5), min_size=1, max_size=9))
def test_written_texts_name_their_labels_and_no_others(label_sets):
    labels = np.zeros((len(label_sets), len(COCO)), np.int8)
    for row, own in zip(labels, label_sets):
        row[list(own)] = 1
    kept, found = label_captions(write_texts(labels, COCO, seed=0), COCO)
    np.testing.assert_array_equal(kept, np.arange(len(labels)))
    np.testing.assert_array_equal(found, labels)


def test_the_published_files_are_whole():
    assert list(TABLES["voc"]) == list(VOC_LABELS)
    assert [len(table) for table in TABLES.values()] == [20, 80, 81]
    assert TABLES["coco"]["sports ball"][:3] == ["sport ball", "ball", "football"]
    assert [sum(map(len, table.values())) for table in TABLES.values()] == [49, 86, 66]
    lines = (SYNONYMS["coco"].parent / "imagenet_templates.txt").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 80
    assert all(line.count("{}") == 1 and line.endswith(".") for line in lines)
    assert (lines[0], lines[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


@pytest.mark.skipif(not CLASS_EMBEDDINGS.exists(), reason=f"needs the names of COCO in {CLASS_EMBEDDINGS}")
def test_the_table_of_coco_has_its_names_in_its_order():
    with np.load(CLASS_EMBEDDINGS) as arrays:
        assert arrays["names"].tolist() == COCO


def test_synonyms_are_read_for_the_labels_that_there_are(tmp_path, caplog):
    with caplog.at_level("INFO", "mlclip_jax"):
        assert read_synonyms("voc", ["Dining_Table", "owl"]) == {
            "Dining_Table": ["table", "dinner table", "din table"]
        }
        assert "ignored 19 classes that are no labels: aeroplane, bicycle, bird, boat, ..." in caplog.text
        caplog.clear()
        own = tmp_path / "own.json"
        own.write_text('{"dog": ["pup"], "owl": [], "Dog": ["puppy"]}')
        assert read_synonyms(own, ["dog", "owl"]) == {"dog": ["pup", "puppy"], "owl": []}
        assert not caplog.records


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no synonyms .*; give voc, coco, nus_wide, or the path of a JSON file"),
        ('["dog"]', "must be an object of labels and synonyms"),
        ('{"dog": "puppy"}', "must have a list of synonyms for 'dog'; got 'puppy'"),
        ('{"dog": ["?"]}', "has '\\?' as a synonym of 'dog'; give a word"),
        ('{"dog": [1]}', "has 1 as a synonym of 'dog'"),
        ('{"dog"', "cannot read .* as JSON"),
    ],
)
def test_a_file_that_is_no_table_of_synonyms_is_one_line(tmp_path, content, said):
    path = tmp_path / "synonyms.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=said) as raised:
        read_synonyms(path, ["dog"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("label_names", "synonyms", "said"),
    [
        (["dog", "dog"], None, "label_names names 'dog' more than once"),
        (["dog", "?"], None, "no text can name the label '\\?', which has no word; rename it"),
        (["dog"], {"dgo": ["puppy"]}, "synonyms has 'dgo', which is no label; correct or remove it"),
        (["dog"], {"dog": "puppy"}, "synonyms must have a list of synonyms for 'dog'; got 'puppy'"),
    ],
)
def test_names_that_are_none_are_one_line(label_names, synonyms, said):
    with pytest.raises(InputError, match=said):
        named_labels(label_names, synonyms)


def test_captions_without_a_label_are_left_out_and_said(caplog):
    captions = ["a puppy", "the sea", "a cat and a dog", "sand"]
    with caplog.at_level("INFO", "mlclip_jax"):
        kept, labels = label_captions(captions, ["cat", "dog", "owl", "elk"], {"dog": ["puppy"]})
    np.testing.assert_array_equal(kept, [0, 2])
    np.testing.assert_array_equal(labels, [[0, 1, 0, 0], [1, 1, 0, 0]])
    assert (kept.dtype, labels.dtype) == (np.int64, np.int8)
    assert [record.message for record in caplog.records] == [
        "left out 2 captions of 4 that name no label",
        "no caption names 2 labels: owl, elk",
    ]
    with pytest.raises(InputError, match="none of 4 captions names a label, such as 'whale'; give synonyms"):
        label_captions(captions, ["whale"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "captions_train2017.json",
            '{"images": [], "annotations": [{"caption": "a"}, {"caption": "b c\\n"}]}',
        ),
        ("objects.json", '[{"id": 1, "text": "a"}, {"id": 2, "text": "b c"}]'),
        ("lines.jsonl", '{"caption": "a"}\n{"caption": "b c"}\n'),
        ("table.csv", 'id,Caption\n1,a\n2,"b c"\n'),
        ("table.tsv", "id\tcaptions\n1\ta\n2\tb c\n"),
        ("lines.txt", "a\n\nb c\n"),
    ],
)
def test_captions_of_each_kind_of_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_captions(tmp_path / name) == ["a", "b c"]


def test_blank_captions_are_left_out_and_said(tmp_path, caplog):
    path = tmp_path / "captions.json"
    path.write_text('[{"said": "a"}, {"said": " "}, {"said": null}, {"said": NaN}]')
    with caplog.at_level("INFO", "mlclip_jax"):
        assert read_captions(path, caption_column="said") == ["a"]
    assert "left out 3 blank captions of 4" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.json",
            '{"annotations": [{"bbox": []}]}',
            "no annotations with captions; give COCO's captions_train",
        ),
        ("x.json", '{"images": []}', "no annotations with captions"),
        ("x.json", '[{"caption": 3}]', "caption 1: 3 is no text; correct or remove it"),
        ("x.json", '[{"caption": ""}]', "holds no caption that is not blank"),
        (
            "x.csv",
            "a,b\n1,2\n",
            "no column caption or captions or text; it has a, b: name one by caption_column=",
        ),
        ("x.txt", "\n", "holds no line of text"),
        ("x.txt", None, "cannot read .*x.txt: No such file"),
    ],
)
def test_files_without_captions_are_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as raised:
        read_captions(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_spacy_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"spacy_model='en_core_web_sm' needs spaCy, .*: pip install spacy"):
        named_labels(["dog"], spacy_model="en_core_web_sm")


@pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="needs spaCy")
def test_a_tagger_tells_nouns_from_verbs(tmp_path):
    import spacy

    tagger = spacy.blank("en")
    with pytest.raises(InputError, match="spaCy has no model 'no_such_model': python -m spacy download"):
        named_labels(["dog"], spacy_model="no_such_model")
    tagger.to_disk(tmp_path / "blank")
    with pytest.raises(InputError, match="has no tagger; choose one that has, such as en_core_web_sm"):
        named_labels(["dog"], spacy_model=str(tmp_path / "blank"))
    rules = tagger.add_pipe("attribute_ruler")
    rules.add([[{}]], {"POS": "NOUN"})
    rules.add([[{"LOWER": {"IN": ["trains", "running", "hot"]}}]], {"POS": "VERB"})
    tagger.to_disk(tmp_path / "rules")
    label_names = ["dog", "train", "running", "hot dog", "person"]
    for text, named in {
        "a man trains his dogs": ["dog"],
        "Train": ["train"],
        "people running": ["running", "person"],
        "hot-dogs": ["hot dog"],
        "": [],
    }.items():
        assert names_in(text, label_names, spacy_model=str(tmp_path / "rules")) == named


@pytest.mark.skipif(not MULTICLIP.exists(), reason=f"needs MultiCLIP's captions, {MULTICLIP}")
@pytest.mark.usefixtures("types_unchecked")  # checks of every call would take ten times as long
def test_real_captions_name_what_their_images_show():
    """Of 18 classes of COCO. What a caption does not mention, it does not name: hence the recall."""
    source = read_table(MULTICLIP)
    captions = read_captions(MULTICLIP)
    assert captions == [caption.strip() for caption in source.captions]
    classes = [name for k, name in enumerate(COCO) if k < 18]  # ids 1 to 19 without 12, in COCO's order
    ids = [str(k) for k in range(1, 20) if k != 12]
    shown = labels_in_order(source.labels, source.label_names, ids) == 1
    figures = {}
    for title, synonyms in {"names": {}, "and synonyms": read_synonyms("coco", COCO)}.items():
        named = np.zeros((len(captions), len(COCO)), bool)
        for row, own in zip(named, label_finder(COCO, synonyms)(captions)):
            row[own] = True
        named = named[:, : len(classes)]
        right, said, there = (np.sum(both, axis=0) for both in (named & shown, named, shown))
        precision, recall = 100 * right / said, 100 * right / there
        micro = 100 * right.sum() / said.sum(), 100 * right.sum() / there.sum()
        print(f"\n{title:15} named precision recall")
        for row in zip(classes, said, precision, recall):
            print("{:15} {:6,} {:8.1f} {:6.1f}".format(*row))
        figures[title] = (*micro, np.mean(precision), np.mean(recall))
        print("micro {:.2f} {:.2f}, macro {:.2f} {:.2f}".format(*figures[title]))
    # What was measured, to a point: precision and recall over all labels, and the means over classes.
    np.testing.assert_allclose(figures["names"], (97.4, 32.4, 97.2, 49.2), atol=1)
    np.testing.assert_allclose(figures["and synonyms"], (97.5, 53.3, 96.4, 56.1), atol=1)
