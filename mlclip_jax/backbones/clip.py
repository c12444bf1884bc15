"""CLIP with a ViT image tower, and its text tower (Radford et al. 2021, arXiv 2103.00020).

Equal to transformers' `CLIPModel`; its files and open_clip's are read.

In shapes, D is the width of the joint space, `width` that of a tower.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int32

from mlclip_jax.backbones.configs import CLIPConfig, ImageConfig, TextConfig
from mlclip_jax.backbones.transformer import Layer, Patches, layer_norm, linear, small_normal
from mlclip_jax.backbones.weights import (
    KeyTable,
    conv,
    identity,
    linear_rows,
    norm_rows,
    scalar,
    stacked_attention_rows,
    transposed,
)


class CLIP(nnx.Module):
    """Both towers.

    Args:
      config: a `transformers.CLIPConfig`.
      antialias: of the image tower's position embeddings, see `transformer.resize_positions`.
      dtype: of the products and of what they are made with; norms, softmax and sums are in float32 always.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        antialias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.image = ImageTower(
            config.vision_config, config.projection_dim, antialias=antialias, dtype=dtype, rngs=rngs
        )
        self.text = TextTower(config.text_config, config.projection_dim, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.array(config.logit_scale_init_value, jnp.float32))


class ImageTower(nnx.Module):
    """A pre-norm vision transformer; its class token, normalised and projected, is the embedding."""

    def __init__(
        self,
        config: ImageConfig,
        projection_width: int,
        *,
        antialias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_size
        positions = _sinusoids(config.image_size // config.patch_size, width)
        self.patches = Patches(config, positions, use_bias=False, antialias=antialias, dtype=dtype, rngs=rngs)
        self.pre_norm = layer_norm(config, rngs)
        self.layers = nnx.List(
            [Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.post_norm = layer_norm(config, rngs)
        self.projection = linear(width, projection_width, dtype, rngs, use_bias=False)

    def __call__(
        self, pixels: Float[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """Embeddings, and local features: the patches, normalised and projected as the class token is.

        Args:
          pixels: normalised, of any size; the position embeddings are interpolated.

        Returns:
          Both un-normalised.
        """
        tokens = self._tokens(pixels)
        return self.project(tokens[:, 0]), self.project(tokens[:, 1:])

    def pooled(self, pixels: Float[Array | np.ndarray, "B H W 3"]) -> Float32[Array, "B width"]:
        """The normalised class token before the projection."""
        return self.post_norm(self._tokens(pixels)[:, 0])

    def project(self, tokens: Float[Array, "*batch width"]) -> Float32[Array, "*batch D"]:
        """Tokens behind the last layer, normalised and projected into the joint space."""
        return self.projection(self.post_norm(tokens)).astype(jnp.float32)

    def _tokens(self, pixels: Array | np.ndarray) -> Array:
        tokens = self.pre_norm(self.patches(pixels))
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens


class TextTower(nnx.Module):
    """A causal transformer; its state at the end token, normalised and projected, is the embedding.

    As no token sees those behind it, padding of any length and kind leaves the result as it is.

    `encode` is the tower behind its token embeddings, so that learnt ones may take the place of some: prompt
    learning differentiates with respect to them.
    """

    def __init__(
        self,
        config: TextConfig,
        projection_width: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_size
        self.token_embedding = nnx.Embed(
            config.vocab_size,
            width,
            embedding_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.position_embedding = nnx.Param(small_normal(rngs, config.max_position_embeddings, width))
        self.layers = nnx.List(
            [Layer(config, causal=True, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.final_norm = layer_norm(config, rngs)
        self.projection = linear(width, projection_width, dtype, rngs, use_bias=False)
        self.end_token = config.eos_token_id

    def __call__(
        self, token_ids: Int[Array | np.ndarray, "B T"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """Embeddings, and local features: every token, normalised and projected as the end token is.

        Args:
          token_ids: start token first, at most as many as there are position embeddings.

        Returns:
          Both un-normalised; local features behind the end token mean nothing.
        """
        return self.encode(self.embed(token_ids), self.ends(token_ids))

    def embed(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Float32[Array, "B T width"]:
        """Token ids to their embeddings, without positions."""
        return self.token_embedding(jnp.asarray(token_ids)).astype(jnp.float32)

    def ends(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Int32[Array, " B"]:
        """Where each text ends: the index of its first end token."""
        # Early configurations name id 2 where the files mean the largest id of the vocabulary.
        is_end = token_ids if self.end_token == 2 else (token_ids == self.end_token).astype(jnp.int32)
        return jnp.argmax(is_end, axis=1)

    def encode(
        self, token_embeddings: Float32[Array, "B T width"], end: Int[Array, " B"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """What `__call__` gives, of token embeddings.

        Args:
          token_embeddings: without positions, those of start and end token included.
          end: the index of the end token.

        Returns:
          Both un-normalised; local features behind the end token mean nothing.
        """
        tokens = token_embeddings + self.position_embedding[...][None, : token_embeddings.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens)
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
        return self._project(pooled), self._project(tokens)

    def _project(self, tokens: Array) -> Array:
        return self.projection(self.final_norm(tokens)).astype(jnp.float32)


def _sinusoids(side: int, width: int) -> Float32[Array, "T width"]:
    """Where training starts, T being 1 + side²: the class token at 0, patches at waves of their place."""
    frequencies = 100.0 ** -jnp.linspace(0, 1, -(-width // 4), endpoint=False)
    angles = jnp.arange(side, dtype=jnp.float32)[:, None] * frequencies[None]
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows, columns = jnp.repeat(waves, side, axis=0), jnp.tile(waves, (side, 1))
    patches = jnp.concatenate([rows, columns], axis=1)[:, :width]
    return jnp.pad(patches / 2, [(1, 0), (0, 0)])


def _tower_rows(file: str, ours: str) -> KeyTable:
    """Rows shared by the towers; `file` is the tower's name in the file, `ours` in our tree."""
    layer, target = rf"{file}\.encoder\.layers\.(\d+)", rf"{ours}/layers/\1"
    rows: KeyTable = []
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        rows += linear_rows(rf"{layer}\.self_attn\.{theirs}_proj", f"{target}/attention/{name}")
    for name in ("fc1", "fc2"):
        rows += linear_rows(rf"{layer}\.mlp\.{name}", f"{target}/{name}")
    for number in ("1", "2"):
        rows += norm_rows(rf"{layer}\.layer_norm{number}", f"{target}/norm{number}")
    return rows


# Keys of transformers' model.safetensors, as saved; "pre_layrnorm" is theirs.
KEY_TABLE: KeyTable = [
    *_tower_rows("vision_model", "image"),
    *_tower_rows("text_model", "text"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "image/patches/position_embedding", identity),
    (r"text_model\.embeddings\.position_embedding\.weight", "text/position_embedding", identity),
    (r"vision_model\.embeddings\.class_embedding", "image/patches/class_embedding", identity),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "image/patches/embedding/kernel", conv),
    *norm_rows(r"vision_model\.pre_layrnorm", "image/pre_norm"),
    *norm_rows(r"vision_model\.post_layernorm", "image/post_norm"),
    (r"visual_projection\.weight", "image/projection/kernel", transposed),
    (r"text_model\.embeddings\.token_embedding\.weight", "text/token_embedding/embedding", identity),
    *norm_rows(r"text_model\.final_layer_norm", "text/final_norm"),
    (r"text_projection\.weight", "text/projection/kernel", transposed),
    (r"logit_scale", "logit_scale", scalar),
]
# Older files store the range 0, 1, 2, ... that the position embeddings are indexed by.
IGNORED_KEYS = [r"(vision|text)_model\.embeddings\.position_ids"]


def _block_rows(file: str, ours: str) -> KeyTable:
    """Rows of open_clip's transformer blocks, whose query, key and value are stacked in one array."""
    block, target = rf"{file}\.resblocks\.(\d+)", rf"{ours}/layers/\1"
    attention = rf"{block}\.attn\.in_proj"
    return [
        *stacked_attention_rows(f"{attention}_weight", f"{attention}_bias", f"{target}/attention"),
        *linear_rows(rf"{block}\.attn\.out_proj", f"{target}/attention/out"),
        *linear_rows(rf"{block}\.mlp\.c_fc", f"{target}/fc1"),
        *linear_rows(rf"{block}\.mlp\.c_proj", f"{target}/fc2"),
        *norm_rows(rf"{block}\.ln_1", f"{target}/norm1"),
        *norm_rows(rf"{block}\.ln_2", f"{target}/norm2"),
    ]


# Keys of OpenAI's own checkpoints, which open_clip_model.safetensors keeps: the text tower's, then the ViT's.
# Their projections are applied from the right, as ours are.
OPEN_CLIP_TEXT_KEYS: KeyTable = [
    *_block_rows("transformer", "text"),
    (r"token_embedding\.weight", "text/token_embedding/embedding", identity),
    (r"positional_embedding", "text/position_embedding", identity),
    *norm_rows(r"ln_final", "text/final_norm"),
    (r"text_projection", "text/projection/kernel", identity),
    (r"logit_scale", "logit_scale", scalar),
]
OPEN_CLIP_KEY_TABLE: KeyTable = [
    *OPEN_CLIP_TEXT_KEYS,
    *_block_rows(r"visual\.transformer", "image"),
    (r"visual\.class_embedding", "image/patches/class_embedding", identity),
    (r"visual\.positional_embedding", "image/patches/position_embedding", identity),
    (r"visual\.conv1\.weight", "image/patches/embedding/kernel", conv),
    *norm_rows(r"visual\.ln_pre", "image/pre_norm"),
    *norm_rows(r"visual\.ln_post", "image/post_norm"),
    (r"visual\.proj", "image/projection/kernel", identity),
]
# OpenAI's first files carry sizes among their weights.
OPEN_CLIP_IGNORED_KEYS = ["input_resolution", "context_length", "vocab_size", r".*\.attn\.num_heads"]
