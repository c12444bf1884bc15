"""A data set of TensorFlow Datasets; it must be in a module of its own, and importing it makes it known."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = ["cat", "dog", "bird"]
LABELS = [[0, 2], [], [1], [2, 1], [0]]  # of each example


def picture(index):
    """The bytes of a JPEG or, of odd ones, of a PNG."""
    file = io.BytesIO()
    pixels = np.random.default_rng(index).integers(0, 255, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(file, "png" if index % 2 else "jpeg")
    return file.getvalue()


class TinyDataset(tfds.core.GeneratorBasedBuilder):
    """`full` has labels of every kind; of the others, only the features are looked at."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - as its base class has it
        tfds.core.BuilderConfig(name=name) for name in ("full", "no_labels", "two_images", "two_labels")
    ]

    def _info(self):
        known = tfds.features
        one = known.ClassLabel(names=CLASSES)
        features = {
            "full": {
                "image": known.Image(),
                "file_name": known.Text(),
                "caption": known.Text(),
                "labels": known.Sequence(one),
                "labels_sure": known.Sequence(one),
                "kind": one,
                "present": known.Tensor(shape=(3,), dtype=np.int64),
                "objects": known.Sequence({"label": one, "area": np.int64}),
            },
            "no_labels": {"image": known.Image(), "box": known.BBoxFeature(), "class": np.int64},
            "two_images": {"left": known.Image(), "right": known.Image(), "labels": known.Sequence(one)},
            "two_labels": {"image": known.Image(), "mine": known.Sequence(one), "yours": known.Sequence(one)},
        }
        features = known.FeaturesDict(features[self.builder_config.name])
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(range(4)), "test": self._generate_examples([4])}

    def _generate_examples(self, indices):
        for index in indices:
            labels = LABELS[index]
            yield (
                index,
                {
                    "image": io.BytesIO(picture(index)),
                    "file_name": f"{index}-é.jpg",
                    "caption": f"picture {index}",
                    "labels": labels,
                    "labels_sure": labels[:1],
                    "kind": labels[0] if labels else -1,
                    "present": [1 if k in labels else -(index == 3) for k in range(3)],
                    "objects": [{"label": k, "area": 1} for k in [*labels, *labels]],
                },
            )
