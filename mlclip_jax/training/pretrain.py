"""Pre-trains a small CLIP on captioned images: `mlclip pretrain --config=RECIPE --workdir=FOLDER`.

Read from top to bottom: the source, one step, the loop, the checkpoint in Hugging Face's format. Started
again in the same folder, a run resumes from its newest checkpoint.
"""

import contextlib
import functools
import json
import math
import os
import time
import warnings

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mlclip_jax import recipes
from mlclip_jax.backbones.saving import clip_tokenizer, learn_merges, save_clip
from mlclip_jax.data.augmentation import make_augment
from mlclip_jax.data.pipeline import Skipped, batch_indices
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.processes import (
    all_or_none,
    check_alike,
    held_by_this_run,
    is_first,
)
from mlclip_jax.distributed.sharding import (
    describe_mesh,
    gather_rows,
    local_copy,
    make_mesh,
    own_rows,
    place_shares,
    replicated,
)
from mlclip_jax.errors import InputError
from mlclip_jax.files import write_json
from mlclip_jax.metrics import PROTOCOLS, mean_average_precision
from mlclip_jax.nnx_boundary import merge_module, split_module
from mlclip_jax.progress import note
from mlclip_jax.provenance import Origin
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, FRACTION, NOT_NEGATIVE
from mlclip_jax.texts.templates import CLASS_TEMPLATE, fill
from mlclip_jax.training.captioned import CaptionedImages, first_captions, open_source
from mlclip_jax.training.checkpoints import Checkpoints
from mlclip_jax.training.contrastive import (
    Pretraining,
    clip_config,
    make_pretrain_step,
    make_single,
)
from mlclip_jax.training.loop import open_workdir, resume, run_conditions, run_steps
from mlclip_jax.training.optimizers import RANGES, make_optimizer
from mlclip_jax.training.step import hyper_of, initial_state
from mlclip_jax.zero_shot import cosine_scores, modality_gap

CAPTIONS_READ = 10_000  # to learn the tokenizer from
SKIPPED = "skipped.jsonl"
FIXED_TOKENS = 514  # every byte, every byte at the end of a word, start and end


def pretrain(config: ConfigDict, workdir: str | os.PathLike) -> dict:
    """Trains to the end; resumes from the newest checkpoint in `workdir`, if there is one.

    Leaves in `workdir` the resolved `config.json`, `metrics.jsonl`, the checkpoints, and in `clip/` the model
    in Hugging Face's format, with its `figures.json`.

    Args:
      config: a recipe's `ml_collections.ConfigDict`.
      workdir: folder of this run alone.

    Returns:
      The figures, a dict.

    Raises:
      InputError: the recipe, its source or the folder cannot be used.
    """
    _check(config, jax.device_count())
    mesh = make_mesh()
    workdir = open_workdir(workdir, config, MAY_CHANGE)
    note(describe_mesh(mesh, config.train.batch_size))
    with all_or_none():
        source = open_source(config)
    num_train = source.cut(config.evaluation.number)
    if num_train < 1:
        raise InputError(
            f"the source has {len(source)} examples, and evaluation.number={config.evaluation.number} "
            "leaves none to train on"
        )
    if config.loss.auxiliary and not source.label_names:
        raise InputError(
            "the source has no labels for the auxiliary loss; set --config.loss.auxiliary=0, "
            "or give its table a column of labels"
        )
    captions = first_captions(source, min(num_train, CAPTIONS_READ))
    tokenizer = clip_tokenizer(learn_merges(captions, config.vocabulary - FIXED_TOKENS))
    model_config = clip_config(config.model, tokenizer)
    context = model_config.text_config.max_position_embeddings
    cut = sum(len(tokenizer.encode(caption).ids) > context for caption in captions)
    if cut and is_first():
        warnings.warn(
            f"{cut} of the first {len(captions)} captions are longer than {context} tokens, and are cut; "
            "--config.model.text_config.max_position_embeddings makes room",
            stacklevel=2,
        )
    augment = make_augment(config.images.augment) if "images" in config else None
    examples = CaptionedImages(source, model_config, tokenizer, augment=augment, seed=config.seed)
    skipped = Skipped(source.names, workdir / SKIPPED, config.max_skipped)
    if not is_first():  # each process reads examples of its own
        skipped.path = workdir / f"process-{jax.process_index()}-{SKIPPED}"

    graph, parameters = split_module(
        Pretraining(
            model_config,
            len(source.label_names) if config.loss.auxiliary else 0,
            rngs=nnx.Rngs(config.seed),
        )
    )
    optimizer = make_optimizer(config)(hyper_of(config))
    state = initial_state(parameters, optimizer)
    step_function = make_pretrain_step(
        graph,
        optimizer,
        config.loss,
        examples.image_processor.normalise,
        skip_nonfinite=config.train.max_skipped_steps > 0,
    )
    run_on_devices = data_parallel(make_single(step_function), config.train.parallel, mesh, split_data=True)

    share = config.train.batch_size // mesh.size
    rows = np.tile(np.arange(share, dtype=np.int32), mesh.size)[None]
    batches, closing = None, contextlib.ExitStack()  # of one step after the other, read ahead

    def run_chunk(state, first, end):
        nonlocal batches
        if batches is None:
            batches = closing.enter_context(
                contextlib.closing(examples.training_batches(num_train, config.train, first))
            )
        start, metrics = time.monotonic(), []
        for step in range(first, end):
            batch = next(batches)
            if batch.skipped:
                skipped.add(batch.skipped)
                skipped.write()
            data = place_shares(batch.data, share, mesh)
            state, own = run_on_devices(state, {}, data, rows, np.array([step], np.int32), {})
            jax.block_until_ready(metrics[-1:])  # one step ahead is enough; more would only fill memory
            metrics.append(own)
        jax.block_until_ready(metrics)
        seconds = time.monotonic() - start
        return state, {name: [own[name] for own in metrics] for name in metrics[0]} | {"seconds": seconds}

    def evaluate(state):
        own = local_copy(state["parameters"], mesh)
        return zero_shot_figures(graph, own, examples, range(num_train, len(source)), skipped)

    def names_of(t):
        order = batch_indices(config.seed, t, num_train, config.train.batch_size)
        return [source.names[i] for i in order]

    # Nothing of the model is frozen; but what it learns from must stay the same.
    origin = Origin("pre-training", "", source.digest)
    described = json.loads(config.to_json())
    check_alike(described, origin.to_dict())
    with (
        held_by_this_run(workdir),
        closing,
        Checkpoints(
            workdir / "checkpoints", origin, config=described, scored_on=source.digest
        ) as checkpoints,
    ):
        step, state = resume(checkpoints, state, config.train, replicated(mesh))
        if step:
            skipped.read()
        with all_or_none():
            if is_first():
                recipes.write_config(workdir, config)
        log_path = workdir / "metrics.jsonl"
        state = run_steps(run_chunk, state, step, config.train, checkpoints, log_path, evaluate, names_of)
        log = [json.loads(line) for line in log_path.read_text(encoding="utf-8").splitlines()]
        found = evaluate(state)
        with all_or_none():
            skipped.write()
        with all_or_none():
            if is_first():  # of what all processes have read
                for path in sorted(workdir.glob(f"process-*-{SKIPPED}")):
                    skipped.read(path)
                skipped.write()
        figures = {
            "examples": config.train.steps * config.train.batch_size,
            "seconds": round(sum(line["seconds"] for line in log)),
            "held_out": len(source) - num_train,
            "skipped": len(skipped.reasons),
            **found,
            "protocol": f"plain cosine, {CLASS_TEMPLATE!r}; {PROTOCOLS['ap']}",
            "auxiliary label loss": bool(config.loss.auxiliary),
        }
        if skipped.reasons:
            note(skipped)
        folder = workdir / "clip"
        with all_or_none():
            if is_first():
                trained = local_copy(state["parameters"]["clip"], mesh)
                save_clip(folder, model_config, trained, tokenizer, examples.image_processor)
                write_json(folder / "figures.json", figures)
    return figures


def zero_shot_figures(
    graph: nnx.GraphDef,
    parameters: dict,
    examples: CaptionedImages,
    indices: range,
    skipped: Skipped,
    batch_size: int = 250,
) -> dict[str, float]:
    """Held-out examples under plain cosine: `mAP_percent` where one has a label, and `modality_gap`.

    Of several processes, each embeds its share, and all get the figures of all.
    """
    if not len(indices):
        return {}
    encode_images, encode_texts = _encoders(graph, examples.image_processor)
    own = indices[own_rows(len(indices), batch_size)]
    images, texts = ([np.empty((0, examples.width), np.float32)] for _ in range(2))
    labels = [np.empty((0, len(examples.label_names)), np.int8)]
    with all_or_none():
        for batch in examples.batches(own, min(batch_size, len(indices))) if len(own) else ():
            skipped.add(batch.skipped)
            there = batch.indices >= 0
            if np.any(there):
                images.append(np.asarray(encode_images(parameters, batch.data["pixels"]))[there])
                texts.append(np.asarray(encode_texts(parameters, batch.data["token_ids"]))[there])
                labels.append(batch.data["labels"][there])
    there = np.ones(sum(map(len, images)), bool)
    images, texts, labels, there = (
        gather_rows(rows, len(indices), batch_size)
        for rows in (*map(np.concatenate, (images, texts, labels)), there)
    )
    images, texts, labels = images[there], texts[there], labels[there]
    if not len(images):
        return {}
    figures = {"modality_gap": float(modality_gap(images, texts))}
    if np.any(labels == 1):
        prompts = [fill(CLASS_TEMPLATE, [name]) for name in examples.label_names]
        classes = encode_texts(parameters, examples.token_ids(prompts))
        scores = cosine_scores(images, classes)
        figures["mAP_percent"] = 100 * float(mean_average_precision(scores, labels)[0])
    return figures


@functools.cache
def _encoders(graph, image_processor):
    def encode_images(parameters, pixels):
        return merge_module(graph, parameters).clip.image(image_processor.normalise(pixels))[0]

    def encode_texts(parameters, token_ids):
        return merge_module(graph, parameters).clip.text(token_ids)[0]

    return jax.jit(encode_images), jax.jit(encode_texts)


# What does not change the result; for the table's path, its digest tells whether it is the same.
MAY_CHANGE = (
    "recipe",
    "images.source",
    "max_skipped",
    "train.parallel",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.max_skipped_steps",
    "train.stall_seconds",
)


def _check(config, num_devices):
    sizes = ("image_size", "patch_size", "hidden_size", "intermediate_size")
    layers = ("num_hidden_layers", "num_attention_heads")
    conditions = {
        "max_skipped": FRACTION,
        "evaluation.number": AT_LEAST_0,
        "vocabulary": (lambda n: n >= FIXED_TOKENS, f"at least {FIXED_TOKENS}: every byte has its token"),
        "loss.max_scale": (lambda s: 1 <= s < math.inf, "finite, and at least 1"),
        "loss.auxiliary": NOT_NEGATIVE,
        **RANGES,
        "model.projection_dim": AT_LEAST_1,
        "model.text_config.max_position_embeddings": (lambda n: n >= 3, "at least 3"),
        **{f"model.vision_config.{name}": AT_LEAST_1 for name in sizes + layers},
        **{f"model.text_config.{name}": AT_LEAST_1 for name in sizes[2:] + layers},
    }
    required = ("images.source",)
    conditions |= run_conditions(config.get("train", {}), num_devices)
    recipes.check(config, recipes.schema(config), required, conditions)
