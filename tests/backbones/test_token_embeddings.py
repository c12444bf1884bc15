"""A text tower in two halves, between which a learnt context takes the place of token embeddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TEXTS, write_case

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.nnx_boundary import merge_module, split_trainable

CASES = ["clip_quick_gelu", "open_clip_resnet", "blip"]
LENGTH = 12  # tokens of the texts below
LEARNT = 3  # of these, behind the start token


@functools.cache
def load(case, folder):
    return mlclip_jax.load_backbone(write_case(folder, case))


@pytest.fixture(params=CASES)
def backbone(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.getbasetemp() / f"halves_{request.param}")


@functools.cache
def compiled(backbone):
    """Whole, first half, where the texts end, second half; each compiled once."""
    functions = backbone.text, backbone.embed_tokens, backbone.ends, backbone.encode_tokens
    return [jax.jit(function) for function in functions]


def token_ids(backbone, lengths=(5, 12, 2, 8), seed=0):
    """Texts of random tokens, of these lengths."""
    ids = backbone.token_ids([""] * len(lengths))[:, :LENGTH].copy()
    start, end = ids[0, :2]
    padding = ids[:, 2:].copy()
    random = np.random.default_rng(seed)
    known = min(backbone.parameters["text"]["token_embedding"]["embedding"].shape[0], start, end)
    ids[:, 1:] = random.integers(1, max(known, 2), (len(lengths), LENGTH - 1))
    for row, length in enumerate(lengths):
        ids[row, length - 1] = end
        ids[row, length:] = padding[row, : LENGTH - length]
    return ids


@settings(max_examples=20)
@given(st.lists(st.integers(2, LENGTH), min_size=4, max_size=4), st.integers(0, 9))
def halves_are_the_whole(backbone, lengths, seed):
    text, embed, find_ends, encode = compiled(backbone)
    ids = token_ids(backbone, lengths, seed)
    ends = find_ends(ids)
    assert ends.dtype == jnp.int32
    assert ends.tolist() == [length - 1 for length in lengths]
    embeddings = embed(backbone.parameters, ids)
    assert embeddings.dtype == jnp.float32
    whole = text(backbone.parameters, ids)
    for ours, expected in zip(encode(backbone.parameters, embeddings, ends), whole):
        np.testing.assert_array_equal(ours, expected)
    # What lies behind the end changes nothing before it.
    noise = jax.random.normal(jax.random.key(seed), embeddings.shape)
    behind = np.arange(LENGTH)[None] > np.asarray(ends)[:, None]
    pooled, local = encode(backbone.parameters, jnp.where(behind[..., None], noise, embeddings), ends)
    np.testing.assert_array_equal(pooled, whole[0])
    np.testing.assert_array_equal(np.asarray(local)[~behind], np.asarray(whole[1])[~behind])


def test_the_halves_are_the_whole_and_nothing_behind_the_end_counts(backbone):
    halves_are_the_whole(backbone)


def test_texts_of_any_kind_end_where_their_tokenizer_says(backbone):
    ids, lengths, _ = backbone.tokenizer(TEXTS)
    assert backbone.ends(ids).tolist() == (lengths - 1).tolist()


def weighted(backbone, ids):
    """A function of parameters and token embeddings that all outputs enter, each with a weight of its own."""
    ends = np.asarray(backbone.ends(ids))
    is_there = np.arange(LENGTH)[None] <= ends[:, None]
    random = np.random.default_rng(1)
    weights = random.normal(size=(len(ids), 1 + LENGTH, backbone.embedding_width)).astype(np.float32)
    weights[:, 1:] *= is_there[..., None]

    def function(parameters, token_embeddings):
        pooled, local = backbone.encode_tokens(parameters, token_embeddings, ends)
        return jnp.sum(jnp.concatenate([pooled[:, None], local], axis=1) * weights)

    return function


def test_the_gradient_is_that_of_finite_differences(backbone):
    ids = token_ids(backbone)
    embeddings = backbone.embed_tokens(backbone.parameters, ids)
    function = jax.jit(functools.partial(weighted(backbone, ids), backbone.parameters))
    gradient = jax.grad(function)(embeddings)
    for number in range(3):
        direction = jax.random.normal(jax.random.key(number), embeddings.shape)
        direction /= jnp.linalg.norm(direction)
        step = 1e-2
        rise = (function(embeddings + step * direction) - function(embeddings - step * direction)) / (
            2 * step
        )
        expected = float(jnp.sum(gradient * direction))
        assert float(rise) == pytest.approx(expected, abs=1e-2 * float(jnp.linalg.norm(gradient)))


class Prompt(nnx.Module):
    """A context that is learnt, shared by all texts, behind their start token."""

    def __init__(self, width, *, rngs):
        self.context = nnx.Param(0.1 * jax.random.normal(rngs.params(), (LEARNT, width)))

    def __call__(self, token_embeddings):
        context = jnp.broadcast_to(self.context[...][None], (len(token_embeddings), *self.context.shape))
        return jnp.concatenate([token_embeddings[:, :1], context, token_embeddings[:, 1 + LEARNT :]], axis=1)


def test_a_learnt_context_in_a_module_gets_its_gradient(backbone):
    """Through a module that is merged within the step, as a method's is; also where it is computed twice."""
    ids = token_ids(backbone, lengths=(7, 12, 5, 8))
    embeddings = backbone.embed_tokens(backbone.parameters, ids)
    graph, trainable, frozen = split_trainable(Prompt(embeddings.shape[-1], rngs=nnx.Rngs(0)))
    assert not frozen

    def loss(trainable, parameters, encode):
        return encode(parameters, merge_module(graph, trainable)(embeddings))

    plain = weighted(backbone, ids)
    gradients = [
        jax.jit(jax.grad(functools.partial(loss, encode=encode)))(trainable, backbone.parameters)
        for encode in (plain, jax.checkpoint(plain))
    ]
    # By the chain rule: the gradient of token embeddings, added up over the texts that share the context.
    prompted = jax.jit(lambda trainable: merge_module(graph, trainable)(embeddings))(trainable)
    whole = jax.jit(jax.grad(plain, argnums=1))(backbone.parameters, prompted)
    expected = np.asarray(whole)[:, 1 : 1 + LEARNT].sum(axis=0)
    assert np.abs(expected).max() > 1e-2
    for gradient in gradients:
        assert gradient.keys() == {"context"}
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(gradient["context"], expected, rtol=0, atol=atol)


def test_what_cannot_be_encoded_is_said(backbone, tmp_path):
    long = np.zeros((1, backbone.context_length + 1, 24), np.float32)
    with pytest.raises(InputError, match=r"texts of \d+ tokens do not fit .*; shorten them, or the learnt"):
        backbone.encode_tokens(backbone.parameters, long, np.array([1]))
    resnet = mlclip_jax.load_backbone(write_case(tmp_path / "resnet", "resnet"))
    for call in (
        lambda: resnet.embed_tokens(resnet.parameters, np.zeros((1, 4), np.int32)),
        lambda: resnet.ends(np.zeros((1, 4), np.int32)),
        lambda: resnet.encode_tokens(resnet.parameters, long, np.array([1])),
    ):
        with pytest.raises(InputError, match="has no text tower"):
            call()


def test_indices_may_be_numpys(backbone):
    ids = token_ids(backbone)
    text, embed, find_ends, encode = compiled(backbone)
    embeddings = embed(backbone.parameters, ids)
    expected = text(backbone.parameters, ids)[0]
    for ends in (np.asarray(find_ends(ids)).astype(np.int64), find_ends(ids)):
        encoded, _ = encode(backbone.parameters, embeddings, ends)
        np.testing.assert_array_equal(encoded, expected)
