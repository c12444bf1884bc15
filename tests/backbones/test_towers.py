"""Every architecture and layout against outputs of the original torch code, which are stored here."""

import importlib
import itertools
import json
import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_cases import images
from PIL import Image
from tiny_clip import config_with, write_processing
from tiny_models import CASES, ENTRIES, OTHER_SIZES, TEXTS, outputs_of, thinned, write_case, write_settings

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones import blip, clip, clip_resnet, imagenet, transformer
from mlclip_jax.backbones.convolution import fold_norms
from mlclip_jax.backbones.layouts import read_layout
from mlclip_jax.backbones.transformer import attention_implementation
from mlclip_jax.backbones.weights import find_checkpoint, load_parameters
from mlclip_jax.nnx_boundary import abstract_module, merge_module

GOLDEN = ENTRIES.with_name("towers_golden.npz")
SMALL = [case for case in CASES if not case.startswith("timm")]  # the others are as large as they really are


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


def check(ours, stored, prefix):
    """Within 1e-5 of the stored outputs; of the largest of them, where that is above 1."""
    expected = {
        key.rpartition("/")[2]: value for key, value in stored.items() if key.rpartition("/")[0] == prefix
    }
    assert expected
    for name, value in expected.items():
        atol = 1e-5 * max(1, np.abs(value).max())
        np.testing.assert_allclose(thinned(ours[name]), value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == "timm_vgg16" else ()) for case in CASES]
)
def test_outputs_are_torchs_at_any_size(tmp_path, golden, case):
    write_case(tmp_path, case)
    backbone = mlclip_jax.load_backbone(tmp_path)
    ours = outputs_of(backbone, images()[:3])
    check(ours, golden, case)
    assert all(output.dtype == np.float32 for output in ours.values())
    assert ours["image"].shape == (3, backbone.embedding_width)
    rows, columns = backbone.grid_size
    assert ours["image_local"].shape == (3, rows * columns, backbone.local_width)
    if case in OTHER_SIZES:
        size = OTHER_SIZES[case]
        other = mlclip_jax.load_backbone(tmp_path, image_size=size)
        assert other.image_size == size
        encoded = other.encode_images(images()[:3], local=True)
        outputs = {"image": encoded.embeddings, "image_local": encoded.local}
        check(outputs, golden, f"{case}/{size[0]}x{size[1]}")


def test_conventions_may_be_chosen(tmp_path):
    """open_clip smooths positions at other sizes and repairs texts; transformers does neither."""
    folder = write_case(tmp_path, "open_clip_vit")
    size, text = OTHER_SIZES["open_clip_vit"], ["it’s &amp;"]

    def embeddings(**settings):
        backbone = mlclip_jax.load_backbone(folder, **settings)
        return backbone.encode_images(images()[1:3]), backbone.encode_texts(text), backbone.image_origin

    usual, as_asked, other = (
        embeddings(image_size=size, **chosen)
        for chosen in ({}, {"antialias": True, "clean": True}, {"antialias": False, "clean": False})
    )
    for i in range(2):
        np.testing.assert_array_equal(usual[i], as_asked[i])
        assert np.abs(usual[i] - other[i]).max() > 1e-3
    assert (other[2].antialias, other[2].clean, usual[2].antialias, usual[2].clean) == ("", "", "yes", "yes")
    bilinear = embeddings(interpolation="bilinear", resize="squash")
    assert np.abs(bilinear[0] - embeddings(resize="squash")[0]).max() > 1e-3
    assert bilinear[2].interpolation == "bilinear"
    with pytest.raises(InputError, match="interpolation 'nearest' is not one of bicubic, bilinear"):
        mlclip_jax.load_backbone(folder, interpolation="nearest")


@pytest.mark.parametrize("positions", ["all", "none"])
def test_a_resnets_features_may_have_positions_or_not(tmp_path, golden, positions):
    backbone = mlclip_jax.load_backbone(
        write_case(tmp_path, "open_clip_resnet"),
        image_size=OTHER_SIZES["open_clip_resnet"],
        position_embeddings=positions,
    )
    assert backbone.position_embeddings == positions
    encoded = backbone.encode_images(images()[:3], local=True)
    outputs = {"image": encoded.embeddings, "image_local": encoded.local}
    check(outputs, golden, f"open_clip_resnet/{positions}")


class Raw:
    """A tower as its file holds it, batch norms not folded, as a function of its parameters."""

    def __init__(self, folder, case):
        layout = read_layout(find_checkpoint(folder))
        graph, abstract = abstract_module(partial(layout.make_module, dtype=jnp.float32))
        self.parameters = load_parameters(layout.weights, layout.key_table, abstract, layout.ignored_keys)
        self.layout = layout
        processor = layout.image_processor
        pixels = processor.normalise(np.stack([processor.pixels(image) for image in images()[:2]]))
        inputs = {"image": (pixels,)}
        if layout.tokenizer:
            ids = layout.tokenizer(TEXTS[:2])[0]
            inputs["text"] = (ids,)
            if case == "blip":
                inputs["pair"] = (pixels, ids)

        @jax.jit
        def outputs(parameters):
            module = merge_module(graph, parameters)
            return {name: getattr(module, name)(*values) for name, values in inputs.items()}

        self.outputs = outputs

    def differs(self, flat):
        """How far the outputs move when the parameters become these."""
        tree = {}
        for path, value in flat.items():
            node = tree
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = value
        before, after = self.outputs(self.parameters), self.outputs(tree)
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, after)
        # A variance below zero, where something else takes its place, gives NaN.
        return max(np.inf if np.isnan(d) else d for d in jax.tree.leaves(moved))


def flattened(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(entry.key for entry in path): value for path, value in leaves}


def without_effect(path):
    """Softmax is blind to what all keys have in common, and the temperature is no part of an embedding."""
    return path[-2:] == ("key", "bias") or path == ("logit_scale",)


@pytest.mark.parametrize("case", SMALL)
def test_no_parameter_could_be_another(tmp_path, golden, case):
    """Parity would notice: any parameter with its values permuted, or exchanged for one of its block's."""
    raw = Raw(write_case(tmp_path, case), case)
    # What is permuted below is ten times as far from these, which are torch's, as this is.
    atol = 1e-5 * max(1, np.abs(golden[f"{case}/image"]).max())
    embeddings = raw.outputs(raw.parameters)["image"][0]
    np.testing.assert_allclose(embeddings, golden[f"{case}/image"][:2], rtol=0, atol=atol)
    flat = flattened(raw.parameters)
    kinds = {}
    for path in flat:
        kinds.setdefault(re.sub(r"\d+", "N", "/".join(path)), path)
    assert len(kinds) >= 15
    for kind, path in kinds.items():
        if without_effect(path):
            continue
        permuted = np.roll(flat[path], 1, axis=0 if flat[path].ndim == 1 else -2)
        assert raw.differs(flat | {path: permuted}) > 1e-4, kind
    # Within a block, whatever has the same shape: query and key, the two norms, a norm's scale and its bias.
    blocks = {}
    for path in kinds.values():
        number = next((i for i, key in enumerate(path) if key.isdigit()), len(path) - 1)
        blocks.setdefault((path[: number + 1], flat[path].shape), []).append(path)
    for paths in blocks.values():
        for one, other in itertools.combinations([p for p in paths if not without_effect(p)], 2):
            exchanged = raw.differs(flat | {one: flat[other], other: flat[one]})
            assert exchanged > 1e-4, (one, other)


@pytest.mark.parametrize("case", ["open_clip_resnet", "resnet"])
def test_folded_norms_are_the_norms(tmp_path, case):
    raw = Raw(write_case(tmp_path, case), case)
    folded = fold_norms(raw.parameters)
    graph, abstract = abstract_module(partial(raw.layout.make_module, folded=True, dtype=jnp.float32))
    assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, abstract)
    assert not any("norm" in path for path in flattened(folded) if "text" not in path)
    processor = raw.layout.image_processor
    pixels = processor.normalise(np.stack([processor.pixels(image) for image in images()[:2]]))
    outputs = jax.jit(lambda parameters: merge_module(graph, parameters).image(pixels))(folded)
    for ours, expected in zip(outputs, raw.outputs(raw.parameters)["image"]):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("case", SMALL)
def test_bfloat16_is_close_and_answers_in_float32(tmp_path, case):
    folder = write_case(tmp_path, case)
    full = mlclip_jax.load_backbone(folder)
    half = mlclip_jax.load_backbone(folder, dtype="bfloat16")
    assert full.dtype == "float32"  # what CPUs compute in unless told otherwise
    assert half.dtype == "bfloat16"
    kinds = {path[-1]: value.dtype for path, value in flattened(half.parameters).items()}
    assert kinds["kernel"] == jnp.bfloat16
    norms = [v.dtype for path, v in flattened(half.parameters).items() if path[-1] == "scale"]
    assert all(dtype == jnp.float32 for dtype in norms)
    expected, ours = outputs_of(full, images()), outputs_of(half, images())
    for name in expected:
        assert ours[name].dtype == np.float32
        error = np.abs(ours[name] - expected[name]).max() / np.abs(expected[name]).max()
        assert 0 < error < 4e-2, name


@pytest.mark.devices(4)
@pytest.mark.parametrize("case", ["clip_quick_gelu", "open_clip_resnet", "blip"])
def test_parameters_may_be_split_over_the_devices(tmp_path, case):
    folder = write_case(tmp_path, case)
    whole = mlclip_jax.load_backbone(folder)
    split = mlclip_jax.load_backbone(folder, shard_parameters=True)

    def bytes_on_one_device(backbone):
        leaves = jax.tree.leaves(backbone.parameters)
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)

    # The small ones that four devices do not divide stay whole.
    assert bytes_on_one_device(split) < 0.3 * bytes_on_one_device(whole)
    expected = outputs_of(whole, images())
    for name, output in outputs_of(split, images()).items():
        np.testing.assert_allclose(output, expected[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.cpu
def test_attention_is_cudnns_where_it_can_be():
    hopper = SimpleNamespace(platform="gpu", compute_capability="9.0")
    volta = SimpleNamespace(platform="gpu", compute_capability="7.0")
    amd = SimpleNamespace(platform="gpu", compute_capability="gfx942")
    tpu = SimpleNamespace(platform="tpu")
    assert attention_implementation(jnp.bfloat16, 64, hopper) == "cudnn"
    assert attention_implementation(jnp.float16, 80, hopper) == "cudnn"
    for dtype, width, device in (
        (jnp.float32, 64, hopper),
        (jnp.bfloat16, 60, hopper),
        (jnp.bfloat16, 256, hopper),
        (jnp.bfloat16, 64, volta),
        (jnp.bfloat16, 64, amd),
        (jnp.bfloat16, 64, tpu),
        (jnp.bfloat16, 64, None),  # the CPU that tests run on
    ):
        assert attention_implementation(dtype, width, device) is None


@pytest.mark.cpu  # a GPU's own attention is no program for a TPU
@pytest.mark.parametrize("case", ["clip_gelu", "open_clip_resnet", "blip", "resnet"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tower_lowers_for_accelerators(tmp_path, case, dtype):
    backbone = mlclip_jax.load_backbone(write_case(tmp_path, case), dtype=dtype)
    pixels = backbone.pixels(images()[:2])
    inputs = {"image": (pixels,)}
    if backbone.context_length:
        inputs["text"] = (backbone.token_ids(TEXTS[:2]),)
    if case == "blip":
        inputs["pair"] = (pixels, *inputs["text"])
    for name, values in inputs.items():
        function = jax.jit(getattr(backbone, name))
        exported = jax.export.export(function, platforms=["cuda", "tpu"])(backbone.parameters, *values)
        assert exported.platforms == ("cuda", "tpu")


def test_texts_come_back_in_their_order_and_as_long_as_they_are(tmp_path):
    backbone = mlclip_jax.load_backbone(write_case(tmp_path, "blip"))
    texts = ["a", "a photo of two dogs and a cat , a photo of a dog !", "dog", "", "two cats"] * 5
    encoded = backbone.encode_texts(texts, local=True, batch_size=4)
    np.testing.assert_array_equal(encoded.embeddings, backbone.encode_texts(texts, batch_size=4))
    # XLA sums products of a larger batch in another order: within a millionth of the largest value.
    largest = np.abs(encoded.embeddings).max()
    np.testing.assert_allclose(encoded.embeddings, backbone.encode_texts(texts), rtol=0, atol=1e-6 * largest)
    lengths = encoded.mask.sum(axis=1)
    assert lengths[:5].tolist() == [3, 18, 3, 2, 5]
    assert encoded.local.shape == (25, 18, 20)
    for text, tokens, mask in zip(texts[:5], encoded.local, encoded.mask):
        alone = backbone.encode_texts([text], local=True)
        np.testing.assert_allclose(tokens[mask], alone.local[0][alone.mask[0]], rtol=0, atol=1e-6)
        assert not tokens[~mask].any()
    assert backbone.encode_texts([]).shape == (0, 20)
    assert backbone.encode_texts([], local=True).local.shape == (0, 0, 20)


def test_the_pure_functions_are_what_is_called(tmp_path):
    backbone = mlclip_jax.load_backbone(write_case(tmp_path, "blip"))
    pixels, ids = backbone.pixels(images()), backbone.token_ids(TEXTS)
    assert pixels.dtype == np.uint8
    assert ids.shape == (len(TEXTS), backbone.context_length)
    embeddings, local = jax.jit(backbone.image)(backbone.parameters, pixels)
    encoded = backbone.encode_images(images(), local=True)
    np.testing.assert_allclose(embeddings, encoded.embeddings, rtol=0, atol=5e-6)
    np.testing.assert_allclose(local, encoded.local, rtol=0, atol=5e-6)
    embeddings, _ = jax.jit(backbone.text)(backbone.parameters, ids)
    np.testing.assert_allclose(embeddings, backbone.encode_texts(TEXTS), rtol=0, atol=5e-6)


@pytest.mark.cpu  # a GPU's libraries do not count their operations
def test_what_is_not_asked_for_is_not_computed(tmp_path):
    backbone = mlclip_jax.load_backbone(write_case(tmp_path, "clip_quick_gelu"))
    pixels = backbone.pixels(images())
    flops = {}
    for everything in (False, True):
        compiled = backbone._compile("image", everything).lower(backbone.parameters, pixels[:4]).compile()
        flops[everything] = compiled.cost_analysis()["flops"]
    assert flops[False] < flops[True]


@pytest.mark.usefixtures("types_unchecked")
def test_what_a_backbone_lacks_it_says(tmp_path):
    resnet = mlclip_jax.load_backbone(write_case(tmp_path / "resnet", "resnet"))
    assert resnet.context_length is None
    with pytest.raises(InputError, match=r"resnet \(ResNet-20\) has no text tower"):
        resnet.encode_texts(["dog"])
    clip_backbone = mlclip_jax.load_backbone(write_case(tmp_path / "clip", "clip_gelu"))
    with pytest.raises(InputError, match=r"does not encode an image and a text together; BLIP does"):
        clip_backbone.encode_pairs(images()[:1], ["dog"])
    with pytest.raises(InputError, match="as many texts as images; got 1 and 2"):
        clip_backbone.encode_pairs(images()[:2], ["dog"])
    with pytest.raises(InputError, match="a text must be a string; got 3"):
        clip_backbone.encode_texts(["dog", 3])


@pytest.mark.usefixtures("types_unchecked")
def test_inputs_that_cannot_be(tmp_path):
    backbone = mlclip_jax.load_backbone(write_case(tmp_path, "blip"))
    for lone in ("cat.jpg", tmp_path, Image.new("RGB", (8, 8))):
        with pytest.raises(InputError, match=r"give a list of images, not .* alone"):
            backbone.encode_images(lone)
    for image in (None, 3, jnp.zeros((8, 8, 3), jnp.uint8)):
        with pytest.raises(InputError, match=r"an image must be a path, .* or a NumPy array, not a"):
            backbone.encode_images([image])
    with pytest.raises(InputError, match=r"uint8 \(h, w, 3\); got uint8 \(0, 5, 3\)"):
        backbone.encode_images([np.zeros((0, 5, 3), np.uint8)])
    path = tmp_path / "cut.jpg"
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as opened, pytest.raises(InputError, match=r"cannot use image .*truncated"):
        backbone.encode_images([opened])
    with pytest.raises(InputError, match="a text cannot be encoded as UTF-8"):
        backbone.encode_texts(["dog \ud800"])
    with pytest.raises(InputError, match="batch_size 0: must be at least 1"):
        backbone.encode_texts(["dog"], batch_size=0)
    features, logits = backbone.encode_pairs([], [])
    assert (features.shape, logits.shape) == ((0, 24), (0, 2))


def test_only_resize_given_the_sizes_must_still_agree(tmp_path):
    write_case(tmp_path, "clip_quick_gelu")
    write_processing(tmp_path, config_with({"vision_config.image_size": 32}))
    with pytest.raises(
        InputError, match=r"makes images of \(32, 32\) pixels, and the config asks for \(24, 24\)"
    ):
        mlclip_jax.load_backbone(tmp_path, resize="squash")
    backbone = mlclip_jax.load_backbone(tmp_path, resize="squash", image_size=24)
    assert (backbone.resize, backbone.image_size) == ("squash", (24, 24))


@pytest.mark.parametrize(("architecture", "number"), [("resnet50", 23_508_032), ("resnet152", 58_143_808)])
def test_other_depths_have_torchvisions_number_of_parameters(architecture, number):
    make = partial(imagenet.ResNet, imagenet.RESNET_DEPTHS[architecture], imagenet.RESNET_WIDTHS)
    _, parameters = abstract_module(make)
    trained = {
        path: leaf for path, leaf in flattened(parameters).items() if path[-1] not in ("mean", "variance")
    }
    assert sum(leaf.size for leaf in trained.values()) == number


@pytest.mark.parametrize("case", ["clip_quick_gelu", "open_clip_resnet", "blip"])
def test_cudnns_attention_takes_what_it_is_given(tmp_path, case, monkeypatch):
    """As far as that shows without a GPU: the checks of shapes, masks and dtypes that tracing makes."""
    checks = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91900)
    monkeypatch.setattr(checks, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(
        transformer, "attention_implementation", lambda dtype, _: "cudnn" if dtype == jnp.bfloat16 else None
    )
    backbone = mlclip_jax.load_backbone(write_case(tmp_path, case), dtype="bfloat16")
    pixels, ids = backbone.pixels(images()[:2]), backbone.token_ids(TEXTS[:2])
    inputs = {"image": (pixels,), "text": (ids,)} | ({"pair": (pixels, ids)} if case == "blip" else {})
    for name, values in inputs.items():
        jaxpr = jax.make_jaxpr(getattr(backbone, name))(backbone.parameters, *values)
        uses = "dot_product_attention_fwd" in str(jaxpr)
        assert uses == (name != "image" or case != "open_clip_resnet")  # whose pooling is in float32


def test_it_says_what_it_loaded_where_that_is_asked_for(tmp_path, caplog):
    with caplog.at_level("INFO", "mlclip_jax"):
        backbone = mlclip_jax.load_backbone(write_case(tmp_path / "vit", "open_clip_vit"), dtype="bfloat16")
    line = f"{backbone!r}"
    assert caplog.messages == [line]
    number = sum(leaf.size for leaf in jax.tree.leaves(backbone.parameters))
    assert f"CLIP (ViT 2 x 32, patches of 8; text 2 x 24; gelu), {number:,} parameters, bfloat16" in line
    assert backbone.origin.sha256[:12] in line


@pytest.mark.usefixtures("types_unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is not one of float32, bfloat16"),
        ({"dtype": "double-ish"}, "dtype 'double-ish' is not one of"),
        ({"image_size": 36}, "image_size 36 does not fit: each side must be a positive multiple of 8"),
        ({"image_size": (24, 0)}, "image_size"),
        ({"image_size": (24, 24, 3)}, "image_size"),
        ({"image_size": "24"}, "image_size"),
        ({"position_embeddings": "some"}, "position_embeddings 'some' is not one of pooled, all, none"),
        ({"revision": "v1"}, "is a folder here, and has no revision 'v1'; leave that out"),
        ({"resize": "stretch"}, "resize 'stretch' is not one of crop, squash"),
    ],
)
def test_settings_that_cannot_be(tmp_path, settings, message):
    write_case(tmp_path, "clip_quick_gelu")
    with pytest.raises(InputError, match=message):
        mlclip_jax.load_backbone(tmp_path, **settings)


@pytest.mark.parametrize(
    ("folder", "quick"),
    [
        ("resnet50_clip.openai", True),
        ("resnet50_clip.cc12m", True),
        ("models--timm--vit_base_patch32_clip_224.laion400m_e32/snapshots/0123", True),
        ("models--timm--vit_base_patch16_clip_224.metaclip_2pt5b/snapshots/0123", True),
        ("DFN2B-CLIP-ViT-B-16", True),
        ("vit_base_patch32_clip_224.laion2b_e16", False),
        ("models.openai/my_clip", False),
        ("my_clip", False),
    ],
)
def test_weights_for_quick_gelu_are_known_by_name_if_need_be(tmp_path, golden, folder, quick):
    layout, config = CASES["open_clip_resnet"]
    write_case(tmp_path / folder, "open_clip_resnet")
    unsaid = {key: value for key, value in config.items() if key != "quick_gelu"}
    for settings, expected in ((unsaid, quick), (unsaid | {"quick_gelu": not quick}, not quick)):
        write_settings(tmp_path / folder, layout, settings)
        backbone = mlclip_jax.load_backbone(tmp_path / folder)
        assert ("; quick_gelu)" in backbone.title) == expected
    write_settings(tmp_path / folder, layout, unsaid)
    texts = mlclip_jax.load_backbone(tmp_path / folder).encode_texts(TEXTS)
    assert np.allclose(texts, golden["open_clip_resnet/text"], rtol=0, atol=1e-4) == quick


def test_transformers_files_are_preferred_to_open_clips_beside_them(tmp_path):
    """As in LAION's repositories, which hold both."""
    write_case(tmp_path, "open_clip_vit")
    open_clip = mlclip_jax.load_backbone(tmp_path)
    write_case(tmp_path, "clip_quick_gelu")
    both = mlclip_jax.load_backbone(tmp_path)
    assert "quick_gelu" in both.title
    assert "quick_gelu" not in open_clip.title
    (tmp_path / "model.safetensors").unlink()
    assert mlclip_jax.load_backbone(tmp_path).title == open_clip.title


def test_timms_own_tower_is_not_taken_for_the_clip_beside_it(tmp_path):
    """As in timm/resnet50_clip.cc12m: a timm config.json and weights beside open_clip's."""
    write_case(tmp_path, "open_clip_resnet")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50_clip", "num_classes": 20}))
    assert "CLIP" in mlclip_jax.load_backbone(tmp_path).title


def test_every_table_leads_to_every_parameter():
    """No row is left over: each matches a key of some case's file."""
    entries = json.loads(ENTRIES.read_text())
    tables = {
        "clip": (clip.KEY_TABLE, ["clip_quick_gelu"]),
        "open_clip": (clip.OPEN_CLIP_KEY_TABLE, ["open_clip_vit"]),
        "clip_resnet": (clip_resnet.KEY_TABLE, ["open_clip_resnet"]),
        "blip": (blip.KEY_TABLE, ["blip"]),
        "transformers resnet": (imagenet.TRANSFORMERS_RESNET_KEY_TABLE, ["resnet"]),
        "timm resnet": (imagenet.RESNET_KEY_TABLE, ["timm_resnet101"]),
        "timm vgg": (imagenet.VGG16_KEY_TABLE, ["timm_vgg16"]),
    }
    for name, (table, cases) in tables.items():
        keys = [key for case in cases for key in entries[case]]
        for pattern, *_ in table:
            assert any(re.fullmatch(pattern, key) for key in keys), (name, pattern)


def test_vggs_first_layers_may_be_kept_as_matrices():
    """As torchvision keeps them; timm, as convolutions."""
    convolution = np.random.default_rng(0).normal(size=(5, 3, 7, 7))
    as_matrix = imagenet.grid_kernel(convolution.reshape(5, -1))
    np.testing.assert_array_equal(as_matrix, imagenet.grid_kernel(convolution))
    grid = np.random.default_rng(1).normal(size=(7, 7, 3))
    expected = np.einsum("ocij,ijc->o", convolution, grid)
    np.testing.assert_allclose(grid.reshape(-1) @ as_matrix, expected)
    np.testing.assert_array_equal(imagenet.single_kernel(convolution[..., :1, :1]), convolution[..., 0, 0].T)
    for key in ("classifier.0.weight", "classifier.3.bias", "features.28.weight"):
        assert any(re.fullmatch(pattern, key) for pattern, *_ in imagenet.VGG16_KEY_TABLE)
