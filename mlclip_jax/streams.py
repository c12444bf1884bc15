"""What the seed of a run is used for on the host: a stream of random numbers each, so that no two are alike.

On devices, noise and dropout follow from the seed by `training/step.py`.
"""

import enum


class Stream(enum.IntEnum):
    """To be given beside the seed: `np.random.default_rng([seed, Stream.ORDER, ...])`."""

    LABEL_SETS = 1  # which labels each training text is about
    TEXTS = 2  # which sentence says them
    ORDER = 3  # of the examples in an epoch
    AUGMENTATION = 4  # of an image
    SECOND_ORDER = 5  # of the images in an epoch, where texts are trained on beside them
    SHOTS = 6  # which images are left to train on
    SOURCES = 7  # which texts of a file
