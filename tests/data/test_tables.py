"""Tables of images, labels and captions, as those who publish them write them."""

import csv
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA

from mlclip_jax import InputError
from mlclip_jax.data.images import UnreadableImage
from mlclip_jax.data.tables import read_labels, read_table

MULTICLIP = DATA / "captions" / "multiclip_train.csv"


def present(source):
    """The labels of each example that are present."""
    return [[source.label_names[k] for k in np.flatnonzero(row == 1)] for row in source.labels]


def test_mmm_clips_json(tmp_path):
    kinds = "motorcycle, truck, boat"
    rows = [
        ("image1.jpg", "boat", 0, 0, 1),
        ("image2.jpg", "truck boat", 0, 1, 1),
        ("image1.jpg", "", 0, 0, 0),
    ]
    keys = ["Image_Name", f" Classes({kinds})", *kinds.split(", ")]
    (tmp_path / "label.json").write_text(json.dumps([dict(zip(keys, row)) for row in rows]))
    source = read_table(tmp_path / "label.json")
    assert source.names == ("image1.jpg", "image2.jpg", "image1.jpg")
    assert source.label_names == ("motorcycle", "truck", "boat")
    assert source.labels.dtype == np.int8
    np.testing.assert_array_equal(source.labels, [row[2:] for row in rows])
    assert source.captions is None
    unread, several = source.remarks
    assert "columns that were not read: Classes(motorcycle" in unread
    assert several == "1 file has several rows, each of which is an example"


def test_lists_of_a_value_for_each_label(tmp_path):
    """MMM-CLIP++'s tables are separated by tabs, whatever they are called."""
    (tmp_path / "voc.csv").write_text("filepath\ttarget\na.jpg\t[0, 0, 1]\nb.jpg\t[1, 0, 1]\n")
    source = read_table(tmp_path / "voc.csv")
    assert source.label_names == ("0", "1", "2")
    np.testing.assert_array_equal(source.labels, [[0, 0, 1], [1, 0, 1]])
    (tmp_path / "names.json").write_text('{"2": "bird", "0": "cat"}')
    source = read_table(tmp_path / "voc.csv", names=tmp_path / "names.json")
    assert present(source) == [["bird"], ["cat", "bird"]]


MULTICLIP_LIKE = """\
ImageID,Labels,Caption
0.jpg,1,"Woman in swim suit holding parasol on sunny day."
1.jpg,1 19,"A sign that reads "Stop, or else," and a ""horse"", too."
2.jpg,8 3 13,unquoted "words" here
3.jpg,18,"Atop a rug rests a dog

full of "tidily, arranged" piles."
4.jpg,,"reading "spray.""
"5,6.jpg",19,"a proper, line"
"""


def test_multiclips_quotes(tmp_path):
    (tmp_path / "train.csv").write_text(MULTICLIP_LIKE)
    source = read_table(tmp_path / "train.csv")
    assert source.names == ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5,6.jpg")
    assert source.label_names == ("1", "3", "8", "13", "18", "19")
    assert present(source) == [["1"], ["1", "19"], ["3", "8", "13"], ["18"], [], ["19"]]
    assert source.captions == (
        "Woman in swim suit holding parasol on sunny day.",
        'A sign that reads "Stop, or else," and a "horse", too.',
        'unquoted "words" here',
        'Atop a rug rests a dog\n\nfull of "tidily, arranged" piles.',
        'reading "spray."',
        "a proper, line",
    )
    assert source.remarks == ("3 rows have quotes that are not escaped, and were read by their separators",)


@pytest.mark.skipif(not MULTICLIP.exists(), reason=f"needs MultiCLIP's captions, {MULTICLIP}")
def test_multiclips_own_table():
    source = read_table(MULTICLIP)
    # Others count 29,996: four captions hold line breaks.
    assert source.names == tuple(f"{i}.jpg" for i in range(30_000))
    assert source.label_names == tuple(str(k) for k in range(1, 20) if k != 12)
    rows = re.findall(r"^\d+\.jpg,([\d ]*),", MULTICLIP.read_text(), re.MULTILINE)
    assert [set(own) for own in present(source)] == [set(row.split()) for row in rows]
    assert source.captions[17864] == 'A street sign that reads, "East 34th St" and "Fifth Ave."'
    assert source.captions[6751] == "Red motor \nscooter parked on the sand with a sunset in background."
    assert not any(caption[:1] == '"' or not caption for caption in source.captions)


def test_lists_of_voc_with_absent_as_minus_one(tmp_path):
    """hellowangqian's: 1 present, 0 all objects difficult, -1 absent; files without suffix."""
    (tmp_path / "trainval.csv").write_bytes(
        b"name,aeroplane,dog\r\n000005,-1,1\r\n000007,0,-1\r\n000009,-1,-1\r\n"
    )
    (tmp_path / "000005.jpg").write_bytes(b"an image")
    source = read_table(tmp_path / "trainval.csv", suffix=".jpg", absent=-1)
    assert source.names == ("000005.jpg", "000007.jpg", "000009.jpg")
    assert source.label_names == ("aeroplane", "dog")
    np.testing.assert_array_equal(source.labels, [[0, 1], [-1, 0], [0, 0]])
    assert source.labels.dtype == np.int8
    assert source[0].image == b"an image"
    assert source.remarks == ()
    as_it_is = read_table(tmp_path / "trainval.csv")
    np.testing.assert_array_equal(as_it_is.labels, [[-1, 1], [0, -1], [-1, -1]])
    assert "where it means absent, give absent=-1" in as_it_is.remarks[0]


def test_tsv_with_lists_of_names(tmp_path):
    (tmp_path / "x.tsv").write_text(
        "File Path\tlabel\tsplit_name\na.jpg\t['sky', 'fox']\ttrain\nb.jpg\t[]\tval\nc.jpg\t['zoo']\tval\n"
    )
    source = read_table(tmp_path / "x.tsv", split="val")
    assert source.names == ("b.jpg", "c.jpg")
    assert source.label_names == ("fox", "sky", "zoo")  # of all splits, which so agree
    assert present(source) == [[], ["zoo"]]
    assert source.title == f"{tmp_path / 'x.tsv'}, split=val"
    assert present(read_table(tmp_path / "x.tsv", split="train")) == [["fox", "sky"]]
    assert len(read_table(tmp_path / "x.tsv")) == 3


def test_json_lines(tmp_path):
    rows = [
        {"image": "a.jpg", "tags": ["cat", "dog"], "text": "a line\u2028separator"},
        {"image": "b.jpg", "tags": None, "text": "nothing"},
    ]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8")
    source = read_table(tmp_path / "x.jsonl")
    assert present(source) == [["cat", "dog"], []]
    assert source.captions == ("a line\u2028separator", "nothing")


def test_images_of_a_table(tmp_path):
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").write_bytes(b"an image")
    (tmp_path / "x.csv").write_text("filename;labels\n".replace(";", ",") + "a.jpg,dog;cat\nb.jpg,\n")
    source = read_table(tmp_path / "x.csv", images=tmp_path / "photographs", separator=";")
    assert present(source) == [["cat", "dog"], []]
    assert source[0].image == b"an image"
    with pytest.raises(UnreadableImage, match="no such file"):
        source[1]


def test_rows_of_one_image_become_neighbours(tmp_path):
    (tmp_path / "x.csv").write_text("file,caption\na,one\nb,two\na,three\nc,four\na,five\n")
    source = read_table(tmp_path / "x.csv")
    assert source.names == ("a", "a", "a", "b", "c")
    assert source.captions == ("one", "three", "five", "two", "four")
    assert source.labels.shape == (5, 0)
    assert [source.cut(number) for number in range(6)] == [5, 4, 3, 0, 0, 0]
    assert source.select([3, 0]).captions == ("two", "one")


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6))
def test_whatever_is_quoted_properly_is_read_as_it_is(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("x") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("file", "caption"), *rows])
    source = read_table(path)
    assert sorted(zip(source.names, source.captions)) == sorted(rows)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.csv", "", {}, "x.csv lists no image"),
        ("x.csv", "file,labels\n", {}, "x.csv lists no image"),
        ("x.csv", "place;labels\na;b\n", {}, "x.csv needs a column of files, one of filename, "),
        ("x.csv", "file,labels\na,cat,dog\n", {}, "row 1 (a) has not one cell per column; join labels by |"),
        ("x.csv", 'file,labels\na,"cat\n', {}, "x.csv, row 1: a quote is opened, and never closed"),
        ("x.csv", 'file,labels\n"a,cat\n', {}, "cannot read {}, row 1 as CSV: unexpected end of data"),
        ("x.csv", b"file\n\xff\n", {}, "cannot read {}: "),
        ("x.csv", "file,cat, cat\na,1,0\n", {}, "two columns of the label 'cat'"),
        ("x.csv", "file,cat\na,1\n", {"split": "val"}, "no column that names splits, so split=val"),
        ("x.csv", "file,split\na,b\nc,d\n", {"split": "val"}, "has no split 'val'; it has b, d"),
        ("x.csv", "file,cat\na,1\n", {"absent": 1}, "absent=1 is not what tables have"),
        ("x.csv", "file,labels\na,cat\n", {"absent": -1}, "has no label of -1; leave it out"),
        ("x.csv", "file,labels\na,['cat'\n", {}, "is no list of labels"),
        ("x.json", "{}", {}, "x.json must hold objects, one for each image"),
        ("x.json", "[1]", {}, "x.json must hold objects, one for each image"),
        ("x.json", "[", {}, "cannot read {} as JSON: "),
        (
            "x.json",
            '[{"file": "a"}, {"file": "b", "cat": 1}]',
            {},
            "row 2 has other columns than the first: cat",
        ),
        ("x.jsonl", '{"file": "a"}\n{', {}, "cannot read {} as JSON Lines: "),
        ("x.csv", "file,labels\na,cat\n", {"names": '["cat"]'}, "must hold an object from labels to names"),
        (
            "x.csv",
            "file,labels\na,cat\n",
            {"names": '{"dog": "x"}'},
            "names labels that no image has, such as 'dog'",
        ),
    ],
)
def test_tables_that_are_not_in_order(tmp_path, name, content, options, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if "names" in options:
        (tmp_path / "names.json").write_text(options["names"])
        options = {"names": tmp_path / "names.json"}
    with pytest.raises(InputError, match=re.escape(message.format(path))) as raised:
        read_table(path, **options)
    assert "\n" not in str(raised.value)


# Labels of images that come from elsewhere


def test_labels_by_name(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text('filename,labels\nb.jpg,dog|cat\nunused.jpg,\na.jpg,\n"sub/c.jpg",dog\na.jpg,\n')
    labels = read_labels(table, ["a.jpg", "b.jpg", "sub/c.jpg"], ["cat", "dog", "newt"])
    np.testing.assert_array_equal(labels, [[0, 0, 0], [1, 1, 0], [0, 1, 0]])
    assert labels.dtype == np.int8
    table.write_text("filename,dog,cat,newt\na.jpg,-1,1,0\n")
    np.testing.assert_array_equal(read_labels(table, ["a.jpg"], ["cat", "dog"]), [[1, -1]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,labels\na.jpg,cat\n", "has no row for 1 of 2 images, the first b.jpg"),
        ("filename,labels\na.jpg,cat\nb.jpg,bird\n", "label 'bird' of b.jpg is not one of the 2 labels"),
        ("filename,labels\na.jpg,cat\nb.jpg,\na.jpg,dog\n", "two different rows for a.jpg"),
        ("filename,labels\na.jpg,cat\nb.jpg\n", "row 2 (b.jpg) has not one cell per column"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, content, message):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_labels(tmp_path / "labels.csv", ["a.jpg", "b.jpg"], ["cat", "dog"])


def test_quotes_that_are_not_escaped_swallow_no_rows(tmp_path):
    lines = [
        "filename,caption",
        'a.jpg,"Big" dog',
        "b.jpg,a cat",
        'c.jpg,"a bird"',
        'd.jpg,"a "red" one\nbelow"',
    ]
    (tmp_path / "t.csv").write_text("\n".join([*lines, "e.jpg,x"]))
    table = read_table(tmp_path / "t.csv")
    assert table.names == ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    assert table.captions == ('"Big" dog', "a cat", "a bird", 'a "red" one\nbelow', "x")


def test_columns_of_labels_as_other_programs_write_them(tmp_path):
    rows = "a.jpg,1,1.0,,30\nb.jpg,0,-1.0,True,40\nc.jpg,0,0,FALSE,50\n"
    (tmp_path / "t.csv").write_text(f"filename,cat,dog,owl,size\n{rows}")
    table = read_table(tmp_path / "t.csv")
    assert table.label_names == ("cat", "dog", "owl")
    assert table.labels.tolist() == [[1, 1, -1], [0, -1, 1], [0, 0, 0]]
    assert table.remarks == ("columns that were not read: size",)


@pytest.mark.parametrize("column", ["Image Index", "Path", "fname", "image-name", "File.Path"])
def test_columns_of_files_have_many_names(tmp_path, column):
    (tmp_path / "t.csv").write_text(f"{column},labels\na.jpg,cat\n")
    assert read_table(tmp_path / "t.csv").names == ("a.jpg",)


def test_columns_of_other_names_may_be_given(tmp_path):
    (tmp_path / "t.csv").write_text("where,what,said\na.jpg,cat,a cat\n")
    with pytest.raises(
        InputError, match=r"needs a column of files, .*it has where, what, said: name one by image_"
    ):
        read_table(tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv", image_column="where", label_column="what", caption_column="said")
    assert (table.names, table.label_names, table.captions) == (("a.jpg",), ("cat",), ("a cat",))
    with pytest.raises(InputError, match="has no column 'whatever'; it has where, what, said"):
        read_table(tmp_path / "t.csv", image_column="where", label_column="whatever")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("first", ["", "sep=;\n"])
def test_what_spreadsheets_save_is_read(tmp_path, encoding, first):
    (tmp_path / "t.csv").write_text(f"{first}filename;labels\na,b.jpg;café|thé\n", encoding=encoding)
    table = read_table(tmp_path / "t.csv")
    assert (table.names, table.label_names) == (("a,b.jpg",), ("café", "thé"))
    assert ("its cells are separated by semicolons" in table.remarks) == (not first)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filename,labels\na,b\n".encode("utf-16")[2:], "has zero bytes, as UTF-16 without its mark does"),
        (b"filename,labels\ra,b\r", "ends its lines by carriage returns alone; save it with line feeds"),
        ("filename,labels\na,café\n".encode("latin-1"), "save it as UTF-8"),
    ],
)
def test_what_is_written_otherwise_is_refused_with_the_remedy(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "filename,cat,cat\na,1,0\n", "two columns 'cat'"),
        ("t.json", "[" * 200_000, "cannot read"),
        ("t.json", '[{"image": null, "labels": "x"}]', "None is no file"),
        ("t.json", '[{"image": "a", "caption": ["x", "y"]}]', "is no caption"),
        ("t.csv", "filename,labels\na,[{[]:1}]\n", "is no list of labels"),
    ],
)
def test_odd_tables_are_refused_in_words(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(words)):
        read_table(tmp_path / name)


def test_names_that_no_file_can_have_are_skipped(tmp_path):
    (tmp_path / "t.json").write_text(r'[{"image": "a\u0000.png"}, {"image": "a\ud800.jpg"}]')
    table = read_table(tmp_path / "t.json")
    for i in range(2):
        with pytest.raises(UnreadableImage):
            table.read(i)
    assert table.digest != table.select([0]).digest
    assert table.changes() != table.select([0]).changes()


def test_lists_of_two_columns_are_columns(tmp_path):
    (tmp_path / "t.csv").write_text("filename\ttarget\na\t[1, 0]\nb\t[0, 1]\n")
    table = read_table(tmp_path / "t.csv")
    assert table.label_names == ("0", "1")
    assert table.labels.tolist() == [[1, 0], [0, 1]]
