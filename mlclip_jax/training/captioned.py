"""Captioned images to pre-train a CLIP on, as the arrays that a step takes."""

from collections.abc import Callable, Generator, Sequence

import jax
import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict
from PIL import Image
from tokenizers import Tokenizer

from mlclip_jax.backbones.configs import CLIPConfig
from mlclip_jax.backbones.processing import CLIP_MEAN, CLIP_STD, ImageProcessor
from mlclip_jax.backbones.saving import END
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.images import decode_image
from mlclip_jax.data.pipeline import Batch, OnceOrder, TrainingOrder, read_batches
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS, Difficulty, Scenes
from mlclip_jax.data.sources import Source
from mlclip_jax.errors import InputError
from mlclip_jax.streams import Stream


def open_source(config: ConfigDict) -> Source | Scenes:
    """The captioned images that a recipe names: a sequence of `sources.Example` with `label_names`."""
    if "scenes" not in config:
        source = open_images(config.images.source)
        if source.captions is None:
            raise InputError(f"{source.title} has no captions; a CLIP learns from captioned images")
        return source
    return Scenes(
        config.scenes.seed,
        config.scenes.number,
        label_names=LABELS + OTHER_LABELS,
        side=config.model.vision_config.image_size,
        difficulty=Difficulty(**config.scenes.difficulty),
        partial=config.scenes.partial,
    )


def first_captions(source: Source | Scenes, number: int) -> Sequence[str]:
    """The captions of the first examples."""
    if isinstance(source, Scenes):
        return [source[i].caption or "" for i in range(number)]
    return (source.captions or ())[:number]


class CaptionedImages:
    """A source, as the arrays that a step takes.

    Args:
      source: a sequence of `sources.Example`, with `label_names`.
      config: the `transformers.CLIPConfig` of the model.
      tokenizer: a `tokenizers.Tokenizer`.
      augment: from `augmentation.make_augment`, for images that are trained on; or None.
      seed: of the run.
    """

    def __init__(
        self,
        source: Source | Scenes,
        config: CLIPConfig,
        tokenizer: Tokenizer,
        *,
        augment: Callable | None = None,
        seed: int = 0,
    ) -> None:
        side, text = config.vision_config.image_size, config.text_config
        self.image_processor = ImageProcessor(
            cover=(side, side),
            size=None,
            crop=(side, side),
            resample=Image.Resampling.BICUBIC,
            scale=1 / 255,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        self.label_names = source.label_names
        self.width = config.projection_dim
        self._size = side, side
        self._source, self._augment, self._seed = source, augment, seed
        self._num_threads = 1 if isinstance(source, Scenes) else None  # drawing holds the interpreter's lock
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: the one given stays as it is
        self._tokenizer.enable_truncation(text.max_position_embeddings)
        self._tokenizer.enable_padding(
            length=text.max_position_embeddings,
            pad_id=text.pad_token_id,
            pad_token=END,
        )

    def training_batches(self, num_train: int, train: ConfigDict, first: int) -> Generator[Batch]:
        """This process's `Batch`es of the first `num_train` examples, step after step from `first` on.

        Their data are `pixels` uint8 (b, h, w, 3), `token_ids` int32 (b, T) and `labels` int8 (b, K). The
        noise of an augmentation depends on the seed and the example's position in the run.
        """

        augment = self._augment

        def prepare(example, position):
            if augment is None:
                return self._prepare(example)
            random = np.random.default_rng([self._seed, Stream.AUGMENTATION, position])
            return self._prepare(example, lambda image: augment(random, image, self._size))

        size, processes = train.batch_size, (jax.process_index(), jax.process_count())
        order = TrainingOrder(self._seed, num_train, size, first, train.steps, *processes)
        return read_batches(
            self._source,
            order,
            size // processes[1],
            prepare,
            replace=num_train,
            num_threads=self._num_threads,
        )

    def batches(self, indices: Sequence[int], batch_size: int) -> Generator[Batch]:
        """`Batch`es of these examples, once each, with the same data."""
        order = OnceOrder(indices, batch_size)
        return read_batches(self._source, order, batch_size, lambda example, _: self._prepare(example))

    def _prepare(self, example, augment=None):
        image = example.image
        if augment is not None:
            image = augment(decode_image(image) if isinstance(image, bytes) else Image.fromarray(image))
        return {
            "pixels": self.image_processor.pixels(image),
            "token_ids": self.token_ids([example.caption])[0],
            "labels": example.labels,
        }

    def token_ids(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Texts as token ids, padded and cut to the context."""
        return np.array([encoding.ids for encoding in self._tokenizer.encode_batch(texts)], np.int32)
