"""What all adapters share: one way in, one way out, by name."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mlclip_jax
from mlclip_jax import InputError, methods
from mlclip_jax.nnx_boundary import merge_module, split_trainable

GENERATOR = np.random.default_rng(0)
CLASS_EMBEDDINGS = GENERATOR.normal(size=(5, 16)).astype(np.float32)
EMBEDDINGS = GENERATOR.normal(size=(6, 16)).astype(np.float32)
LOCAL = GENERATOR.normal(size=(6, 4, 16)).astype(np.float32)
BATCH = {"image": EMBEDDINGS, "image_local": LOCAL}

DECODER = {"hidden": 32, "num_heads": 4, "dropout": 0.3}
SETTINGS = {
    "tai": {"name": "tai", "hidden": 8, "depth": 2, "dropout": 0.3},
    "fc": {"name": "fc"},
    "fc_published": {"name": "fc", "text": "first"},
    "mld": {"name": "mld", **DECODER},
    "mld_pooled": {"name": "mld", "features": "pooled", **DECODER},
    "mld_published": {"name": "mld", "features": "pooled", "readout": "mean", "blocks": 3, **DECODER},
    "ml_decoder": {"name": "ml_decoder", "width": 24, "groups": 3, **DECODER},
    "ml_decoder_pooled": {"name": "ml_decoder", "features": "pooled", "width": 24, **DECODER},
    "ml_decoder_text": {"name": "ml_decoder", "queries": "text", "width": 24, **DECODER},
}
# Of a decoder, the other adapter or kind of features stands for these where a test compiles for seconds.
ALIKE = ("mld_pooled", "mld_published", "ml_decoder")


def seldom(cases):
    """Parameters of a test, of which those that are alike are slow."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in ALIKE else case for case in cases]


def make(case, dtype="float32"):
    return methods.find(SETTINGS[case] | {"dtype": dtype}).make(CLASS_EMBEDDINGS, rngs=nnx.Rngs(0))


def logits(case, batch, dtype="float32"):
    return np.asarray(jax.jit(make(case, dtype))(batch))


def rows(start, end=None):
    return {name: array[start:end] for name, array in BATCH.items()}


def test_every_method_is_here():
    trained = {name for name in methods.METHODS if methods.find({"name": name}).trainable != ()}
    assert trained == {settings["name"] for settings in SETTINGS.values()}


@pytest.mark.parametrize("case", SETTINGS)
def test_one_way_in_and_one_way_out(case):
    whole = logits(case, BATCH)
    assert whole.shape == (6, 5)
    assert whole.dtype == np.float32
    # Every image by itself.
    np.testing.assert_allclose(logits(case, rows(4, 5)), whole[4:5], rtol=1e-4, atol=1e-5)
    # Of the features it reads those that it says it reads, and no other.
    reads = methods.find(SETTINGS[case]).reads
    np.testing.assert_array_equal(logits(case, {name: BATCH[name] for name in reads}), whole)
    for name in reads:
        with pytest.raises(KeyError, match=name):
            logits(case, {other: array for other, array in BATCH.items() if other != name})


@pytest.mark.parametrize("case", seldom(case for case in SETTINGS if "dropout" in SETTINGS[case]))
def test_keys_drop_out_and_each_example_has_its_own(case):
    keys = jax.random.split(jax.random.key(0), 6)
    adapter = make(case)
    if "mld" in case and "published" not in case:  # whose projection begins at zero
        adapter.projection.kernel[...] = jnp.linspace(-1, 1, 16)[:, None]
    if "published" in case:  # whose logits are all zero until the last norm has moved
        adapter.blocks[-1].norm2.scale[...] = jnp.arange(16, dtype=jnp.float32)
    dropped = np.asarray(adapter(BATCH, keys))
    assert np.abs(dropped - np.asarray(adapter(BATCH))).max() > 1e-3
    # A place in the batch decides nothing, nor does what the others are.
    shifted = np.asarray(adapter(rows(2), keys[2:]))
    np.testing.assert_allclose(shifted, dropped[2:], rtol=1e-4, atol=1e-5)
    same = np.asarray(adapter({name: np.repeat(array[:1], 6, axis=0) for name, array in BATCH.items()}, keys))
    assert len(np.unique(same[:, 0])) > 1


@pytest.mark.parametrize("case", seldom(SETTINGS))
def test_bfloat16_computes_and_float32_keeps(case):
    graph, parameters, frozen = split_trainable(make(case, "bfloat16"))
    assert {array.dtype for array in jax.tree.leaves((parameters, frozen))} == {jnp.dtype("float32")}

    def total(parameters):
        return jnp.sum(merge_module(graph, parameters, frozen)(BATCH))

    # Lowered for CPUs, the gradient of JAX's own attention in bfloat16 mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        gradients = jax.tree.leaves(jax.grad(total)(parameters))
    for gradient in gradients:
        assert gradient.dtype == jnp.float32
        assert np.isfinite(gradient).all()
    exact, rounded = (logits(case, BATCH, dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == np.float32
    spread = max(np.abs(exact).max(), 0.1)
    assert np.abs(rounded - exact).max() < 0.05 * spread
    assert "bf16[" in str(jax.make_jaxpr(total)(parameters))


def test_which_adapters_take_other_labels():
    assert {case for case in SETTINGS if methods.find(SETTINGS[case]).open_vocabulary} == {
        "mld",
        "mld_pooled",
        "mld_published",
        "ml_decoder_text",
    }


def test_heads_that_do_not_divide_the_width_are_refused():
    for settings, width in (({"name": "mld"}, 16), ({"name": "ml_decoder", "width": 24}, 24)):
        method = methods.find(settings | {"num_heads": 5})
        with pytest.raises(InputError, match=rf"num_heads=5 does not divide the width {width}"):
            method.make(CLASS_EMBEDDINGS, rngs=nnx.Rngs(0))


def test_names_that_there_are_not_get_the_nearest():
    with pytest.raises(
        InputError, match=r"no method 'ml_decode' \(did you mean ml_decoder\?\); there are tai, fc"
    ):
        methods.find({"name": "ml_decode"})
    with pytest.raises(
        InputError, match=r"MLD has no setting 'head' \(did you mean .*\?\); it has features, read"
    ):
        methods.find({"name": "mld", "head": 5})


def test_no_other_file_names_a_method():
    """Its own, the table and its recipe do; what is for any method must not know one.

    `untrained.py` is what loads zero-shot classification, and a room of the package has the same name.
    """
    package = Path(mlclip_jax.__file__).parent
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0]
        if room not in ("methods.py", "experiments", "untrained.py", "__init__.py"):
            for name in methods.METHODS:
                assert f'"{name}"' not in path.read_text(), (path, name)
