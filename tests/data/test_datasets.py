"""Benchmarks as they are laid out, on small files in their true formats; what does not fit is named."""

import csv
import importlib.util
import inspect
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from mlclip_jax import InputError
from mlclip_jax.data.benchmarks import VOC_LABELS, read_coco, read_nus_wide, read_voc
from mlclip_jax.data.datasets import FORMATS, open_images
from mlclip_jax.data.splits import split_source
from mlclip_jax.data.tfds import read_tfds


def a_jpeg(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def write_files(folder, files):
    """Files by their paths in the folder, of text, bytes, or what becomes JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))


def present(source):
    """The labels of each example that are present."""
    return [[source.label_names[k] for k in np.flatnonzero(row == 1)] for row in source.labels]


# PASCAL VOC

OBJECT = """
  <object>
    <name>{}</name>
    <pose>Left</pose>
    <truncated>0</truncated>
    <difficult>{}</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""


def an_annotation(name, objects):
    return (
        f"<annotation>\n  <folder>VOC2007</folder>\n  <filename>{name}.jpg</filename>\n"
        "  <source><database>The VOC2007 Database</database></source><owner><name>Żaneta</name></owner>\n"
        "  <size><width>8</width><height>6</height><depth>3</depth></size>"
        + "".join(OBJECT.format(*one) for one in objects)
        + "\n</annotation>\n"
    )


VOC_OBJECTS = {
    "000007": [("car", 0), ("car", 1), ("person", 1)],
    "000005": [("diningtable", 1), ("tvmonitor", 0), ("pottedplant", 0)],
    "000012": [("hat", 0), ("person", 1), ("person", 1), ("car", 1)],
}


@pytest.fixture
def voc(tmp_path):
    files = {f"Annotations/{name}.xml": an_annotation(name, own) for name, own in VOC_OBJECTS.items()}
    files |= {f"JPEGImages/{name}.jpg": a_jpeg(int(name)) for name in VOC_OBJECTS}
    files["ImageSets/Main/trainval.txt"] = "".join(f"{name}\n" for name in VOC_OBJECTS)
    files["ImageSets/Main/val.txt"] = "000005  1\n000012 -1\n"
    files["ImageSets/Main/car_val.txt"] = "000005 -1\n"
    write_files(tmp_path / "VOC2007", files)
    return tmp_path / "VOC2007"


def test_voc(voc):
    source = read_voc(voc)
    assert source.names == ("000007.jpg", "000005.jpg", "000012.jpg")
    assert source.label_names == VOC_LABELS == tuple(sorted(VOC_LABELS))
    assert present(source) == [["car"], ["potted plant", "tv monitor"], []]
    assert source.labels.dtype == np.int8
    assert source.labels.sum() == 3
    assert source[1].image == a_jpeg(5)
    assert source.captions is None
    assert source.remarks == (
        "4 labels, of which all objects are difficult, became absent",
        "1 object was left out, of none of the 20 kinds; labels=found takes them all",
    )
    assert read_voc(voc, split="val").names == ("000005.jpg", "000012.jpg")


def test_difficult_is_said_in_several_words(voc):
    for word, is_difficult in {"true": True, "False": False, " 1 ": True, "yes": True, "": False}.items():
        text = an_annotation("000007", [("car", word)])
        write_files(voc, {"Annotations/000007.xml": text})
        assert present(read_voc(voc))[0] == ([] if is_difficult else ["car"])
    write_files(voc, {"Annotations/000007.xml": an_annotation("000007", [("car", "maybe")])})
    with pytest.raises(InputError, match=r"000007\.xml: difficult is 'maybe'; it must be 0 or 1"):
        read_voc(voc)


def test_voc_of_ones_own(voc):
    """Ids with blanks, other formats, other kinds of objects."""
    own = {"my cat 1": "png", "Dog": "JPG", "none": "jpg"}
    files = {
        f"Annotations/{name}.xml": an_annotation(name, [(kind, 0)])
        for name, kind in zip(own, ("cat", "hat", "sofa bed"))
    }
    files |= {f"JPEGImages/{name}.{suffix}": a_jpeg(7) for name, suffix in own.items() if name != "none"}
    files["ImageSets/Main/own.txt"] = "".join(f"{name}\n" for name in own)
    write_files(voc, files)
    source = read_voc(voc, split="own", labels="found")
    assert source.names == ("my cat 1.png", "Dog.JPG", "none.jpg")
    assert source.label_names == (
        "car",
        "cat",
        "diningtable",
        "hat",
        "person",
        "pottedplant",
        "sofa bed",
        "tvmonitor",
    )
    assert present(source) == [["cat"], ["hat"], ["sofa bed"]]
    assert source[1].image == a_jpeg(7)
    with pytest.raises(InputError, match="labels='all' is neither voc nor found"):
        read_voc(voc, labels="all")


@pytest.mark.parametrize(("difficult", "word"), [(-1, "unknown"), (0, "absent"), (1, "present")])
def test_difficult_objects_of_voc(voc, difficult, word):
    source = read_voc(voc, difficult=difficult)
    column = {name: source.labels[:, k].tolist() for k, name in enumerate(VOC_LABELS)}
    assert column["car"] == [1, 0, difficult]
    assert column["person"] == [difficult, 0, difficult]
    assert column["dining table"] == [0, difficult, 0]
    assert source.remarks[0].endswith(f"became {word}")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {"difficult": 2}, "difficult=2 is neither 0 absent, -1 unknown nor 1 present"),
        ({}, {"split": "test"}, "VOC2007/ImageSets/Main/test.txt; its splits are trainval, val"),
        ({"ImageSets/Main/test.txt": "000001\n"}, {"split": "test"}, "000001.xml: No such file"),
        ({"Annotations/000005.xml": "<annotation><object>"}, {}, "000005.xml as XML: no element found"),
        ({"Annotations/000005.xml": b"<annotation>\xff</annotation>"}, {}, "cannot read"),
        (
            {"Annotations/000005.xml": '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'},
            {},
            "000005.xml has a document type or zero bytes",
        ),
    ],
)
def test_voc_that_is_not_in_order(voc, files, options, message):
    write_files(voc, files)
    with pytest.raises(InputError, match=re.escape(message)):
        read_voc(voc, **options)


def test_a_declared_encoding_hides_no_document_type(voc):
    hidden = (
        '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    )
    for encoding in ("utf-16", "utf-16-le"):
        write_files(voc, {"Annotations/000005.xml": hidden.encode(encoding)})
        with pytest.raises(InputError, match=r"000005\.xml(: | .* zero bytes)"):
            read_voc(voc)


def test_a_folder_that_is_not_voc(tmp_path):
    with pytest.raises(InputError, match=r"trainval\.txt; give the folder of a year, VOC2007"):
        read_voc(tmp_path)


# COCO

INSTANCES = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "000000000009.jpg", "width": 8, "height": 6},
        {"id": 4, "file_name": "000000000004.jpg", "width": 8, "height": 6},
        {"id": 6, "file_name": "000000000006.jpg", "width": 8, "height": 6},
    ],
    "categories": [
        {"supercategory": "animal", "id": 18, "name": "dog"},
        {"supercategory": "person", "id": 1, "name": "person"},
        {"supercategory": "furniture", "id": 67, "name": "dining table"},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 18, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0},
        {"id": 2, "image_id": 9, "category_id": 18, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0},
        {"id": 3, "image_id": 9, "category_id": 67, "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0},
        {"id": 900100, "image_id": 4, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [1]}},
    ],
}
CAPTIONS = {
    "images": INSTANCES["images"],
    "annotations": [
        {"image_id": 4, "id": 30, "caption": "Second."},
        {"image_id": 4, "id": 20, "caption": "A crowd. \n"},
        {"image_id": 9, "id": 10, "caption": "Dogs at a table."},
        {"image_id": 9, "id": 40, "caption": "Third."},
        {"image_id": 5, "id": 1, "caption": "of another split"},
    ],
}


@pytest.fixture
def coco(tmp_path):
    write_files(
        tmp_path,
        {
            "annotations/instances_val2017.json": INSTANCES,
            "annotations/captions_val2017.json": CAPTIONS,
            **{f"val2017/{image['file_name']}": a_jpeg(image["id"]) for image in INSTANCES["images"]},
        },
    )
    return tmp_path


def test_coco(coco):
    source = read_coco(coco)
    assert source.names == ("000000000004.jpg", "000000000006.jpg", "000000000009.jpg")
    assert source.label_names == ("person", "dog", "dining table")
    assert present(source) == [["person"], [], ["dog", "dining table"]]
    assert set(np.unique(source.labels)) == {0, 1}
    assert source[2].image == a_jpeg(9)
    assert source.captions is None
    assert source.remarks == ("3 images, 1 of them without annotation, kept",)


def test_coco_without_unannotated_images(coco):
    source = read_coco(coco, unannotated="drop", captions="yes")
    assert source.names == ("000000000004.jpg", "000000000009.jpg")
    assert source.captions == ("A crowd.", "Dogs at a table.")
    assert source[1].image == a_jpeg(9)
    assert source.remarks == ("3 images, 1 of them without annotation, left out",)


def test_one_file_under_two_ids_is_one_image(coco):
    images = [*INSTANCES["images"], {"id": 77, "file_name": INSTANCES["images"][0]["file_name"]}]
    file, known = INSTANCES["images"][0]["file_name"], INSTANCES["annotations"]
    annotations = [*known, {"id": 99, "image_id": 77, "category_id": INSTANCES["categories"][0]["id"]}]
    before = read_coco(coco)
    changed = INSTANCES | {"images": images, "annotations": annotations}
    write_files(coco, {"annotations/instances_val2017.json": changed})
    source = read_coco(coco, captions="yes")
    assert source.names == before.names
    row = source.names.index(file)
    first = sorted(INSTANCES["categories"], key=lambda one: one["id"]).index(INSTANCES["categories"][0])
    assert source.labels[row, first] == 1
    assert np.all(source.labels >= before.labels)
    assert "1 entry repeats the file of another" in source.remarks[1]


def test_captions_of_coco(coco):
    source = read_coco(coco, captions="yes")
    assert source.captions == ("A crowd.", "", "Dogs at a table.")
    assert source.remarks[1] == f"1 image has no caption in {coco}/annotations/captions_val2017.json"
    given = read_coco(coco, captions=str(coco / "annotations" / "captions_val2017.json"))
    assert given.digest == source.digest != read_coco(coco).digest


def test_coco_laid_out_otherwise(coco):
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images" / "val2017")
    assert read_coco(coco)[0].image == a_jpeg(4)
    (coco / "images" / "val2017").rename(coco / "photographs")
    with pytest.raises(InputError, match="no folder val2017 or images/val2017; give images="):
        read_coco(coco)
    (coco / "annotations" / "instances_val2017.json").rename(coco / "mine.json")
    source = read_coco(coco, annotations=coco / "mine.json", images=coco / "photographs")
    assert source[0].image == a_jpeg(4)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"unannotated": "remove"}, "unannotated='remove' is neither keep nor drop"),
        ({}, {"split": "train2017"}, "instances_train2017.json; its splits are val2017"),
        ({}, {"captions": "none.json"}, "cannot read none.json"),
        ({"annotations": None}, {}, "instances_val2017.json has no list 'annotations'"),
        ({"images": [{"id": 1}]}, {}, "entry 0 of 'images' has no str 'file_name'"),
        ({"images": INSTANCES["images"] * 2}, {}, "two entries of the id 4 in 'images'"),
        ({"categories": INSTANCES["categories"] * 2}, {}, "two entries of the id 1 in 'categories'"),
        (
            {"categories": [{"id": id, "name": "cat"} for id in (1, 18, 67)]},
            {},
            "two categories of the name 'cat'",
        ),
        (
            {"annotations": [{"id": 7, "image_id": 5, "category_id": 1}]},
            {},
            "annotation 7 is of an unknown image, 5",
        ),
        (
            {"annotations": [{"id": 7, "image_id": 4, "category_id": 2}]},
            {},
            "annotation 7 is of an unknown category, 2",
        ),
        ({"annotations": [[7, 4, 1]]}, {}, "entry 0 of 'annotations' has no int 'id'"),
        ({"annotations": []}, {"unannotated": "drop"}, "holds no image"),
    ],
)
def test_coco_that_is_not_in_order(coco, change, options, message):
    write_files(coco, {"annotations/instances_val2017.json": INSTANCES | change})
    with pytest.raises(InputError, match=re.escape(message)):
        read_coco(coco, **options)


def test_coco_files_of_something_else(coco):
    other = CAPTIONS | {"annotations": [{"image_id": 5, "id": 1, "caption": "of another split"}]}
    write_files(coco, {"captions.json": other, "annotations/instances_val2017.json": "[1]"})
    with pytest.raises(InputError, match="has no list 'categories'"):
        read_coco(coco)
    write_files(coco, {"annotations/instances_val2017.json": INSTANCES})
    with pytest.raises(InputError, match="captions of none of the 3 images"):
        read_coco(coco, captions=coco / "captions.json")


# NUS-WIDE

CONCEPTS = ("airport", "animal", "sky")
NUS_NAMES = (r"actor\0001_2124494179.jpg", r"zebra\0002_174174086.jpg", r"sky\0003_1.jpg")
NUS_LABELS = np.array([[0, 0, 1], [0, 0, 0], [1, 0, 1]])


@pytest.fixture
def nus_wide(tmp_path):
    files = {f"Flickr/{name.replace(chr(92), '/')}": a_jpeg(i) for i, name in enumerate(NUS_NAMES)}
    files["Concepts81.txt"] = "\r\n".join(CONCEPTS) + "\r\n"
    for part, rows in (("Train", [0, 1, 2]), ("Test", [2])):
        files[f"ImageList/{part}Imagelist.txt"] = "".join(f"{NUS_NAMES[i]}\r\n" for i in rows)
        for concept, column in zip(CONCEPTS, NUS_LABELS.T):
            own = f"Groundtruth/TrainTestLabels/Labels_{concept}_{part}.txt"
            files[own] = "".join(f"{column[i]} \n" for i in rows)
    write_files(tmp_path, files)
    return tmp_path


def test_nus_wide(nus_wide):
    source = read_nus_wide(nus_wide)
    assert source.names == ("actor/0001_2124494179.jpg", "zebra/0002_174174086.jpg", "sky/0003_1.jpg")
    assert source.label_names == CONCEPTS
    np.testing.assert_array_equal(source.labels, NUS_LABELS)
    assert source.labels.dtype == np.int8
    assert source[1].image == a_jpeg(1)
    assert source.remarks == ("3 images, 1 of them with none of the labels, kept",)
    test = read_nus_wide(nus_wide, split="test")
    assert test.names == ("sky/0003_1.jpg",)
    assert test[0].image == a_jpeg(2)


def test_nus_wide_of_labelled_images(nus_wide):
    source = read_nus_wide(nus_wide, lists="labelled")
    assert source.names == ("actor/0001_2124494179.jpg", "sky/0003_1.jpg")
    np.testing.assert_array_equal(source.labels, NUS_LABELS[[0, 2]])
    assert source[1].image == a_jpeg(2)
    assert source.remarks == ("3 images, 1 of them with none of the labels, left out",)


def test_nus_wide_of_asl(nus_wide):
    (nus_wide / "Flickr").rename(nus_wide / "images")
    with (nus_wide / "nus_wid_data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "label", "split_name"])
        writer.writerow(["images/actor/0001_2124494179.jpg", "['sky', 'dog']", "val"])
        writer.writerow(["images/sky/0003_1.jpg", "['airport']", "train"])
    source = read_nus_wide(nus_wide, split="test", lists="asl")
    assert source.names == ("images/actor/0001_2124494179.jpg",)
    assert source.label_names == ("airport", "dog", "sky")  # those of all splits
    assert present(source) == [["dog", "sky"]]
    assert source[0].image == a_jpeg(0)
    assert present(read_nus_wide(nus_wide, lists="asl")) == [["airport"]]


def test_nus_wide_of_srn(nus_wide):
    np.save(nus_wide / "formatted_val_images.npy", np.array(NUS_NAMES[1:]))
    np.save(nus_wide / "formatted_val_labels.npy", NUS_LABELS[1:].astype(np.float64))
    (nus_wide / "ConceptsList").mkdir()
    (nus_wide / "Concepts81.txt").rename(nus_wide / "ConceptsList" / "Concepts81.txt")
    source = read_nus_wide(nus_wide, split="test", lists="srn")
    assert source.names == ("zebra/0002_174174086.jpg", "sky/0003_1.jpg")
    np.testing.assert_array_equal(source.labels, NUS_LABELS[1:])
    assert source.labels.dtype == np.int8
    assert source[0].image == a_jpeg(1)


def test_where_the_images_of_nus_wide_are(nus_wide):
    (nus_wide / "Flickr").rename(nus_wide / "elsewhere")
    assert read_nus_wide(nus_wide, images=nus_wide / "elsewhere")[0].image == a_jpeg(0)
    for own in (nus_wide / "elsewhere").iterdir():
        own.rename(nus_wide / own.name)
    assert read_nus_wide(nus_wide)[0].image == a_jpeg(0)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, {"split": "val"}, "NUS-WIDE has no split 'val'"),
        ({}, {"lists": "all"}, "no lists=all: give one of official, labelled, asl, srn"),
        ({}, {"lists": "asl"}, "nus_wid_data.csv: No such file"),
        ({}, {"lists": "srn"}, "formatted_train_images.npy as .npy: "),
        (
            {"Groundtruth/TrainTestLabels/Labels_sky_Train.txt": "1\n0\n"},
            {},
            "Labels_sky_Train.txt has 2 labels, and {}/ImageList/TrainImagelist.txt 3 images",
        ),
        (
            {"Groundtruth/TrainTestLabels/Labels_sky_Train.txt": "1\n0\n2\n"},
            {},
            "Labels_sky_Train.txt holds '2'",
        ),
        (
            {"Concepts81.txt": "airport\nblimp\n"},
            {},
            "has no file Groundtruth/TrainTestLabels/Labels_blimp_Train.txt or TrainTestLabels/Labels_blimp",
        ),
    ],
)
def test_nus_wide_that_is_not_in_order(nus_wide, files, options, message):
    write_files(nus_wide, files)
    with pytest.raises(InputError, match=re.escape(message.format(nus_wide))):
        read_nus_wide(nus_wide, **options)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            ["a.jpg", "b.jpg"],
            np.zeros((3, 3)),
            "labels.npy has shape (3, 3); {}/formatted_train_images.npy has 2",
        ),
        (["a.jpg", "b.jpg"], np.zeros((2, 4)), "and Concepts81.txt 3 labels"),
        (["a.jpg", "b.jpg"], np.full((2, 3), 2), "must hold 1 present, 0 absent or -1 unknown"),
        ([1, 2], np.zeros((2, 3)), "must hold a row of strings; it has int64 (2,)"),
        (np.array(["a.jpg", None], object), np.zeros((2, 3)), "cannot read {}/formatted_train_images.npy"),
    ],
)
def test_srn_lists_that_do_not_fit(nus_wide, images, labels, message):
    np.save(nus_wide / "formatted_train_images.npy", images)
    np.save(nus_wide / "formatted_train_labels.npy", labels)
    with pytest.raises(InputError, match=re.escape(message.format(nus_wide))):
        read_nus_wide(nus_wide, lists="srn")


def test_several_arrays_are_no_list_of_srn(nus_wide):
    np.savez(nus_wide / "arrays.npz", a=[1])
    (nus_wide / "arrays.npz").rename(nus_wide / "formatted_train_images.npy")
    with pytest.raises(InputError, match="it holds several arrays"):
        read_nus_wide(nus_wide, lists="srn")


# TensorFlow Datasets

without_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Where `tiny_dataset/full` is prepared."""
    from tiny_dataset import TinyDataset

    folder = tmp_path_factory.mktemp("tfds")
    TinyDataset(data_dir=folder, config="full").download_and_prepare(file_format="array_record")
    return folder


@pytest.mark.parametrize("by", ["name", "folder"])
def test_tfds(prepared, by):
    from tiny_dataset import CLASSES, LABELS, picture

    if by == "name":
        source = read_tfds("tiny_dataset/full", data_dir=prepared)
    else:
        source = read_tfds(prepared / "tiny_dataset" / "full" / "1.0.0")
    indices = [int(name[0]) for name in source.names]  # in an order of TensorFlow Datasets' own
    assert sorted(indices) == [0, 1, 2, 3]
    assert source.label_names == tuple(CLASSES)
    assert source.labels.dtype == np.int8
    assert present(source) == [[CLASSES[k] for k in sorted(LABELS[i])] for i in indices]
    for index, example in zip(indices, source):
        assert example.image == picture(index)  # the file itself, to the byte
        assert example.name == f"{index}-é.jpg"
        assert example.caption == f"picture {index}"
    assert source.title == "tiny_dataset/full/1.0.0, split=train"
    remark = "labels are those of the feature labels, not kind, labels_sure, objects, present"
    assert source.remarks == (remark,)
    assert "tensorflow" not in sys.modules


def test_splits_of_tfds(prepared):
    assert read_tfds("tiny_dataset/full", data_dir=prepared, split="test").names == ("4-é.jpg",)
    assert len(read_tfds("tiny_dataset/full", data_dir=prepared, split="train+test")) == 5
    half = read_tfds("tiny_dataset/full", data_dir=prepared, split="train[:50%]")
    assert half.names == read_tfds("tiny_dataset/full", data_dir=prepared).names[:2]


def test_labels_of_every_kind(prepared):
    """Rows of the examples 0 to 3, whose classes are [0, 2], none, [1] and [2, 1]."""
    expected = {
        "labels_sure": [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]],
        "kind": [[1, 0, 0], [-1, -1, -1], [0, 1, 0], [0, 0, 1]],
        "present": [[1, 0, 1], [0, 0, 0], [0, 1, 0], [-1, 1, 1]],
        "objects": [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1]],
    }
    for feature, rows in expected.items():
        source = read_tfds("tiny_dataset/full", data_dir=prepared, labels=feature)
        of_name = dict(zip(source.names, source.labels.tolist()))
        assert [of_name[f"{i}-é.jpg"] for i in range(4)] == rows, feature
        names = ("0", "1", "2") if feature == "present" else ("cat", "dog", "bird")
        assert source.label_names == names


def test_parquet_is_read_whole(tmp_path):
    pytest.importorskip("pyarrow")
    from tiny_dataset import TinyDataset, picture

    TinyDataset(data_dir=tmp_path, config="full").download_and_prepare(file_format="parquet")
    source = read_tfds("tiny_dataset/full", data_dir=tmp_path)
    assert [example.image for example in source] == [picture(int(name[0])) for name in source.names]
    with pytest.raises(InputError, match=r"only whole splits can be read, not 'train\[:2\]'"):
        read_tfds("tiny_dataset/full", data_dir=tmp_path, split="train[:2]")


def test_voc_of_tfds_has_the_names_of_voc():
    """On its own features; its mocked records cannot be encoded without TensorFlow, so these are ours."""
    import tensorflow_datasets as tfds

    asked = []

    def records(self, split, decoders=None):
        del self
        asked.append((split, {key: type(own) for key, own in decoders.items()}))
        return [
            {
                "image": a_jpeg(0),
                "image/filename": b"000005.jpg",
                "labels": [10, 8],
                "objects": {"label": [10]},
            },
            {"image": a_jpeg(1), "image/filename": b"000007.jpg", "labels": [], "objects": {"label": []}},
        ]

    with tfds.testing.mock_data(as_data_source_fn=records):
        source = read_tfds("voc/2007", split="test")
    assert asked == [("test", {"image": tfds.decode.SkipDecoding})]
    assert source.label_names == VOC_LABELS
    assert present(source) == [["chair", "dining table"], []]
    assert source.names == ("000005.jpg", "000007.jpg")
    assert source[1].image == a_jpeg(1)
    assert source.title == "voc/2007/5.0.0, split=test"
    assert source.remarks == ("labels are those of the feature labels, not labels_no_difficult, objects",)


def test_one_class_and_no_names():
    import tensorflow_datasets as tfds

    def records(self, split, decoders=None):
        del self, split, decoders
        return [{"image": b"0", "label": 7}, {"image": b"1", "label": 0}]

    with tfds.testing.mock_data(as_data_source_fn=records):
        source = read_tfds("mnist", split="train")
    assert source.names == ("train-0000000", "train-0000001")
    assert present(source) == [["7"], ["0"]]
    assert source.captions is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "tiny_dataset/full",
            {"split": "val"},
            "cannot read split 'val' of tiny_dataset/full, which has train, test",
        ),
        ("tiny_dataset/full", {"labels": "image"}, "no feature of labels 'image'; it has "),
        ("tiny_dataset/no_labels", {}, "tiny_dataset/no_labels has no feature of labels; it has "),
        ("tiny_dataset/two_images", {}, "must have one feature that is an image; it has labels: Sequence("),
        ("tiny_dataset/two_labels", {}, "several features of labels; give labels= one of mine, yours"),
        (
            "tiny_dataset/two_labels",
            {"labels": "mine"},
            "tfds.builder('tiny_dataset/two_labels', data_dir='{}').download_and_prepare(file_format=",
        ),
        ("tiny_dataset/none", {}, "TensorFlow Datasets has no tiny_dataset/none: "),
        (
            "no_such_dataset",
            {},
            "no no_such_dataset: Dataset no_such_dataset not found; give a registered name",
        ),
        pytest.param("coco/2014", {}, "cannot describe coco/2014 here: ", marks=without_tensorflow),
        ("{}/damaged", {}, "has no {}/damaged: "),
        ("{}", {}, "or the folder of a prepared data set, which holds dataset_info.json"),
    ],
)
def test_tfds_that_cannot_be_read(prepared, name, options, message):
    write_files(prepared, {"damaged/dataset_info.json": "{"})
    with pytest.raises(InputError) as raised:
        read_tfds(name.format(prepared), data_dir=prepared, **options)
    assert message.format(prepared) in str(raised.value)
    assert "\n" not in str(raised.value)


# By a line of text


def test_a_folder_is_a_folder(voc, tmp_path):
    assert open_images(voc / "JPEGImages").names == ("000005.jpg", "000007.jpg", "000012.jpg")
    (tmp_path / "foo:bar").mkdir()
    (tmp_path / "foo:bar" / "x.jpg").write_bytes(a_jpeg(0))
    assert open_images(f"{tmp_path}/foo:bar").names == ("x.jpg",)


def test_every_format_by_a_line(voc, coco, nus_wide, prepared, monkeypatch):
    """The fixtures share a folder, in which every format finds its own."""
    assert (
        open_images(f"voc:{voc},split=val,difficult=-1").digest
        == read_voc(voc, split="val", difficult=-1).digest
    )
    assert open_images(f"coco:{coco},captions=yes").captions == read_coco(coco, captions="yes").captions
    assert len(open_images(f"nus_wide:{nus_wide},lists=labelled")) == 2
    assert len(open_images(f"tfds:tiny_dataset/full,data_dir={prepared},split=train[:50%]")) == 2
    write_files(
        voc, {"a,b.csv": "file,tags\n000005,cat,\n".replace(",\n", "\n"), "names.json": {"cat": "Cat"}}
    )
    monkeypatch.chdir(voc)
    source = open_images("table:a,b.csv,suffix=.jpg,images=JPEGImages,names=names.json")
    assert source.label_names == ("Cat",)
    assert source[0].image == a_jpeg(5)


def test_a_side_of_a_split(nus_wide):
    whole = read_nus_wide(nus_wide)
    part = open_images(f"nus_wide:{nus_wide},ratio=60/40,part=test,seed=3")
    assert part.names == split_source(whole, "60/40", "test", seed=3).names
    parts = [open_images(f"nus_wide:{nus_wide},part={part},ratio=60/40") for part in ("train", "test")]
    assert sorted(parts[0].names + parts[1].names) == sorted(whole.names)
    assert parts[0].title.startswith(whole.title)
    with pytest.raises(InputError, match="stratified='perhaps' is neither yes nor no"):
        open_images(f"nus_wide:{nus_wide},part=test,ratio=60/40,stratified=perhaps")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foo:/x", "no format 'foo' of images in 'foo:/x': there are table:, voc:, coco:, nus_wide:, tfds:"),
        ("/no/such/folder", "no such folder of images: /no/such/folder"),
        (__file__, "is a file; give a folder, or its format"),
        ("voc:", "'voc:' names nothing to read after voc:"),
        (
            "voc:/x,splitt=val",
            "voc: has no option 'splitt' (did you mean split?); its options, and defaults: split=",
        ),
        ("voc:/x,captions=yes", "voc: has no option 'captions'"),
        ("voc:/x,path=/y", "voc: has no option 'path'"),
        ("voc:/x,folder=/y", "voc: has no option 'folder'"),
        ("voc:/x,split=val,split=test", "voc: is given split= twice, as 'val' and 'test'"),
        ("voc:/x,difficult=no", "voc: takes a whole number as difficult, not 'no'"),
        ("table:/x.csv,absent=0.5", "table: takes a whole number as absent, not '0.5'"),
        ("voc:/x,part=test", "voc: is given part without ratio; give both"),
        ("voc:/x,ratio=70/30", "voc: is given ratio without part; give both"),
        ("voc:/x,seed=1", "voc: is given seed without ratio and part; give both"),
    ],
)
def test_lines_that_name_nothing(spec, message):
    with pytest.raises(InputError, match=re.escape(message)):
        open_images(spec)


def test_options_have_defaults():
    """So the first argument alone is the path, and whatever follows can be left out."""
    for reader in FORMATS.values():
        _, *options = inspect.signature(reader).parameters.values()
        assert all(one.kind is one.KEYWORD_ONLY and one.default is not one.empty for one in options)
