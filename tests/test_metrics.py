"""Metrics against scikit-learn and literal transcriptions, on ties, unknown labels, weights and sizes."""

import functools
import statistics
import time
import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlclip_jax import metrics
from mlclip_jax.distributed.sharding import make_mesh, split_rows
from mlclip_jax.metrics import (
    PROTOCOLS,
    average_precision,
    bootstrap_mean_average_precision,
    mean_average_precision,
)

# Few distinct scores, so that most examples are tied.
tied_scores = st.sampled_from([-1.5, -0.0, 0.0, 1e-40, 0.25, 1.0, 3e38])
SHAPES = [(1, 1), (2, 3), (7, 2), (12, 3)]  # each is compiled once

compiled_average_precision = jax.jit(average_precision, static_argnames="protocol")
compiled_per_class = jax.jit(lambda *given: metrics.precision_recall_f1(metrics.count_decisions(*given)))
compiled_calibration_error = jax.jit(metrics.expected_calibration_error, static_argnames="per_class")


@st.composite
def scored_examples(draw, labels=(0, 1, -1)):
    shape = draw(st.sampled_from(SHAPES))
    scores = draw(hnp.arrays(np.float32, shape, elements=tied_scores))
    return scores, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(labels)))


def curve(score, label):
    """Recall and precision at every distinct score, from the highest down, as fractions."""
    points = []
    for threshold in sorted(set(score.tolist()), reverse=True):
        hits = int(np.sum(label[score >= threshold] == 1))
        points.append(
            (Fraction(hits, int(np.sum(label == 1))), Fraction(hits, int(np.sum(score >= threshold))))
        )
    return points


def voc07(score, label):
    """VOC devkit's VOCap before 2010: for each recall, the best precision at that recall or beyond."""
    points = curve(score, label)
    best = [max([p for r, p in points if r >= Fraction(t, 10)], default=0) for t in range(11)]
    return float(sum(best) / 11)


def voc07_devkit(score, label):
    """The same in floating point, as TaI-DPT's and DualCoOp's evaluation has it."""
    points = [(float(r), float(p)) for r, p in curve(score, label)]
    best = [max([p for r, p in points if r >= t], default=0) for t in np.arange(0.0, 1.1, 0.1)]
    return float(sum(best) / 11)


def voc10(score, label):
    """VOC devkit's VOCap since 2010: the area under the precision made monotone."""
    points = curve(score, label)
    recalls = [Fraction(0), *(r for r, _ in points)]
    envelope = [max(p for _, p in points[i:]) for i in range(len(points))]
    return float(sum((recalls[i + 1] - recalls[i]) * envelope[i] for i in range(len(points))))


def trapezoid(score, label):
    """MMM-CLIP's: `auc(recall, precision)` of scikit-learn's curve."""
    precision, recall, _ = sk.precision_recall_curve(label, score)
    return sk.auc(recall, precision)


REFERENCES = {
    "ap": lambda score, label: sk.average_precision_score(label, score),
    "voc07": voc07,
    "voc07_devkit": voc07_devkit,
    "voc10": voc10,
    "trapezoid": trapezoid,
}


def reference(scores, labels, protocol="ap"):
    """Each class's figure over its known entries, NaN where it has no positive."""
    figures = []
    for score, label in zip(scores.T, labels.T):
        known = label >= 0
        positive = (label[known] == 1).any()
        figures.append(REFERENCES[protocol](score[known], label[known]) if positive else np.nan)
    return np.array(figures)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=75)
@given(examples=scored_examples())
def test_average_precision_is_the_protocols(protocol, examples):
    scores, labels = examples
    ours = compiled_average_precision(scores, labels, protocol)
    np.testing.assert_allclose(ours, reference(scores, labels, protocol), rtol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=40)
@given(examples=scored_examples(), data=st.data())
def test_weights_are_repetitions_and_zero_is_padding(protocol, examples, data):
    scores, labels = examples
    weights = data.draw(hnp.arrays(np.int32, len(scores), elements=st.integers(0, 3)))
    weighted = compiled_average_precision(scores, labels, protocol, weights)
    repeated = reference(np.repeat(scores, weights, axis=0), np.repeat(labels, weights, axis=0), protocol)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)


@settings(max_examples=50)
@given(scored_examples(), st.sampled_from(list(PROTOCOLS)), st.randoms(use_true_random=False))
def test_order_of_examples_and_of_classes_does_not_matter(examples, protocol, random):
    scores, labels = examples
    rows, columns = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = compiled_average_precision(scores[rows][:, columns], labels[rows][:, columns], protocol)
    expected = np.asarray(compiled_average_precision(scores, labels, protocol))[columns]
    np.testing.assert_allclose(shuffled, expected, rtol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exact_at_the_size_of_coco(protocol):
    generator = np.random.default_rng(0)
    size = 40_000 if protocol in ("ap", "trapezoid") else 2_000  # the transcriptions are slow
    labels = (generator.random((size, 3)) < (0.3, 0.02, 0.005)).astype(np.int8)
    scores = generator.normal(size=labels.shape).round(2).astype(np.float32) + labels
    np.testing.assert_allclose(
        average_precision(scores, labels, protocol), reference(scores, labels, protocol), rtol=1e-6
    )


def test_every_float_keeps_its_place():
    """The integers that are sorted in place of scores: every order of magnitude, both signs, no rounding."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 4_000, dtype=np.uint32)
    scores = bits.view(np.float32)
    scores = np.concatenate([scores[np.isfinite(scores)], [0.0, -0.0, 1.0, np.nextafter(np.float32(1), 2)]])
    scores = scores.astype(np.float32)
    order, ends = metrics._ranking(scores[:, None])
    np.testing.assert_array_equal(scores[np.asarray(order[0])], np.sort(scores)[::-1])
    assert int(ends.sum()) == len(np.unique(scores))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_scores_are_ranked_as_they_are(dtype):
    generator = np.random.default_rng(0)
    labels = generator.integers(-1, 2, (50, 4)).astype(np.int8)
    scores = jnp.asarray(generator.normal(size=labels.shape), dtype)
    expected = reference(np.asarray(scores.astype(jnp.float32)), labels)
    np.testing.assert_allclose(average_precision(scores, labels), expected, rtol=1e-6)


def test_recall_three_tenths_reaches_three_tenths():
    """3 of 10 is less than 3 x 0.1 in double precision; the fourth of eleven points is not lost here."""
    labels = np.array([[1]] * 3 + [[0]] * 30 + [[1]] * 7, np.int8)
    scores = -np.arange(40, dtype=np.float32)[:, None]
    expected = (4 * 1 + 7 * 10 / 40) / 11
    assert average_precision(scores, labels, "voc07")[0] == pytest.approx(expected)


def test_classes_without_a_positive_are_left_out_and_counted():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5]], np.float32)
    labels = np.array([[1, 0, -1], [0, 0, -1]], np.int8)
    for protocol in PROTOCOLS:
        mean, count = mean_average_precision(scores, labels, protocol)
        assert (float(mean), int(count)) == (1.0, 1)
        mean, count = mean_average_precision(scores, np.zeros_like(labels), protocol)
        assert np.isnan(mean)
        assert count == 0


def test_constant_scores():
    """A fourth of the examples positive: the prevalence, except where MMM-CLIP's rule flatters ties."""
    labels, scores = np.array([[1], [0], [0], [0]], np.int8), np.zeros((4, 1), np.float32)
    figures = {protocol: float(average_precision(scores, labels, protocol)[0]) for protocol in PROTOCOLS}
    assert figures == pytest.approx(
        {"ap": 0.25, "voc07": 0.25, "voc07_devkit": 0.25, "voc10": 0.25, "trapezoid": 0.625}
    )


def test_what_cannot_be_is_an_error():
    scores, labels = np.zeros((2, 1), np.float32), np.ones((2, 1), np.int8)
    with pytest.raises(
        ValueError, match="protocol 'mAP' is not one of ap, voc07, voc07_devkit, voc10, trapezoid"
    ):
        average_precision(scores, labels, "mAP")
    half = np.full(2, 0.5, np.float32)
    for metric in (metrics.hamming_loss, metrics.exact_match, metrics.decision_figures):
        with pytest.raises(TypeError, match="must be integers or bool; got float32"):
            metric(scores > 0, labels, half)
    for metric in (metrics.one_error, functools.partial(average_precision, protocol="ap")):
        with pytest.raises(TypeError, match="must be integers or bool; got float32"):
            metric(scores, labels, weights=half)


def test_classes_of_which_nothing_is_known_take_no_part_in_means():
    predicted = np.array([[True, True], [False, True]])
    labels = np.array([[1, -1], [0, -1]], np.int8)
    figures = metrics.decision_figures(predicted, labels)
    assert {name: float(figure) for name, figure in figures.items()} == dict.fromkeys(figures, 1.0)


def test_bootstrap_resamples_methods_alike():
    generator = np.random.default_rng(1)
    labels = (generator.random((60, 4)) < 0.3).astype(np.int8)
    good = (generator.normal(size=labels.shape) + labels).astype(np.float32)
    key = jax.random.key(0)
    draws = bootstrap_mean_average_precision(key, good, labels, 200)
    assert draws.shape == (200,)
    # A monotone change of all scores changes no ranking, hence no resample.
    np.testing.assert_array_equal(draws, bootstrap_mean_average_precision(key, good * 2 + 1, labels, 200))
    assert np.std(draws) > 0.01
    # One resample, done by hand.
    drawn = jax.random.randint(jax.random.split(key, 200)[7], (60,), 0, 60)
    np.testing.assert_allclose(draws[7], np.nanmean(reference(good[drawn], labels[drawn])), rtol=1e-6)
    voc = bootstrap_mean_average_precision(key, good, labels, 200, "voc07")
    np.testing.assert_allclose(voc[7], np.nanmean(reference(good[drawn], labels[drawn], "voc07")), rtol=1e-6)


@st.composite
def decisions(draw, labels=(0, 1)):
    shape = draw(st.sampled_from(SHAPES))
    predicted = draw(hnp.arrays(bool, shape))
    return predicted, draw(hnp.arrays(np.int8, shape, elements=st.sampled_from(labels)))


@settings(max_examples=75)
@given(decisions())
def test_decisions_are_scikit_learns(given_decisions):
    predicted, labels = given_decisions
    truth, guess = labels.ravel(), predicted.ravel().astype(int)
    figures = jax.jit(metrics.decision_figures)(predicted, labels)
    overall = sk.precision_recall_fscore_support(truth, guess, average="binary", zero_division=0)[:3]
    np.testing.assert_allclose([figures[name] for name in ("OP", "OR", "OF1")], overall, rtol=1e-6)
    per_class = np.array(
        [
            sk.precision_recall_fscore_support(y, p.astype(int), average="binary", zero_division=0)[:3]
            for y, p in zip(labels.T, predicted.T)
        ],
        dtype=float,
    )
    ours = compiled_per_class(predicted, labels)
    np.testing.assert_allclose(np.stack(ours, axis=1), per_class, rtol=1e-6)
    cp, cr, mean_f1 = per_class.mean(axis=0)
    np.testing.assert_allclose([figures[n] for n in ("CP", "CR", "mean_F1")], (cp, cr, mean_f1), rtol=1e-6)
    np.testing.assert_allclose(figures["CF1"], 2 * cp * cr / (cp + cr) if cp + cr else 0, rtol=1e-6)
    np.testing.assert_allclose(
        jax.jit(metrics.hamming_loss)(predicted, labels), np.mean(predicted != labels), rtol=1e-6
    )
    np.testing.assert_allclose(
        jax.jit(metrics.exact_match)(predicted, labels), np.mean((predicted == labels).all(axis=1)), rtol=1e-6
    )


RANKING = {
    metrics.label_ranking_average_precision: sk.label_ranking_average_precision_score,
    metrics.coverage_error: sk.coverage_error,
}


@pytest.mark.parametrize("metric", RANKING)
@settings(max_examples=75)
@given(examples=scored_examples(labels=(0, 1)))
def test_rankings_are_scikit_learns(metric, examples):
    scores, labels = examples
    if labels.shape[1] == 1:  # which scikit-learn takes for no multi-label problem
        return
    np.testing.assert_allclose(jax.jit(metric)(scores, labels), RANKING[metric](labels, scores), rtol=1e-6)


@settings(max_examples=75)
@given(scored_examples())
def test_one_error_is_its_definition(examples):
    scores, labels = examples
    errors = []
    for score, label in zip(scores, labels):
        if (label == 1).any():
            known = label >= 0
            top = label[known][score[known] == score[known].max()]
            errors.append(np.mean(top == 0))
    expected = np.mean(errors) if errors else 0
    np.testing.assert_allclose(jax.jit(metrics.one_error)(scores, labels), expected, rtol=1e-6)


def test_one_error_by_hand():
    scores = np.array([[3, 1, 2], [3, 1, 2], [2, 2, 0], [1, 0, 0]], np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]], np.int8)
    assert metrics.one_error(scores, labels) == pytest.approx((0 + 1 + 0.5) / 3)


def calibration_error(probabilities, labels, num_bins=15):
    """Over the bins [a, b), and 1 by itself."""
    total = 0.0
    lower = np.linspace(0, 1, num_bins + 1, dtype=np.float32)
    for a, b in zip(lower, [*lower[1:], np.inf]):
        inside = (probabilities >= a) & (probabilities < b)
        if inside.any():
            gap = probabilities[inside].astype(np.float64).mean() - labels[inside].mean()
            total += inside.mean() * abs(gap)
    return total


@settings(max_examples=75)
@given(st.data())
def test_calibration_error_is_its_formula(data):
    shape = data.draw(st.sampled_from(SHAPES))
    probabilities = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    labels = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 1, -1])))
    known = labels >= 0
    expected = calibration_error(probabilities[known], labels[known]) if known.any() else 0
    ours = compiled_calibration_error(probabilities, labels)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    per_class = compiled_calibration_error(probabilities, labels, per_class=True)
    for k, (p, y) in enumerate(zip(probabilities.T, labels.T)):
        expected = calibration_error(p[y >= 0], y[y >= 0]) if (y >= 0).any() else 0
        np.testing.assert_allclose(per_class[k], expected, rtol=1e-5, atol=1e-6)


def test_calibration_error_of_frequencies_is_small():
    generator = np.random.default_rng(0)
    probabilities = generator.random((20_000, 2)).astype(np.float32)
    labels = (generator.random(probabilities.shape) < probabilities).astype(np.int8)
    assert metrics.expected_calibration_error(probabilities, labels) < 0.02
    assert metrics.expected_calibration_error(probabilities**3, labels) > 0.2


def test_top_k():
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [3, -1, 2]], np.float32)
    expected = [[False, True, True], [True, True, False], [True, False, True]]
    np.testing.assert_array_equal(metrics.top_k(scores, 2), expected)


def all_figures(scores, labels, weights=None):
    """Every metric of the module, by name."""
    predicted = scores >= 0.3
    probabilities = jax.nn.sigmoid(scores)
    figures = {p: average_precision(scores, labels, p, weights) for p in PROTOCOLS}
    figures |= metrics.decision_figures(predicted, labels, weights)
    for metric in (metrics.hamming_loss, metrics.exact_match):
        figures[metric.__name__] = metric(predicted, labels, weights)
    figures["top_2"] = metrics.decision_figures(metrics.top_k(scores, 2), labels, weights)["OF1"]
    for metric in (*RANKING, metrics.one_error):
        figures[metric.__name__] = metric(scores, labels, weights)
    figures["calibration"] = metrics.expected_calibration_error(probabilities, labels, weights)
    return figures


compiled_figures = jax.jit(all_figures)


@pytest.fixture(scope="module")
def imperfect():
    """Scores with ties, labels with unknown ones, and rows that only pad."""
    generator = np.random.default_rng(2)
    labels = generator.integers(-1, 2, (48, 5)).astype(np.int8)
    scores = (generator.normal(size=labels.shape) + labels).round(1).astype(np.float32)
    labels[3] = -1
    weights = np.ones(48, np.int32)
    weights[41:] = 0
    return scores, labels, weights


def test_padding_is_as_good_as_absent(imperfect):
    scores, labels, weights = imperfect
    padded, whole = compiled_figures(scores, labels, weights), compiled_figures(scores, labels)
    for name, figure in compiled_figures(scores[:41], labels[:41]).items():
        np.testing.assert_allclose(padded[name], figure, rtol=1e-6, err_msg=name)
        assert not np.array_equal(whole[name], figure), name


def test_unknown_entries_change_nothing(imperfect):
    """Whatever is scored where nothing is known; top-k decisions alone depend on it, by their nature."""
    scores, labels, weights = imperfect
    generator = np.random.default_rng(0)
    other = np.where(labels >= 0, scores, generator.normal(size=scores.shape).astype(np.float32) * 5)
    changed = compiled_figures(other, labels, weights)
    for name, figure in compiled_figures(scores, labels, weights).items():
        if name != "top_2":
            np.testing.assert_allclose(changed[name], figure, rtol=1e-6, err_msg=name)


def test_recalls_that_the_devkit_misses():
    """Ten positives, at ranks that give recalls of just 0.3, 0.6 and 0.7 their highest precisions."""
    labels = np.array([[1] * 3 + [0] + [1] * 3 + [0] * 3 + [1] + [0] * 9 + [1] * 3], np.int8).T
    scores = -np.arange(len(labels), dtype=np.float32)[:, None]
    exact, common = (float(average_precision(scores, labels, p)[0]) for p in ("voc07", "voc07_devkit"))
    assert exact - common == pytest.approx((1 - 6 / 7 + 6 / 7 - 7 / 11 + 7 / 11 - 10 / 23) / 11)


def test_nan_in_nan_out(imperfect):
    scores, labels, weights = imperfect
    known = np.argwhere(labels[:41] == 0)[7]
    for dtype in (np.float32, np.float64):
        spoilt = scores.astype(dtype)
        spoilt[tuple(known)] = np.nan
        measure = all_figures if dtype == np.float64 else compiled_figures
        for name, figure in measure(spoilt, labels, weights).items():
            if name in PROTOCOLS:
                assert np.flatnonzero(np.isnan(figure)).tolist() == [known[1]], name
            elif name in ("calibration", *(metric.__name__ for metric in (*RANKING, metrics.one_error))):
                assert np.isnan(figure), name
        assert np.isnan(metrics.mean_average_precision(spoilt, labels, weights=weights)[0])
        assert np.isnan(bootstrap_mean_average_precision(jax.random.key(0), spoilt, labels, 20)).any()
        spoilt = scores.astype(dtype)
        spoilt[labels == -1], spoilt[41:] = np.nan, np.nan  # which do not count
        for metric in (average_precision, metrics.one_error, *RANKING):
            figure = metric(spoilt, labels, weights=weights)
            whole = metric(scores.astype(dtype), labels, weights=weights)
            np.testing.assert_allclose(figure, whole, rtol=1e-6)


@settings(max_examples=25)
@given(scored_examples(), st.sampled_from([1e-12, 1.0]))
def test_float64_on_the_host_is_ranked_as_it_is(examples, scale):
    scores, labels = examples
    ranks = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    near = 0.5 + ranks * scale  # by 1e-12, in float32 one large tie
    for metric in (average_precision, metrics.one_error, *RANKING):
        np.testing.assert_array_equal(metric(near, labels), metric(scores, labels))


@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_the_same_on_any_number_of_devices(imperfect, num_devices):
    mesh = make_mesh(jax.devices()[:num_devices])
    split = [jax.device_put(array, split_rows(mesh)) for array in imperfect]
    together = compiled_figures(*imperfect)
    for name, figure in compiled_figures(*split).items():
        np.testing.assert_allclose(figure, together[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("filled", [0, 1, -1])
def test_degenerate_labels_give_figures_or_nan_but_no_error(filled):
    labels = np.full((6, 3), filled, np.int8)
    scores = np.zeros((6, 3), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in compiled_figures(scores, labels).items():
            expected_nan = name in PROTOCOLS and filled != 1
            assert np.isnan(figure).all() == expected_nan, name


@pytest.mark.slow
def test_faster_than_scikit_learn():
    """The mAP of 40,000 x 80 scores, medians of seven in turn; prints the ratio."""
    generator = np.random.default_rng(0)
    labels = (generator.random((40_000, 80)) < 0.04).astype(np.int8)
    scores = (generator.normal(size=labels.shape) + labels).astype(np.float32)
    theirs = sk.average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(compiled_average_precision(scores, labels), theirs, rtol=1e-6)
    seconds = {"ours": [], "theirs": []}
    for _ in range(7):
        start = time.perf_counter()
        compiled_average_precision(scores, labels).block_until_ready()
        seconds["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        sk.average_precision_score(labels, scores, average=None)
        seconds["theirs"].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(each) for each in seconds.values())
    print(f"\n{ours:.3f} s here, {theirs:.3f} s in scikit-learn: {theirs / ours:.1f} times as fast")
    assert theirs > 2 * ours
