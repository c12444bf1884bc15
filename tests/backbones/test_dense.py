"""Patch features by every form of attention, against a computation by hand in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_clip import TINY, config_with, write_clip
from tiny_models import write_case

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones.dense import FORMS, NEIGHBOURS, dense_features

# Six layers, so that those at a half, a third and three quarters of the tower differ; 6 x 7 patches below.
DEEP = config_with({"vision_config.num_hidden_layers": 6})
SIZE, GRID = (48, 56), (6, 7)
HEADS = 4


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return mlclip_jax.load_backbone(write_clip(tmp_path_factory.mktemp("deep"), DEEP))


@pytest.fixture(scope="module")
def pixels():
    return np.random.RandomState(3).randint(0, 256, (3, *SIZE, 3)).astype(np.uint8)


@functools.cache
def compiled(backbone, form, maps=False):
    return jax.jit(lambda pixels: dense_features(backbone, backbone.parameters, pixels, form, maps=maps))


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class ByHand:
    """The tower in NumPy, image by image, in double precision."""

    def __init__(self, backbone, states):
        doubles = jax.tree.map(lambda array: np.asarray(array, np.float64), backbone.parameters["image"])
        self.parameters, self.states = doubles, states
        self.layers = [doubles["layers"][str(i)] for i in range(6)]

    def norm(self, own, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * own["scale"] + own["bias"]

    def heads(self, layer, x):
        own = self.layers[layer]
        for name in ("query", "key", "value"):
            part = own["attention"][name]
            yield (x @ part["kernel"] + part["bias"]).reshape(len(x), HEADS, -1).transpose(1, 0, 2)

    def out(self, layer, heads):
        part = self.layers[layer]["attention"]["out"]
        return heads.transpose(1, 0, 2).reshape(heads.shape[1], -1) @ part["kernel"] + part["bias"]

    def attention(self, a, b):
        return softmax(a @ b.transpose(0, 2, 1) / np.sqrt(a.shape[-1]))

    def perceptron(self, layer, x):
        own = self.layers[layer]
        inner = self.norm(own["norm2"], x) @ own["fc1"]["kernel"] + own["fc1"]["bias"]
        return (inner / (1 + np.exp(-1.702 * inner))) @ own["fc2"]["kernel"] + own["fc2"]["bias"]

    def project(self, x):
        return self.norm(self.parameters["post_norm"], x) @ self.parameters["projection"]["kernel"]

    def normed(self, layer, x):
        return self.norm(self.layers[layer]["norm1"], x)

    def last(self, attend):
        x = self.states[5]
        query, key, value = self.heads(5, self.normed(5, x))
        x = x + self.out(5, attend(query, key, value))
        return self.project(x + self.perceptron(5, x))[1:]

    def plain(self):
        return self.last(lambda q, k, v: self.attention(q, k) @ v)

    def value(self):
        return self.last(lambda *heads: heads[2])

    def sclip(self):
        return self.last(lambda q, k, v: (self.attention(q, q) + self.attention(k, k)) @ v)

    def surgery(self):
        path = self.states[3]
        for layer in (3, 4, 5):
            _, _, value = self.heads(layer, self.normed(layer, self.states[layer]))
            path = path + self.out(layer, self.attention(value, value) @ value)
        return self.project(path)[1:]

    def sc_clip(self):
        """SC-CLIP's layers 9, 4 and 4 to 10 of 12 are 4, 2 and 2 to 5 of 6."""
        before = self.states[5]
        outliers = self.outliers(before[1:])
        assert 0 < outliers.sum() < 5
        similar = cosines(self.repaired(self.states[4][1:], outliers))
        low = cosines(self.states[2][1:])
        patches = averaged(self.repaired(before[1:], outliers), similar)
        fused = self.states[2] + self.states[3] + self.states[4] + self.states[5]
        both = [
            averaged(self.likened(tokens, similar) + 0.3 * class_token, low)
            for tokens, class_token in ((patches, before[0]), (fused[1:], fused[0]))
        ]
        return self.project(both[0] + both[1])

    def likened(self, tokens, similar):
        _, key, value = self.heads(5, self.normed(5, tokens))
        logits = 3 * (similar - similar.mean())
        by_likeness = softmax(np.where(logits < 0, -np.inf, logits))
        return self.out(5, (self.attention(key, key) + by_likeness) / 2 @ value)

    def outliers(self, patches):
        distances = ((patches[:, None] - patches[None]) ** 2).sum(-1)
        order = np.argsort(distances, axis=1)[:, 1 : NEIGHBOURS + 1]
        furthest = np.array([distances[i, order[i, -1]] for i in range(len(patches))])
        factor = np.array([np.mean(furthest[i] / furthest[order[i]]) for i in range(len(patches))])
        return factor > np.quantile(factor, 0.95)

    def repaired(self, patches, outliers):
        repaired = patches.copy()
        for i in np.flatnonzero(outliers):
            row, column = divmod(i, GRID[1])
            near = [
                r * GRID[1] + c
                for r in range(max(row - 1, 0), min(row + 2, GRID[0]))
                for c in range(max(column - 1, 0), min(column + 2, GRID[1]))
                if not outliers[r * GRID[1] + c]
            ]
            if near:
                repaired[i] = patches[near].mean(0)
        return repaired


def cosines(x):
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit @ unit.T


def averaged(x, similar):
    weights = np.where(similar < 0.4, 0, similar)
    return weights / (weights.sum(-1, keepdims=True) + 1e-6) @ x


@pytest.fixture(scope="module")
def states(backbone, pixels):
    """What each layer is given, and what the last gives; (images, 7, tokens, width)."""

    @jax.jit
    def run(pixels):
        tower = backbone.module(backbone.parameters).image
        kept = [tower.pre_norm(tower.patches(backbone.image_processor.normalise(pixels)))]
        for layer in tower.layers:
            kept.append(layer(kept[-1]))
        return jnp.stack(kept, axis=1)

    return np.asarray(run(pixels), np.float64)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_what_is_computed_by_hand(backbone, pixels, states, form):
    dense = compiled(backbone, form)(pixels)
    expected = np.stack([getattr(ByHand(backbone, own), form)() for own in states])
    assert dense.local.shape == (3, 42, 20)
    assert np.abs(np.asarray(dense.local) - expected).max() < 2e-5 * np.abs(expected).max()


def test_the_plain_form_is_todays_local_features(backbone, pixels):
    dense = compiled(backbone, "plain")(pixels)
    embeddings, local = jax.jit(lambda x: backbone.image(backbone.parameters, x))(pixels)
    np.testing.assert_allclose(dense.local, local, rtol=0, atol=1e-6)
    assert dense.maps is None
    for form in FORMS:  # the class token goes its own way in all of them
        np.testing.assert_allclose(compiled(backbone, form)(pixels).embeddings, embeddings, rtol=0, atol=1e-6)


def test_forms_differ(backbone, pixels):
    local = {form: np.asarray(compiled(backbone, form)(pixels).local) for form in FORMS}
    for one in FORMS:
        for other in FORMS:
            assert one == other or np.abs(local[one] - local[other]).max() > 1e-2


def test_maps_are_the_towers_own_averaged_over_heads(backbone, pixels, states):
    maps = compiled(backbone, "plain", maps=True)(pixels).maps
    assert maps.shape == (3, 6, 42, 42)
    for image, own in enumerate(states):
        hand = ByHand(backbone, own)
        for layer in range(6):
            query, key, _ = hand.heads(layer, hand.normed(layer, own[layer]))
            expected = hand.attention(query, key).mean(0)[1:, 1:]
            np.testing.assert_allclose(maps[image, layer], expected, atol=1e-5)


@pytest.mark.parametrize("form", ["surgery", "sc_clip"])
def test_every_form_is_differentiable(backbone, pixels, form):
    """With respect to weights of the last layer, by finite differences along one direction."""
    random = np.random.default_rng(1)
    weights = jnp.asarray(random.normal(size=(3, 42, 20)).astype(np.float32))
    kernel = backbone.parameters["image"]["layers"]["5"]["attention"]["value"]["kernel"]
    direction = jnp.asarray(random.normal(size=kernel.shape).astype(np.float32))
    direction /= jnp.linalg.norm(direction)

    def along(step):
        parameters = jax.tree.map(lambda x: x, backbone.parameters)
        parameters["image"]["layers"]["5"]["attention"]["value"]["kernel"] = kernel + step * direction
        return jnp.sum(dense_features(backbone, parameters, pixels, form).local * weights) / 100

    slope, above, below = jax.jit(lambda: (jax.grad(along)(0.0), along(0.02), along(-0.02)))()
    assert abs(slope) > 1e-3
    assert float(above - below) / 0.04 == pytest.approx(float(slope), rel=2e-2)


@pytest.mark.parametrize("case", ["open_clip_resnet", "blip"])
def test_other_backbones_are_refused(tmp_path, case):
    other = mlclip_jax.load_backbone(write_case(tmp_path, case))
    with pytest.raises(InputError, match=r"has no attention among patches to change: choose a CLIP with a"):
        dense_features(other, other.parameters, np.zeros((1, 64, 64, 3), np.uint8))


def test_an_unknown_form_is_refused(backbone, pixels):
    with pytest.raises(InputError, match=r"no form of attention 'scclip' \(did you mean s\w+\?\); there are"):
        dense_features(backbone, backbone.parameters, pixels, "scclip")


def test_a_tower_of_two_layers_has_all_forms(tmp_path):
    shallow = mlclip_jax.load_backbone(write_clip(tmp_path, TINY))
    pixels = np.random.RandomState(0).randint(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    for form in FORMS:
        local = np.asarray(compiled(shallow, form)(pixels).local)
        assert local.shape == (2, 9, 20)
        assert np.isfinite(local).all()


def test_products_in_bfloat16_are_near(backbone, pixels, tmp_path):
    half = mlclip_jax.load_backbone(write_clip(tmp_path, DEEP), dtype="bfloat16")
    ours, exact = (np.asarray(compiled(each, "sc_clip")(pixels).local) for each in (half, backbone))
    assert 0 < np.linalg.norm(ours - exact) < 0.1 * np.linalg.norm(exact)
