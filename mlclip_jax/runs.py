"""A trained run: reading it, scoring images with it, carrying it over to other labels."""

import functools
import hashlib
import math
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mlclip_jax import methods, recipes
from mlclip_jax.calibration import apply, read_calibration
from mlclip_jax.distributed.sharding import gather_rows, make_mesh, own_rows, replicated
from mlclip_jax.embeddings.embed import embed_names, encode_source
from mlclip_jax.embeddings.labelled import backbone_of
from mlclip_jax.embeddings.store import Embeddings, blocks, read_arrays, read_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.files import replacing
from mlclip_jax.nnx_boundary import merge_module, split_trainable
from mlclip_jax.progress import progress_bar
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.training.checkpoints import Checkpoints, abstract, describe
from mlclip_jax.training.loop import is_exhausted

TRAINED_ON = "trained_on.npy"
RANDOM_BUFFERS = "random_buffers.npz"
EMBEDDED = "embedded"  # folder of the embeddings of images that a run was given as such
CHECKPOINTS = ("latest", "best")
SCORED = 4096, 1 << 28  # images that are scored at once, and bytes of their features, at most
TOGETHER = 256  # of these, images that run through the method as one batch


def read_run(workdir, *, calibrated=True, checkpoint="latest"):
    """A trained run.

    Args:
      workdir: its folder.
      calibrated: whether to read its calibration too.
      checkpoint: which, one of `CHECKPOINTS`: the latest, or the best of those evaluated on the way.

    Returns:
      A dict of `workdir`, `config`, `class_embeddings`; of the method the `graph`, `parameters` and what is
      `frozen`; `step` of its checkpoint; whether it is `finished`; and `calibration`, or None.

    Raises:
      InputError: the folder holds no run, one without a checkpoint, or what cannot be read.
    """
    if not str(workdir):
        raise InputError("an empty name among the folders of runs")
    workdir = Path(workdir)
    config = recipes.read_config(workdir)
    if "method" not in config:
        raise InputError(f"{workdir} holds no run of a method that scores images")
    if not (workdir / "classes.npz").is_file():
        raise InputError(f"{workdir} holds a run without a checkpoint; train it first")
    class_embeddings = read_embeddings(workdir / "classes.npz")
    module = methods.find(config.method).make(class_embeddings.vectors, rngs=nnx.Rngs(config.seed))
    graph, parameters, frozen = split_trainable(module)
    with Checkpoints(workdir / "checkpoints", class_embeddings.origin, read_only=True) as checkpoints:
        best, last = checkpoints.best, checkpoints.latest_step
        step = None
        if checkpoint == "best":
            step, _ = checkpoints.best
            if step is None:
                raise InputError(
                    f"{workdir} has no best checkpoint, as it was not evaluated on the way; set "
                    "--config.train.evaluate_every in training, or take the latest"
                )
        own_device = replicated(make_mesh(jax.local_devices()[:1]))
        step, state = checkpoints.restore({"parameters": abstract(parameters, own_device)}, step)
    run = {
        "workdir": workdir,
        "config": config,
        "class_embeddings": class_embeddings,
        "graph": graph,
        "parameters": state["parameters"],
        "frozen": frozen | read_random_buffers(workdir),
        "step": step,
        "finished": last == config.train.steps or is_exhausted(config.train, best, last),
        "checkpoint": checkpoint,
        "calibration": None,
    }
    if calibrated:
        run["calibration"] = read_calibration(workdir, digest_parameters(run))
    return run


def write_random_buffers(workdir, frozen):
    """Keeps what an adapter drew at random and never trains: later versions of JAX may draw it otherwise.

    Args:
      workdir: of the run.
      frozen: from `split_trainable`.
    """
    drawn = {name: np.asarray(array) for name, array in frozen.items() if not name.endswith("_embeddings")}
    if drawn:
        with replacing(Path(workdir) / RANDOM_BUFFERS) as temporary, temporary.open("wb") as file:
            np.savez(file, **drawn)


def read_random_buffers(workdir):
    """What `write_random_buffers` keeps: a dict of arrays, empty for most adapters."""
    path = Path(workdir) / RANDOM_BUFFERS
    return read_arrays(path) if path.is_file() else {}


def probabilities_of(run, logits):
    """Probabilities, float32 (N, K), of a run's logits: by its calibration, if it has one; else a sigmoid."""
    if run["calibration"] is None:
        return np.asarray(jax.nn.sigmoid(logits))
    return apply(run["calibration"], logits).astype(np.float32)


def thresholds_of(run):
    """The probability from which a run predicts each label, `(K,)`; 0.5 unless it is calibrated."""
    if run["calibration"] is None:
        return np.full(len(run["class_embeddings"].names), 0.5)
    return run["calibration"].thresholds


@functools.partial(jax.jit, static_argnums=0)
def method_scores(graph, parameters, frozen, features):
    """Logits (N, K) of a method, for features by name, each (N, ...)."""
    method = merge_module(graph, parameters, frozen)

    def score(row):
        return method({name: feature[None] for name, feature in row.items()})[0]

    # In batches: a method may need K x hidden numbers for each image.
    return jax.lax.map(score, features, batch_size=TOGETHER)


def scores_of(run, images):
    """Logits (N, K) of a run, from `read_run`, for `Embeddings` of images."""
    features = images.features(methods.find(run["config"].method).reads)
    return score_images(run["graph"], run["parameters"], run["frozen"], features)


def score_images(graph, parameters, frozen, features):
    """`method_scores` for features of images, arrays or `Rows`, which may be larger than memory.

    Each process scores its share, and all get the scores of all; so every process must call this.
    """
    number = len(next(iter(features.values())))
    row_bytes = sum(4 * math.prod(feature.shape[1:]) for feature in features.values())
    most, most_bytes = SCORED
    most = max(1, min(most, most_bytes // row_bytes))
    own = own_rows(number, TOGETHER)
    scores = []
    for start in range(own.start, max(own.stop, own.start + 1), most):  # once for the shape, at least
        rows = slice(start, min(start + most, own.stop))
        part = {name: np.asarray(feature[rows]) for name, feature in features.items()}
        scores.append(method_scores(graph, parameters, frozen, part))
    return gather_rows(np.concatenate(scores), number, TOGETHER)


def load_backbone_of(config):
    """The backbone that a config names.

    Raises:
      InputError: it names none, or one that cannot be loaded.
    """
    from mlclip_jax.backbones import load_backbone, read_encoding

    if not config.get("backbone"):
        raise InputError(
            "this run names no backbone to embed images with; run `mlclip embed`, give embeddings=FILE"
        )
    return load_backbone(config.backbone, **read_encoding(config.get("encoding", {})))


def load_backbone_for(run, name=None):
    """The backbone that a run was trained on, or another that must have the same weights.

    Args:
      run: from `read_run`.
      name: folder or name of the backbone; by default the one that the run names.

    Raises:
      InputError: the run names none, it cannot be loaded, or its weights are others.
    """
    from mlclip_jax.backbones import load_backbone, read_encoding

    workdir, trained_on = run["workdir"], backbone_of(run["class_embeddings"].origin)
    name = name or run["config"].get("backbone") or (trained_on or {}).get("name")
    if name is None:
        raise InputError(
            f"{workdir} does not record its backbone; embed the images with `mlclip embed`, or name it to "
            "`mlclip predict`: --backbone=FOLDER_OR_NAME"
        )
    recorded = trained_on is not None and name == trained_on["name"]
    backbone = load_backbone(
        name,
        revision=(trained_on["revision"] or None) if recorded else None,
        **read_encoding(run["config"].get("encoding", {})),
    )
    if trained_on and trained_on["sha256"] != backbone.fingerprint["sha256"]:
        raise InputError(
            f"{workdir} was trained on {describe(trained_on)}, not on {describe(backbone.fingerprint)}; "
            "name the backbone that it was trained on"
        )
    width = run["class_embeddings"].vectors.shape[1]
    if backbone.embedding_width != width:
        raise InputError(
            f"{workdir} was trained on embeddings {width} wide, and {name} makes them "
            f"{backbone.embedding_width} wide; name the backbone that it was trained on"
        )
    return backbone


def with_class_embeddings(run, label_names, backbone):
    """A run with other labels than it was trained on: zero-shot transfer.

    Args:
      run: from `read_run`, of an adapter that reads its labels off texts.
      label_names: K names, put into the same sentence as those that it was trained on.
      backbone: the one that it was trained on.

    Returns:
      The run, uncalibrated, with these class texts in place of its own.

    Raises:
      InputError: the adapter has an output for each label that it was trained on, and no other; or these are
        no names.
    """
    method, trained_on = methods.find(run["config"].method), backbone_of(run["class_embeddings"].origin) or {}
    if not method.open_vocabulary:
        raise InputError(
            f"{run['workdir']} holds {method.title}, which knows no labels but those it was "
            "trained on; MLD does, and ML-Decoder with text queries (--config=ml_decoder:text)"
        )
    check_label_names(label_names, "the labels to carry over to")
    if not trained_on.get("template"):
        raise InputError(f"{run['workdir']} does not record the sentence that its labels were put into")
    if trained_on["sha256"] != backbone.fingerprint["sha256"]:
        raise InputError(
            f"{run['workdir']} was trained on {describe(trained_on)}, not on {describe(backbone.fingerprint)}"
        )
    texts = embed_names(backbone, label_names, trained_on["template"])
    labels = hashlib.sha256("\n".join(label_names).encode()).hexdigest()
    texts = texts._replace(origin=texts.origin | {"labels": labels})
    # No parameter belongs to a label.
    frozen = run["frozen"] | {"class_embeddings": texts.vectors}
    return run | {"class_embeddings": texts, "frozen": frozen, "calibration": None, "carried_over": True}


def digest_parameters(run):
    """SHA-256 of a run's parameters and labels, which a calibration belongs to."""
    content = hashlib.sha256("\n".join(run["class_embeddings"].names).encode())
    for array in jax.tree.leaves(run["parameters"]):
        content.update(np.asarray(array).tobytes())
    return content.hexdigest()


def write_trained_on(workdir, images):
    """Notes which embeddings a run learns from, as 64-bit hashes of their bytes."""
    with replacing(Path(workdir) / TRAINED_ON) as temporary, temporary.open("wb") as file:
        np.save(file, row_hashes(images.vectors))


def count_trained_on(run, images):
    """How many of exactly these embeddings a run learnt from; those that were rounded anew are not found."""
    path = Path(run["workdir"]) / TRAINED_ON
    return int(np.isin(row_hashes(images.vectors), np.load(path)).sum()) if path.is_file() else 0


def count_calibrated_on(run, images):
    """How many of exactly these embeddings a run was calibrated on."""
    if run["calibration"] is None:
        return 0
    return int(np.isin(row_hashes(images.vectors), run["calibration"].fitted_on).sum())


def row_hashes(vectors):
    """64-bit hashes of the bytes of each embedding, uint64 (N,)."""
    hashes = np.empty(len(vectors), np.uint64)
    start = 0
    for block in blocks(vectors):
        own = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block)
        hashes[start : start + len(block)] = np.frombuffer(b"".join(own), np.uint64)
        start += len(block)
    return hashes


def load(workdir, *, backbone=None, checkpoint="latest"):
    """Loads a trained run, to label images with.

    Args:
      workdir: folder of the run.
      backbone: folder or name of the backbone that made the embeddings it was trained on; by default the one
        that the run names.
      checkpoint: see `runs.read_run`.

    Returns:
      A `Predictor`.

    Raises:
      InputError: the folder holds no run, or the backbone cannot be loaded or is another one.

    Example:
      >>> run = mlclip_jax.load("runs/demo/tai-seed0")
      >>> probabilities = run.predict(["scene.jpg"])  # (1, K)
      >>> [run.label_names[k] for k in (probabilities[0] >= run.thresholds).nonzero()[0]]
      ['anchor', 'umbrella']
    """
    run = read_run(workdir, checkpoint=checkpoint)
    return Predictor(run, load_backbone_for(run, backbone))


class Predictor:
    """A backbone and the adapter that was trained on it. Made by `load`.

    Attributes:
      label_names: K names.
      thresholds: `(K,)`, the probability from which each label is predicted: `mlclip calibrate`'s, or 0.5.
      backbone: the `Backbone`.
    """

    def __init__(self, run, backbone):
        self.label_names = run["class_embeddings"].names
        self.thresholds = thresholds_of(run)
        self.backbone = backbone
        self._run = run

    def predict(self, images):
        """The probability of every label in every image.

        Args:
          images: list of paths, `PIL.Image`s or uint8 arrays (h, w, 3).

        Returns:
          float32 `(len(images), K)`: calibrated, if the run is; else the sigmoid of the adapter's logits.

        Raises:
          InputError: an image cannot be read; it is named.
        """
        local = "image_local" in methods.find(self._run["config"].method).reads
        encoded = self.backbone.encode_images(images, local=local)
        images = Embeddings(encoded.embeddings, local=encoded.local) if local else Embeddings(encoded)
        return probabilities_of(self._run, scores_of(self._run, images))

    def predict_source(self, source, skipped, *, num_workers=0):
        """The same for a `Source` of any size: images are read and decoded while others are computed.

        Args:
          source: a `Source`.
          skipped: a `Skipped`, to which images that cannot be read are added.
          num_workers: see `pipeline.read_batches`.

        Returns:
          The indices of the n images that could be read, and their probabilities, float32 `(n, K)`.
        """
        local = "image_local" in methods.find(self._run["config"].method).reads
        batches = encode_source(
            self.backbone, source, range(len(source)), skipped, local=local, num_workers=num_workers
        )
        kept, probabilities = [], []
        with progress_bar(len(source), "labelling", "images") as bar:
            for indices, (vectors, *rest) in batches:
                images = Embeddings(vectors, local=rest[0] if local else None)
                there = indices >= 0
                kept.append(indices[there])
                probabilities.append(probabilities_of(self._run, scores_of(self._run, images))[there])
                bar.update(int(there.sum()))
        return np.concatenate(kept), np.concatenate(probabilities)

    def with_labels(self, label_names):
        """This run with other labels than it was trained on: zero-shot transfer.

        Args:
          label_names: names, put into the same sentence as those that it was trained on.

        Returns:
          A `Predictor`, uncalibrated.

        Raises:
          InputError: its adapter knows no labels but its own; MLD and ML-Decoder with text queries do.

        Example:
          >>> probabilities = run.with_labels(["cat", "kitten"]).predict(["cat.jpg"])  # (1, 2)
        """
        return Predictor(with_class_embeddings(self._run, label_names, self.backbone), self.backbone)
