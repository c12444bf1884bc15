"""The random numbers of `jax.random`, bit for bit, as one loop over elements.

JAX's own threefry is a loop over rounds on CPUs, which writes and reads every number some fifteen times; the
noise and dropout of a small adapter then take as long as its matrix products.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; threefry 2x32 with 20 rounds.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random
from jaxtyping import Array, Integer, Key

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def make_key(seed: Integer[Array | np.integer, ""]) -> Key[Array, ""]:
    """`jax.random.key(seed)`, from which all functions of `jax.random` draw the same numbers, only faster.

    Args:
      seed: an integer, a scalar.
    """
    return jax.random.key(seed, impl=THREEFRY)


def _split(key, shape):
    return jnp.stack(_hash(key, *_counts(shape)), axis=-1)


def _fold_in(key, number):
    return jnp.stack(_hash(key, *random.threefry_prng_impl.seed(number.astype(jnp.uint32))))


def _random_bits(key, bit_width, shape):
    if bit_width != 32:
        return random.threefry_prng_impl.random_bits(key, bit_width, shape)
    first, second = _hash(key, *_counts(shape))
    return first ^ second


def _counts(shape):
    """The places of the elements of an array, as two words each."""
    if math.prod(shape) >= 1 << 32:
        raise ValueError(f"random numbers of shape {shape} are more than 2 ** 32")
    low = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return jnp.zeros_like(low), low


@jax.jit  # so that it is traced and lowered once for each shape; XLA puts it back in its place
def _hash(key, high, low):
    """Threefry of pairs of words under one key, a pair of words."""
    words = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    high, low = high + words[0], low + words[1]
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            high += low
            low = high ^ (low << jnp.uint32(bits) | low >> jnp.uint32(32 - bits))
        high += words[(group + 1) % 3]
        low += words[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low


THREEFRY = random.define_prng_impl(
    key_shape=(2,),
    seed=random.threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry_in_one_loop",
    tag="t1l",
)
