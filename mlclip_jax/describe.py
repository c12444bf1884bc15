"""What is in a set of images, before anything is trained: tables, and a sheet of pictures."""

import os
import textwrap

import numpy as np
from PIL import Image

from mlclip_jax.data.images import UnreadableImage, decode_image
from mlclip_jax.data.sources import Source
from mlclip_jax.data.tables import open_table, read_labels
from mlclip_jax.errors import InputError
from mlclip_jax.report import MISSED, SIDE, WRONG, draw_grid, markdown_table

MOST_ROWS, FREQUENT, RARE = 100, 50, 10  # of a table of labels, and of a longer one's two ends
PAIRS = 10
LINES, WIDTH = 6, 27  # below an image on a sheet: labels at most, and characters that a line has room for


def with_labels(source: Source, path: str | os.PathLike) -> Source:
    """A source with the labels of a table, see `tables.read_labels`, in place of its own.

    Raises:
      InputError: the table cannot be read, lacks labels or one of the images, or has two rows for one.
    """
    label_names = open_table(path).label_names
    if not label_names:
        raise InputError(
            f"{path} holds no labels: it needs a column labels, or one for each label, of 1, 0 and -1"
        )
    return Source(
        source.title,
        source.names,
        source.read,
        labels=read_labels(path, source.names, label_names),
        label_names=label_names,
        captions=source.captions,
        remarks=source.remarks,
    )


def describe(source: Source) -> str:
    """What is known of a source's images, as text; none of them is read.

    Labels are counted once for each image, whatever the number of its captions: an image has what any of its
    rows says that it has.
    """
    images = _images_of(source)
    labels = source.labels
    if len(source) > len(images):
        labels = np.stack([labels[rows].max(axis=0) for rows in images])
    facts = [("images", f"{len(images):,}")]
    distinct = len(set(source.names))
    if len(source) > len(images):
        facts.append(("pairs", f"{len(source):,}, an image and one of its captions each"))
    elif distinct < len(images):
        facts.append(("names", f"{distinct:,} distinct ones"))
    if source.captions is not None:
        words = np.mean([len(caption.split()) for caption in source.captions])
        facts.append(("captions", f"{len(source.captions):,}, of {words:.1f} words on average"))
    facts.append(("labels", f"{len(source.label_names):,}"))
    tables = []
    if source.label_names:
        each = (labels == 1).sum(axis=1)
        facts += [
            ("labels per image", f"{each.mean():.2f} on average, from {each.min()} to {each.max()}"),
            ("without a label", _of((each == 0).sum(), len(images))),
            ("unknown entries", _of((labels == -1).sum(), labels.size)),
        ]
        tables = [_label_table(labels, source.label_names), _pair_table(labels, source.label_names)]
    facts += [("remark", remark) for remark in source.remarks]
    width = max(len(name) for name, _ in facts)
    facts = "\n".join(f"  {name:<{width}}  {fact}" for name, fact in facts)
    return "\n\n".join([f"{source.title}\n{facts}", *tables])


def draw_sheet(path: str | os.PathLike, source: Source, number: int, seed: int = 0) -> None:
    """Draws some of a source's images, drawn at random, with their names, labels and captions.

    Args:
      path: of the PNG to write.
      source: a `Source`.
      number: how many, at most.
      seed: of the draw.

    Raises:
      InputError: the file cannot be written.
    """
    images = _images_of(source)
    number = min(number, len(images))
    drawn = np.sort(np.random.default_rng(seed).choice(len(images), number, replace=False))
    tiles, lines = [], []
    for rows in (images[i] for i in drawn):
        row = rows[0]
        below = [(_one_line(source.names[row]), MISSED)]
        try:
            image = decode_image(source.read(row), at_least=SIDE)
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            tiles.append(image)
        except UnreadableImage as error:
            tiles.append(None)
            below += [(line, WRONG) for line in _wrapped(str(error))]
        below += _label_lines(source.labels[rows].max(axis=0), source.label_names)
        if source.captions is not None:
            below += [(line, MISSED) for line in _wrapped(source.captions[row])]
        lines.append(below)
    draw_grid(path, tiles, lines)


def _images_of(source):
    """The rows of each image: one, or those of its captions."""
    if source.captions is None:
        return [[row] for row in range(len(source))]
    rows_of = {}
    for row, name in enumerate(source.names):
        rows_of.setdefault(name, []).append(row)
    return list(rows_of.values())


def _label_table(labels, label_names):
    """How often each label is present, absent and unknown, the most frequent first."""
    present, absent, unknown = ((labels == value).sum(axis=0) for value in (1, 0, -1))
    order = np.argsort(-present, kind="stable")
    note = ""
    if len(order) > MOST_ROWS:
        note = f"\n\nThe {FREQUENT} most and the {RARE} least frequent of {len(order):,} labels."
        order = np.concatenate([order[:FREQUENT], order[-RARE:]])
    rows = [
        [
            _cell(label_names[k]),
            f"{present[k]:,}",
            _percent(present[k], present[k] + absent[k]),
            f"{absent[k]:,}",
            f"{unknown[k]:,}",
        ]
        for k in order
    ]
    return markdown_table(["label", "present", "of known", "absent", "unknown"], rows, "lrrrr") + note


def _pair_table(labels, label_names):
    """Which two labels are most often together, and how likely one is where the other is."""
    from scipy.sparse import csr_array, triu

    present = csr_array((labels == 1).astype(np.int64))
    pairs = triu(present.T @ present, k=1).tocoo()
    order = np.lexsort((pairs.col, pairs.row, -pairs.data))[:PAIRS]
    if not order.size:
        return "No two labels are present in the same image."
    rows = []
    for a, b in zip(pairs.row[order], pairs.col[order]):
        if (labels[:, a] == 1).sum() < (labels[:, b] == 1).sum():
            a, b = b, a
        both = ((labels[:, a] == 1) & (labels[:, b] == 1)).sum()
        # Where the other label is unknown, an image says nothing of how likely that is.
        given_a = ((labels[:, a] == 1) & (labels[:, b] != -1)).sum()
        given_b = ((labels[:, b] == 1) & (labels[:, a] != -1)).sum()
        names = _cell(label_names[a]), _cell(label_names[b])
        rows.append([*names, f"{both:,}", f"{both / given_a:.2f}", f"{both / given_b:.2f}"])
    return markdown_table(["a", "b", "together", "P(b given a)", "P(a given b)"], rows, "llrrr")


def _label_lines(labels, label_names):
    """The present labels, then the unknown ones with a question mark: pairs of text and colour."""
    lines = [(_one_line(label_names[k]), "black") for k in np.flatnonzero(labels == 1)]
    lines += [(f"{_one_line(label_names[k])}?", MISSED) for k in np.flatnonzero(labels == -1)]
    if len(lines) > LINES:
        lines[LINES:] = [(f"and {len(lines) - LINES} more", MISSED)]
    if label_names and not lines:
        return [("no label", MISSED)]
    return lines


def _wrapped(text):
    return textwrap.wrap(_one_line(text), WIDTH, max_lines=3, placeholder=" …")


def _one_line(text):
    return " ".join(text.split())


def _cell(text):
    return _one_line(text).replace("|", "\\|")  # a bar would end the cell of a Markdown table


def _of(number, total):
    return f"{number:,} of {total:,} ({_percent(number, total)})"


def _percent(number, total):
    return f"{100 * number / total:.1f}%" if total else "-"
