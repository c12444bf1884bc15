"""Which examples make up which batch."""

import functools

import numpy as np

STREAM = 3  # of the run's seed; see texts/label_sets.py


def batch_indices(seed, step, num_examples, batch_size):
    """The examples of global batch `step`: a function of position alone, so that resuming needs no state.

    Each epoch is a fresh permutation of all examples; a batch may span the end of one and the start of the
    next, so every example is seen once per epoch, whatever the batch size.

    Args:
      seed: integer of the run.
      step: t, counted from 0.
      num_examples: N.
      batch_size: B, of the global batch.

    Returns:
      int32 `(B,)`, indices in [0, N).
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, num_examples)
    indices = np.empty(batch_size, np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = _epoch_order(seed, int(epoch), num_examples)[offsets[here]]
    return indices


@functools.lru_cache(maxsize=2)
def _epoch_order(seed, epoch, num_examples):
    return np.random.default_rng([seed, STREAM, epoch]).permutation(num_examples)
