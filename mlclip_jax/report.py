"""What data and results look like to people: tables in Markdown, and pictures with text below them."""

import os
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int8, Shaped
from PIL import Image

from mlclip_jax.files import replacing

MOST_LINES = 10  # below an image
SIDE, DPI = 180, 100  # of an image in a picture, in pixels; and pixels in an inch
LOG_SPAN = 10
RIGHT, WRONG, MISSED, EMPTY = "#1a7f37", "#c62828", "#8a8a8a", "#e4e4e4"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str | None = None) -> str:
    """A table of strings, as Markdown.

    Args:
      header: a string for each column.
      rows: of as many strings.
      align: a letter for each column, "l" or "r": they are padded, and line up as plain text too.
    """
    rule = ["---"] * len(header)
    if align is not None:
        widths = [max(3, *map(len, column)) for column in zip(header, *rows)]
        rule = ["-" * (w - 1) + ":" if a == "r" else "-" * w for a, w in zip(align, widths)]
        pad = {"l": str.ljust, "r": str.rjust}
        header, *rows = (
            [pad[a](cell, w) for cell, a, w in zip(cells, align, widths)] for cells in (header, *rows)
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def plot_figures(
    path: str | os.PathLike,
    keys: Sequence[str],
    figures: Mapping[tuple, Sequence[float]],
    title: str,
    *,
    reference: Mapping[tuple, float] | None = None,
) -> None:
    """Plots figures over the values of keys: mean and standard deviation of each list.

    The key with the most numbers among its values goes along the axis, which is logarithmic where they span a
    factor of `LOG_SPAN`; each combination of the others' values is a line of its own. Where no key has
    numbers, each combination is a bar.

    Args:
      path: of the PNG to write.
      keys: what varies.
      figures: from the values of the keys to figures.
      title: of the vertical axis.
      reference: dashed beside them: from values of the keys, where there is one, to the published figure.

    Raises:
      InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(ylabel=title)
    points = {
        of: (np.mean(own), np.std(own, ddof=1) if len(own) > 1 else 0.0, (reference or {}).get(of))
        for of, own in figures.items()
    }
    values = [list(dict.fromkeys(of)) for of in zip(*figures)]
    numeric = [len(of) if all(isinstance(v, int | float) for v in of) else 0 for of in values]
    if max(numeric, default=0):
        _plot_lines(axes, keys, points, values, int(np.argmax(numeric)))
    else:
        _plot_bars(axes, points, values, title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or "published" in labels:
        figure.legend(handles, labels, loc="outside upper center", ncols=2 if len(labels) > 3 else 3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def _plot_lines(axes, keys, points, values, along):
    """Points over the values of one key, a line for each combination of the others'."""
    lines = {}
    for of, point in points.items():
        others = [i for i in range(len(of)) if i != along and len(values[i]) > 1]
        name = ", ".join(of[i] if isinstance(of[i], str) else f"{_last(keys[i])} {of[i]}" for i in others)
        lines.setdefault(name, []).append((of[along], *point))
    for name, line in lines.items():
        x, mean, spread, published = zip(*sorted(line))
        drawn = axes.errorbar(x, mean, spread, marker="o", capsize=3, label=name)
        if None not in published:
            name = f"{name}, published" if name else "published"
            axes.plot(x, published, "--", marker=".", color=drawn.lines[0].get_color(), label=name)
    axes.set_xlabel(_last(keys[along]))
    x = sorted(values[along])
    if x[0] > 0 and x[-1] >= LOG_SPAN * x[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    places = np.log(x) if axes.get_xscale() == "log" else np.array(x)
    if len(x) > 1 and np.diff(places).min() >= 0.04 * np.ptp(places):  # there is room to name each
        axes.set_xticks(x, [f"{value:,g}" for value in x])


def _plot_bars(axes, points, values, title):
    varied = [i for i, of in enumerate(values) if len(of) > 1]
    names = [", ".join(str(of[i]) for i in varied) or title for of in points]
    mean, spread, published = zip(*points.values())
    bars = axes.bar(names, mean, yerr=spread, width=0.5, capsize=3)
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.margins(y=0.1)
    known = [(place, figure) for place, figure in enumerate(published) if figure is not None]
    if known:
        place, figure = np.array(known).T
        axes.hlines(figure, place - 0.35, place + 0.35, "k", "dashed", label="published")
    if len(names) > 3:
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")


def _last(key):
    """The last part of a key, in words."""
    return key.rpartition(".")[2].replace("_", " ")


def draw_predictions(
    path: str | os.PathLike,
    images: Sequence[Image.Image | Shaped[np.ndarray, "H W 3"]],
    probabilities: Float[np.ndarray, "N K"],
    label_names: Sequence[str],
    *,
    predicted: Bool[np.ndarray, "N K"],
    truth: Int8[np.ndarray, "N K"] | None = None,
    columns: int = 6,
    percent: bool = True,
) -> None:
    """Draws images with their predicted labels below them.

    Args:
      path: of the PNG to write.
      images: N `PIL.Image`s or arrays.
      probabilities: `(N, K)`, or scores.
      label_names: K names.
      predicted: `(N, K)`, which labels are.
      truth: `(N, K)` in {1, 0, -1}, or None. With it, right labels are green, wrong ones red, and what was
        missed is named in grey.
      columns: how many images stand side by side.
      percent: whether probabilities are written, in percent; else scores.

    Raises:
      InputError: the file cannot be written.
    """
    lines = [
        _label_lines(row, label_names, predicted[i], None if truth is None else truth[i], percent)
        for i, row in enumerate(probabilities)
    ]
    draw_grid(path, images, lines, columns)


def draw_grid(
    path: str | os.PathLike,
    images: Sequence[Image.Image | Shaped[np.ndarray, "H W 3"] | None],
    lines: Sequence[Sequence[tuple[str, str]]],
    columns: int = 6,
) -> None:
    """Draws images side by side, with lines of text below each.

    Args:
      path: of the PNG to write.
      images: N `PIL.Image`s or arrays; None leaves a tile empty.
      lines: for each image, pairs of text and colour. A text that is too wide loses its middle.
      columns: how many images stand side by side.

    Raises:
      InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = min(columns, len(images))
    # In inches: a square for each image, and room for its lines below; each row as high as it needs.
    side, gap, line = SIDE / DPI, 0.15, 0.17
    rows = [lines[i : i + columns] for i in range(0, len(lines), columns)]
    heights = [side + line * max(map(len, row)) + 2 * gap for row in rows]
    width, height = columns * (side + gap) + gap, sum(heights) + gap
    figure = Figure(figsize=(width, height), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    for i, (image, own) in enumerate(zip(images, lines)):
        row, column = divmod(i, columns)
        left, top = gap + column * (side + gap), height - gap - sum(heights[:row])
        place = (left / width, (top - side) / height, side / width, side / height)
        if image is None:
            tile = Rectangle(place[:2], *place[2:], transform=figure.transFigure, facecolor=EMPTY)
            figure.add_artist(tile)
        else:
            axes = figure.add_axes(place)
            axes.imshow(np.asarray(image), interpolation="nearest")
            axes.set_axis_off()
            axes.set_anchor("S")  # a low image stands on its text
        for j, (text, colour) in enumerate(own):
            place = (left / width, (top - side - line * (j + 1)) / height)
            drawn = figure.text(*place, text, color=colour, fontsize=9, parse_math=False)
            _narrow(drawn, SIDE, canvas.get_renderer())
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that the font lacks; it shows as a box
        figure.savefig(temporary, format="png", dpi=DPI)


def _narrow(drawn, width, renderer):
    """Takes characters out of the middle of a text in a figure until it is as narrow as this, in pixels."""
    text = drawn.get_text()
    kept = len(text)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        while (now := drawn.get_window_extent(renderer).width) > width and kept > 4:
            kept = max(4, min(kept - 1, int(kept * width / now) + 2))
            drawn.set_text(f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}")


def _label_lines(probabilities, label_names, predicted, truth, percent=True):
    """What is written below an image: pairs of text and colour, the most probable first."""
    lines = []
    for k in np.argsort(-probabilities):
        written = f"{100 * probabilities[k]:.0f}%" if percent else f"{probabilities[k]:.2f}"
        text = f"{label_names[k]} {written}"
        if predicted[k]:
            colour = "black" if truth is None else {1: RIGHT, 0: WRONG, -1: "black"}[int(truth[k])]
            lines.append((text, colour))
        elif truth is not None and truth[k] == 1:
            lines.append((f"missed: {text}", MISSED))
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [(f"and {len(lines) - MOST_LINES} more", MISSED)]
    return lines or [("no label", MISSED)]
