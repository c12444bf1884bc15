"""Decoders against torch's own layers, put together as the published code has them, on the same weights."""

import jax
import numpy as np
import pytest
from flax import nnx

from mlclip_jax.adapters.ml_decoder import MLDecoder
from mlclip_jax.adapters.mmm_mld import MLDAdapter
from mlclip_jax.nnx_boundary import merge_module, split_trainable

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

WIDTH, HIDDEN, HEADS = 48, 96, 8
GENERATOR = np.random.default_rng(0)
EMBEDDINGS = GENERATOR.normal(size=(3, 32)).astype(np.float32)
LOCAL = GENERATOR.normal(size=(3, 7, 32)).astype(np.float32)
BATCH = {"image": EMBEDDINGS, "image_local": LOCAL}
CLASS_EMBEDDINGS = GENERATOR.normal(size=(11, 32)).astype(np.float32)


def perturbed(module):
    """The same module with every parameter moved: fresh norms and biases are blind."""
    graph, parameters, frozen = split_trainable(module)
    generator = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: x + np.float32(0.1 * generator.normal(size=x.shape)), parameters)
    return merge_module(graph, moved, frozen)


def tensor(variable):
    return torch.tensor(np.asarray(variable[...]))


def linear(layer):
    return lambda x: torch.nn.functional.linear(x, tensor(layer.kernel).T, tensor(layer.bias))


def norm(layer):
    def apply(x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], tensor(layer.scale), tensor(layer.bias), 1e-5)

    return apply


def attention(layer, heads):
    """`torch.nn.MultiheadAttention` with our weights: (b, k, d) queries, (b, t, d) tokens."""
    parts = (layer.query, layer.key, layer.value)
    width = parts[0].kernel.shape[0]
    theirs = torch.nn.MultiheadAttention(width, heads, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([tensor(part.kernel).T for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([tensor(part.bias) for part in parts]))
        theirs.out_proj.weight.copy_(tensor(layer.out.kernel).T)
        theirs.out_proj.bias.copy_(tensor(layer.out.bias))
    return lambda q, k: theirs(q, k, k)[0]


def block(layer, heads):
    """Post-norm, without self-attention."""

    def apply(queries, tokens):
        queries = norm(layer.norm1)(queries + attention(layer.attention, heads)(queries, tokens))
        change = linear(layer.fc2)(torch.relu(linear(layer.fc1)(queries)))
        return norm(layer.norm2)(queries + change)

    return apply


@torch.no_grad()
def their_ml_decoder(ours, tokens):
    memory = torch.relu(linear(ours.image_projection)(torch.tensor(tokens)))
    if ours.query_kind == "text":
        queries = torch.relu(linear(ours.text_projection)(tensor(ours.class_embeddings)))
    else:
        queries = tensor(ours.queries)
    queries = queries[None].expand(len(memory), -1, -1)
    queries = norm(ours.norm)(queries + queries)
    states = block(ours.block, HEADS)(queries, memory)
    if ours.query_kind == "text":
        return linear(ours.projection)(states)[..., 0].numpy()
    kernel, bias = tensor(ours.kernel), tensor(ours.bias)
    out = torch.zeros(len(memory), kernel.shape[0], kernel.shape[2])
    for i in range(kernel.shape[0]):  # group by group, as in the original
        out[:, i] = states[:, i] @ kernel[i]
    return (out.flatten(1)[:, : len(bias)] + bias).numpy()


@pytest.mark.parametrize("queries", ["frozen", "learnt", "text"])
@pytest.mark.parametrize("groups", [4, 100])
@pytest.mark.parametrize("features", ["local", "pooled"])
def test_ml_decoder(queries, groups, features):
    settings = {"queries": queries, "groups": groups, "features": features}
    sizes = {"width": WIDTH, "num_heads": HEADS, "hidden": HIDDEN}
    ours = perturbed(MLDecoder(CLASS_EMBEDDINGS, **settings, **sizes, rngs=nnx.Rngs(0)))
    tokens = LOCAL if features == "local" else EMBEDDINGS[:, None]
    theirs = their_ml_decoder(ours, tokens)
    np.testing.assert_allclose(ours(BATCH), theirs, rtol=0, atol=1e-5)
    assert np.ptp(theirs) > 0.1


def test_ml_decoder_at_full_size():
    """80 labels, 768 wide, 196 tokens: the original's defaults on RN50's width."""
    class_embeddings = GENERATOR.normal(size=(80, 1024)).astype(np.float32)
    tokens = GENERATOR.normal(size=(2, 196, 1024)).astype(np.float32)
    ours = perturbed(MLDecoder(class_embeddings, rngs=nnx.Rngs(0)))
    theirs = their_ml_decoder(ours, tokens)
    error = np.abs(ours({"image_local": tokens}) - theirs).max() / np.abs(theirs).max()
    assert error < 1e-5


@torch.no_grad()
def test_mld_as_published():
    """`AdaptedCLIP.forward` of MMM-CLIP's code: three blocks, each asked by the texts anew."""
    settings = {"features": "pooled", "readout": "mean", "blocks": 3, "num_heads": 4, "dropout": 0.0}
    ours = perturbed(MLDAdapter(CLASS_EMBEDDINGS, hidden=HIDDEN, **settings, rngs=nnx.Rngs(0)))
    texts = torch.nn.functional.normalize(torch.tensor(CLASS_EMBEDDINGS), dim=-1)[None].expand(3, -1, -1)
    tokens = torch.nn.functional.normalize(torch.tensor(EMBEDDINGS), dim=-1)[:, None]
    for layer in ours.blocks:
        tokens = block(layer, 4)(texts, tokens)
    theirs = tokens.mean(dim=-1).numpy()
    np.testing.assert_allclose(ours({"image": EMBEDDINGS}), theirs, rtol=0, atol=1e-5)
    assert np.ptp(theirs) > 0.01
