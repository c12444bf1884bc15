"""Pre-trains a small CLIP on captioned images: `mlclip pretrain --config=RECIPE --workdir=FOLDER`.

Read from top to bottom: the source, one step, the loop, the checkpoint in Hugging Face's format. Started
again in the same folder, a run resumes from its newest checkpoint.
"""

import contextlib
import functools
import json
import math
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image
from tokenizers import Tokenizer

from mlclip_jax import recipes
from mlclip_jax.backbones.clip import CLIP
from mlclip_jax.backbones.processing import CLIP_MEAN, CLIP_STD, ImageProcessor
from mlclip_jax.backbones.saving import END, START, clip_tokenizer, learn_merges, save_clip
from mlclip_jax.data.augmentation import make_augment
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.images import decode_image
from mlclip_jax.data.pipeline import (
    OnceOrder,
    Skipped,
    TrainingOrder,
    batch_indices,
    read_batches,
)
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS, Difficulty, Scenes
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.processes import (
    all_or_none,
    check_alike,
    held_by_this_run,
    is_first,
)
from mlclip_jax.distributed.sharding import (
    AXIS,
    describe_mesh,
    gather_rows,
    local_copy,
    make_mesh,
    own_rows,
    place_shares,
    replicated,
)
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.losses import binary_cross_entropy
from mlclip_jax.metrics import PROTOCOLS, mean_average_precision
from mlclip_jax.nnx_boundary import merge_module, split_module
from mlclip_jax.progress import note
from mlclip_jax.provenance import Origin
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, FRACTION, NOT_NEGATIVE
from mlclip_jax.streams import Stream
from mlclip_jax.texts.templates import CLASS_TEMPLATE, fill
from mlclip_jax.training.checkpoints import Checkpoints
from mlclip_jax.training.contrastive import contrastive_sum
from mlclip_jax.training.loop import open_workdir, resume, run_conditions, run_steps
from mlclip_jax.training.optimizers import RANGES, make_optimizer
from mlclip_jax.training.step import apply_gradients, hyper_of, initial_state
from mlclip_jax.zero_shot import cosine_scores, modality_gap

CAPTIONS_READ = 10_000  # to learn the tokenizer from
SKIPPED = "skipped.jsonl"
FIXED_TOKENS = 514  # every byte, every byte at the end of a word, start and end


def pretrain(config, workdir):
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
    captions = _first_captions(source, min(num_train, CAPTIONS_READ))
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
    examples = Examples(source, model_config, tokenizer, augment=augment, seed=config.seed)
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
    kept_with_each = {"config": described, "scored_on": source.digest}
    with (
        held_by_this_run(workdir),
        closing,
        Checkpoints(workdir / "checkpoints", origin, **kept_with_each) as checkpoints,
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
                with replacing(folder / "figures.json") as temporary:
                    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


class Pretraining(nnx.Module):
    """A CLIP, and where there are labels, a linear head on its image tower that is thrown away afterwards."""

    def __init__(self, config, num_labels, *, rngs):
        self.clip = CLIP(config, rngs=rngs)
        bias = nnx.initializers.constant(-2.5)  # few labels are present: sigmoid(-2.5) is 0.08
        width = config.vision_config.hidden_size
        self.head = nnx.Linear(width, num_labels, bias_init=bias, rngs=rngs) if num_labels else None


class Examples:
    """A source, as the arrays that a step takes.

    Args:
      source: a sequence of `sources.Example`, with `label_names`.
      config: the `transformers.CLIPConfig` of the model.
      tokenizer: a `tokenizers.Tokenizer`.
      augment: from `augmentation.make_augment`, for images that are trained on; or None.
      seed: of the run.
    """

    def __init__(self, source, config, tokenizer, *, augment=None, seed=0):
        side = config.vision_config.image_size
        self.image_processor = ImageProcessor(
            cover=(side, side),
            size=None,
            crop=(side, side),
            resample=Image.Resampling.BICUBIC,
            scale=1 / 255,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        self.label_names = source.label_names
        self.width = config.projection_dim
        self._size = side, side
        self._source, self._augment, self._seed = source, augment, seed
        self._num_threads = 1 if isinstance(source, Scenes) else None  # drawing holds the interpreter's lock
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy: the one given stays as it is
        self._tokenizer.enable_truncation(config.text_config.max_position_embeddings)
        self._tokenizer.enable_padding(
            length=config.text_config.max_position_embeddings,
            pad_id=config.text_config.pad_token_id,
            pad_token=END,
        )

    def training_batches(self, num_train, train, first):
        """This process's `Batch`es of the first `num_train` examples, step after step from `first` on.

        Their data are `pixels` uint8 (b, h, w, 3), `token_ids` int32 (b, T) and `labels` int8 (b, K). The
        noise of an augmentation depends on the seed and the example's position in the run.
        """

        def prepare(example, position):
            random = np.random.default_rng([self._seed, Stream.AUGMENTATION, position])
            return self._prepare(example, lambda image: self._augment(random, image, self._size))

        size, processes = train.batch_size, (jax.process_index(), jax.process_count())
        order = TrainingOrder(self._seed, num_train, size, first, train.steps, *processes)
        own = prepare if self._augment else lambda example, _: self._prepare(example)
        return read_batches(
            self._source, order, size // processes[1], own, replace=num_train, num_threads=self._num_threads
        )

    def batches(self, indices, batch_size):
        """`Batch`es of these examples, once each, with the same data."""
        order = OnceOrder(indices, batch_size)
        return read_batches(self._source, order, batch_size, lambda example, _: self._prepare(example))

    def _prepare(self, example, augment=None):
        image = example.image
        if augment is not None:
            image = augment(decode_image(image) if isinstance(image, bytes) else Image.fromarray(image))
        return {
            "pixels": self.image_processor.pixels(image),
            "token_ids": self.token_ids([example.caption])[0],
            "labels": example.labels,
        }

    def token_ids(self, texts):
        """int32 `(len(texts), T)`, padded and cut to the context."""
        return np.array([encoding.ids for encoding in self._tokenizer.encode_batch(texts)], np.int32)


def open_source(config):
    """The captioned images that a recipe names: a sequence of `sources.Example` with `label_names`."""
    if "scenes" not in config:
        source = open_images(config.images.source)
        if source.captions is None:
            raise InputError(f"{source.title} has no captions; a CLIP learns from captioned images")
        return source
    return Scenes(
        config.scenes.seed,
        config.scenes.number,
        label_names=LABELS + OTHER_LABELS,
        side=config.model.vision_config.image_size,
        difficulty=Difficulty(**config.scenes.difficulty),
        partial=config.scenes.partial,
    )


def _first_captions(source, number):
    if isinstance(source, Scenes):
        return [source[i].caption for i in range(number)]
    return source.captions[:number]


def clip_config(model, tokenizer):
    """The `transformers.CLIPConfig` of a recipe's `model`, for a tokenizer.

    Raises:
      InputError: it describes no CLIP.
    """
    from transformers import CLIPConfig

    content = model.to_dict()
    tokens = {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": tokenizer.token_to_id(START),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END),
    }
    for name, more in (("vision_config", {}), ("text_config", tokens)):
        content[name] |= {"projection_dim": content["projection_dim"], **more}
    try:
        config = CLIPConfig.from_dict(content)
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise InputError(f"the recipe's model describes no CLIP: {' '.join(str(error).split())}") from error
    config.architectures = ["CLIPModel"]
    if config.vision_config.image_size % config.vision_config.patch_size:
        size, patch = config.vision_config.image_size, config.vision_config.patch_size
        raise InputError(f"images of {size} pixels cannot be cut into patches of {patch}")
    return config


def make_pretrain_step(graph, optimizer, loss_settings, normalise, *, skip_nonfinite=False):
    """The step of one device, `step(state, frozen, batch, step, hyper) -> (state, metrics)`; see `step.py`.

    Args:
      graph: of `Pretraining`.
      optimizer: an `optax.GradientTransformation`.
      loss_settings: `max_scale`, of the cosines, and `auxiliary`, the weight of the label loss.
      normalise: uint8 pixels to what the image tower takes.
      skip_nonfinite: see `apply_gradients`.
    """

    def pretrain_step(state, frozen, batch, step, hyper):
        del frozen, step, hyper

        def loss(parameters):
            model = merge_module(graph, parameters)
            pooled = model.clip.image.pooled(normalise(batch["pixels"]))
            images, texts = model.clip.image.projection(pooled), model.clip.text(batch["token_ids"])[0]
            scale = jnp.exp(model.clip.logit_scale[...])
            contrastive, count = contrastive_sum(images, texts, scale)
            total, labelling = contrastive, jnp.zeros(())
            if model.head is not None:
                labelling, known = binary_cross_entropy.sum_and_count(model.head(pooled), batch["labels"])
                # A mean over labels beside a mean over pairs: both become sums over the same count.
                pairs, known = jax.lax.psum((count, known), AXIS)
                labelling = labelling * pairs / jnp.maximum(known, 1)
                total = total + loss_settings.auxiliary * labelling
            return total, (count, contrastive, labelling, scale)

        (total, (count, *parts, scale)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state["parameters"]
        )
        state, metrics = apply_gradients(
            optimizer, state, total, count, gradient, skip_nonfinite=skip_nonfinite
        )
        # Without a cap the temperature may vanish (Radford et al. 2021, section 2.5). The parameter itself is
        # held below it, so that what is saved is what was trained, and may come down again.
        clip = state["parameters"]["clip"]
        clip["logit_scale"] = jnp.minimum(clip["logit_scale"], math.log(loss_settings.max_scale))
        *parts, count = jax.lax.psum((*parts, count), AXIS)
        names = ("contrastive", "auxiliary")
        return state, metrics | {name: part / count for name, part in zip(names, parts)} | {"scale": scale}

    return pretrain_step


def make_single(step_function):
    """One step as a program of its own, with the arguments of `step.make_chunk`, each of length 1.

    A step of pre-training is long enough to be started alone, and on CPUs XLA takes twice as long for it
    inside a scan.
    """

    def single(state, frozen, data, indices, steps, hyper):
        batch = jax.tree.map(lambda array: array[indices[0]], data)
        return step_function(state, frozen, batch, steps[0], hyper)

    return single


def zero_shot_figures(graph, parameters, examples, indices, skipped, batch_size=250):
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
