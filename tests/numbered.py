"""A source whose images tell their numbers; in a module of its own, so that processes can be sent it."""

import numpy as np

from mlclip_jax.data.images import UnreadableImage
from mlclip_jax.data.sources import Example


class Numbered:
    """Images whose every pixel is the image's number; those in `broken` cannot be read."""

    def __init__(self, number, broken=()):
        self.names = [f"{i}.jpg" for i in range(number)]
        self.labels = np.arange(number)
        self._broken = set(broken)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        if index in self._broken:
            raise UnreadableImage("broken on purpose")
        return Example(np.full((2, 3, 3), index, np.uint8), self.labels[index])


def prepare(example, position):
    return {"pixels": example.image, "label": example.labels, "position": position}
