"""Which examples make up which batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlclip_jax.data.pipeline import batch_indices


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 50))
def test_every_epoch_visits_every_example_once(seed, num_examples, batch_size):
    steps = 3 * num_examples // batch_size + 1
    order = np.concatenate([batch_indices(seed, t, num_examples, batch_size) for t in range(steps)])
    for epoch in range(len(order) // num_examples):
        visited = order[epoch * num_examples : (epoch + 1) * num_examples]
        np.testing.assert_array_equal(np.sort(visited), np.arange(num_examples))


def test_a_batch_depends_on_seed_and_step_alone():
    forwards = [batch_indices(3, t, 100, 16) for t in range(20)]
    backwards = [batch_indices(3, t, 100, 16) for t in reversed(range(20))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(forwards[0], batch_indices(4, 0, 100, 16))


def test_epochs_are_shuffled_anew():
    first, second = (batch_indices(0, t, 50, 50) for t in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("step", [0, 10**9])
def test_far_steps_cost_no_more_than_near_ones(step):
    indices = batch_indices(0, step, 1000, 64)
    assert indices.dtype == np.int32
    assert ((indices >= 0) & (indices < 1000)).all()
