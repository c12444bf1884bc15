"""Every key is used, every parameter filled, or loading fails and names them."""

import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from clip_cases import TEXTS
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from real_data import DATA, needs_real_data
from safetensors.numpy import load_file, save_file
from tiny_clip import config_with, write_clip
from tiny_models import CASES, write_case, write_settings

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones.layouts import read_layout
from mlclip_jax.backbones.weights import find_checkpoint, load_parameters
from mlclip_jax.cli import main
from mlclip_jax.nnx_boundary import abstract_module
from mlclip_jax.provenance import Origin, fingerprint


@pytest.fixture
def folder(tmp_path):
    return write_clip(tmp_path)


def rewrite(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def test_an_unknown_key_is_named(folder):
    rewrite(folder, lambda arrays: arrays.update({"vision_model.extra.weight": np.ones(3, np.float32)}))
    with pytest.raises(InputError, match=r"1 keys \(vision_model\.extra\.weight\) unused, no key unfilled"):
        mlclip_jax.load_backbone(folder)


def test_a_layer_beyond_the_config_is_named(folder):
    write_clip(folder, config_with({"text_config.num_hidden_layers": 3}))
    (folder / "config.json").write_text((write_clip(folder.parent / "other") / "config.json").read_text())
    with pytest.raises(InputError, match=r"16 keys \(text_model\.encoder\.layers\.2\..*, \.\.\.\) unused"):
        mlclip_jax.load_backbone(folder)


def test_every_missing_key_is_noticed(folder):
    """One at a time: no parameter has a default that could hide the loss of its key."""
    layout = read_layout(find_checkpoint(folder))
    _, abstract = abstract_module(partial(layout.make_module, dtype=jnp.float32))
    whole = load_file(folder / "model.safetensors")
    for key in whole.keys() - {"logit_scale"}:
        save_file({k: v for k, v in whole.items() if k != key}, folder / "model.safetensors")
        with pytest.raises(InputError, match=r"no key unused, 1 keys \(.*\) unfilled"):
            load_parameters(layout.weights, layout.key_table, abstract, layout.ignored_keys, layout.optional)


@pytest.mark.parametrize("shape", [(), (1,), None])
def test_logit_scale_is_no_obstacle(folder, shape):
    expected = mlclip_jax.load_backbone(folder).encode_texts(["a dog"])

    def change(arrays):
        value = arrays.pop("logit_scale")
        if shape is not None:
            arrays["logit_scale"] = np.reshape(value, shape)

    rewrite(folder, change)
    np.testing.assert_array_equal(mlclip_jax.load_backbone(folder).encode_texts(["a dog"]), expected)


def test_flaxs_own_files_are_read(folder):
    """As transformers' Flax models saved them: kernels, scales and embeddings, nested."""
    pictures = [np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)]
    backbone = mlclip_jax.load_backbone(folder)
    expected = backbone.encode_texts(["a dog"]), backbone.encode_images(pictures)
    tree = {}
    for key, array in load_file(folder / "model.safetensors").items():
        *parents, kind = key.split(".")
        if (
            kind == "weight"
            and "norm" not in parents[-1]
            and not parents[-1].endswith(("embedding", "layrnorm"))
        ):
            kind, array = "kernel", array.T
        elif parents[-1:] == ["patch_embedding"]:
            kind, array = "kernel", array.transpose(2, 3, 1, 0)
        elif kind == "weight":
            kind = "scale" if "norm" in parents[-1] else "embedding"
        tree[*parents, kind] = array
    (folder / "model.safetensors").unlink()
    path = folder / "flax_model.msgpack"
    path.write_bytes(msgpack_serialize(unflatten_dict(tree)))
    backbone = mlclip_jax.load_backbone(folder)
    np.testing.assert_array_equal(backbone.encode_texts(["a dog"]), expected[0])
    np.testing.assert_array_equal(backbone.encode_images(pictures), expected[1])
    for damaged in (b"", b"\x81", path.read_bytes()[:1000]):
        path.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"cannot read .*flax_model\.msgpack: .*|does not fit its config"
        ):
            mlclip_jax.load_backbone(folder)


def test_an_end_token_that_never_comes_is_the_tokenizers_own(tmp_path, caplog):
    """A config that leaves it out means CLIP's 49407, which a small vocabulary has not."""
    expected = mlclip_jax.load_backbone(write_clip(tmp_path / "right")).encode_texts(TEXTS)
    for name, change in {
        "left_out": lambda text: text.pop("eos_token_id"),
        "wrong": lambda text: text.update(eos_token_id=7),
    }.items():
        folder = write_clip(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        change(config["text_config"])
        (folder / "config.json").write_text(json.dumps(config))
        with caplog.at_level("INFO", "mlclip_jax"):
            embeddings = mlclip_jax.load_backbone(folder).encode_texts(TEXTS)
        np.testing.assert_array_equal(embeddings, expected)
        assert "texts end with the tokenizer's" in caplog.text
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="eos_token_id 7 never occurs in what the tokenizer makes of texts"):
        mlclip_jax.load_backbone(folder)


def test_a_shape_that_differs_is_named(folder):
    rewrite(folder, lambda arrays: arrays.update({"visual_projection.weight": np.ones((20, 31), np.float32)}))
    message = "visual_projection.weight has shape (20, 31), which becomes (31, 20) where the config asks for"
    with pytest.raises(InputError, match=re.escape(message)):
        mlclip_jax.load_backbone(folder)


def test_position_ids_of_older_files_are_ignored(folder):
    before = mlclip_jax.load_backbone(folder).encode_texts(["dog"])
    ids = np.arange(16)[None]
    rewrite(folder, lambda arrays: arrays.update({"text_model.embeddings.position_ids": ids}))
    np.testing.assert_array_equal(mlclip_jax.load_backbone(folder).encode_texts(["dog"]), before)


def test_the_fingerprint_is_of_all_that_matters(folder, tmp_path):
    path = tmp_path / "some.bin"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert fingerprint("name", "main", [path]) == Origin("name", "main", digest)
    before = mlclip_jax.load_backbone(folder).origin
    rewrite(folder, lambda arrays: arrays["logit_scale"].__iadd__(1))
    weights_changed = mlclip_jax.load_backbone(folder).origin
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    config_changed = mlclip_jax.load_backbone(folder).origin
    assert len({origin.sha256 for origin in (before, weights_changed, config_changed)}) == 3


def test_integers_are_no_weights(folder):
    rewrite(folder, lambda arrays: arrays.update({"text_projection.weight": np.ones((20, 24), np.int8)}))
    with pytest.raises(InputError, match=r"text_projection.weight is int8; only floating-point"):
        mlclip_jax.load_backbone(folder)


def test_a_flat_patch_embedding_is_named(folder):
    name = "vision_model.embeddings.patch_embedding.weight"
    rewrite(folder, lambda arrays: arrays.update({name: np.ones((32, 192), np.float32)}))
    with pytest.raises(InputError, match=rf"{name} has shape \(32, 192\), which does not fit: axes"):
        mlclip_jax.load_backbone(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read .* as safetensors"),
        ((10_000).to_bytes(8, "little") + b"{}", "cannot read .* as safetensors"),  # a header cut short
        ((2**63).to_bytes(8, "little") + b"{}", "cannot read .* as safetensors"),  # one larger than memory
        ((4).to_bytes(8, "little") + b"\xff\xfe{}", "cannot read .* as safetensors"),
        (b"\x80\x02}q\x00.", "cannot read .* as safetensors"),  # a pickle under another name
    ],
)
def test_a_damaged_file_is_one_clear_line(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        mlclip_jax.load_backbone(folder)
    assert "\n" not in str(raised.value)


def test_a_file_cut_short_is_one_clear_line(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot read .*; it may be cut short, fetch it again"):
        mlclip_jax.load_backbone(folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_shards_are_the_whole_file(tmp_path, dtype):
    write_case(tmp_path / "whole", "blip", dtype=dtype)
    write_case(tmp_path / "shards", "blip", dtype=dtype, shards=3)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 3
    whole, shards = (mlclip_jax.load_backbone(tmp_path / name) for name in ("whole", "shards"))
    for one, other in zip(jax.tree.leaves(whole.parameters), jax.tree.leaves(shards.parameters)):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_a_missing_shard_is_named(tmp_path):
    write_case(tmp_path, "clip_gelu", shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 3 shards .*: model-00002-of-00003\.safetensors; fetch"):
        mlclip_jax.load_backbone(tmp_path)


@pytest.mark.parametrize(
    "weight_map", [None, 3, {}, {"a": "../other.safetensors"}, {"a": "/etc/passwd"}, {"a": None}]
)
def test_an_index_that_cannot_be_is_named(tmp_path, weight_map):
    write_case(tmp_path, "clip_gelu", shards=2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        mlclip_jax.load_backbone(tmp_path)


def test_a_key_in_two_shards_is_named(tmp_path):
    write_case(tmp_path, "clip_gelu", shards=2)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    save_file(load_file(second) | {"logit_scale": np.ones((), np.float32)}, second)
    save_file(load_file(first) | {"logit_scale": np.ones((), np.float32)}, first)
    with pytest.raises(InputError, match="logit_scale comes twice"):
        mlclip_jax.load_backbone(tmp_path)


def test_a_stack_that_does_not_split_is_named(tmp_path):
    write_case(tmp_path, "open_clip_vit")
    path, key = tmp_path / "open_clip_model.safetensors", "transformer.resblocks.0.attn.in_proj_bias"
    save_file(load_file(path) | {key: np.ones(71, np.float32)}, path)
    message = rf"{key} has shape \(71,\), which does not fit: its first dimension is no multiple of 3"
    with pytest.raises(InputError, match=message):
        mlclip_jax.load_backbone(tmp_path)


def test_a_pickle_is_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = r"lacks model\.safetensors, and a pickle \(pytorch_model\.bin\) is never read"
    with pytest.raises(InputError, match=message):
        mlclip_jax.load_backbone(folder)
    with pytest.raises(InputError, match="is a pickle, which is never read; give the folder"):
        mlclip_jax.load_backbone(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="is a file; give the folder"):
        mlclip_jax.load_backbone(folder / "config.json")


CONFIGS = {
    "open_clip": "open_clip_config.json",
    "blip": "config.json",
    "resnet": "config.json",
    "timm": "config.json",
}


@pytest.mark.parametrize(
    ("case", "key", "value", "message"),
    [
        ("open_clip_vit", "model_cfg.vision_cfg.timm_model_name", "vit_so400m", "asks for timm_model_name"),
        (
            "open_clip_vit",
            "model_cfg.vision_cfg.attentional_pool",
            True,
            "attentional_pool True, which",
        ),
        ("open_clip_vit", "model_cfg.vision_cfg.pool_type", "avg", "asks for pool_type 'avg'"),
        ("open_clip_vit", "model_cfg.text_cfg.hf_model_name", "roberta", "asks for hf_model_name 'roberta'"),
        ("open_clip_vit", "model_cfg.custom_text", True, "asks for custom_text True"),
        ("open_clip_vit", "model_cfg.vision_cfg.width", "wide", "width 'wide' is no positive number"),
        (
            "open_clip_vit",
            "model_cfg.vision_cfg.image_size",
            [24, 32],
            r"image_size \[24, 32\] is no",
        ),
        (
            "open_clip_vit",
            "model_cfg.vision_cfg.head_width",
            7,
            "a width of 32 does not divide into heads of 7",
        ),
        ("open_clip_vit", "model_cfg.vision_cfg", None, "has no vision_cfg"),
        ("open_clip_vit", "model_cfg", None, "has no model_cfg"),
        ("open_clip_vit", "preprocess_cfg.resize_mode", "longest", "resize_mode 'longest' is not one of"),
        ("open_clip_vit", "preprocess_cfg.interpolation", "random", "interpolation 'random' is not one of"),
        (
            "open_clip_resnet",
            "model_cfg.vision_cfg.layers",
            [2, 0, 1, 1],
            r"layers \[2, 0, 1, 1\] is no",
        ),
        ("open_clip_resnet", "model_cfg.embed_dim", "many", "embed_dim"),
        (
            "blip",
            "architectures",
            ["BlipForQuestionAnswering"],
            "describes BlipForQuestionAnswering;",
        ),
        ("blip", "vision_config.image_size", [24, 24], r"describes no BLIP: image_size \[24, 24\]"),
        ("blip", "text_config.num_attention_heads", 5, "not a multiple of the number of attention heads"),
        ("resnet", "layer_type", "basic", "layer_type 'basic' is not 'bottleneck'"),
        ("resnet", "downsample_in_bottleneck", True, "downsample_in_bottleneck True is not False"),
        ("timm_resnet101", "architecture", "resnet18", "architecture 'resnet18' cannot be loaded; of timm's"),
        ("timm_resnet101", "model_args", {"output_stride": 8}, "without model_args"),
        ("timm_resnet101", "pretrained_cfg.crop_mode", "border", "crop_mode 'border' is not center"),
        ("timm_resnet101", "pretrained_cfg.crop_pct", 0, "cannot be followed"),
        ("timm_resnet101", "pretrained_cfg", None, "cannot be followed: it has no 'input_size'"),
        (
            "clip_gelu",
            "model_type",
            "siglip",
            "of model_type 'siglip'; clip, blip, resnet",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_before_its_weights_are_read(tmp_path, case, key, value, message):
    layout, config = CASES[case]
    write_settings(tmp_path, layout, config)
    stem = "open_clip_model" if layout == "open_clip" else "model"
    (tmp_path / f"{stem}.safetensors").touch()
    path = tmp_path / CONFIGS.get(layout, "config.json")
    path.write_text(json.dumps(config_with({key: value}, json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message) as raised:
        mlclip_jax.load_backbone(tmp_path)
    assert "\n" not in str(raised.value)


@needs_real_data
def test_every_entry_of_openais_checkpoint_has_its_place(tmp_path):
    """By name and shape, in a file as large as theirs; what is no weight there is ignored by name."""
    entries = json.loads((DATA / "openai_vit_b32" / "entries.json").read_text())
    sizes = {"input_resolution", "context_length", "vocab_size"}
    sizes |= {name for name in entries if name.endswith("num_heads")}
    arrays = {
        name: np.zeros(entry.get("shape", ()), np.int64 if name in sizes else np.float16)
        for name, entry in entries.items()
    }
    assert len(arrays) > 300
    config = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    }
    write_settings(tmp_path, "open_clip", config)
    save_file(arrays, tmp_path / "open_clip_model.safetensors")
    layout = read_layout(find_checkpoint(tmp_path))
    _, abstract = abstract_module(partial(layout.make_module, dtype=jnp.float32))
    parameters = load_parameters(layout.weights, layout.key_table, abstract, layout.ignored_keys)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 151_277_313  # as OpenAI counts them
    ignored = [name for name in entries if any(re.fullmatch(key, name) for key in layout.ignored_keys)]
    assert sorted(ignored) == sorted(sizes)


def test_from_the_command_line_it_is_a_line_and_exit_code_2(folder, tmp_path, capsys):
    (folder / "model.safetensors").write_bytes(b"PK")
    (tmp_path / "names.txt").write_text("dog\n")
    command = ["embed", f"--backbone={folder}", f"--texts={tmp_path / 'names.txt'}"]
    assert main([*command, f"--output={tmp_path / 'out.npz'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mlclip embed: error: cannot read {folder / 'model.safetensors'} as safetensors")
