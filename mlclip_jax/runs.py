"""A trained run: load, score, predict, with its own labels or with others."""

import dataclasses
import functools
import hashlib
import math
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mlclip_jax import methods, recipes
from mlclip_jax.calibration import Calibration, apply, read_calibration
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
from mlclip_jax.training.loop import is_finished

TRAINED_ON = "trained_on.npy"
RANDOM_BUFFERS = "random_buffers.npz"
EMBEDDED = "embedded"  # folder of the embeddings of images that a run was given as such
SCORED = 4096, 1 << 28  # images that are scored at once, and bytes of their features, at most
TOGETHER = 256  # of these, images that run through the method as one batch


def load(workdir, *, backbone=None, checkpoint="latest"):
    """Loads a trained run and its backbone, to label images with.

    Args:
      workdir: folder of the run.
      backbone: folder or name of the backbone that made the embeddings it was trained on; by default the one
        that the run names.
      checkpoint: see `read_run`.

    Returns:
      A `Run`.

    Raises:
      InputError: the folder holds no run, or the backbone cannot be loaded or is another one.

    Example:
      >>> run = mlclip_jax.load("runs/demo/tai-seed0")
      >>> probabilities = run.predict(["scene.jpg"])  # (1, K)
      >>> [run.label_names[k] for k in (probabilities[0] >= run.thresholds).nonzero()[0]]
      ['anchor', 'umbrella']
    """
    return read_run(workdir, checkpoint=checkpoint).with_backbone(backbone)


def read_run(workdir, *, calibrated=True, checkpoint="latest"):
    """A trained run without its backbone, which embeddings need none of.

    Args:
      workdir: its folder.
      calibrated: whether to read its calibration too.
      checkpoint: which, one of `choices.CHECKPOINTS`: the latest, or the best of those evaluated on the way.

    Returns:
      A `Run`.

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
            step, _ = best
            if step is None:
                raise InputError(
                    f"{workdir} has no best checkpoint, as it was not evaluated on the way; set "
                    "--config.train.evaluate_every in training, or take the latest"
                )
        own_device = replicated(make_mesh(jax.local_devices()[:1]))
        step, state = checkpoints.restore({"parameters": abstract(parameters, own_device)}, step)
    run = Run(
        workdir=workdir,
        config=config,
        class_embeddings=class_embeddings,
        graph=graph,
        parameters=state["parameters"],
        frozen=frozen | read_random_buffers(workdir),
        step=step,
        finished=is_finished(config.train, best, last),
        checkpoint=checkpoint,
    )
    if calibrated:
        run = dataclasses.replace(run, calibration=read_calibration(workdir, run.digest))
    return run


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained run. Made by `load` or `read_run`.

    Attributes:
      workdir: its folder.
      config: its resolved recipe.
      class_embeddings: `Embeddings` of its K labels.
      graph: the method's `nnx.GraphDef`.
      parameters: nested dict of the trained arrays.
      frozen: dict of the arrays that the method reads and training leaves as they are.
      step: of the checkpoint.
      finished: whether the run has come to its end.
      checkpoint: which one this is of `choices.CHECKPOINTS`.
      calibration: a `Calibration`, or None.
      own_labels: whether the labels are those of training.
      backbone: a `Backbone`, or None.
    """

    workdir: Path
    config: ConfigDict
    class_embeddings: Embeddings
    graph: nnx.GraphDef
    parameters: dict
    frozen: dict
    step: int
    finished: bool
    checkpoint: str
    calibration: Calibration | None = None
    own_labels: bool = True
    backbone: object = None

    def __repr__(self):
        backbone = describe(self.trained_on) if self.trained_on else "a backbone that is not recorded"
        return (
            f"Run({self.method.title}, {self.workdir}, step {self.step} of {self.config.train.steps}, "
            f"{len(self.label_names)} labels, on {backbone}{', calibrated' if self.calibration else ''})"
        )

    @functools.cached_property
    def method(self):
        """The `methods.Method` of its recipe."""
        return methods.find(self.config.method)

    @property
    def label_names(self):
        """Names of its K labels."""
        return self.class_embeddings.names

    @property
    def thresholds(self):
        """The probability from which each label is predicted, (K,): `mlclip calibrate`'s, or 0.5."""
        return (
            np.full(len(self.label_names), 0.5) if self.calibration is None else self.calibration.thresholds
        )

    @property
    def trained_on(self):
        """The fingerprint of the backbone that it was trained on, or None where that is not recorded."""
        return backbone_of(self.class_embeddings.origin)

    @property
    def digest(self):
        """SHA-256 of its parameters and labels, which a calibration belongs to."""
        content = hashlib.sha256("\n".join(self.label_names).encode())
        for array in jax.tree.leaves(self.parameters):
            content.update(np.asarray(array).tobytes())
        return content.hexdigest()

    def score(self, images):
        """Logits (N, K) for `Embeddings` of N images."""
        return score_images(self.graph, self.parameters, self.frozen, images.features(self.method.reads))

    def probabilities(self, logits):
        """Probabilities, float32 (N, K), of logits: by its calibration, if it has one; else a sigmoid."""
        if self.calibration is None:
            return np.asarray(jax.nn.sigmoid(logits))
        return apply(self.calibration, logits).astype(np.float32)

    def predict(self, images):
        """The probability of every label in every image.

        Args:
          images: list of paths, `PIL.Image`s or uint8 arrays (h, w, 3).

        Returns:
          float32 `(len(images), K)`: calibrated, if the run is; else the sigmoid of the logits.

        Raises:
          InputError: an image cannot be read; it is named.
        """
        local = self.method.reads_local
        encoded = self.with_backbone().backbone.encode_images(images, local=local)
        images = Embeddings(encoded.embeddings, local=encoded.local) if local else Embeddings(encoded)
        return self.probabilities(self.score(images))

    def score_source(self, source, skipped, *, num_workers=0):
        """Logits of a `Source` of any size: images are read and decoded while others are computed.

        Args:
          source: a `Source`.
          skipped: a `Skipped`, to which images that cannot be read are added.
          num_workers: see `pipeline.read_batches`.

        Returns:
          The indices of the n images that could be read, and their logits, float32 `(n, K)`.
        """
        local, backbone = self.method.reads_local, self.with_backbone().backbone
        batches = encode_source(
            backbone, source, range(len(source)), skipped, local=local, num_workers=num_workers
        )
        kept, logits = [], []
        with progress_bar(len(source), "labelling", "images") as bar:
            for indices, (vectors, *rest) in batches:
                images = Embeddings(vectors, local=rest[0] if local else None)
                there = indices >= 0
                kept.append(indices[there])
                logits.append(np.asarray(self.score(images))[there])
                bar.update(int(there.sum()))
        return np.concatenate(kept), np.concatenate(logits)

    def with_backbone(self, backbone=None):
        """This run with the backbone that it was trained on, or another that has the same weights.

        Args:
          backbone: a `Backbone`, or the folder or name of one; by default the one that it has or names.

        Raises:
          InputError: the run names none, it cannot be loaded, or its weights are others.
        """
        if self.backbone is not None and backbone is None:
            return self
        if backbone is None or isinstance(backbone, str | Path):
            backbone = self._load_backbone(backbone)
        self._check_backbone(backbone)
        return dataclasses.replace(self, backbone=backbone)

    def _load_backbone(self, name):
        from mlclip_jax.backbones import load_backbone, read_encoding

        trained_on = self.trained_on
        name = name or self.config.get("backbone") or (trained_on or {}).get("name")
        if name is None:
            raise InputError(
                f"{self.workdir} does not record its backbone; embed the images with `mlclip embed`, or name "
                "it to `mlclip predict`: --backbone=FOLDER_OR_NAME"
            )
        recorded = trained_on is not None and name == trained_on["name"]
        return load_backbone(
            name,
            revision=(trained_on["revision"] or None) if recorded else None,
            **read_encoding(self.config.get("encoding", {})),
        )

    def _check_backbone(self, backbone):
        trained_on, width = self.trained_on, self.class_embeddings.vectors.shape[1]
        if trained_on and trained_on["sha256"] != backbone.fingerprint["sha256"]:
            raise InputError(
                f"{self.workdir} was trained on {describe(trained_on)}, not on "
                f"{describe(backbone.fingerprint)}; name the backbone that it was trained on"
            )
        if backbone.embedding_width != width:
            raise InputError(
                f"{self.workdir} was trained on embeddings {width} wide, and {backbone.fingerprint['name']} "
                f"makes them {backbone.embedding_width} wide; name the backbone that it was trained on"
            )

    def with_labels(self, label_names):
        """This run with other labels than it was trained on: zero-shot transfer.

        Args:
          label_names: names, put into the same sentence as those that it was trained on.

        Returns:
          A `Run`, uncalibrated.

        Raises:
          InputError: its method has an output for each label that it was trained on, and no other; or these
            are no names.

        Example:
          >>> probabilities = run.with_labels(["cat", "kitten"]).predict(["cat.jpg"])  # (1, 2)
        """
        trained_on = self.trained_on or {}
        if not self.method.open_vocabulary:
            raise InputError(
                f"{self.workdir} holds {self.method.title}, which knows no labels but those it was trained "
                f"on; {methods.with_open_vocabulary()} do"
            )
        check_label_names(label_names, "the labels to carry over to")
        if not trained_on.get("template"):
            raise InputError(f"{self.workdir} does not record the sentence that its labels were put into")
        backbone = self.with_backbone().backbone
        embeddings = embed_names(backbone, label_names, trained_on["template"])
        labels = hashlib.sha256("\n".join(label_names).encode()).hexdigest()
        return dataclasses.replace(
            self,
            class_embeddings=embeddings._replace(origin=embeddings.origin | {"labels": labels}),
            # No parameter belongs to a label.
            frozen=self.frozen | {"class_embeddings": embeddings.vectors},
            calibration=None,
            own_labels=False,
            backbone=backbone,
        )

    def count_trained_on(self, images):
        """How many of exactly these `Embeddings` it learnt from; what was rounded anew is not found."""
        path = self.workdir / TRAINED_ON
        return int(np.isin(row_hashes(images.vectors), np.load(path)).sum()) if path.is_file() else 0

    def count_calibrated_on(self, images):
        """How many of exactly these `Embeddings` it was calibrated on."""
        if self.calibration is None:
            return 0
        return int(np.isin(row_hashes(images.vectors), self.calibration.fitted_on).sum())


@functools.partial(jax.jit, static_argnums=0)
def method_scores(graph, parameters, frozen, features):
    """Logits (N, K) of a method, for features by name, each (N, ...)."""
    method = merge_module(graph, parameters, frozen)

    def score(row):
        return method({name: feature[None] for name, feature in row.items()})[0]

    # In batches: a method may need K x hidden numbers for each image.
    return jax.lax.map(score, features, batch_size=TOGETHER)


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


def write_trained_on(workdir, images):
    """Notes which embeddings a run learns from, as 64-bit hashes of their bytes."""
    with replacing(Path(workdir) / TRAINED_ON) as temporary, temporary.open("wb") as file:
        np.save(file, row_hashes(images.vectors))


def row_hashes(vectors):
    """64-bit hashes of the bytes of each embedding, uint64 (N,)."""
    hashes = np.empty(len(vectors), np.uint64)
    start = 0
    for block in blocks(vectors):
        own = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in block)
        hashes[start : start + len(block)] = np.frombuffer(b"".join(own), np.uint64)
        start += len(block)
    return hashes
