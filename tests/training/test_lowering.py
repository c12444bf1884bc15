"""Every compiled step is a program for TPUs and NVIDIA GPUs too, though none is here to run it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clip_cases import images
from flax import nnx
from tiny_models import CASES, TEXTS, write_case

from mlclip_jax import load_backbone, methods, metrics
from mlclip_jax.backbones.saving import clip_tokenizer, learn_merges
from mlclip_jax.configs import ml_decoder, mmm_clip, pretrain_scenes, tai
from mlclip_jax.distributed.data_parallel import MODES, data_parallel
from mlclip_jax.distributed.sharding import make_mesh, place, replicated, split_by_labels
from mlclip_jax.losses import COUPLED, LOSSES
from mlclip_jax.nnx_boundary import split_module, split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.scoring import method_scores
from mlclip_jax.training.contrastive import Pretraining, clip_config, make_pretrain_step, make_single
from mlclip_jax.training.optimizers import make_optimizer
from mlclip_jax.training.preparation import with_loss_constants
from mlclip_jax.training.step import hyper_of, initial_state, make_chunk, make_loss, make_train_step
from mlclip_jax.training.train import shardings_of

LABELS, WIDTH = 8, 32
RECIPES = {
    "tai": functools.partial(tai.get_config, "embeddings"),
    "fc": functools.partial(mmm_clip.get_config, "fc"),
    "fc_published": functools.partial(mmm_clip.get_config, "fc_published"),
    "mld": functools.partial(mmm_clip.get_config, "mld"),
    "mld_published": functools.partial(mmm_clip.get_config, "mld_published"),
    "ml_decoder": functools.partial(ml_decoder.get_config, "frozen"),
    "ml_decoder_text": functools.partial(ml_decoder.get_config, "text"),
}
OF_ADAPTERS = [(case, "shard_map", 1) for case in RECIPES]
OF_ADAPTERS += [
    ("tai", "pmap", 1),
    pytest.param("mld", "pmap", 1, marks=pytest.mark.slow),
    pytest.param("tai", "shard_map", 2, marks=pytest.mark.slow),
    ("ml_decoder", "shard_map", 2),
]


def lower(function, *arguments):
    """Exports a compiled function for accelerators: without 64 bits, which TPUs lack, or calls of the host.

    Returns:
      The program's text, and what it gives: a tree of pairs (shape, dtype).
    """
    exported = jax.export.export(function, platforms=["tpu", "cuda"])(*arguments)
    assert exported.platforms == ("tpu", "cuda")
    program = exported.mlir_module()
    assert not re.search(r"\bf64\b|xf64>", program)
    assert not re.search(r"callback|infeed|outfeed|stablehlo\.(send|recv)", program)
    return program, jax.tree.unflatten(exported.out_tree, described(exported.out_avals))


def described(tree):
    return jax.tree.map(lambda array: (array.shape, str(array.dtype)), tree)


def assert_a_chunk(outputs, state, names):
    """The state comes back as it was, and the metrics of each of two steps."""
    assert outputs[0] == described(state)
    assert_metrics(outputs[1], names, shape=(2,))


def assert_metrics(outputs, names, shape):
    assert outputs == dict.fromkeys(names, (shape, "float32")) | {
        "finite": (shape, "bool"),
        "skipped": (shape, "int32"),
    }


def training_step(config, mode, label_shards):
    """A chunk of steps of a recipe's adapter on four devices, and its arguments."""
    config = with_loss_constants(config)
    class_embeddings = np.random.default_rng(0).normal(size=(LABELS, WIDTH)).astype(np.float32)
    if "width" in config.method:
        config.method.update(width=16, groups=4)
    adapter = methods.find(config.method).make(class_embeddings, rngs=nnx.Rngs(0))
    graph, parameters, frozen = split_trainable(adapter)
    optimizer, hyper, mesh = make_optimizer(config), hyper_of(config), make_mesh(label_shards=label_shards)
    state = initial_state(parameters, optimizer(hyper))
    shardings = shardings_of(state, adapter.label_axes(), optimizer(hyper), mesh)
    step = make_train_step(
        graph,
        optimizer,
        make_loss(config.loss),
        make_perturbation(config.perturbation),
        skip_nonfinite=True,
        fuse_allreduce=label_shards == 1,
    )
    run = data_parallel(make_chunk(step), mode, mesh, state_shardings=shardings)
    data = {"image": np.zeros((12, WIDTH), np.float32), "labels": np.zeros((12, LABELS), np.int8)}
    data["is_text"] = np.ones(12, bool)
    if "image_local" in methods.find(config.method).reads:
        data["image_local"] = np.zeros((12, 3, WIDTH), np.float32)
    frozen = place(frozen, split_by_labels(mesh, frozen, adapter.label_axes()))
    indices, steps = np.zeros((2, 8), np.int32), np.arange(2, dtype=np.int32)
    return run, (place(state, shardings), frozen, place(data, replicated(mesh)), indices, steps, hyper)


@pytest.mark.parametrize(("case", "mode", "label_shards"), OF_ADAPTERS)
def test_training_an_adapter(case, mode, label_shards):
    run, arguments = training_step(RECIPES[case](), mode, label_shards)
    program, outputs = lower(run if mode == "shard_map" else jax.jit(run), *arguments)
    assert "stablehlo.while" in program  # the chunk is one program
    assert "stablehlo.all_reduce" in program
    assert_a_chunk(outputs, arguments[0], ["loss"])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    run, arguments = training_step(tai.get_config(f"embeddings,loss={loss}"), "shard_map", 1)
    program, outputs = lower(run, *arguments)
    assert ("stablehlo.all_gather" in program) == (loss in COUPLED)
    assert "stablehlo.all_reduce" in program
    assert_a_chunk(outputs, arguments[0], ["loss"])


@pytest.mark.parametrize("mode", MODES)
def test_pretraining(mode):
    config = pretrain_scenes.get_config("short")
    tokenizer = clip_tokenizer(learn_merges(["a photo of a dog"] * 3, 10))
    graph, parameters = split_module(Pretraining(clip_config(config.model, tokenizer), 5, rngs=nnx.Rngs(0)))
    optimizer, mesh = optax.contrib.muon(0.1), make_mesh()
    state = place(initial_state(parameters, optimizer), replicated(mesh))
    step = make_pretrain_step(graph, optimizer, config.loss, lambda pixels: pixels / jnp.float32(255))
    run = data_parallel(make_single(step), mode, mesh, split_data=True)
    side, tokens = config.model.vision_config.image_size, config.model.text_config.max_position_embeddings
    data = {
        "pixels": np.zeros((4, 2, side, side, 3), np.float32),
        "token_ids": np.zeros((4, 2, tokens), np.int32),
        "labels": np.zeros((4, 2, 5), np.int8),
    }
    arguments = (state, {}, data, np.zeros((1, 8), np.int32), np.zeros(1, np.int32), {})
    program, outputs = lower(run if mode == "shard_map" else jax.jit(run), *arguments)
    assert "stablehlo.all_gather" in program
    assert outputs[0] == described(state)
    names = ["auxiliary", "contrastive", "loss", "scale"]
    assert_metrics(outputs[1], names, shape=())


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("timm")])
def test_every_tower(tmp_path, case):
    write_case(tmp_path, case)
    backbone = load_backbone(tmp_path, dtype="bfloat16")
    pixels = np.stack([backbone.pixels([image])[0] for image in images()[:1]] * 4)
    program, (embedding, local) = lower(jax.jit(backbone.image), backbone.parameters, pixels)
    assert "xbf16>" in program
    width = backbone.encode_images(images()[:1]).shape[-1]
    assert embedding == ((4, width), "float32")
    assert (local[0][0], local[0][-1], local[1]) == (4, width, "float32")
    if case != "resnet":  # which has no text tower
        token_ids = backbone.token_ids(TEXTS)
        program, (embedding, local) = lower(jax.jit(backbone.text), backbone.parameters, token_ids)
        assert "xbf16>" in program
        assert embedding == ((len(TEXTS), width), "float32")
        assert local == ((*token_ids.shape, width), "float32")


@pytest.mark.parametrize("case", ["tai", "mld"])
def test_scoring(case):
    config = RECIPES[case]()
    class_embeddings = np.zeros((LABELS, WIDTH), np.float32)
    graph, *states = split_trainable(methods.find(config.method).make(class_embeddings, rngs=nnx.Rngs(0)))
    shapes = {"image": (300, WIDTH), "image_local": (300, 3, WIDTH)}
    features = {name: np.zeros(shapes[name], np.float32) for name in methods.find(config.method).reads}
    _, outputs = lower(jax.jit(functools.partial(method_scores, graph)), *states, features)
    assert outputs == ((300, LABELS), "float32")


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_metrics(protocol):
    scores, labels = np.zeros((40, LABELS), np.float32), np.zeros((40, LABELS), np.int8)
    mean = jax.jit(functools.partial(metrics.mean_average_precision, protocol=protocol))
    assert lower(mean, scores, labels)[1] == (((), "float32"), ((), "int32"))
