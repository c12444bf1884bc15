"""What all adapters share: one way in, one way out, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlclip_jax import InputError
from mlclip_jax.adapters import ADAPTERS, TITLES, make_adapter, reads_local, takes_other_labels
from mlclip_jax.nnx_boundary import merge_module, split_trainable

GENERATOR = np.random.default_rng(0)
CLASS_EMBEDDINGS = GENERATOR.normal(size=(5, 16)).astype(np.float32)
EMBEDDINGS = GENERATOR.normal(size=(6, 16)).astype(np.float32)
LOCAL = GENERATOR.normal(size=(6, 4, 16)).astype(np.float32)

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


def make(case, dtype="float32"):
    return make_adapter(SETTINGS[case] | {"dtype": dtype}, CLASS_EMBEDDINGS, rngs=nnx.Rngs(0))


def logits(case, *arguments, dtype="float32"):
    return np.asarray(jax.jit(make(case, dtype))(*arguments))


def test_every_adapter_has_a_name_and_a_title():
    assert ADAPTERS.keys() == TITLES.keys() == {settings["name"] for settings in SETTINGS.values()}


@pytest.mark.parametrize("case", SETTINGS)
def test_one_way_in_and_one_way_out(case):
    whole = logits(case, EMBEDDINGS, LOCAL)
    assert whole.shape == (6, 5)
    assert whole.dtype == np.float32
    # Every image by itself.
    np.testing.assert_allclose(logits(case, EMBEDDINGS[4:5], LOCAL[4:5]), whole[4:5], rtol=1e-4, atol=1e-5)
    if not reads_local(make_settings(case)):
        np.testing.assert_array_equal(logits(case, EMBEDDINGS), whole)


def make_settings(case):
    """A recipe's settings, in which the features are named."""
    default = {"features": "local"} if SETTINGS[case]["name"] in ("mld", "ml_decoder") else {}
    return default | SETTINGS[case]


@pytest.mark.parametrize("case", [case for case in SETTINGS if "dropout" in SETTINGS[case]])
def test_keys_drop_out_and_each_example_has_its_own(case):
    keys = jax.random.split(jax.random.key(0), 6)
    adapter = make(case)
    if "mld" in case and "published" not in case:  # whose projection begins at zero
        adapter.projection.kernel[...] = jnp.linspace(-1, 1, 16)[:, None]
    if "published" in case:  # whose logits are all zero until the last norm has moved
        adapter.blocks[-1].norm2.scale[...] = jnp.arange(16, dtype=jnp.float32)
    dropped = np.asarray(adapter(EMBEDDINGS, LOCAL, keys))
    assert np.abs(dropped - np.asarray(adapter(EMBEDDINGS, LOCAL))).max() > 1e-3
    # A place in the batch decides nothing, nor does what the others are.
    shifted = np.asarray(adapter(EMBEDDINGS[2:], LOCAL[2:], keys[2:]))
    np.testing.assert_allclose(shifted, dropped[2:], rtol=1e-4, atol=1e-5)
    same = np.asarray(adapter(np.tile(EMBEDDINGS[:1], (6, 1)), np.tile(LOCAL[:1], (6, 1, 1)), keys))
    assert len(np.unique(same[:, 0])) > 1


@pytest.mark.parametrize("case", SETTINGS)
def test_bfloat16_computes_and_float32_keeps(case):
    graph, parameters, frozen = split_trainable(make(case, "bfloat16"))
    assert {array.dtype for array in jax.tree.leaves((parameters, frozen))} == {jnp.dtype("float32")}

    def total(parameters):
        return jnp.sum(merge_module(graph, parameters, frozen)(EMBEDDINGS, LOCAL))

    # Lowered for CPUs, the gradient of JAX's own attention in bfloat16 mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        gradients = jax.tree.leaves(jax.grad(total)(parameters))
    for gradient in gradients:
        assert gradient.dtype == jnp.float32
        assert np.isfinite(gradient).all()
    exact, rounded = (logits(case, EMBEDDINGS, LOCAL, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == np.float32
    spread = max(np.abs(exact).max(), 0.1)
    assert np.abs(rounded - exact).max() < 0.05 * spread
    assert "bf16[" in str(jax.make_jaxpr(total)(parameters))


def test_which_adapters_take_other_labels():
    assert {case for case in SETTINGS if takes_other_labels(SETTINGS[case])} == {
        "mld",
        "mld_pooled",
        "mld_published",
        "ml_decoder_text",
    }


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match=r"adapter\.num_heads=5 does not divide the width 16"):
        make_adapter({"name": "mld", "num_heads": 5}, CLASS_EMBEDDINGS, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"adapter\.num_heads=5 does not divide the width 24"):
        make_adapter({"name": "ml_decoder", "num_heads": 5, "width": 24}, CLASS_EMBEDDINGS, rngs=nnx.Rngs(0))
