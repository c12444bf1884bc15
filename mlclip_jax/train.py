"""Trains an adapter by a recipe: `mlclip train --config=RECIPE --workdir=FOLDER`.

Read from top to bottom: what is trained on, one step, the loop. Started again in the same folder, a run
goes on from its newest checkpoint to the result it would have had undisturbed.
"""

import functools
import hashlib
import json
import math
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx

from mlclip_jax import evaluate, recipes
from mlclip_jax.adapters.tai import TaIAdapter
from mlclip_jax.backbones.weights import fingerprint
from mlclip_jax.checkpoints import Checkpoints, abstract
from mlclip_jax.configs import tai
from mlclip_jax.data.pipeline import batch_indices
from mlclip_jax.data.sources import Embeddings, read_embeddings, read_lines
from mlclip_jax.errors import InputError
from mlclip_jax.features import embed_names, write_embeddings
from mlclip_jax.files import locked, make_folder, replacing
from mlclip_jax.losses import binary_cross_entropy_sum
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.modules import merge_module, split_module
from mlclip_jax.parallel import AXIS, MODES, data_parallel, make_mesh, replicated
from mlclip_jax.perturbation import LENGTHS, perturb
from mlclip_jax.progress import progress_bar
from mlclip_jax.texts.label_sets import sample_label_sets
from mlclip_jax.texts.mixtures import mix_class_embeddings
from mlclip_jax.texts.templates import CLASS_TEMPLATE, write_texts


def main(values):
    """mlclip train --config=RECIPE[:variant] --workdir=FOLDER [--config.key=value ...]"""
    train(values.config, values.workdir)


def train(config, workdir):
    """Trains to the end, or goes on from the newest checkpoint in `workdir`; then scores, and prints a table.

    Leaves in `workdir` the resolved `config.json`, `classes.npz` (the labels and their embeddings),
    `metrics.jsonl`, the checkpoints, and `evaluation.json` where the config names images to score.

    Args:
      config: a recipe's `ml_collections.ConfigDict`.
      workdir: folder of this run alone.

    Returns:
      The trained parameters, a nested dict of arrays.

    Raises:
      InputError: the recipe, what it names, or the folder cannot be used.
    """
    mesh = make_mesh()
    _check(config, mesh.size)
    make_folder(workdir)
    workdir = Path(workdir)
    _check_same_run(workdir, config)
    backbone = functools.cache(lambda: evaluate.load_backbone_of(config))
    class_texts = read_class_texts(config, backbone)
    images = None
    if any(config.evaluation.values()):
        images = evaluate.read_images(config.evaluation, class_texts, backbone)
    texts = read_training_texts(config, class_texts, backbone, workdir)

    num_labels, width = class_texts.vectors.shape
    adapter = TaIAdapter(width, num_labels, **config.adapter, rngs=nnx.Rngs(config.seed))
    graph, parameters = split_module(adapter)
    optimizer = make_optimizer(config)
    state = {"parameters": parameters, "optimizer": optimizer.init(parameters)}

    step_function = make_train_step(graph, optimizer, config.perturbation, jax.random.key(config.seed))
    run_chunk = data_parallel(make_chunk(step_function), config.train.parallel, mesh)
    frozen = {}  # the backbone's work is in the data already: this step reads none of its weights
    data = jax.device_put({"embeddings": texts.vectors, "labels": texts.labels}, replicated(mesh))

    with locked(workdir), Checkpoints(workdir / "checkpoints", class_texts.origin) as checkpoints:
        step = checkpoints.latest_step or 0
        if step > config.train.steps:
            raise InputError(
                f"{workdir} holds a checkpoint of step {step}, beyond {config.train.steps}; remove it"
            )
        if step:
            state = checkpoints.restore(abstract(state, replicated(mesh)))
            print(f"{workdir}: going on from step {step} of {config.train.steps}", file=sys.stderr)
        else:
            state = jax.device_put(state, replicated(mesh))
        with replacing(workdir / "config.json") as temporary:
            temporary.write_text(config.to_json(indent=2) + "\n", encoding="utf-8")
        write_embeddings(workdir / "classes.npz", class_texts)
        log = Log(workdir / "metrics.jsonl", step)

        with progress_bar(config.train.steps, "training", "steps", done=step) as bar:
            while step < config.train.steps:
                end = _next_boundary(step, config.train)
                steps = np.arange(step, end, dtype=np.int32)
                indices = [
                    batch_indices(config.seed, t, len(texts.vectors), config.train.batch_size) for t in steps
                ]
                state, metrics = run_chunk(state, frozen, data, np.stack(indices), steps)
                # This chunk now runs; meanwhile the line of the one before it is fetched and written.
                log.write_pending()
                bar.update(end - step)
                step = end
                # Evaluate, then save: a run killed in between evaluates again, and loses nothing.
                if images is not None and _is_due(step, config.train.evaluate_every):
                    scores = evaluate.adapter_scores(graph, state["parameters"], images.vectors)
                    metrics |= {"mAP_percent": 100 * mean_average_precision(scores, images.labels)[0]}
                log.add(step, metrics)
                if _is_due(step, config.train.checkpoint_every) or step == config.train.steps:
                    log.write_pending()  # the log is complete up to every checkpoint
                    checkpoints.save(step, state)
    print(f"{workdir}: trained {step} steps on {len(texts.vectors)} texts about {num_labels} labels")
    if images is not None:
        evaluate.print_comparison(evaluate.compare([evaluate.read_run(workdir)], images))
    return state["parameters"]


def read_class_texts(config, backbone):
    """The labels and the embedding of each one's name: `Embeddings` with their fingerprint as `origin`."""
    if "class_embeddings" in config.texts:
        path = config.texts.class_embeddings
        class_texts = read_embeddings(path)
        origin = fingerprint(path, "", [path]) | {"backbone": class_texts.origin}
        if class_texts.names is None:
            raise InputError(f"{path} does not name its classes; store their names in an array called names")
    else:
        path = config.texts.labels
        names = read_lines(path)
        class_texts = embed_names(backbone(), names, CLASS_TEMPLATE)
        origin = class_texts.origin
    name, times = Counter(class_texts.names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path} names {name!r} more than once; every class needs a name of its own")
    labels = hashlib.sha256("\n".join(class_texts.names).encode()).hexdigest()
    return class_texts._replace(origin=origin | {"labels": labels})


def read_training_texts(config, class_texts, backbone, workdir):
    """`Embeddings` of the training texts (N, D), with labels (N, K)."""
    label_names, num_labels = class_texts.names, len(class_texts.names)
    if config.texts.number < num_labels:
        raise InputError(
            f"--config.texts.number={config.texts.number} leaves labels without a text; "
            f"there are {num_labels}: give at least that many"
        )
    labels = sample_label_sets(config.seed, config.texts.number, num_labels, config.texts.max_labels)
    if "class_embeddings" in config.texts:
        return Embeddings(mix_class_embeddings(labels, class_texts.vectors), labels=labels)
    texts = tuple(write_texts(labels, label_names, config.seed))
    path = workdir / "texts.npz"  # encoding takes minutes: done once per run
    if path.is_file():
        stored = read_embeddings(path)
        if stored.names == texts and stored.origin == backbone().fingerprint:
            return stored._replace(labels=labels)
    embeddings = Embeddings(
        backbone().encode_texts(texts), texts, labels, label_names, backbone().fingerprint
    )
    write_embeddings(path, embeddings)
    return embeddings


def make_optimizer(config):
    """AdamW under `make_schedule`."""
    return optax.adamw(make_schedule(config), weight_decay=config.optimizer.weight_decay)


def make_schedule(config):
    """The 1-cycle learning rate: a cosine up over the first 30% of the steps, then a cosine down."""
    return optax.cosine_onecycle_schedule(config.train.steps, config.optimizer.learning_rate)


def make_train_step(graph, optimizer, perturbation, key):
    """The training step of one device: `train_step(state, frozen, batch, step) -> (state, metrics)`.

    Written for any number of devices: `batch` is one device's share of the global batch, and sums over
    examples run over the axis `"data"`. Noise and dropout of an example depend on the key, the step and its
    position in the global batch alone, so the number of devices changes nothing.

    Args:
      graph: the adapter's `nnx.GraphDef`.
      optimizer: an `optax.GradientTransformation`.
      perturbation: `radius` and `sampling`; see `perturbation.perturb`.
      key: the run's typed PRNG key.
    """

    def example_logits(parameters, embedding, key):
        noise_key, dropout_key = jax.random.split(key)
        embedding = perturb(noise_key, embedding, perturbation.radius, perturbation.sampling)
        return merge_module(graph, parameters)(embedding, dropout_key)

    def train_step(state, frozen, batch, step):
        del frozen
        size = len(batch["labels"])
        positions = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), positions)

        def loss(parameters):
            logits = jax.vmap(example_logits, (None, 0, 0))(parameters, batch["embeddings"], keys)
            return binary_cross_entropy_sum(logits, batch["labels"])

        (total, count), gradient = jax.value_and_grad(loss, has_aux=True)(state["parameters"])
        # Sums first, then one division: devices may know different numbers of labels.
        total, count, gradient = jax.lax.psum((total, count, gradient), AXIS)
        count = jnp.maximum(count, 1)
        gradient = jax.tree.map(lambda g: g / count, gradient)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; all else here runs strictly
            updates, optimizer_state = optimizer.update(gradient, state["optimizer"], state["parameters"])
        parameters = optax.apply_updates(state["parameters"], updates)
        return {"parameters": parameters, "optimizer": optimizer_state}, {"loss": total / count}

    return train_step


def make_chunk(train_step):
    """Many steps in one program: `chunk(state, frozen, data, indices, steps)`, for one device.

    `data` are all examples, `indices` (S, B / devices) those of each step, `steps` (S,) the steps' numbers;
    metrics come back with a leading S.
    """

    def chunk(state, frozen, data, indices, steps):
        def body(state, rows_and_step):
            rows, step = rows_and_step
            return train_step(state, frozen, jax.tree.map(lambda array: array[rows], data), step)

        return jax.lax.scan(body, state, (indices, steps))

    return chunk


class Log:
    """`metrics.jsonl`, a line per chunk, written one chunk late so that the device never waits for it.

    Args:
      path: the file; lines beyond `step`, of a run that was killed after its checkpoint, are cut off.
      step: where the run goes on.
    """

    def __init__(self, path, step):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        with replacing(path) as temporary:
            kept = (line + "\n" for line in lines if _step_of(line) <= step)
            temporary.write_text("".join(kept), encoding="utf-8")
        self._path = path
        self._pending = []

    def add(self, step, metrics):
        """Notes metrics as of after `step` steps; arrays that are still being computed are not waited for."""
        self._pending.append((step, metrics))

    def write_pending(self):
        """Waits for the metrics noted so far, and appends them.

        Raises:
          InputError: the loss is no longer finite, or the file cannot be written.
        """
        lines = []
        for step, metrics in self._pending:
            means = {name: float(np.mean(value)) for name, value in metrics.items()}
            if not all(map(math.isfinite, means.values())):
                raise InputError(f"training diverged by step {step}: {means}; lower optimizer.learning_rate")
            lines.append(json.dumps({"step": step, **means}) + "\n")
        self._pending = []
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; free some space there") from error


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):  # cut off by a kill, or no line of ours
        return math.inf


def _next_boundary(step, train):
    """The first step after `step` at which something is logged, evaluated or saved."""
    periods = [p for p in (train.log_every, train.evaluate_every, train.checkpoint_every) if p]
    return min(train.steps, *(step - step % period + period for period in periods))


def _is_due(step, period):
    return period > 0 and step % period == 0


def _check_same_run(workdir, config):
    """Refuses a folder whose checkpoints are of another config."""
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return
    there, here = (
        recipes.flat_config(c) for c in (evaluate.read_config(workdir), json.loads(config.to_json()))
    )
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key) and not key.startswith(MAY_CHANGE):
            raise InputError(
                f"{workdir} holds a run with {key} {there.get(key)!r}, not {here.get(key)!r}; "
                "give that value, or another --workdir"
            )


# What does not change the result; for paths, fingerprints tell whether what they lead to is the same.
MAY_CHANGE = (
    "evaluation.",
    "backbone",
    "texts.class_embeddings",
    "texts.labels",
    "train.parallel",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
)


def _check(config, num_devices):
    """Refuses what could only fail later, or silently mean something else."""
    flat = recipes.flat_config(config)
    expected = recipes.flat_config(tai.get_config("templates" if "backbone" in flat else "embeddings"))
    for key in sorted(expected.keys() - flat.keys()):
        raise InputError(f"the recipe lacks {key}")
    for key in sorted(flat.keys() - expected.keys()):
        raise InputError(f"the recipe has {key}, which nothing reads; it may be misspelt")
    for key in ("backbone", "texts.class_embeddings", "texts.labels"):
        if key in flat and not flat[key]:
            raise InputError(f"the recipe leaves {key} open: set --config.{key}=...")
    conditions = {
        "seed": (lambda n: 0 <= n < 2**31, "from 0 to 2147483647"),
        "texts.number": (lambda n: n >= 1, "at least 1"),
        "texts.max_labels": (lambda n: n >= 1, "at least 1"),
        "perturbation.radius": (lambda r: 0 <= r < math.inf, "finite and not negative"),
        "perturbation.sampling": (lambda s: s in LENGTHS, f"one of {', '.join(LENGTHS)}"),
        "adapter.hidden": (lambda n: n >= 1, "at least 1"),
        "adapter.depth": (lambda n: n >= 1, "at least 1"),
        "adapter.dropout": (lambda p: 0 <= p < 1, "in [0, 1)"),
        "optimizer.learning_rate": (lambda r: 0 < r < math.inf, "finite and positive"),
        "optimizer.weight_decay": (lambda w: 0 <= w < math.inf, "finite and not negative"),
        "train.steps": (lambda n: 1 <= n < 2**31, "from 1 to 2147483647"),
        "train.batch_size": (
            lambda n: n >= 1 and n % num_devices == 0,
            f"positive, and a multiple of the {num_devices} devices",
        ),
        "train.parallel": (lambda mode: mode in MODES, f"one of {', '.join(MODES)}"),
        "train.log_every": (lambda n: n >= 1, "at least 1"),
        "train.evaluate_every": (lambda n: n >= 0, "at least 0"),
        "train.checkpoint_every": (lambda n: n >= 1, "at least 1"),
    }
    for key, (holds, wanted) in conditions.items():
        try:
            fits = isinstance(flat[key], type(expected[key]) | int) and holds(flat[key])
        except TypeError:  # a word where a number belongs
            fits = False
        if not fits:
            raise InputError(f"--config.{key}={flat[key]} cannot be: it must be {wanted}")


def define_flags(values, argv):
    recipes.define_config(values, argv)
    flags.DEFINE_string("workdir", None, "folder of this run, made if it is missing", flag_values=values)
    flags.mark_flag_as_required("workdir", values)
