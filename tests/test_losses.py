"""Losses against their formulas, at the extremes, and with unknown labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlclip_jax.losses import binary_cross_entropy, binary_cross_entropy_sum

SHAPES = st.sampled_from([(1, 1), (3, 5)])  # each is compiled once
LOGITS = st.floats(-30, 30, width=32)


@settings(deadline=None)
@given(st.data())
def test_binary_cross_entropy_is_its_formula(data):
    shape = data.draw(SHAPES)
    logits = data.draw(hnp.arrays(np.float32, shape, elements=LOGITS))
    labels = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    # -log p = log(1 + exp(-x)) and -log(1 - p) = log(1 + exp(x)), in double precision.
    exact = logits.astype(np.float64)
    terms = labels * np.logaddexp(0, -exact) + (1 - labels) * np.logaddexp(0, exact)
    np.testing.assert_allclose(binary_cross_entropy(logits, labels), terms.mean(), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(st.data())
def test_unknown_labels_are_as_good_as_absent(data):
    shape = data.draw(SHAPES)
    logits = data.draw(hnp.arrays(np.float32, shape, elements=LOGITS))
    labels = data.draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([0, 1, -1])))
    known = labels >= 0
    total, count = binary_cross_entropy_sum(logits, labels)
    deleted_total, deleted_count = binary_cross_entropy_sum(logits[known], labels[known])
    assert int(count) == int(deleted_count) == known.sum()
    np.testing.assert_allclose(total, deleted_total, rtol=1e-6)
    gradient = jax.grad(lambda x: binary_cross_entropy_sum(x, labels)[0])(logits)
    np.testing.assert_array_equal(gradient[~known], 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("label", [0, 1, -1])
def test_finite_at_the_extremes(dtype, label):
    logits = jnp.array([-1e4, -1.0, 0.0, 1.0, 1e4], dtype)
    labels = jnp.full(5, label, jnp.int8)
    value, gradient = jax.value_and_grad(binary_cross_entropy)(logits, labels)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert np.isfinite(value)
    assert np.isfinite(gradient.astype(jnp.float32)).all()
