"""Sets of images by one line of text: `voc:data/VOC2007,split=test`, or a folder."""

import inspect
import os
from pathlib import Path

from mlclip_jax.data.benchmarks import read_coco, read_nus_wide, read_voc
from mlclip_jax.data.images import printable
from mlclip_jax.data.scenes_source import read_scenes
from mlclip_jax.data.sources import Source, read_folder
from mlclip_jax.data.tables import read_table
from mlclip_jax.data.tfds import read_tfds
from mlclip_jax.errors import InputError
from mlclip_jax.options import read_options, split_options

FORMATS = {
    "table": read_table,
    "voc": read_voc,
    "coco": read_coco,
    "nus_wide": read_nus_wide,
    "tfds": read_tfds,
    "scenes": read_scenes,
}
SPLIT_OPTIONS = ("ratio", "part", "seed", "stratified")


def open_images(spec: str | os.PathLike) -> Source:
    """The `Source` that a line of text names.

    "photographs" is a folder; "FORMAT:PATH", or "FORMAT:PATH,option=value,...", one of `FORMATS`, with the
    options of its function (`options.py` has the grammar). All formats also take `ratio` and `part`, and
    `seed` and `stratified` with them, to take one side of a split of their examples; see
    `splits.split_source`.

    For instance "coco:/data/coco,split=val2014,unannotated=drop", or
    "table:label.json,images=photographs,ratio=70/30,part=test".

    Raises:
      InputError: there is no such format or option, or its function finds something wrong.
    """
    spec = str(spec)
    kind, colon, rest = spec.partition(":")
    formats = ", ".join(f"{known}:" for known in FORMATS)
    if not colon or kind not in FORMATS:
        if colon and not Path(spec).is_dir():
            raise InputError(
                f"no format {printable(kind)!r} of images in {printable(spec)!r}: there are {formats}"
            )
        if Path(spec).is_file():
            raise InputError(f"{printable(spec)} is a file; give a folder, or its format, one of {formats}")
        return read_folder(spec)
    path, given = split_options(rest)
    if not path:
        raise InputError(f"{printable(spec)!r} names nothing to read after {kind}:")
    options, split = _read_options(kind, given)
    source = FORMATS[kind](path, **options)
    if not split:
        return source
    from mlclip_jax.data.splits import split_source  # with what it imports, which few need

    return split_source(source, **split)


def _read_options(kind, given):
    """The options of a format's function, and those of the split."""
    parameters = inspect.signature(FORMATS[kind]).parameters.items()
    known = {name: own.default for name, own in parameters if own.default is not inspect.Parameter.empty}
    options = read_options(f"{kind}:", given, known | dict.fromkeys(SPLIT_OPTIONS))
    split = {name: options.pop(name) for name in SPLIT_OPTIONS if name in options}
    missing = [name for name in ("ratio", "part") if split and name not in split]
    if missing:
        raise InputError(
            f"{kind}: is given {', '.join(split)} without {' and '.join(missing)}; "
            "give both, as in ratio=70/30,part=train"
        )
    return options, split
