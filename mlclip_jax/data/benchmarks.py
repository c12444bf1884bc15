"""Images with labels as the benchmarks lay them out: PASCAL VOC, COCO and NUS-WIDE."""

import functools
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mlclip_jax.data.images import image_suffixes, printable
from mlclip_jax.data.sources import Source, label_name, read_files, read_lines
from mlclip_jax.data.tables import read_table
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json, read_text
from mlclip_jax.wording import counted

VOC_LABELS = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
VOC_NAMES = {label.replace(" ", ""): label for label in VOC_LABELS}  # from those of its own files
DIFFICULT = {-1: "unknown", 0: "absent", 1: "present"}
NUS_WIDE_LISTS = ("official", "labelled", "asl", "srn")


def read_voc(
    folder: str | os.PathLike,
    *,
    split: str = "trainval",
    difficult: str | int = 0,
    labels: str = "voc",
) -> Source:
    """A `Source` of PASCAL VOC, with the 20 labels `VOC_LABELS`; or of other images annotated in its format.

    Args:
      folder: `VOCdevkit/VOC2007`, or of another year: with `ImageSets/Main`, `Annotations` and `JPEGImages`.
      split: a list of `ImageSets/Main`: train, val, trainval or test.
      difficult: what a label is of which an image has objects, all of them marked difficult: 0 absent, as
        TaI, DualCoOp and ASL have it; -1 unknown; 1 present.
      labels: "voc", its twenty; or "found", the kinds of objects in all `Annotations`, by the alphabet.

    Raises:
      InputError: a list or an annotation is missing or damaged, or there is no such `difficult` or `labels`.
    """
    if labels not in ("voc", "found"):
        raise InputError(f"labels={labels!r} is neither voc nor found")
    folder = Path(folder)
    if str(difficult) not in map(str, DIFFICULT):
        raise InputError(f"difficult={difficult!r} is neither 0 absent, -1 unknown nor 1 present")
    difficult = int(difficult)
    listed = _file_of_split(folder, "ImageSets/Main/{}.txt", split, "give the folder of a year, VOC2007")
    # A list of one class has a number behind each id; but ids may hold blanks, and end like that.
    lines = read_lines(listed)
    annotated = {path.stem for path in (folder / "Annotations").glob("*.xml")}
    ids = [line if line in annotated else re.sub(r"\s+-?[01]$", "", line) for line in lines]
    read = functools.cache(lambda name: list(_voc_objects(folder / "Annotations" / f"{name}.xml")))
    label_of = VOC_NAMES
    if labels == "found":
        label_of = {kind: label_name(kind) for name in sorted(annotated) for kind, _ in read(name)}
    label_names = VOC_LABELS if labels == "voc" else sorted(set(label_of.values()))
    column = {label: k for k, label in enumerate(label_names)}
    values = np.zeros((len(ids), len(label_names)), np.int8)
    only_difficult = unknown = 0
    for row, name in zip(values, ids):
        objects = read(name)
        clear = {label_of[kind] for kind, is_difficult in objects if kind in label_of and not is_difficult}
        others = {label_of[kind] for kind, _ in objects if kind in label_of} - clear
        row[[column[label] for label in clear]] = 1
        row[[column[label] for label in others]] = difficult
        only_difficult += len(others)
        unknown += sum(kind not in label_of for kind, _ in objects)
    remarks = []
    if only_difficult:
        which = counted(only_difficult, "label, of which", "labels, of which")
        remarks.append(f"{which} all objects are difficult, became {DIFFICULT[difficult]}")
    if unknown:
        left_out = counted(unknown, "object was", "objects were")
        remarks.append(f"{left_out} left out, of none of the 20 kinds; labels=found takes them all")
    return read_files(
        f"{printable(folder)}, split={split}",
        folder / "JPEGImages",
        _voc_files(folder / "JPEGImages", ids),
        labels=values,
        label_names=label_names,
        remarks=remarks,
    )


def _voc_objects(path):
    """The objects of an annotation: (kind, whether it is difficult) of each."""
    text = read_text(path)
    # No annotation has these. Entities can grow without end; zero bytes would hide them, as UTF-16.
    if any(own in text for own in ("<!DOCTYPE", "<!ENTITY", "\0")):
        raise InputError(f"{path} has a document type or zero bytes, and was not read; unpack it again")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"cannot read {path} as XML: {error}; unpack it again") from error
    for one in root.findall("object"):
        difficult = one.findtext("difficult", "0").strip().lower()
        if difficult not in ("", "0", "1", "false", "true", "no", "yes"):
            raise InputError(f"{path}: difficult is {difficult!r:.20}; it must be 0 or 1")
        yield one.findtext("name", "").strip(), difficult in ("1", "true", "yes")


def _voc_files(folder, ids):
    """The file of each id: `.jpg`, or what else is there of its name."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = {Path(name).stem: name for name in there if Path(name).suffix.lower() in image_suffixes()}
    jpegs = {name for name in there if name.endswith(".jpg")}
    return [f"{own}.jpg" if f"{own}.jpg" in jpegs else others.get(own, f"{own}.jpg") for own in ids]


def read_coco(
    folder: str | os.PathLike,
    *,
    split: str = "val2017",
    annotations: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    unannotated: str = "keep",
    captions: str | os.PathLike | None = None,
) -> Source:
    """A `Source` of MS COCO, with the categories of its file in the order of their ids, sorted by image id.

    Every annotation counts, those of crowds too.

    Args:
      folder: with `annotations/instances_{split}.json`, and images in `{split}` or `images/{split}`.
      split: val2017, train2017, val2014 or train2014.
      annotations: path of another file of annotations.
      images: another folder of images.
      unannotated: "keep" images without any annotation (they have no label), or "drop" them.
      captions: path of a `captions_*.json`; "yes" for `annotations/captions_{split}.json`. Of an image's
        captions, that of the lowest id is taken; an image without any has the caption "".

    Raises:
      InputError: a file or folder is missing, or is no such file.
    """
    folder = Path(folder)
    if unannotated not in ("keep", "drop"):
        raise InputError(f"unannotated={unannotated!r} is neither keep nor drop")
    if annotations is None:
        remedy = "give the folder that holds annotations"
        annotations = _file_of_split(folder, "annotations/instances_{}.json", split, remedy)
    if images is None:
        images = _first_folder(folder, (split, f"images/{split}"))
    content = read_json(annotations)
    categories, column = _coco_ids(annotations, content, "categories", {"id": int, "name": str})
    pictures, _ = _coco_ids(annotations, content, "images", {"id": int, "file_name": str})
    label_names = [label_name(one["name"]) for one in categories]
    if len(set(label_names)) < len(label_names):
        twice = next(name for name in label_names if label_names.count(name) > 1)
        raise InputError(f"{annotations} has two categories of the name {twice!r}; a label needs its own")
    place: dict[str, int] = {}  # a file may be there under several ids: all of them speak of one row
    row = {one["id"]: place.setdefault(one["file_name"], len(place)) for one in pictures}
    files = list(place)
    labels = np.zeros((len(files), len(column)), np.int8)
    kinds = {"id": int, "image_id": int, "category_id": int}
    for one in _coco_entries(annotations, content, "annotations", kinds):
        if one["image_id"] not in row:
            raise InputError(
                f"{annotations}: annotation {one['id']} is of an unknown image, {one['image_id']}"
            )
        if one["category_id"] not in column:
            raise InputError(
                f"{annotations}: annotation {one['id']} is of an unknown category, {one['category_id']}"
            )
        labels[row[one["image_id"]], column[one["category_id"]]] = 1
    texts = None
    if captions is not None:
        if captions == "yes":
            remedy = "give the path of a file"
            captions = _file_of_split(folder, "annotations/captions_{}.json", split, remedy)
        texts = _coco_captions(captions, row)
    annotated = np.flatnonzero(labels.any(axis=1))
    became = "kept" if unannotated == "keep" else "left out"
    bare = f"{len(files) - len(annotated):,} of them without annotation, {became}"
    remarks = [f"{counted(len(files), 'image')}, {bare}"]
    if len(files) < len(row):
        repeated = counted(len(row) - len(files), "entry repeats", "entries repeat")
        remarks.append(f"{repeated} the file of another; the annotations of one file are merged")
    if unannotated == "drop":
        files, labels = [files[i] for i in annotated], labels[annotated]
        texts = texts and [texts[i] for i in annotated]
    missing = sum(not text for text in texts or ())
    if missing and captions is not None:
        remarks.append(f"{counted(missing, 'image has', 'images have')} no caption in {printable(captions)}")
    return read_files(
        f"{printable(folder)}, split={split}",
        images,
        files,
        labels=labels,
        label_names=label_names,
        captions=texts,
        remarks=remarks,
    )


def _coco_entries(path, content, key, kinds):
    """The list under a key of a file of COCO's, whose entries have these fields."""
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list {key!r}: only images with published annotations can be read so")
    for number, entry in enumerate(entries):
        for field, kind in kinds.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise InputError(f"{path}: entry {number} of {key!r} has no {kind.__name__} {field!r}")
    return entries


def _coco_ids(path, content, key, kinds):
    """The entries under a key in the order of their ids, and the place of each id."""
    entries = sorted(_coco_entries(path, content, key, kinds), key=lambda entry: entry["id"])
    places = {entry["id"]: i for i, entry in enumerate(entries)}
    if len(places) < len(entries):
        twice = next(entry["id"] for i, entry in enumerate(entries) if places[entry["id"]] != i)
        raise InputError(f"{path} has two entries of the id {twice} in {key!r}; each needs its own")
    return entries, places


def _coco_captions(path, row):
    """A caption for each image; "" for those without."""
    first, kinds = {}, {"id": int, "image_id": int, "caption": str}
    for one in _coco_entries(path, read_json(path), "annotations", kinds):
        own = row.get(one["image_id"])
        if own is not None and one["id"] < first.setdefault(own, one)["id"]:
            first[own] = one
    if not first:
        raise InputError(f"{path} has captions of none of the {len(row)} images; give that of their split")
    return [first[own]["caption"].strip() if own in first else "" for own in range(max(row.values()) + 1)]


def read_nus_wide(
    folder: str | os.PathLike,
    *,
    split: str = "train",
    lists: str = "official",
    images: str | os.PathLike | None = None,
) -> Source:
    """A `Source` of NUS-WIDE with its 81 concepts, in one of the four splits that papers mix.

    Args:
      folder: of the data set.
      split: "train" or "test".
      lists: which images are train and test:
        "official", those of `ImageList`, with the labels of `Groundtruth/TrainTestLabels` (161,789 and
          107,859 images); "labelled", of these the ones that have any of the labels (125,449 and 83,898);
        "asl", `nus_wid_data.csv`, ASL's random 70/30;
        "srn", `formatted_{train,val}_{images,labels}.npy` as single-positive-multi-label distributes SRN's
          lists (150,000 and 60,260); that its columns are in the order of `Concepts81.txt` is taken on trust.
      images: folder of the files; by default `Flickr` or `images` in the folder, or itself; for "asl" itself.

    Raises:
      InputError: a file is missing, or two do not fit together.
    """
    folder = Path(folder)
    if split not in ("train", "test"):
        raise InputError(f"NUS-WIDE has no split {split!r}: give train or test")
    if lists not in NUS_WIDE_LISTS:
        raise InputError(f"NUS-WIDE has no lists={lists}: give one of {', '.join(NUS_WIDE_LISTS)}")
    if lists == "asl":
        part = "train" if split == "train" else "val"
        return read_table(folder / "nus_wid_data.csv", images=images or folder, split=part)
    concepts = read_lines(_first_file(folder, ("Concepts81.txt", "ConceptsList/Concepts81.txt")))
    if lists == "srn":
        names, labels = _srn_lists(folder, "train" if split == "train" else "val", concepts)
    else:
        names, labels = _official_lists(folder, split.capitalize(), concepts)
    bare = ~(labels == 1).any(axis=1)
    became = "left out" if lists == "labelled" else "kept"
    remarks = [f"{counted(len(names), 'image')}, {bare.sum():,} of them with none of the labels, {became}"]
    if lists == "labelled":
        names, labels = [name for name, none in zip(names, bare) if not none], labels[~bare]
    if images is None:
        images = next((folder / own for own in ("Flickr", "images") if (folder / own).is_dir()), folder)
    return read_files(
        f"{printable(folder)}, split={split}, lists={lists}",
        images,
        [name.replace("\\", "/") for name in names],
        labels=labels,
        label_names=concepts,
        remarks=remarks,
    )


def _official_lists(folder, part, concepts):
    """Names and labels of `Train` or `Test`."""
    listed = folder / "ImageList" / f"{part}Imagelist.txt"
    names = read_lines(listed)
    labels = np.zeros((len(names), len(concepts)), np.int8)
    for k, concept in enumerate(concepts):
        own = f"TrainTestLabels/Labels_{concept}_{part}.txt"
        path = _first_file(folder, (f"Groundtruth/{own}", own))
        values = read_text(path).split()
        if len(values) != len(names):
            raise InputError(
                f"{path} has {len(values)} labels, and {listed} {len(names)} images; "
                "unpack both again, they are of one download"
            )
        if not {"0", "1"}.issuperset(values):
            other = next(value for value in values if value not in ("0", "1"))
            raise InputError(f"{path} holds {other!r:.20}; a label there is 0 or 1")
        labels[:, k] = np.array(values) == "1"
    return names, labels


def _srn_lists(folder, part, concepts):
    """Names and labels of `train` or `val`."""
    paths = [folder / f"formatted_{part}_{what}.npy" for what in ("images", "labels")]
    names, labels = map(_read_array, paths)
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise InputError(f"{paths[0]} must hold a row of strings; it has {names.dtype} {names.shape}")
    if labels.shape != (len(names), len(concepts)):
        raise InputError(
            f"{paths[1]} has shape {labels.shape}; {paths[0]} has {len(names)} images, "
            f"and Concepts81.txt {len(concepts)} labels"
        )
    if not np.isin(labels, (-1, 0, 1)).all():
        raise InputError(f"{paths[1]} must hold 1 present, 0 absent or -1 unknown only")
    return list(map(as_text, names.tolist())), labels.astype(np.int8)


def _read_array(path):
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path} as .npy: {first_line(error)}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"cannot read {path} as .npy: it holds several arrays")
    return array


def as_text(value: object) -> str:
    """Bytes as UTF-8, anything else as it prints."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")


def _file_of_split(folder, pattern, split, remedy):
    """The file of a split; the error names the splits that are there."""
    path = folder / pattern.format(split)
    if not path.is_file():
        before, after = pattern.split("{}")
        names = [own.relative_to(folder).as_posix() for own in folder.glob(pattern.format("*"))]
        there = sorted(own.removeprefix(before).removesuffix(after) for own in names)
        there = [own for own in there if "_" not in own]  # VOC's lists of a single class
        hint = f"its splits are {', '.join(there)}" if there else remedy
        raise InputError(f"no file {printable(path)}; {hint}")
    return path


def _first_file(folder, names):
    """The first of some files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    wanted = " or ".join(names)
    raise InputError(f"{printable(folder)} has no file {wanted}; give the folder that it was unpacked into")


def _first_folder(folder, names):
    """The first of some folders that is there."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{printable(folder)} has no folder {' or '.join(names)}; give images= another one")
