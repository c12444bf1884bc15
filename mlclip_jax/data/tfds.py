"""TensorFlow Datasets, without TensorFlow."""

import os
from pathlib import Path

import numpy as np

from mlclip_jax.data.benchmarks import VOC_NAMES, as_text, first_line
from mlclip_jax.data.sources import Source
from mlclip_jax.errors import InputError
from mlclip_jax.progress import progress_bar


def read_tfds(
    name: str | os.PathLike,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    labels: str | None = None,
) -> Source:
    """A `Source` of one of TensorFlow Datasets, prepared as ArrayRecord or Parquet. It takes no TensorFlow.

    The images are the files that were put in, to the byte.

    Args:
      name: "voc/2007", or another one that is registered; or the folder of a prepared one, which holds its
        `dataset_info.json`.
      split: "train", "train+validation", "train[:10%]": whatever TensorFlow Datasets takes.
      data_dir: where it was prepared; by default `~/tensorflow_datasets`.
      labels: the feature of the labels: classes, one class, a 1 or 0 for each class, or objects with a label.
        By default the only one of the first of these kinds that there is, or the one named labels; of VOC,
        that has difficult objects as present, and labels_no_difficult as absent.

    Raises:
      InputError: there is no such data set, it is not prepared, or has no image or no labels.
    """
    import tensorflow_datasets as tfds  # slow to import, and needed by few

    builder = _tfds_builder(tfds, name, data_dir)
    features = dict(sorted(builder.info.features.items()))  # those of a folder come in any order
    listed = "; ".join(f"{key}: {' '.join(repr(own).split())}" for key, own in features.items())
    images = [key for key, own in features.items() if type(own) is tfds.features.Image]
    if len(images) != 1:
        raise InputError(f"{name} must have one feature that is an image; it has {listed}")
    kinds = {key: _tfds_kind(tfds, own) for key, own in features.items()}
    key = _tfds_label_feature(name, {own: kind for own, kind in kinds.items() if kind}, labels, listed)
    label_names = _tfds_classes(features[key], kinds[key])
    texts = [own for own in features if type(features[own]) is tfds.features.Text]
    file = next((own for own in ("image/filename", "filename", "file_name") if own in texts), None)
    caption = next((own for own in ("caption", "text") if own in texts), None)
    records = _tfds_records(tfds, builder, name, split, data_dir, images[0])
    names, rows, captions = [], np.zeros((len(records), len(label_names)), np.int8), []
    with progress_bar(len(records), "reading labels", "images") as bar:
        for i in range(len(records)):
            record = records[i]
            names.append(f"{split}-{i:07}" if file is None else as_text(record[file]))
            rows[i] = _TFDS_ROWS[kinds[key]](record[key], len(label_names))
            captions.append("" if caption is None else as_text(record[caption]))
            bar.update()
    if builder.name == "voc":
        label_names = [VOC_NAMES.get(label, label) for label in label_names]
    others = [own for own, kind in kinds.items() if kind and own != key]
    remark = f"labels are those of the feature {key}" + (f", not {', '.join(others)}" if others else "")
    return Source(
        f"{builder.info.full_name}, split={split}",
        names,
        lambda index: records[index][images[0]],
        labels=rows,
        label_names=label_names,
        captions=None if caption is None else captions,
        remarks=[remark],
    )


def _tfds_builder(tfds, name, data_dir):
    """The builder of a name or a folder."""
    try:
        if (Path(name) / "dataset_info.json").is_file():
            return tfds.builder_from_directory(str(name))
        return tfds.builder(name, data_dir=data_dir)
    except ImportError as error:
        raise InputError(
            f"TensorFlow Datasets cannot describe {name} here: {first_line(error)}; prepare it where that is "
            "installed, with file_format='array_record', and give its folder, which holds dataset_info.json"
        ) from error
    except Exception as error:  # it raises whatever a name or a damaged folder makes it stumble over
        raise InputError(
            f"TensorFlow Datasets has no {name}: {first_line(error)}; give a registered name such as "
            "voc/2007, or the folder of a prepared data set, which holds dataset_info.json"
        ) from error


def _tfds_records(tfds, builder, name, split, data_dir, image):
    """The records of a split, by index, with encoded images."""
    try:
        records = builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except Exception as error:  # it raises as many things as can be missing
        if builder.info.splits and not isinstance(error, NotImplementedError):
            there = ", ".join(builder.info.splits)
            raise InputError(
                f"cannot read split {split!r} of {name}, which has {there}: {first_line(error)}"
            ) from error
        called = repr(builder.info.full_name.rpartition("/")[0])
        where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
        raise InputError(
            f"{name} is not prepared as array_record or parquet in {builder.data_dir}; prepare it once, for "
            'which many of them take TensorFlow: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({called}{where}).download_and_prepare(file_format='array_record')\""
        ) from error
    # Parquet is read whole, whatever part of a split was asked for.
    if builder.info.splits and len(records) != builder.info.splits[split].num_examples:
        raise InputError(
            f"{name} is stored as parquet, of which only whole splits can be read, not {split!r}"
        )
    return records


def _tfds_label_feature(name, kinds, wanted, listed):
    """Which of the features that tell labels, by their kinds, is taken."""
    if wanted is not None:
        found = [wanted] if wanted in kinds else []
    else:
        best = next((kind for kind in _TFDS_ROWS if kind in kinds.values()), None)
        found = [key for key, kind in kinds.items() if kind == best]
        found = [key for key in found if key in ("labels", "label")] or found
    if not found:
        which = "no feature of labels" if wanted is None else f"no feature of labels {wanted!r}"
        raise InputError(f"{name} has {which}; it has {listed}")
    if len(found) > 1:
        raise InputError(f"{name} has several features of labels; give labels= one of {', '.join(found)}")
    return found[0]


def _tfds_classes(feature, kind):
    """The names of K labels; numbers, where a feature names none."""
    match kind:
        case "columns":
            return [str(k) for k in range(feature.shape[0])]
        case "class":
            return feature.names
        case "classes":
            return feature.feature.names
    return feature.feature["label"].names


def _tfds_kind(tfds, feature):
    """How a feature tells labels, a key of `_TFDS_ROWS`; None of one that does not."""

    def is_class(own):
        return isinstance(own, tfds.features.ClassLabel) and own.num_classes is not None

    if type(feature) is tfds.features.Sequence:
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):
            return "objects" if "label" in inner and is_class(inner["label"]) else None
        return "classes" if is_class(inner) else None
    if is_class(feature):
        return "class"
    if type(feature) is tfds.features.Tensor and len(feature.shape) == 1 and feature.shape[0] is not None:
        return "columns" if np.dtype(feature.np_dtype).kind in "biu" else None
    return None


def _row_of_classes(value, number):
    """Several classes, each present."""
    row = np.zeros(number, np.int8)
    row[[int(k) for k in value if k >= 0]] = 1
    return row


def _row_of_class(value, number):
    """One class; where it is withheld, as -1, all labels are unknown."""
    return _row_of_classes([value], number) if value >= 0 else np.full(number, -1, np.int8)


def _row_of_columns(value, number):
    """A 1, 0 or -1 for each label."""
    row = np.asarray(value).astype(int)
    if row.shape != (number,) or not np.isin(row, (-1, 0, 1)).all():
        raise InputError(f"labels must be {number} values of 1 present, 0 absent or -1 unknown; got {row}")
    return row


def _row_of_objects(value, number):
    """The classes of objects."""
    return _row_of_classes(value["label"], number)


_TFDS_ROWS = {  # in order of preference
    "classes": _row_of_classes,
    "class": _row_of_class,
    "columns": _row_of_columns,
    "objects": _row_of_objects,
}
