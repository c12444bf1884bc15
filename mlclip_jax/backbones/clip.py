"""CLIP with a ViT image tower, and its text tower, equal to transformers' `CLIPModel` (Radford et al. 2021).

Shape letters: b batch, t tokens, d width of a tower, p width of the joint space.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mlclip_jax.backbones.weights import conv, identity, linear

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's checkpoints
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class CLIP(nnx.Module):
    """Both towers. `config` is a `transformers.CLIPConfig`."""

    def __init__(self, config, *, rngs):
        self.image = ImageTower(config.vision_config, config.projection_dim, rngs=rngs)
        self.text = TextTower(config.text_config, config.projection_dim, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.array(config.logit_scale_init_value, jnp.float32))


class ImageTower(nnx.Module):
    """A pre-norm vision transformer; its class token, normalised and projected, is the embedding."""

    def __init__(self, config, projection_width, *, rngs):
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nnx.Conv(
            config.num_channels,
            width,
            kernel_size=(patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=False,
            rngs=rngs,
        )
        self.class_embedding = nnx.Param(_small_normal(rngs, width))
        self.position_embedding = nnx.Param(_sinusoids(config.image_size // patch, width))
        self.pre_norm = _layer_norm(config, rngs)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.post_norm = _layer_norm(config, rngs)
        self.projection = nnx.Linear(width, projection_width, use_bias=False, rngs=rngs)

    def __call__(self, pixels):
        """Normalised pixels (b, height, width, 3) to un-normalised embeddings (b, p), float32."""
        return self.projection(self.pooled(pixels))

    def pooled(self, pixels):
        """The same before the projection: (b, d)."""
        patches = self.patch_embedding(pixels)
        patches = patches.reshape(len(pixels), -1, patches.shape[-1])
        class_token = jnp.broadcast_to(self.class_embedding[...], (len(pixels), 1, patches.shape[-1]))
        tokens = jnp.concatenate([class_token, patches], axis=1) + self.position_embedding[...][None]
        tokens = self.pre_norm(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.post_norm(tokens[:, 0])


class TextTower(nnx.Module):
    """A causal transformer; its state at the end token, normalised and projected, is the embedding."""

    def __init__(self, config, projection_width, *, rngs):
        width = config.hidden_size
        self.token_embedding = nnx.Embed(
            config.vocab_size, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs
        )
        self.position_embedding = nnx.Param(_small_normal(rngs, config.max_position_embeddings, width))
        self.layers = nnx.List(
            [Layer(config, causal=True, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.final_norm = _layer_norm(config, rngs)
        self.projection = nnx.Linear(width, projection_width, use_bias=False, rngs=rngs)
        self.end_token = config.eos_token_id

    def __call__(self, token_ids):
        """Token ids (b, t), int32, to un-normalised embeddings (b, p), float32."""
        tokens = self.token_embedding(token_ids) + self.position_embedding[...][None, : token_ids.shape[1]]
        for layer in self.layers:
            tokens = layer(tokens)
        # Early configurations name id 2 where the files mean the largest id of the vocabulary.
        is_end = token_ids if self.end_token == 2 else (token_ids == self.end_token).astype(jnp.int32)
        end = jnp.argmax(is_end, axis=1)
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.final_norm(pooled))


class Layer(nnx.Module):
    """Attention, then a two-layer perceptron, each behind a layer norm and added to its input."""

    def __init__(self, config, *, causal=False, rngs):
        self.norm1 = _layer_norm(config, rngs)
        self.attention = Attention(config.hidden_size, config.num_attention_heads, causal, rngs=rngs)
        self.norm2 = _layer_norm(config, rngs)
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, tokens):
        """(b, t, d) to (b, t, d)."""
        # As rows: on CPUs, XLA takes twice as long for the gradient of a product with three dimensions.
        rows = tokens.reshape(-1, tokens.shape[-1])
        rows = rows + self.attention(self.norm1(rows), tokens.shape[1])
        rows = rows + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.norm2(rows))))
        return rows.reshape(tokens.shape)


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, width, num_heads, causal, *, rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.num_heads = num_heads
        self.causal = causal

    def __call__(self, rows, num_tokens):
        """The tokens of all examples, (b t, d), to the same."""
        heads = (-1, num_tokens, self.num_heads, rows.shape[-1] // self.num_heads)
        query, key, value = (f(rows).reshape(heads) for f in (self.query, self.key, self.value))
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out(attended.reshape(rows.shape))


def _small_normal(rngs, *shape):
    return 0.02 * jax.random.normal(rngs.params(), shape)


def _sinusoids(side, width):
    """Where training starts, `(1 + side², width)`: the class token at 0, patches at waves of their place."""
    frequencies = 100.0 ** -jnp.linspace(0, 1, -(-width // 4), endpoint=False)
    angles = jnp.arange(side, dtype=jnp.float32)[:, None] * frequencies[None]
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    rows, columns = jnp.repeat(waves, side, axis=0), jnp.tile(waves, (side, 1))
    patches = jnp.concatenate([rows, columns], axis=1)[:, :width]
    return jnp.pad(patches / 2, [(1, 0), (0, 0)])


def _layer_norm(config, rngs):
    # The two-pass variance: the one-pass form loses digits that parity needs.
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs
    )


def _norm_rows(key, target):
    return [(rf"{key}\.weight", f"{target}/scale", identity), (rf"{key}\.bias", f"{target}/bias", identity)]


def _linear_rows(key, target):
    return [(rf"{key}\.weight", f"{target}/kernel", linear), (rf"{key}\.bias", f"{target}/bias", identity)]


def _tower_rows(file, ours):
    """Rows shared by the towers; `file` is the tower's name in the file, `ours` in our tree."""
    layer, target = rf"{file}\.encoder\.layers\.(\d+)", rf"{ours}/layers/\1"
    rows = [(rf"{file}\.embeddings\.position_embedding\.weight", f"{ours}/position_embedding", identity)]
    for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
        rows += _linear_rows(rf"{layer}\.self_attn\.{theirs}_proj", f"{target}/attention/{name}")
    for name in ("fc1", "fc2"):
        rows += _linear_rows(rf"{layer}\.mlp\.{name}", f"{target}/{name}")
    for number in ("1", "2"):
        rows += _norm_rows(rf"{layer}\.layer_norm{number}", f"{target}/norm{number}")
    return rows


# Keys of transformers' model.safetensors, as saved; "pre_layrnorm" is theirs.
KEY_TABLE = [
    *_tower_rows("vision_model", "image"),
    *_tower_rows("text_model", "text"),
    (r"vision_model\.embeddings\.class_embedding", "image/class_embedding", identity),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "image/patch_embedding/kernel", conv),
    *_norm_rows(r"vision_model\.pre_layrnorm", "image/pre_norm"),
    *_norm_rows(r"vision_model\.post_layernorm", "image/post_norm"),
    (r"visual_projection\.weight", "image/projection/kernel", linear),
    (r"text_model\.embeddings\.token_embedding\.weight", "text/token_embedding/embedding", identity),
    *_norm_rows(r"text_model\.final_layer_norm", "text/final_norm"),
    (r"text_projection\.weight", "text/projection/kernel", linear),
    (r"logit_scale", "logit_scale", identity),
]
# Older files store the range 0, 1, 2, ... that the position embeddings are indexed by.
IGNORED_KEYS = [r"(vision|text)_model\.embeddings\.position_ids"]
