"""What results look like to people: tables in Markdown, and pictures of predictions."""

import numpy as np

from mlclip_jax.files import replacing

MOST_LINES = 10  # below an image
RIGHT, WRONG, MISSED = "#1a7f37", "#c62828", "#8a8a8a"


def markdown_table(header, rows):
    """A table of strings, as Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw_predictions(path, images, probabilities, label_names, *, thresholds, truth=None, columns=6):
    """Draws images with their predicted labels below them.

    Args:
      path: of the PNG to write.
      images: N `PIL.Image`s or arrays.
      probabilities: `(N, K)`.
      label_names: K names.
      thresholds: `(K,)`; a label is predicted where its probability reaches its own.
      truth: `(N, K)` in {1, 0, -1}, or None. With it, right labels are green, wrong ones red, and what was
        missed is named in grey.
      columns: how many images stand side by side.

    Raises:
      InputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    texts = [
        _label_lines(row, label_names, thresholds, None if truth is None else truth[i])
        for i, row in enumerate(probabilities)
    ]
    # In inches: a square for each image, and room for its lines below; each row as high as it needs.
    side, gap, line = 1.8, 0.15, 0.17
    rows = [texts[i : i + columns] for i in range(0, len(texts), columns)]
    heights = [side + line * max(map(len, row)) + 2 * gap for row in rows]
    width, height = columns * (side + gap) + gap, sum(heights) + gap
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for i, (image, lines) in enumerate(zip(images, texts)):
        row, column = divmod(i, columns)
        left, top = gap + column * (side + gap), height - gap - sum(heights[:row])
        axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        axes.imshow(np.asarray(image), interpolation="nearest")
        axes.set_axis_off()
        for j, (text, colour) in enumerate(lines):
            place = (left / width, (top - side - line * j - 0.05) / height)
            figure.text(*place, text, color=colour, fontsize=9, va="top", parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _label_lines(probabilities, label_names, thresholds, truth):
    """What is written below an image: pairs of text and colour, the most probable first."""
    lines = []
    for k in np.argsort(-probabilities):
        predicted = probabilities[k] >= thresholds[k]
        text = f"{label_names[k]} {100 * probabilities[k]:.0f}%"
        if predicted:
            colour = "black" if truth is None else {1: RIGHT, 0: WRONG, -1: "black"}[int(truth[k])]
            lines.append((text, colour))
        elif truth is not None and truth[k] == 1:
            lines.append((f"missed: {text}", MISSED))
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [(f"and {len(lines) - MOST_LINES} more", MISSED)]
    return lines or [("no label", MISSED)]
