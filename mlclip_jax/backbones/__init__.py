"""Frozen encoders: images and texts to embeddings in one joint space."""

import os
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx

from mlclip_jax.backbones.clip import ACTIVATIONS, CLIP, IGNORED_KEYS, KEY_TABLE
from mlclip_jax.backbones.processing import Tokenizer, read_image_processor
from mlclip_jax.backbones.weights import find_checkpoint, fingerprint, load_parameters, read_json
from mlclip_jax.errors import InputError
from mlclip_jax.modules import merge_module, split_module
from mlclip_jax.parallel import make_mesh, replicated, split_rows
from mlclip_jax.progress import progress_bar

# transformers would advise to install torch, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# What, beside the weights, decides an embedding.
SETTINGS = ("config.json", "tokenizer.json", "preprocessor_config.json")


def load_backbone(name_or_folder, *, revision=None):
    """Loads a CLIP in Hugging Face's format.

    Args:
      name_or_folder: a folder with `config.json`, `model.safetensors`, `tokenizer.json` and
        `preprocessor_config.json`; or the hub name of such a repository ("openai/clip-vit-base-patch32");
        or "scenes-clip", which comes with the package and knows the objects of `data/scenes.py` alone.
      revision: a commit, branch or tag of the hub repository.

    Returns:
      A `Backbone`, its parameters in float32 on every device.

    Raises:
      InputError: something is missing, damaged, or does not fit.

    Example:
      >>> backbone = mlclip_jax.load_backbone("openai/clip-vit-base-patch32")
      >>> backbone.encode_images(["cat.jpg"]).shape, backbone.encode_texts(["a cat"]).shape
      ((1, 512), (1, 512))
    """
    folder, revision = find_checkpoint(name_or_folder, revision)
    config = _read_config(folder)
    graph, abstract = split_module(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
    weights = folder / "model.safetensors"
    image_processor = read_image_processor(folder)
    tower_size = (config.vision_config.image_size,) * 2
    if image_processor.output_size != tower_size:
        raise InputError(
            f"{folder}: preprocessor_config.json makes images of {image_processor.output_size} pixels, "
            f"and config.json asks for {tower_size}"
        )
    parameters = load_parameters(weights, KEY_TABLE, abstract, IGNORED_KEYS)
    return Backbone(
        graph,
        parameters,
        embedding_width=config.projection_dim,
        image_processor=image_processor,
        tokenizer=Tokenizer(
            folder, config.text_config.max_position_embeddings, config.text_config.vocab_size
        ),
        fingerprint=fingerprint(name_or_folder, revision, [weights, *(folder / name for name in SETTINGS)]),
    )


class Backbone:
    """A frozen CLIP with its own preprocessing. Made by `load_backbone`.

    Attributes:
      embedding_width: D, of the joint space.
      image_size: (height, width) of the pixels that its image tower sees.
      fingerprint: dict of `name`, `revision` and `sha256`, which identifies the weights.
      parameters: nested dict of the weights, float32.
    """

    def __init__(self, graph, parameters, *, embedding_width, image_processor, tokenizer, fingerprint):
        self._mesh = make_mesh()
        self._image_processor = image_processor
        self._tokenizer = tokenizer
        self.embedding_width = embedding_width
        self.image_size = image_processor.output_size
        self.fingerprint = fingerprint
        self.parameters = jax.device_put(parameters, replicated(self._mesh))

        # Accelerators would otherwise round the factors of a float32 product to fewer bits.
        def encode_pixels(parameters, pixels):
            with jax.default_matmul_precision("highest"):
                return merge_module(graph, parameters).image(image_processor.normalise(pixels))

        def encode_tokens(parameters, token_ids):
            with jax.default_matmul_precision("highest"):
                return merge_module(graph, parameters).text(token_ids)

        self._encode_pixels = jax.jit(encode_pixels)
        self._encode_tokens = jax.jit(encode_tokens)

    def encode_images(self, images, *, batch_size=32):
        """Embeds images.

        Args:
          images: list of paths, `PIL.Image`s or uint8 arrays (h, w, 3).
          batch_size: how many are encoded at once, over all devices.

        Returns:
          Un-normalised embeddings, float32 `(len(images), D)`.

        Raises:
          InputError: an image cannot be read; it is named.
        """
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock

            def pixels(batch):
                return np.stack(list(pool.map(self._image_processor.pixels, batch)))

            return self._encode(self._encode_pixels, images, pixels, batch_size, "images")

    def encode_texts(self, texts, *, batch_size=64):
        """Embeds texts.

        Args:
          texts: list of strings. Those longer than the context are cut, and counted in a warning.
          batch_size: how many are encoded at once, over all devices.

        Returns:
          Un-normalised embeddings, float32 `(len(texts), D)`.
        """
        truncated = 0

        def token_ids(batch):
            nonlocal truncated
            ids, cut = self._tokenizer(batch)
            truncated += cut
            return ids

        embeddings = self._encode(self._encode_tokens, texts, token_ids, batch_size, "texts")
        if truncated:
            warnings.warn(
                f"{truncated} of {len(texts)} texts were cut to {self._tokenizer.context_length} tokens",
                stacklevel=2,
            )
        return embeddings

    def _encode(self, encode, inputs, prepare, batch_size, unit):
        if isinstance(inputs, str):
            raise InputError(f"give a list of {unit}, not the string {inputs!r:.60}")
        inputs = list(inputs)
        if not inputs:
            return np.zeros((0, self.embedding_width), np.float32)
        # A power of two, so that short lists neither wait for a full batch nor compile for every length.
        batch_size = min(batch_size, 1 << (len(inputs) - 1).bit_length())
        batch_size += -batch_size % self._mesh.size
        embeddings, running = [], deque()
        with progress_bar(len(inputs), f"encoding {unit}", unit) as bar:
            for start in range(0, len(inputs), batch_size):
                batch = prepare(inputs[start : start + batch_size])
                padding = [(0, batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
                batch_on_devices = jax.device_put(np.pad(batch, padding), split_rows(self._mesh))
                running.append((encode(self.parameters, batch_on_devices), len(batch)))
                # One batch computes while the next is prepared; more would only fill memory.
                while len(running) > 1 or (running and start + batch_size >= len(inputs)):
                    result, count = running.popleft()
                    embeddings.append(np.asarray(result)[:count])
                    bar.update(count)
        embeddings = np.concatenate(embeddings)
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self.fingerprint['name']} gives NaN or infinity for {len(bad)} of {len(inputs)} {unit}, "
                f"the first {inputs[bad[0]]!s:.80}; its weights or that input are damaged"
            )
        return embeddings


def _read_config(folder):
    from transformers import CLIPConfig

    path = folder / "config.json"
    content = read_json(path)
    if content.get("model_type") != "clip":
        raise InputError(f"{path} is of model_type {content.get('model_type')!r}; only 'clip' can be loaded")
    try:
        config = CLIPConfig.from_dict(content)
        if config.vision_config.patch_size < 1:
            raise ValueError(f"patch_size {config.vision_config.patch_size}")
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise InputError(f"{path} describes no CLIP: {' '.join(str(error).split())}") from error
    for tower in (config.vision_config, config.text_config):
        if tower.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"{path}: hidden_act {tower.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}"
            )
    return config
