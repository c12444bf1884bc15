"""Losses against their formulas in double precision, at the extremes, and with unknown and soft labels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlclip_jax import losses
from mlclip_jax.losses import COUPLED, LOSSES

HARD = ("arc_face", "two_way", "pairwise_ranking")
WHOLE = ("zlpr", "zlpr_batch", "two_way", "pairwise_ranking")  # the others are sums over entries
ELEMENTWISE = [name for name in LOSSES if name not in WHOLE]

# Few shapes and dtypes, since most of the time is compilation.
SHAPE = (4, 5)
LOGITS = hnp.arrays(np.float32, SHAPE, elements=st.floats(-30, 30, width=32, allow_subnormal=False))
LABELS = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0, 1, -1]))
SOFT_LABELS = hnp.arrays(
    np.float32,
    SHAPE,
    elements=st.sampled_from([0, 1, -1]) | st.floats(0, 1, width=32, allow_subnormal=False),
)
every_loss = pytest.mark.parametrize("name", LOSSES)


def example():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, SHAPE).astype(np.float32)
    return logits, rng.choice(np.array([0, 1, -1], np.float32), SHAPE, p=[0.6, 0.3, 0.1])


@functools.lru_cache(maxsize=None, typed=True)
def compiled(name, **constants):
    """The sum and the count, and the gradient of the sum."""
    pair = functools.partial(LOSSES[name].sum_and_count, **constants)
    return jax.jit(jax.value_and_grad(pair, has_aux=True))


# ---- Each loss is its formula, written out slowly. Defaults are repeated here, so that they are tested too.


def sigmoid(s):
    return np.exp(-np.logaddexp(0, -s))


def cross_entropy(s, y):
    return y * np.logaddexp(0, -s) + (1 - y) * np.logaddexp(0, s)


def focal_entry(s, y, gamma=2, alpha=0.25):
    weight = 1 if alpha < 0 else alpha * y + (1 - alpha) * (1 - y)
    return weight * abs(y - sigmoid(s)) ** gamma * cross_entropy(s, y)


def arc_face_entry(s, y, scale=64, margin=0.5):
    cosine = min(max(s, -1), 1)
    angle = math.acos(cosine)
    if y == 1:
        cosine = math.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(margin)
    return cross_entropy(scale * cosine, y)


def asymmetric_weight(s, y, gamma_negative=4, gamma_positive=1, clip=0.05):
    error = y * sigmoid(-s) + (1 - y) * max(sigmoid(s) - clip, 0)
    return error ** (gamma_positive * y + gamma_negative * (1 - y))


def asymmetric_terms(s, y, clip=0.05, eps=1e-8):
    present, absent = sigmoid(s), min(sigmoid(-s) + clip, 1)
    return -y * math.log(max(present, eps)) - (1 - y) * math.log(max(absent, eps))


def asymmetric_entry(s, y, gamma_negative=4, gamma_positive=1, clip=0.05, eps=1e-8):
    return asymmetric_weight(s, y, gamma_negative, gamma_positive, clip) * asymmetric_terms(s, y, clip, eps)


def hill_entry(s, y, lamb=1.5, margin=1, gamma=2):
    moved, p = sigmoid(s - margin), sigmoid(s)
    terms = -y * np.log(moved) + (1 - y) * (lamb - p) * p**2
    return terms * ((1 - moved) * y + (1 - y)) ** gamma


ENTRIES = {
    "binary_cross_entropy": cross_entropy,
    "mean_squared_error": lambda s, y: (sigmoid(s) - y) ** 2,
    "smoothed_binary_cross_entropy": lambda s, y, smoothing=0: cross_entropy(
        s, y * (1 - smoothing) + 0.5 * smoothing
    ),
    "focal": focal_entry,
    "additive_margin": lambda s, y, scale=30, margin=0.5: cross_entropy(scale * (s - margin * y), y),
    "arc_face": arc_face_entry,
    "asymmetric": asymmetric_entry,
    "hill": hill_entry,
}
SUMMED = ("asymmetric", "hill")


def entries_reference(name, s, y, **constants):
    known = np.isin(y, [0, 1]) if name in HARD else y >= 0
    terms = [ENTRIES[name](float(s[i]), float(y[i]), **constants) for i in zip(*np.nonzero(known))]
    return sum(terms) / (1 if name in SUMMED else max(len(terms), 1))


def zlpr_reference(s, y):
    return sum(zlpr_batch_reference(*row) for row in zip(s, y)) / max((y >= 0).any(axis=1).sum(), 1)


def zlpr_batch_reference(s, y):
    s, y = s[y >= 0], y[y >= 0]
    return math.log1p(((1 - y) * np.exp(s)).sum()) + math.log1p((y * np.exp(-s)).sum())


def two_way_reference(s, y, temperature_positive=4, temperature_negative=1, reduction="mean"):
    def one_way(rows, row_labels):
        terms = []
        for row, labels in zip(rows, row_labels):
            if (labels == 1).any():
                negatives = np.exp(row[labels == 0] / temperature_negative).sum() ** temperature_negative
                positives = np.exp(-row[labels == 1] / temperature_positive).sum() ** temperature_positive
                terms.append(math.log1p(negatives * positives))
        return sum(terms) / (max(len(terms), 1) if reduction == "mean" else 1)

    return one_way(s, y) + one_way(s.T, y.T)


def pairwise_ranking_reference(s, y, scale=1, margin=1):
    total = 0
    for row, labels in zip(scale * s, y):
        for p in row[labels == 1]:
            for n in row[labels == 0]:
                total += max(0, margin - p + n)
    return total / max(np.isin(y, [0, 1]).any(axis=1).sum(), 1)


REFERENCES = {
    "zlpr": zlpr_reference,
    "zlpr_batch": zlpr_batch_reference,
    "two_way": two_way_reference,
    "pairwise_ranking": pairwise_ranking_reference,
}

# Some of them whole numbers, and at the edges of their ranges.
OTHER_CONSTANTS = [
    ("smoothed_binary_cross_entropy", {"smoothing": 0.1}),
    ("focal", {"gamma": 0.5, "alpha": -1}),
    ("focal", {"gamma": 3, "alpha": 0}),
    ("additive_margin", {"scale": 2, "margin": 1}),
    ("arc_face", {"scale": 5, "margin": 0.2}),
    ("asymmetric", {"gamma_negative": 2, "clip": 0.2, "eps": 1e-4}),
    ("asymmetric", {"gamma_positive": 0.0, "clip": 0}),
    ("two_way", {"temperature_positive": 1, "temperature_negative": 2.0}),
    ("two_way", {"reduction": "sum"}),
    ("hill", {"lamb": 2, "margin": 0.5, "gamma": 0}),
    ("pairwise_ranking", {"scale": 2, "margin": 0.5}),
]


@pytest.mark.parametrize(("name", "constants"), [(name, {}) for name in LOSSES] + OTHER_CONSTANTS)
@settings(max_examples=30)
@given(logits=LOGITS, labels=SOFT_LABELS)
def test_each_loss_is_its_formula(name, constants, logits, labels):
    if name == "arc_face":
        logits = logits / np.float32(25)  # up to 1.2: cosines, and a little to clip
    (total, count), _ = compiled(name, **constants)(logits, labels)
    reference = REFERENCES.get(name, functools.partial(entries_reference, name))
    expected = reference(logits.astype(np.float64), labels.astype(np.float64), **constants)
    np.testing.assert_allclose(total / max(count, 1), expected, rtol=1e-5, atol=1e-5)


def test_the_table_has_the_defaults():
    assert len(LOSSES) == 12
    assert LOSSES["asymmetric"] is losses.asymmetric
    assert losses.constants("asymmetric") == {
        "gamma_negative": 4,
        "gamma_positive": 1,
        "clip": 0.05,
        "eps": 1e-8,
        "focus_gradient": False,
        "reduction": "sum",
    }
    assert losses.constants("zlpr") == {"reduction": "samples"}


# ---- Properties of all of them.


@every_loss
@settings(max_examples=12)
@given(LOGITS, LABELS, st.permutations(range(SHAPE[0])), st.permutations(range(SHAPE[1])))
def test_order_does_not_matter(name, logits, labels, rows, columns):
    (total, count), gradient = compiled(name)(logits, labels)
    permutation = np.ix_(rows, columns)
    (permuted_total, permuted_count), permuted_gradient = compiled(name)(
        logits[permutation], labels[permutation]
    )
    assert count == permuted_count
    np.testing.assert_allclose(total, permuted_total, rtol=1e-5, atol=1e-5)
    if name != "pairwise_ranking":  # its slope jumps where a positive and a negative are tied
        np.testing.assert_allclose(gradient[permutation], permuted_gradient, rtol=1e-4, atol=1e-5)


@every_loss
@settings(max_examples=12)
@given(LOGITS, LABELS)
def test_unknown_samples_and_classes_are_as_good_as_absent(name, logits, labels):
    labels[-1], labels[:, -1] = -1, -1
    logits[-1], logits[:, -1] = np.nan, np.inf
    (total, count), gradient = compiled(name)(logits, labels)
    (deleted_total, deleted_count), deleted_gradient = compiled(name)(logits[:-1, :-1], labels[:-1, :-1])
    assert count == deleted_count
    np.testing.assert_allclose(total, deleted_total, rtol=1e-5, atol=1e-5)
    if name != "pairwise_ranking":
        np.testing.assert_allclose(gradient[:-1, :-1], deleted_gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gradient[labels < 0], 0)


@pytest.mark.parametrize("name", ELEMENTWISE)
@settings(max_examples=12)
@given(LOGITS, LABELS, st.permutations(range(20)))
def test_unknown_entries_are_as_good_as_absent(name, logits, labels, entries):
    labels = np.maximum(labels, 0)
    known, unknown = (np.unravel_index(part, SHAPE) for part in (entries[:12], entries[12:]))
    labels[unknown] = -1
    (total, count), gradient = compiled(name)(logits, labels)
    left = (x[known].reshape(3, 4) for x in (logits, labels))
    (deleted_total, deleted_count), deleted_gradient = compiled(name)(*left)
    assert count == deleted_count
    np.testing.assert_allclose(total, deleted_total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[known], deleted_gradient.ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradient[unknown], 0)


@pytest.mark.parametrize("name", HARD)
@settings(max_examples=12)
@given(LOGITS, SOFT_LABELS)
def test_losses_of_hard_labels_leave_soft_ones_out(name, logits, labels):
    soft = (labels > 0) & (labels < 1)
    found = compiled(name)(logits, labels)
    jax.tree.map(np.testing.assert_array_equal, found, compiled(name)(logits, np.where(soft, -1, labels)))
    np.testing.assert_array_equal(found[1][soft], 0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in COUPLED])
@settings(max_examples=12)
@given(LOGITS, LABELS)
def test_sums_and_counts_of_two_halves_add_up(name, logits, labels):
    (total, count), gradient = compiled(name)(logits, labels)
    halves = [compiled(name)(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    totals, counts = zip(*(pair for pair, _ in halves))
    np.testing.assert_allclose(total, sum(totals), rtol=1e-5, atol=1e-5)
    assert count == sum(counts)
    np.testing.assert_allclose(gradient, np.concatenate([g for _, g in halves]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in COUPLED])
def test_reductions_choose_the_count(name):
    logits, labels = example()
    labels[0] = -1
    known = labels >= 0
    counts = {"mean": known.sum(), "samples": known.any(axis=1).sum(), "sum": 0}
    if name in WHOLE:
        del counts["mean"]
    pairs = {key: LOSSES[name].sum_and_count(logits, labels, reduction=key) for key in counts}
    assert {key: int(count) for key, (_, count) in pairs.items()} == counts
    assert len({float(total) for total, _ in pairs.values()}) == 1


@every_loss
def test_unknown_reductions_are_refused(name):
    with pytest.raises(ValueError, match=r"reduction must be one of .*sum for this loss, not 'none'"):
        LOSSES[name](*example(), reduction="none")


def test_reductions_that_a_loss_has_not_are_refused():
    for name, reduction in [("zlpr", "mean"), ("zlpr_batch", "samples"), ("two_way", "samples")]:
        with pytest.raises(ValueError, match="reduction"):
            LOSSES[name](*example(), reduction=reduction)


@every_loss
def test_plain_form_divides_under_jit_and_vmap_and_takes_integer_labels(name):
    logits, labels = example()
    logits, labels = np.stack([logits, -logits]), np.stack([labels, labels])
    pairs = [compiled(name)(*batch)[0] for batch in zip(logits, labels)]
    labels = labels.astype(np.int8)
    values = jax.jit(jax.vmap(LOSSES[name]))(logits, labels)
    np.testing.assert_allclose(values, [total / max(count, 1) for total, count in pairs], rtol=1e-5)
    np.testing.assert_allclose(
        LOSSES[name](jnp.asarray(logits[0]), jnp.asarray(labels[0])), values[0], rtol=1e-5
    )


# ---- Special cases that must coincide.


@pytest.mark.parametrize(
    ("name", "constants", "other", "other_constants"),
    [
        (
            "asymmetric",
            {"gamma_negative": 0, "gamma_positive": 0, "clip": 0, "eps": 0},
            "binary_cross_entropy",
            {"reduction": "sum"},
        ),
        ("focal", {"gamma": 0, "alpha": -1}, "binary_cross_entropy", {}),
        ("smoothed_binary_cross_entropy", {}, "binary_cross_entropy", {}),
        ("additive_margin", {"scale": 1, "margin": 0}, "binary_cross_entropy", {}),
        ("arc_face", {"scale": 1, "margin": 0}, "binary_cross_entropy", {}),
        ("arc_face", {"margin": 0}, "additive_margin", {"scale": 64, "margin": 0}),
    ],
)
def test_limits(name, constants, other, other_constants):
    logits, labels = example()
    if name == "arc_face":
        logits = np.tanh(logits)
    else:
        logits[0] = [1e4, -1e4, 30, -30, 0]
    found = compiled(name, **constants)(logits, labels)
    expected = compiled(other, **other_constants)(logits, labels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), found, expected)


def test_zlpr_of_one_sample_is_zlpr_of_its_batch():
    logits, labels = example()
    for i in range(len(logits)):
        sample = logits[i : i + 1], labels[i : i + 1]
        np.testing.assert_allclose(losses.zlpr(*sample), losses.zlpr_batch(*sample), rtol=1e-6)


# ---- Gradients that are not those of the plain formula.


@pytest.mark.parametrize("focus_gradient", [False, True])
def test_gradient_of_asymmetric(focus_gradient):
    logits, labels = example()
    _, gradient = compiled("asymmetric", focus_gradient=focus_gradient)(logits, labels)
    step = 1e-6
    for i in np.ndindex(*SHAPE):
        s, y = float(logits[i]), float(labels[i])
        weighted_at = (s - step, s + step) if focus_gradient else (s, s)
        low, high = (
            asymmetric_weight(at, y) * asymmetric_terms(x, y)
            for at, x in zip(weighted_at, (s - step, s + step))
        )
        expected = (high - low) / (2 * step) if y >= 0 else 0
        np.testing.assert_allclose(gradient[i], expected, rtol=1e-5, atol=1e-7)


def test_gradient_of_pairwise_ranking_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (3, 40)).astype(np.float32)
    labels = rng.integers(-1, 2, (3, 40)).astype(np.int8)

    def all_pairs(logits):
        pairs = (labels[:, :, None] == 1) & (labels[:, None, :] == 0)
        terms = jnp.maximum(0.5 - 2 * logits[:, :, None] + 2 * logits[:, None, :], 0)
        return jnp.sum(jnp.where(pairs, terms, 0)) / 3

    ranking = functools.partial(losses.pairwise_ranking, scale=2, margin=0.5)
    forms = (lambda x: ranking(x, labels), all_pairs)
    found, expected = (jax.jit(jax.value_and_grad(form))(logits) for form in forms)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


# ---- Finite everywhere.

LEVELS = [1e4, -1e4, 100, -100, 18.4, -18.4, 1, -1, 0, 1e-30]


@every_loss
@pytest.mark.parametrize(
    ("dtype", "num_classes"), [(jnp.float32, 1), (jnp.float32, 20_000), (jnp.bfloat16, 20_000)]
)
def test_finite_at_the_extremes(name, dtype, num_classes):
    rng = np.random.default_rng(0)
    shape = (5, num_classes)
    mixed = rng.choice([0, 1, -1], shape)
    mixed[:3] = [[0], [1], [-1]]  # without a positive, without a negative, without a known label
    for labels in (*(np.full(shape, label) for label in (0, 1, -1)), mixed):
        for logits in (*(np.full(shape, level) for level in LEVELS[:2]), rng.choice(LEVELS, shape)):
            (total, count), gradient = compiled(name)(jnp.asarray(logits, dtype), labels.astype(np.int8))
            assert total.dtype == count.dtype == jnp.float32
            assert gradient.dtype == dtype
            assert np.isfinite(total)
            assert np.isfinite(gradient.astype(jnp.float32)).all()
            assert total == 0 or (labels >= 0).any()


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("focal", {"gamma": 0.5}),
        ("asymmetric", {"gamma_negative": 0.5, "gamma_positive": 0.0, "focus_gradient": True}),
        ("asymmetric", {"gamma_negative": 0.5, "clip": 0, "eps": 0, "focus_gradient": True}),
        ("hill", {"gamma": 0.5}),
    ],
)
def test_powers_below_one_have_finite_gradients(name, constants):
    logits = np.concatenate([LEVELS, np.linspace(-104, 104, 209)]).astype(np.float32)
    for label in (0, 0.5, 1):
        (total, _), gradient = compiled(name, **constants)(logits, np.full_like(logits, label))
        assert np.isfinite(total)
        assert np.isfinite(gradient).all()


def test_shapes_that_differ_are_refused():
    logits, labels = example()
    with pytest.raises(ValueError, match=r"logits \(4, 5\) and labels \(4, 1\) must have the same shape"):
        losses.binary_cross_entropy(logits, labels[:, :1])
