"""Methods beside one another on the same images, with intervals of their differences."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int8

from mlclip_jax.metrics import bootstrap_mean_average_precision, mean_average_precision
from mlclip_jax.progress import progress_bar
from mlclip_jax.report import markdown_table
from mlclip_jax.zero_shot import standardise

COSINE = "cosine zero-shot"
Known = Float[Array | np.ndarray, "N K"]  # scores of one method
# What is ranked, given an adapter's scores and plain cosine, both (N, K): the scores as they come;
# standardised over the classes of each image; or that, averaged with cosine treated the same.
SCORINGS = {
    "raw": lambda scores, _: scores,
    "standardised": lambda scores, _: standardise(scores),
    "fused": lambda scores, cosine: (standardise(scores) + standardise(cosine)) / 2,
}


def compare(
    methods: Mapping[str, Known | list[Known]],
    labels: Int8[np.ndarray, "N K"],
    *,
    cosine: Known | None = None,
    num_samples: int = 1000,
    protocol: str = "ap",
    scorings: Sequence[str] = tuple(SCORINGS),
) -> list[dict]:
    """Compares scores of the same images with plain cosine, and with one another.

    Args:
      methods: what to compare: a dict from the name of a method to its scores (N, K), or to a list of such,
        one for each seed.
      labels: int8 (N, K) in {1, 0, -1}.
      cosine: scores (N, K) of plain cosine, which get a row of their own, and are fused with the others'; or
        None.
      num_samples: resamples of the paired bootstrap.
      protocol: of average precision, a key of `metrics.PROTOCOLS`.
      scorings: which of `SCORINGS`.

    Returns:
      Rows, dicts: for each `method` and `scoring` the number of `seeds`, mean `mAP` and `spread` (standard
      deviation) over seeds in percent, `lower` and `upper` bounds of the 95% interval of that mean, and the
      differences `over_cosine` and `over_first` (method of those given) as [difference, lower, upper] of such
      an interval, or None.
    """
    seeds = {name: scores if isinstance(scores, list) else [scores] for name, scores in methods.items()}
    first, references = next(iter(seeds)), {} if cosine is None else {COSINE: [cosine]}
    scorings = [name for name in scorings if references or name != "fused"]
    every, rows = references | seeds, []
    with progress_bar(len(scorings) * sum(map(len, every.values())), "bootstrap", "scores") as bar:
        for scoring in scorings:
            measured = {}
            for name, own in every.items():
                ranked = [SCORINGS[scoring](scores, cosine) for scores in own]
                measured[name] = _measure(ranked, labels, num_samples, protocol, bar)
            for name, (figures, resampled) in measured.items():
                over_cosine, over_first = name in seeds and references, name in seeds and name != first
                rows.append(
                    {
                        "method": name,
                        "scoring": scoring,
                        "seeds": len(figures),
                        "mAP": float(figures.mean()),
                        "spread": float(figures.std(ddof=1)) if len(figures) > 1 else None,
                        **dict(zip(("lower", "upper"), _bounds(float(figures.mean()), resampled))),
                        "over_cosine": _difference(measured, name, COSINE) if over_cosine else None,
                        "over_first": _difference(measured, name, first) if over_first else None,
                    }
                )
    return rows


def compare_steps(
    methods: Mapping[str, Known],
    over: Mapping[str, str],
    labels: Int8[np.ndarray, "N K"],
    *,
    num_samples: int = 1000,
    protocol: str = "ap",
) -> dict[str, tuple[float, list[float] | None]]:
    """What each method gains over the one that it builds on, on the same images.

    Args:
      methods: scores (N, K) by name, ranked as they come.
      over: which of them each builds on; one that is not there builds on none.
      labels: int8 (N, K) in {1, 0, -1}.
      num_samples: resamples of the paired bootstrap.
      protocol: of average precision, a key of `metrics.PROTOCOLS`.

    Returns:
      By name, mAP in percent, and the gain as [difference, lower, upper] bounds of the 95% interval, or None.
    """
    with progress_bar(len(methods), "bootstrap", "scores") as bar:
        measured = {
            name: _measure([scores], labels, num_samples, protocol, bar) for name, scores in methods.items()
        }
    return {
        name: (float(figures.mean()), _difference(measured, name, over[name]) if name in over else None)
        for name, (figures, _) in measured.items()
    }


def describe_comparison(described: Mapping[str, str], compared: Sequence[Mapping]) -> str:
    """What figures mean, a dict, in lines, and below it the rows of `compare` as a Markdown table."""
    lines = [f"{name:<12}{value}" for name, value in described.items()]
    beside_cosine, several = (any(row[key] for row in compared) for key in ("over_cosine", "over_first"))
    header = ["method", "scores", "seeds", "mAP"] + ["over cosine"] * beside_cosine + ["over first"] * several
    rows = []
    for row in compared:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.1f}"
        cells = [row["method"], row["scoring"], str(row["seeds"]), f"{row['mAP']:.1f}{spread}"]
        cells += [describe_gain(row["over_cosine"])] * beside_cosine + [
            describe_gain(row["over_first"])
        ] * several
        rows.append(cells)
    return "\n".join([*lines, "", markdown_table(header, rows)])


def _measure(all_scores, labels, num_samples, protocol, bar):
    """mAP in percent of each seed's scores, and of every resample the mean over seeds."""
    figures, resampled = [], []
    for scores in all_scores:
        figures.append(mean_average_precision(scores, labels, protocol)[0])
        # One key for all: every method is resampled alike, which is what pairs the differences.
        key = jax.random.key(0)
        resampled.append(bootstrap_mean_average_precision(key, scores, labels, num_samples, protocol))
        bar.update()
    return 100 * np.array(figures), 100 * np.mean(resampled, axis=0)


def _difference(measured, name, reference):
    """Difference of two methods' mean figures, and the bounds of its 95% interval."""
    (figures, resampled), (reference_figures, reference_resampled) = measured[name], measured[reference]
    difference = float(figures.mean() - reference_figures.mean())
    return [difference, *_bounds(difference, resampled - reference_resampled)]


def _bounds(figure, resampled):
    """Of the 95% interval of a figure.

    The basic bootstrap: a resample repeats images, which shifts average precision upwards, and the basic
    interval takes that shift out where the percentile interval would keep it.
    """
    lower, upper = np.nanquantile(resampled, (0.025, 0.975))
    return 2 * figure - float(upper), 2 * figure - float(lower)


def describe_gain(difference: Sequence[float] | None) -> str:
    """A difference and the bounds of its interval, `+1.2 [+0.3, +2.1]`; nothing of None."""
    return "" if difference is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference)
