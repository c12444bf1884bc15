"""Every tower against torch on the same weights, each parameter and batch statistic moved."""

import json
import shutil

import jax
import numpy as np
import pytest
from clip_cases import images
from real_data import PHOTOGRAPHS, needs_real_data
from tiny_clip import TINY, VIT_B_32, config_with
from tiny_models import (
    CASES,
    ENTRIES,
    OTHER_SIZES,
    RN50,
    TEXTS,
    outputs_of,
    write_case,
    write_settings,
)

import mlclip_jax

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

from torch_outputs import (  # noqa: E402
    GOLDEN,
    build,
    entries,
    perturb,
    save,
    stored_outputs,
    torch_outputs,
    torch_token_gradients,
)

VIT_L_14_336 = config_with(
    {
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "projection_dim": 768,
        },
    },
    VIT_B_32,
)
BLIP_BASE = {
    "model_type": "blip",
    "architectures": ["BlipForImageTextRetrieval"],
    "image_text_hidden_size": 256,
    "text_config": {"num_attention_heads": 12},
    "vision_config": {"image_size": 384},
}
END = {"text_config.eos_token_id": TINY["text_config"]["eos_token_id"]}  # of the tokenizer that is written
FULL_SIZE = {
    "vit_b_32": ("clip", config_with(END, VIT_B_32)),
    "vit_l_14_336": ("clip", config_with(END, VIT_L_14_336)),
    "rn50": ("open_clip", RN50),
    "blip_base": ("blip", BLIP_BASE),
}


def save_perturbed(folder, layout, config, scale=0.05):
    model = build(layout, config)
    perturb(model, scale)
    folder.mkdir(exist_ok=True)
    save(model, layout, folder)
    saved = folder / "config.json"
    # What transformers itself wrote of its config is what is read.
    written = json.loads(saved.read_text()) if saved.exists() else config
    write_settings(folder, layout, written)
    return model.eval()


def relative_errors(ours, theirs):
    assert ours.keys() == theirs.keys()
    return {name: np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in ours}


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("timm")])
def test_small_models_agree_within_1e_5(tmp_path, case):
    layout, config = CASES[case]
    model = save_perturbed(tmp_path, layout, config)
    for size in (None, OTHER_SIZES.get(case)):
        backbone = mlclip_jax.load_backbone(tmp_path, image_size=size)
        expected = torch_outputs(model, layout, backbone, images())
        for name, output in outputs_of(backbone, images()).items():
            # What an ImageNet ResNet gives is no embedding, and grows to 15 here.
            atol = 1e-5 * (np.abs(expected[name]).max() if case == "resnet" else 1)
            np.testing.assert_allclose(output, expected[name], rtol=0, atol=atol, err_msg=f"{size} {name}")


@pytest.mark.parametrize("case", ["clip_quick_gelu", "open_clip_resnet", "blip"])
def test_gradients_by_token_embeddings_agree_within_1e_5(tmp_path, case):
    layout, config = CASES[case]
    model = save_perturbed(tmp_path, layout, config)
    backbone = mlclip_jax.load_backbone(tmp_path)
    ids, lengths, _ = backbone.tokenizer(TEXTS)
    ids = ids[:, : lengths.max()]
    weights = np.random.default_rng(0).normal(size=(len(ids), backbone.embedding_width)).astype(np.float32)
    expected = torch_token_gradients(model, layout, ids, lengths, weights)

    @jax.jit
    @jax.grad
    def gradient(token_embeddings, parameters):
        pooled, _ = backbone.encode_tokens(parameters, token_embeddings, backbone.ends(ids))
        return (pooled * weights).sum()

    ours = gradient(backbone.embed_tokens(backbone.parameters, ids), backbone.parameters)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", ["timm_resnet101", pytest.param("timm_vgg16", marks=pytest.mark.slow)])
def test_imagenet_models_agree_within_1e_4_of_the_largest_value(tmp_path, case):
    layout, config = CASES[case]
    model = save_perturbed(tmp_path, layout, config, scale=0.002)
    backbone = mlclip_jax.load_backbone(tmp_path, image_size=(96, 64))
    errors = relative_errors(
        outputs_of(backbone, images()[:2]), torch_outputs(model, layout, backbone, images()[:2])
    )
    print(case, errors)
    assert max(errors.values()) < 1e-4


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow if name in ("vit_l_14_336", "blip_base", "rn50") else ())
        for name in FULL_SIZE
    ],
)
def full_size(request, tmp_path_factory):
    """Name, folder, layout and torch model of a checkpoint as large as the real one."""
    layout, config = FULL_SIZE[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    yield request.param, folder, layout, save_perturbed(folder, layout, config, scale=0.01)
    shutil.rmtree(folder)


def test_full_size_agrees_within_1e_4_of_the_largest_value(full_size):
    name, folder, layout, model = full_size
    # Split over the devices of this process, which would hold four copies of each parameter otherwise.
    backbone = mlclip_jax.load_backbone(folder, shard_parameters=True)
    pictures, texts = images()[1:3], TEXTS[:2]
    errors = relative_errors(
        outputs_of(backbone, pictures, texts), torch_outputs(model, layout, backbone, pictures, texts)
    )
    print(name, errors)
    assert max(errors.values()) < 1e-4


def bfloat16_error(folder, number):
    """Of photographs' embeddings, centred over them: on random weights, they have most of one in common."""
    photographs = sorted((PHOTOGRAPHS / "images").glob("*.jpg"))[:number]
    full, half = (
        mlclip_jax.load_backbone(folder, dtype=dtype, shard_parameters=True).encode_images(photographs)
        for dtype in ("float32", "bfloat16")
    )
    full, half = full - full.mean(axis=0), half - half.mean(axis=0)
    return np.abs(full - half).max() / np.abs(full).max()


@pytest.mark.slow
@needs_real_data
def test_bfloat16_keeps_photographs_apart(full_size):
    name, folder, *_ = full_size
    error = bfloat16_error(folder, 48)
    print(name, "bfloat16", error)
    assert error < 2e-2


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("timm")])
def test_the_stored_outputs_and_entries_are_torchs(tmp_path, case):
    assert entries(*CASES[case]) == json.loads(ENTRIES.read_text())[case]
    with np.load(GOLDEN) as golden:
        outputs = stored_outputs(case, write_case(tmp_path, case))
        assert outputs.keys() == {key for key in golden if key.partition("/")[0] == case}
        for key, output in outputs.items():
            stored = golden[key]
            np.testing.assert_allclose(output, stored, rtol=0, atol=1e-6 * np.abs(stored).max())
