"""Text encoders for tests: a table of vectors, and any number of random ones."""

import zlib

import numpy as np


def table(vectors):
    """An encoder of these texts alone, which keeps in `encode.asked` what it was asked for."""

    def encode(texts):
        encode.asked.append(list(texts))
        return np.array([vectors[text] for text in texts], np.float32)

    encode.asked = []
    return encode


def random_encoder(width=16):
    """An encoder of any text: random, but the same for equal texts."""

    def encode(texts):
        encode.asked += texts
        return np.stack(
            [np.random.default_rng(zlib.crc32(text.encode())).normal(size=width) for text in texts]
        ).astype(np.float32)

    encode.asked = []
    return encode


def at_cosine(cosine):
    """A vector at this cosine from (1, 0)."""
    return (cosine, (1 - cosine**2) ** 0.5)
