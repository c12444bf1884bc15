"""Pre-training: CLIP's loss over devices, a run that ends where it should, a checkpoint that others read."""

import functools
import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from interruption import stopped_after
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from scipy.special import expit
from sklearn.metrics import log_loss

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.backbones.saving import clip_tokenizer, learn_merges
from mlclip_jax.cli import main
from mlclip_jax.configs import pretrain_captions, pretrain_scenes
from mlclip_jax.data.augmentation import make_augment
from mlclip_jax.data.scenes import Scenes, write_scenes
from mlclip_jax.data.tables import read_table
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.sharding import AXIS, make_mesh, replicated
from mlclip_jax.nnx_boundary import merge_module, split_module
from mlclip_jax.training.captioned import CaptionedImages, open_source
from mlclip_jax.training.contrastive import (
    Pretraining,
    clip_config,
    contrastive_sum,
    make_pretrain_step,
    make_single,
)
from mlclip_jax.training.optimizers import make_optimizer
from mlclip_jax.training.pretrain import pretrain
from mlclip_jax.training.step import hyper_of, initial_state

MAX_SCALE = 5.0


def tiny_config(module=pretrain_scenes, **changes):
    if module is pretrain_scenes:
        config = module.get_config("short")
        config.scenes.number = 200
    else:
        config = module.get_config()
    for tower in (config.model.vision_config, config.model.text_config):
        tower.update(hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    config.model.vision_config.image_size = 32
    config.evaluation.number = 20
    config.loss.max_scale = MAX_SCALE
    config.train.update(steps=6, batch_size=8, log_every=2, checkpoint_every=2, evaluate_every=0)
    config.schedule.warmup = 2
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_contrastive_loss_is_clips(num_devices):
    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(2, 8, 5)).astype(np.float32)
    units = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (images, texts)]
    logits = 7 * units[0] @ units[1].T
    expected = 0
    for scores in (logits, logits.T):
        exponentials = np.exp(scores)
        expected -= np.log(np.diag(exponentials) / exponentials.sum(axis=1)).sum() / 2

    mesh = make_mesh(jax.devices()[:num_devices])

    def loss(images, texts):
        return jax.lax.psum(contrastive_sum(images, texts, 7.0), AXIS)

    total, count = jax.shard_map(loss, mesh=mesh, in_specs=(P(AXIS), P(AXIS)), out_specs=P())(images, texts)
    assert count == 8
    assert total == pytest.approx(expected, rel=1e-5)


@functools.cache
def one_step(mode, num_devices):
    """Parameters and metrics after a step of plain gradient descent, the batch, and its logits before it.

    Plain, because Adam and Muon would hide a gradient that is wrong by a factor. The first half of the batch
    knows few labels, which lie on other devices than the second half's.
    """
    config = tiny_config()
    source = open_source(config)
    tokenizer = clip_tokenizer(learn_merges([source[i].caption for i in range(50)], 50))
    model = clip_config(config.model, tokenizer)
    examples = CaptionedImages(source, model, tokenizer)
    graph, parameters = split_module(Pretraining(model, len(source.label_names), rngs=nnx.Rngs(0)))
    optimizer = optax.sgd(0.1)
    state = initial_state(parameters, optimizer)  # whose arrays the step takes
    mesh = make_mesh(jax.devices()[:num_devices])
    batch = next(examples.batches(range(8), 8)).data
    batch["labels"][:4, 3:] = -1
    model = merge_module(graph, parameters)
    logits = model.head(model.clip.image.pooled(examples.image_processor.normalise(batch["pixels"])))
    logits = np.asarray(logits, float)
    state, data = jax.device_put((state, batch), replicated(mesh))
    step = make_pretrain_step(graph, optimizer, config.loss, examples.image_processor.normalise)
    run = data_parallel(make_single(step), mode, mesh)
    rows, steps = np.arange(8, dtype=np.int32)[None], np.zeros(1, np.int32)
    state, metrics = run(state, {}, data, rows, steps, {})
    return jax.device_get(state["parameters"]), jax.device_get(metrics), batch, logits


@pytest.mark.parametrize(("mode", "num_devices"), [("shard_map", 4), ("pmap", 4)])
def test_modes_and_devices_agree(mode, num_devices):
    expected, expected_metrics, *_ = one_step("shard_map", 1)
    parameters, metrics, *_ = one_step(mode, num_devices)
    assert metrics.keys() == {"loss", "contrastive", "auxiliary", "scale", "finite", "skipped"}
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), parameters, expected)


def test_the_auxiliary_loss_is_the_mean_over_known_labels():
    config = tiny_config()
    for devices in (1, 4):
        _, metrics, batch, logits = one_step("shard_map", devices)
        known = batch["labels"] >= 0
        assert 0 < known.mean() < 1
        expected = log_loss(batch["labels"][known], expit(logits[known]))
        assert metrics["auxiliary"] == pytest.approx(expected, rel=1e-5)
        total = metrics["contrastive"] + config.loss.auxiliary * metrics["auxiliary"]
        assert metrics["loss"] == pytest.approx(total, rel=1e-5)


def test_the_temperature_is_held_at_its_cap_in_what_is_saved():
    parameters, metrics, *_ = one_step("shard_map", 1)
    assert metrics["scale"] == pytest.approx(1 / 0.07, rel=1e-3)  # where it starts
    assert np.exp(parameters["clip"]["logit_scale"]) == pytest.approx(MAX_SCALE)


@pytest.mark.parametrize("steps", [1, 2, 300, 301])
def test_the_schedule_is_finite_however_short(steps):
    config = pretrain_scenes.get_config()
    config.train.steps = steps
    optimizer = make_optimizer(config)(hyper_of(config))
    parameters = {"x": np.ones((2, 2), np.float32), "y": np.ones(3, np.float32)}
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(parameters)
        for _ in range(3):
            updates, state = optimizer.update(parameters, state, parameters)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_no_image_is_both_trained_on_and_held_out(tmp_path):
    write_scenes(Scenes(0, 10), tmp_path)
    names = [f"{i:06}.jpg" for i in range(10)]
    rows = [f"{name},caption {k}" for k in range(3) for name in names]  # three passes over the files
    (tmp_path / "captions.csv").write_text("\n".join(["filename,caption", *rows]))
    source = read_table(tmp_path / "captions.csv", images=tmp_path / "images")
    for number in (0, 1, 2, 3, 7, 30):
        cut = source.cut(number)
        assert len(source) - cut >= number
        trained_on, held_out = ({source.names[i] for i in part} for part in (range(cut), range(cut, 30)))
        assert not trained_on & held_out


def without_times(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(workdir):
    return (workdir / "clip/model.safetensors").read_bytes()


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path):
    pretrain(tiny_config(), tmp_path / "whole")

    with stopped_after(2):
        pretrain(tiny_config(), tmp_path / "parts")
    pretrain(tiny_config(), tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert without_times(tmp_path / "parts") == without_times(tmp_path / "whole")
    with pytest.raises(InputError, match=r"holds a run with loss.auxiliary 3.0, not 1.0"):
        pretrain(tiny_config(loss__auxiliary=1.0), tmp_path / "parts")


def test_the_command_leaves_a_clip_that_loads_and_says_what_it_is(tmp_path, capsys):
    assert main(["pretrain", "--config=pretrain_scenes:short", f"--workdir={tmp_path}"]) == 0
    assert '"mAP_percent"' in capsys.readouterr().out
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # Each the mean of five steps; another machine or version may round otherwise, and draws the same numbers.
    assert losses == pytest.approx([4.536, 4.480, 4.366, 4.316], rel=5e-3)
    figures = json.loads((tmp_path / "clip/figures.json").read_text())
    assert figures["examples"] == 20 * 32
    assert figures["auxiliary label loss"] is True
    assert {"seconds", "held_out", "mAP_percent", "modality_gap", "protocol"} <= figures.keys()
    backbone = mlclip_jax.load_backbone(tmp_path / "clip")
    config = pretrain_scenes.get_config("short")
    source = open_source(config)
    held_out = [source[len(source) - 1 - i] for i in range(3)]
    images = backbone.encode_images([example.image for example in held_out])
    assert images.shape == (3, 128)
    # Every text can be encoded, in whatever script.
    assert np.isfinite(backbone.encode_texts(["a star.", "Žluťoučký kůň 7", "雪だるま", ""])).all()


def test_any_captioned_images_will_do(tmp_path):
    write_scenes(Scenes(0, 40, side=40), tmp_path)
    rows = (tmp_path / "labels.csv").read_text().splitlines()
    names = [row.split(",")[0] for row in rows]
    captions = ["a scene", "another one"] * 40
    captions[:10] = ["what is to be seen here takes very many words to say"] * 10
    lines = [f"{name},{caption}" for name, caption in zip([*names[1:], *names[1:]], captions)]
    (tmp_path / "captions.csv").write_text("\n".join(["filename,caption", *lines]))
    config = tiny_config(pretrain_captions, vocabulary=600, train__evaluate_every=2)
    config.images.source = f"table:{tmp_path / 'captions.csv'},images={tmp_path / 'images'}"
    config.images.augment = "random_resized_crop,flip,cutout,rand_augment"
    config.model.text_config.max_position_embeddings = 8
    with pytest.warns(UserWarning, match="10 of the first 60 captions are longer than 8 tokens"):
        figures = pretrain(config, tmp_path / "run")
    assert "mAP_percent" not in figures
    rows = (tmp_path / "captions.csv").read_text()
    (tmp_path / "captions.csv").write_text(rows + "\n000003.jpg,one more")
    changed = r"the checkpoint in .* was trained on pre-training"
    with pytest.warns(UserWarning, match="are cut"), pytest.raises(InputError, match=changed):
        pretrain(config, tmp_path / "run")
    config.loss.auxiliary = 1.0
    with pytest.raises(InputError, match=r"no labels for the auxiliary loss; set --config.loss.auxiliary=0"):
        pretrain(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocabulary": 100}, "vocabulary=100: must be at least 514"),
        (
            {"model__vision_config__num_attention_heads": 5},
            r"describes no CLIP: .*32.* not a multiple of the number of attention heads \(5\)",
        ),
        ({"model__vision_config__patch_size": 5}, "images of 32 pixels cannot be cut into patches of 5"),
        (
            {"train__batch_size": 6},
            "train.batch_size=6: must be .* a multiple of the 4",
        ),
        ({"evaluation__number": 200}, "the source has 200 examples.* leaves none to train on"),
        ({"scenes__difficulty__overlap": 2.0}, "overlap=2.0 is outside"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        pretrain(tiny_config(**changes), tmp_path)


def test_the_head_is_left_out_without_a_weight():
    model = clip_config(tiny_config().model, clip_tokenizer([]))
    _, parameters = split_module(Pretraining(model, 0, rngs=nnx.Rngs(0)))
    assert parameters.keys() == {"clip"}
    graph, with_head = split_module(Pretraining(model, 3, rngs=nnx.Rngs(0)))
    assert with_head["head"]["kernel"].shape == (32, 3)
    assert merge_module(graph, with_head).head is not None


def test_augmented_images_follow_from_the_seed_and_the_position(tmp_path):
    write_scenes(Scenes(0, 12, side=40), tmp_path)
    source = read_table(tmp_path / "labels.csv", images=tmp_path / "images")
    tokenizer = clip_tokenizer([])
    model = clip_config(tiny_config().model, tokenizer)
    augment = make_augment("random_resized_crop,flip,rand_augment")
    settings = ConfigDict({"batch_size": 4, "steps": 6})

    def pixels(seed, first=0, augment=augment):
        examples = CaptionedImages(source, model, tokenizer, augment=augment, seed=seed)
        return [batch.data["pixels"] for batch in examples.training_batches(12, settings, first)]

    whole = pixels(1)
    for one, other in zip(whole[2:], pixels(1, first=2), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(whole[0], pixels(2)[0])
    assert not np.array_equal(whole[0], pixels(1, augment=None)[0])
    assert whole[0].shape == pixels(1, augment=None)[0].shape
