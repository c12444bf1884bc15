"""Labels as spreadsheets, pandas, NumPy and JSON write them: read as meant, or refused, never a third."""

import csv
import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax import InputError
from mlclip_jax.data.table_cells import MISSING
from mlclip_jax.data.table_labels import labels_of_cells
from mlclip_jax.data.tables import read_labels, read_table

ABC = ("cat", "dog", "owl")


def write_table(folder, columns, form):
    """A table as others write it: nothing for None in a CSV, null in JSON."""
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    path = folder / f"t.{form}"
    with path.open("w", newline="", encoding="utf-8") as file:
        if form == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif form == "json":
            json.dump(rows, file)
        else:
            writer = csv.DictWriter(file, list(columns), delimiter="\t" if form == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def cells(*values):
    """Names, values and remarks of one column of labels."""
    found = labels_of_cells("t", list(values))
    return found.names, found.values.tolist(), found.remarks


# A column for each label


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "None", "", "<NA>", "null", "N/A"])
def test_a_cell_without_a_value_makes_no_class_vanish(tmp_path, missing):
    (tmp_path / "t.csv").write_text(f"filename,cat,dog,owl\na,1.0,0,1\nb,{missing},1,0.00\nc,0,-1.0,TRUE\n")
    wanted = [[1, 0, 1], [-1, 1, 0], [0, -1, 1]]
    assert read_table(tmp_path / "t.csv").labels.tolist() == wanted
    np.testing.assert_array_equal(read_labels(tmp_path / "t.csv", ["a", "b", "c"], ABC), wanted)


@pytest.mark.parametrize("odd", ["0.5", "2", "yes", "x", "1;0", "inf", "1e9", "[1]"])
def test_any_other_value_is_refused_by_row(tmp_path, odd):
    (tmp_path / "t.csv").write_text(f"filename,cat,dog,owl\na,1,0,1\nb,{odd},1,0\nc,0,1,1\n")
    message = f"row 2 (b): '{odd}' in the column 'cat' is none of 1, 0, -1 and nothing; correct it, or"
    for read in (read_table, lambda path: read_labels(path, ["a", "b", "c"], ABC)):
        with pytest.raises(InputError, match=re.escape(message)):
            read(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv", ignore="cat").label_names == ("dog", "owl")


def test_all_of_a_class_may_be_odd_or_unknown(tmp_path):
    (tmp_path / "t.csv").write_text("filename,cat,dog,owl\na,7,0,\nb,8,1,\n")
    with pytest.raises(InputError, match=re.escape("row 1 (a): '7' in the column 'cat'")):
        read_labels(tmp_path / "t.csv", ["a", "b"], ABC)
    ignoring = f"table:{tmp_path / 't.csv'},ignore=cat,unlisted=unknown"
    np.testing.assert_array_equal(read_labels(ignoring, ["a", "b"], ABC), [[-1, 0, -1], [-1, 1, -1]])


def test_soft_labels_are_refused_and_other_numbers_left_out(tmp_path):
    (tmp_path / "t.csv").write_text("filename,cat,score,size\na,1,0.25,30\nb,0,0.75,40\nc,0,0.5,1\n")
    with pytest.raises(InputError, match=re.escape("'0.25' in the column 'score' is none of 1, 0, -1")):
        read_table(tmp_path / "t.csv")
    source = read_table(tmp_path / "t.csv", ignore="score")
    assert source.label_names == ("cat",)
    assert source.remarks == ("columns that were not read: score, size",)
    with pytest.raises(InputError, match="has no column 'shape' to ignore"):
        read_table(tmp_path / "t.csv", ignore="score|shape")
    np.testing.assert_array_equal(read_labels(tmp_path / "t.csv", ["a"], ["cat"]), [[1]])


def test_a_class_without_a_column_is_never_absent(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("filename,cat,dog\na,1,0\nb,0,1\n")
    with pytest.raises(
        InputError, match=r"has no column for 1 class, owl; add it, or give table:.*unlisted=unk"
    ):
        read_labels(tmp_path / "t.csv", ["a", "b"], ABC)
    spec = f"table:{tmp_path / 't.csv'},unlisted=unknown"
    caplog.set_level("INFO", "mlclip_jax")
    np.testing.assert_array_equal(read_labels(spec, ["a", "b"], ABC), [[1, 0, -1], [0, 1, -1]])
    assert "1 class is unknown, without a column: owl" in caplog.text
    with pytest.raises(InputError, match="unlisted='absent' is neither refuse nor unknown"):
        read_labels(f"table:{tmp_path / 't.csv'},unlisted=absent", ["a"], ABC)


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "index"])
def test_an_index_is_no_label(tmp_path, index):
    (tmp_path / "t.csv").write_text(f"{index},filename,cat\n0,a,1\n1,b,0\n")
    source = read_table(tmp_path / "t.csv")
    assert source.label_names == ("cat",)
    assert source.remarks == (f"columns that were not read: {index or 'one without a name'}",)


def test_columns_of_roles_may_be_labels(tmp_path):
    (tmp_path / "t.csv").write_text("filename,text,dog\na,1,0\nb,0,1\n")
    source = read_table(tmp_path / "t.csv")
    assert source.label_names == ("text", "dog")
    assert source.captions is None


def test_no_value_is_unknown_where_minus_one_is_absent(tmp_path):
    (tmp_path / "t.csv").write_text("filename,cat,dog\na,1,-1\nb,,0\n")
    assert read_table(tmp_path / "t.csv", absent=-1).labels.tolist() == [[1, 0], [-1, -1]]


# One column


@pytest.mark.parametrize("values", [[1.0, 0.0, -1.0], [True, False, None], [1, 0, float("nan")], [1, 0, -1]])
@pytest.mark.parametrize(
    "written", [lambda own: own, str, json.dumps, lambda own: str(np.array(own, object))]
)
def test_lists_of_a_number_for_each_label(values, written):
    last = -1
    names, found, _ = cells(written(values), written([0, 0, 1]), None)
    assert names == ["0", "1", "2"]
    assert found == [[1, 0, last], [0, 0, 1], [-1, -1, -1]]


def test_an_index_or_a_number_for_each_label():
    for lists, index in (
        ([[0], [1]], False),
        ([[0, 1], [1, 0]], False),
        ([[0], [1, 2]], True),
        ([[5], [3]], True),
    ):
        names, _, remarks = cells(*lists)
        assert names == (
            ["0", "1", "2"] if [1, 2] in lists else ["3", "5"] if index else ["0", "1"][: len(lists[0])]
        )
        assert bool(remarks) is not index
    assert 'write them as text, ["0"]' in cells([0], [1])[2][0]
    assert cells(["0"], ["1"])[0] == ["0", "1"]
    assert not cells([0, 0], [1, 0])[2]  # numbers of labels do not repeat


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (([1, 0, 1], [1, 0]), "row 2 has a list of 2 numbers, row 1 one of 3"),
        (([0.5, 0.5], [1, 0]), "row 1: 0.5 in a list of labels is none of 1, 0 and -1"),
        (([{"name": "cat"}],), "row 1: {'name': 'cat'} in a list of labels is no label"),
        ((["cat", {"name": "dog"}],), "row 1: {'name': 'dog'} is no label"),
        (([["cat"]],), "row 1: ['cat'] in a list of labels is no label"),
        (([1, 0], "cat"), "row 2: 'cat' is no list, as other labels are"),
        (({"cat": 1}, "cat"), "row 2: 'cat' is no object, as other labels are"),
        (({"cat": 0.7},), "row 1: 0.7 of the label 'cat' is none of 1, 0, -1 and null"),
        ((True, "cat"), "row 1: True is no label"),
        ((0.25,), "row 1: 0.25 is no label"),
        (("['cat' 'dog' ... 'owl']",), "is no list of labels"),
        (("['cat''dog']",), "is no list of labels"),
        (("array(['cat'], dtype=object)",), "is no list of labels"),
        (("[cat, dog]",), "is no list of labels"),
        (("['cat', 'dog'",), "is no list of labels"),
    ],
)
def test_cells_that_are_no_labels(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        labels_of_cells("t", list(values))


@pytest.mark.parametrize(
    "cell",
    [
        "['cat' 'dog']",
        "['cat'\n 'dog']",
        "['cat', 'dog']",
        '["cat", "dog"]',
        "{'dog', 'cat'}",
        "('cat', 'dog')",
        "[np.str_('cat'), np.str_('dog')]",
        "cat|dog",
        " dog | cat ",
        "['cat', 'dog', nan]",
        "['cat', None, 'dog']",
        "cat|dog|nan",
    ],
)
def test_lists_as_they_are_printed(cell):
    names, values, remarks = cells(cell, "[]")
    assert (names, values) == (["cat", "dog"], [[1, 1], [0, 0]])
    assert len(remarks) == ("nan" in cell.split("|"))


def test_objects_map_labels_to_numbers():
    assert cells({"cat": 1, "dog": 0}, {"cat": 0.0, "dog": True}, None) == (
        ["cat", "dog"],
        [[1, 0], [0, 1], [-1, -1]],
        ["1 row lacks some labels, which are unknown there"],
    )
    assert cells({"cat": 1}, '{"dog": 1}', {}) == (["cat", "dog"], [[1, 0], [0, 1], [0, 0]], [])
    _, values, remarks = cells("{'cat': 1, 'dog': 0}", "{'dog': None}")
    assert values == [[1, 0], [-1, -1]]
    assert "1 row lacks some labels" in remarks[0]


def test_labels_without_a_value_are_none(tmp_path):
    names, values, remarks = cells("nan", "cat", "None", None, float("nan"), "NA|dog")
    assert names == ["cat", "dog"]
    assert np.sum(values) == 2
    assert remarks[0].startswith("3 labels that say nothing (nan, None, NA) became none")
    assert cells('["nan"]', "cat")[0] == ["cat", "nan"]
    (tmp_path / "t.csv").write_text("filename,labels\na,none\nb,cat\n")
    labels = read_labels(tmp_path / "t.csv", ["a", "b"], ["none", "cat"])  # a class of such a name
    np.testing.assert_array_equal(labels, [[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("sign", "word"), [(",", "comma"), (";", "semicolon"), (" ", "space"), ("/", "slash"), ("\t", "tab")]
)
def test_other_separators_are_noticed(tmp_path, sign, word):
    (tmp_path / "t.jsonl").write_text(
        "\n".join(
            json.dumps({"file": file, "labels": own}) for file, own in (("a", f"cat{sign}dog"), ("b", "cat"))
        )
    )
    (remark,) = read_table(tmp_path / "t.jsonl").remarks
    assert (
        remark == f"1 label holds {sign!r}, and 'cat' is a label by itself: "
        f"if that separates labels, give separator={word}"
    )
    source = read_table(tmp_path / "t.jsonl", separator=word)
    assert (source.label_names, source.remarks) == (("cat", "dog"), ())
    assert source.labels.tolist() == [[1, 1], [1, 0]]
    assert f"give separator={word}" in cells(f"cat{sign}dog", f"owl{sign}cow")[2][0]
    assert "no cell has the separator '&'" in read_table(tmp_path / "t.jsonl", separator="&").remarks


def test_names_with_blanks_raise_no_doubt_where_they_are_known(tmp_path, caplog):
    (tmp_path / "t.csv").write_text("filename,labels\na,dining table\nb,potted plant\n")
    assert "separator=space" in read_table(tmp_path / "t.csv").remarks[0]
    caplog.set_level("INFO", "mlclip_jax")
    read_labels(tmp_path / "t.csv", ["a", "b"], ["dining table", "potted plant"])
    assert not caplog.messages
    read_labels(tmp_path / "t.csv", ["a"], ["dining table", "potted plant", "owl"])
    assert "1 class occurs in no row: owl" in caplog.text


def test_labels_of_options(tmp_path):
    (tmp_path / "t.csv").write_text('filename,labels\na,"cat,dog"\n')
    spec = f"table:{tmp_path / 't.csv'},separator=comma"
    np.testing.assert_array_equal(read_labels(spec, ["a"], ABC), [[1, 1, 0]])
    with pytest.raises(InputError, match=r"table: has no option 'seperator' \(did you mean separator\?\)"):
        read_labels(f"table:{tmp_path / 't.csv'},seperator=comma", ["a"], ABC)


def test_numbers_in_text():
    assert cells("0 1 1", "1 0 0", "")[:2] == (["0", "1", "2"], [[0, 1, 1], [1, 0, 0], [-1, -1, -1]])
    assert cells("1 19", "3")[0] == ["1", "3", "19"]
    names, _, remarks = cells("3.0", "1.0", "")
    assert names == ["1", "3"]
    assert remarks == ["2 labels of whole numbers lost the point: 3.0 became 3"]
    assert "called 0 and 1" in cells("0", "1")[2][0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_one(tmp_path, form):
    names = [unicodedata.normalize(own, "café") for own in ("NFC", "NFD")]
    (tmp_path / "t.csv").write_text(f"filename,labels\na,{names[0]}\nb,{names[1]}\n")
    source = read_table(tmp_path / "t.csv")
    assert source.labels.tolist() == [[1], [1]]
    wanted = [unicodedata.normalize(form, "café")]
    np.testing.assert_array_equal(read_labels(tmp_path / "t.csv", ["a", "b"], wanted), [[1], [1]])
    (tmp_path / "t.csv").write_text(f"filename,{names[0]},{names[1]}\na,1,0\n")
    with pytest.raises(InputError, match="two columns of the label 'café'"):
        read_table(tmp_path / "t.csv")


# Any labels, in any of the forms

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).map(
    lambda name: unicodedata.normalize("NFC", name).strip()
)
PLAIN = NAMES.filter(lambda name: name and not set(name) & set("|\0"))


@st.composite
def labelled(draw):
    names = sorted(draw(st.lists(PLAIN, min_size=1, max_size=4, unique=True)))
    rows = draw(st.lists(st.sets(st.sampled_from(names)), min_size=1, max_size=5))
    return names, rows


def texts_of(form, rows):
    write = {
        "bar": "|".join,
        "json": json.dumps,
        "ascii": lambda own: json.dumps(own, ensure_ascii=True),
        "python": str,
        "numpy": lambda own: str(np.array(own)) if own else "[]",
        "numpy 2": lambda own: str([np.str_(name) for name in own]),
    }[form]
    return [write(sorted(own)) for own in rows]


@pytest.mark.parametrize("form", ["bar", "json", "ascii", "python", "numpy", "numpy 2"])
@given(st.data())
def test_names_come_back_or_are_refused(tmp_path_factory, form, data):
    names, rows = data.draw(labelled())
    path = tmp_path_factory.mktemp("x") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("file", "labels"), *((f"{i}.jpg", text) for i, text in enumerate(texts_of(form, rows)))]
        )
    try:
        source = read_table(path)
    except InputError:
        return
    back = [{source.label_names[k] for k in np.flatnonzero(row == 1)} for row in source.labels]
    guessed = any(
        word in remark for remark in source.remarks for word in ("became", "were read as", "was read as")
    )
    assert back == rows or guessed
    labels = read_labels(
        path, [f"{i}.jpg" for i in range(len(rows))], names
    )  # of known classes nothing is guessed
    assert [{names[k] for k in np.flatnonzero(row == 1)} for row in labels] == rows


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json"])
@given(st.data())
def test_numbers_come_back_or_are_refused(tmp_path_factory, form, data):
    names = data.draw(st.lists(PLAIN.map("label {}".format), min_size=1, max_size=3, unique=True))
    size = data.draw(st.integers(1, 4))
    kinds = {
        "int": st.sampled_from([1, 0, -1]),
        "float": st.sampled_from([1.0, 0.0, -1.0, None]),
        "bool": st.booleans(),
        "object": st.sampled_from([1, "0", None, True, "-1.0"]),
    }
    columns = {
        name: data.draw(
            st.lists(kinds[data.draw(st.sampled_from(sorted(kinds)))], min_size=size, max_size=size)
        )
        for name in names
    }
    files = [f"{i}.jpg" for i in range(size)]
    path = write_table(tmp_path_factory.mktemp("x"), {"file": files, **columns}, form)
    wanted = [[-1 if own is None else int(float(own)) for own in columns[name]] for name in names]
    np.testing.assert_array_equal(read_labels(path, files, names).T, wanted)


def test_what_says_nothing_is_written_small():
    assert all(word == word.lower() for word in MISSING)
