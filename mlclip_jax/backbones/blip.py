"""BLIP for image-text retrieval and matching (Li et al. 2022, arXiv 2201.12086).

Equal to transformers' `BlipForImageTextRetrieval`: a vision transformer, a BERT that reads texts alone or
while attending to all tokens of an image, projections of both to a joint space, and a head that tells whether
the two match.

In shapes, D is the width of the joint space, `width` that of a tower.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from mlclip_jax.backbones.configs import BLIPConfig, ImageConfig, TextConfig
from mlclip_jax.backbones.transformer import (
    ACTIVATIONS,
    Attention,
    Layer,
    Patches,
    add,
    layer_norm,
    linear,
    small_normal,
)
from mlclip_jax.backbones.weights import (
    KeyTable,
    conv,
    identity,
    linear_rows,
    norm_rows,
    stacked_attention_rows,
)


class BLIP(nnx.Module):
    """Both towers and the matching head.

    Args:
      config: a `transformers.BlipConfig`.
      dtype: of the products and of what they are made with; norms, softmax and sums are in float32 always.
    """

    def __init__(self, config: BLIPConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        image_config, text_config = config.vision_config, config.text_config
        width = config.image_text_hidden_size
        self.image = ImageTower(image_config, width, dtype=dtype, rngs=rngs)
        self.text = TextTower(text_config, image_config.hidden_size, width, dtype=dtype, rngs=rngs)
        self.matching_head = linear(text_config.hidden_size, 2, dtype, rngs)

    def pair(
        self, pixels: Float[Array | np.ndarray, "B H W 3"], token_ids: Int[Array | np.ndarray, "B T"]
    ) -> tuple[Float32[Array, "B width"], Float32[Array, "B 2"]]:
        """What a text becomes when it attends to an image, and whether the two match.

        Args:
          pixels: normalised.
          token_ids: of the text beside each image.

        Returns:
          The text tower's first token, and logits of "no match" and "match".
        """
        tokens = self.text.tokens(
            self.text.embed(token_ids), self.text.is_there(token_ids), self.image.tokens(pixels)
        )
        return tokens[:, 0], self.matching_head(tokens[:, 0]).astype(jnp.float32)


class ImageTower(nnx.Module):
    """A pre-norm vision transformer, normalised at its end; its class token, projected, is the embedding."""

    def __init__(
        self,
        config: ImageConfig,
        projection_width: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        positions = small_normal(rngs, (config.image_size // config.patch_size) ** 2 + 1, config.hidden_size)
        self.patches = Patches(config, positions, use_bias=True, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.post_norm = layer_norm(config, rngs)
        self.projection = linear(config.hidden_size, projection_width, dtype, rngs)

    def __call__(
        self, pixels: Float[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """Embeddings, and local features: the patches, projected as the class token is.

        Args:
          pixels: normalised, of any size; the position embeddings are interpolated.

        Returns:
          Both un-normalised.
        """
        return _first_and_rest(self.projection, self.tokens(pixels), 1)

    def tokens(self, pixels: Float[Array | np.ndarray, "B H W 3"]) -> Float32[Array, "B T width"]:
        """Normalised pixels to tokens: that of the class, then the patches in row order."""
        tokens = self.patches(pixels)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.post_norm(tokens)


class TextTower(nnx.Module):
    """A BERT whose layers may attend to an image between self-attention and perceptron.

    Its first token, projected, is the embedding of a text alone. `encode` is the tower behind its token
    embeddings, as CLIP's `TextTower` has it.
    """

    def __init__(
        self,
        config: TextConfig,
        image_width: int,
        projection_width: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_size
        self.token_embedding = nnx.Embed(config.vocab_size, width, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Param(small_normal(rngs, config.max_position_embeddings, width))
        self.norm = layer_norm(config, rngs)
        self.layers = nnx.List(
            [TextLayer(config, image_width, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.projection = linear(width, projection_width, dtype, rngs)
        self.padding = config.pad_token_id

    def __call__(
        self, token_ids: Int[Array | np.ndarray, "B T"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """Embeddings (first token) and local features (all tokens) of texts alone, both projected.

        Args:
          token_ids: the padding id is not attended to.

        Returns:
          Both un-normalised; local features of padding mean nothing.
        """
        return self._project(self.tokens(self.embed(token_ids), self.is_there(token_ids)))

    def embed(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Float32[Array, "B T width"]:
        """Token ids to their embeddings, without positions."""
        return self.token_embedding(jnp.asarray(token_ids)).astype(jnp.float32)

    def is_there(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Bool[Array, "B T"]:
        """Which of the token ids are no padding."""
        return jnp.asarray(token_ids) != self.padding

    def ends(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Int32[Array, " B"]:
        """Where each text ends: the index of its last id that is no padding."""
        places = jnp.arange(token_ids.shape[1], dtype=jnp.int32)[None]
        return jnp.max(jnp.where(self.is_there(token_ids), places, 0), axis=1)

    def encode(
        self, token_embeddings: Float32[Array, "B T width"], end: Int[Array, " B"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """What `__call__` gives, of token embeddings.

        Args:
          token_embeddings: without positions, those of the first and the last token included.
          end: the index of the last token; those behind it are not attended to.

        Returns:
          Both un-normalised; local features behind the last token mean nothing.
        """
        places = jnp.arange(token_embeddings.shape[1], dtype=jnp.int32)
        is_there = places[None] <= end.astype(jnp.int32)[:, None]
        return self._project(self.tokens(token_embeddings, is_there))

    def tokens(
        self,
        token_embeddings: Float32[Array, "B T width"],
        mask: Bool[Array, "B T"],
        image_tokens: Float32[Array, "B M image"] | None = None,
    ) -> Float32[Array, "B T width"]:
        """Token embeddings through all layers, alone or while they attend to an image.

        Args:
          token_embeddings: without positions.
          mask: which of them are attended to.
          image_tokens: the M tokens of each image, as wide as its tower, or None.
        """
        positions = self.position_embedding[...][None, : token_embeddings.shape[1]]
        tokens = self.norm(token_embeddings + positions)
        for layer in self.layers:
            tokens = layer(tokens, mask, image_tokens)
        return tokens

    def _project(self, tokens: Array) -> tuple[Array, Array]:
        return _first_and_rest(self.projection, tokens, 0)


class TextLayer(nnx.Module):
    """Self-attention, attention to an image if there is one, a perceptron; a layer norm after each."""

    def __init__(self, config: TextConfig, image_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(config, rngs)
        self.image_attention = Attention(width, heads, context_width=image_width, dtype=dtype, rngs=rngs)
        self.image_norm = layer_norm(config, rngs)
        self.fc1 = linear(width, inner, dtype, rngs)
        self.fc2 = linear(inner, width, dtype, rngs)
        self.norm2 = layer_norm(config, rngs)
        self.activation = config.hidden_act

    def __call__(
        self,
        tokens: Float32[Array, "B T width"],
        mask: Bool[Array, "B T"],
        image_tokens: Float32[Array, "B M image"] | None,
    ) -> Float32[Array, "B T width"]:
        """Tokens, of which those of the mask are attended to, and perhaps those of an image."""
        num_tokens, rows = tokens.shape[1], tokens.reshape(-1, tokens.shape[-1])
        rows = self.norm1(add(rows, self.attention(rows, num_tokens, mask=mask)))
        if image_tokens is not None:
            rows = self.image_norm(add(rows, self.image_attention(rows, num_tokens, context=image_tokens)))
        rows = self.norm2(add(rows, self.fc2(ACTIVATIONS[self.activation](self.fc1(rows)))))
        return rows.reshape(tokens.shape)


def _first_and_rest(projection: nnx.Linear, tokens: Array, skipped: int) -> tuple[Array, Array]:
    """Projects the first token, and all but the first `skipped`, separately, so that either can go unused."""
    return projection(tokens[:, 0]).astype(jnp.float32), projection(tokens[:, skipped:]).astype(jnp.float32)


_IMAGE, _TEXT = r"vision_model\.encoder\.layers\.(\d+)", r"text_encoder\.encoder\.layer\.(\d+)"
_IMAGE_LAYER, _TEXT_LAYER = r"image/layers/\1", r"text/layers/\1"


def _text_attention_rows(key: str, attention: str, norm: str) -> KeyTable:
    rows = linear_rows(rf"{_TEXT}\.{key}\.output\.dense", f"{_TEXT_LAYER}/{attention}/out")
    for name in ("query", "key", "value"):
        rows += linear_rows(rf"{_TEXT}\.{key}\.self\.{name}", f"{_TEXT_LAYER}/{attention}/{name}")
    return rows + norm_rows(rf"{_TEXT}\.{key}\.output\.LayerNorm", f"{_TEXT_LAYER}/{norm}")


def first(array: np.ndarray) -> np.ndarray:
    """(1, ...) to (...)."""
    if array.shape[0] != 1:
        raise ValueError("its first dimension is not 1")
    return array[0]


def first_of_first(array: np.ndarray) -> np.ndarray:
    """(1, 1, ...) to (...)."""
    return first(first(array))


# Keys of transformers' model.safetensors.
KEY_TABLE: KeyTable = [
    (r"vision_model\.embeddings\.class_embedding", "image/patches/class_embedding", first_of_first),
    (r"vision_model\.embeddings\.position_embedding", "image/patches/position_embedding", first),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "image/patches/embedding/kernel", conv),
    (r"vision_model\.embeddings\.patch_embedding\.bias", "image/patches/embedding/bias", identity),
    *stacked_attention_rows(
        rf"{_IMAGE}\.self_attn\.qkv\.weight", rf"{_IMAGE}\.self_attn\.qkv\.bias", f"{_IMAGE_LAYER}/attention"
    ),
    *linear_rows(rf"{_IMAGE}\.self_attn\.projection", f"{_IMAGE_LAYER}/attention/out"),
    *linear_rows(rf"{_IMAGE}\.mlp\.fc1", f"{_IMAGE_LAYER}/fc1"),
    *linear_rows(rf"{_IMAGE}\.mlp\.fc2", f"{_IMAGE_LAYER}/fc2"),
    *norm_rows(rf"{_IMAGE}\.layer_norm1", f"{_IMAGE_LAYER}/norm1"),
    *norm_rows(rf"{_IMAGE}\.layer_norm2", f"{_IMAGE_LAYER}/norm2"),
    *norm_rows(r"vision_model\.post_layernorm", "image/post_norm"),
    (r"text_encoder\.embeddings\.word_embeddings\.weight", "text/token_embedding/embedding", identity),
    (r"text_encoder\.embeddings\.position_embeddings\.weight", "text/position_embedding", identity),
    *norm_rows(r"text_encoder\.embeddings\.LayerNorm", "text/norm"),
    *_text_attention_rows("attention", "attention", "norm1"),
    *_text_attention_rows("crossattention", "image_attention", "image_norm"),
    *linear_rows(rf"{_TEXT}\.intermediate\.dense", f"{_TEXT_LAYER}/fc1"),
    *linear_rows(rf"{_TEXT}\.output\.dense", f"{_TEXT_LAYER}/fc2"),
    *norm_rows(rf"{_TEXT}\.output\.LayerNorm", f"{_TEXT_LAYER}/norm2"),
    *linear_rows("vision_proj", "image/projection"),
    *linear_rows("text_proj", "text/projection"),
    *linear_rows("itm_head", "matching_head"),
]
# The range 0, 1, 2, ... that older files store.
IGNORED_KEYS = [r"text_encoder\.embeddings\.position_ids"]
