"""A run: load, score, predict, with its own labels or with others."""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, Int
from ml_collections import ConfigDict

from mlclip_jax import methods, recipes
from mlclip_jax.backbones import load_backbone, read_encoding
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.calibration import Calibration, apply, read_calibration
from mlclip_jax.data.pipeline import Skipped, readable
from mlclip_jax.data.sources import Source
from mlclip_jax.distributed.sharding import make_mesh, replicated
from mlclip_jax.embeddings.embed import check_features, embed_names, encode_images, encode_source
from mlclip_jax.embeddings.store import PIXELS, Embeddings, read_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.label_texts import label_texts
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.provenance import Origin, count_known
from mlclip_jax.run_folders import TRAINED_ON, read_random_buffers
from mlclip_jax.scoring import gather_batches, score_images
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.training.checkpoints import Checkpoints, abstract
from mlclip_jax.training.loop import is_finished
from mlclip_jax.zero_shot.prompts import Decided, LabelTexts


def load(
    workdir: str | os.PathLike, *, backbone: str | os.PathLike | None = None, checkpoint: str = "latest"
) -> "Run":
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


def read_run(workdir: str | os.PathLike, *, calibrated: bool = True, checkpoint: str = "latest") -> "Run":
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
    run = untrained_run(config, class_embeddings, workdir)
    if run.method.trains:
        run = _with_checkpoint(run, checkpoint)
    if calibrated:
        run = dataclasses.replace(run, calibration=read_calibration(workdir, run.digest))
    return run


def untrained_run(config: ConfigDict, class_embeddings: Embeddings, workdir: Path | None = None) -> "Run":
    """The run of a recipe as its method is made, before anything is trained.

    Args:
      config: with a `method`.
      class_embeddings: of its labels.
      workdir: its folder; None: it has none.

    Raises:
      InputError: there is no such method, or it takes no such labels.
    """
    method = methods.find(config.method)
    graph, parameters, frozen = None, {}, {}
    if not method.at_once:
        module = method.make(class_embeddings.vectors, rngs=nnx.Rngs(config.get("seed", 0)))
        graph, parameters, frozen = split_trainable(module, method.trainable)
    run = Run(workdir, config, class_embeddings, graph, parameters, frozen)
    if method.at_once:
        run.method.make().check(run.label_texts)
    return run


def _with_checkpoint(run, checkpoint):
    folder, origin = run.workdir / "checkpoints", run.class_embeddings.origin
    with Checkpoints(folder, origin, read_only=True) as checkpoints:
        best, last = checkpoints.best, checkpoints.latest_step
        step = None
        if checkpoint == "best":
            step, _ = best
            if step is None:
                raise InputError(
                    f"{run.workdir} has no best checkpoint, as it was not evaluated on the way; set "
                    "--config.train.evaluate_every in training, or take the latest"
                )
        own_device = replicated(make_mesh(jax.local_devices()[:1]))
        step, state = checkpoints.restore({"parameters": abstract(run.parameters, own_device)}, step)
    return dataclasses.replace(
        run,
        parameters=state["parameters"],
        frozen=run.frozen | read_random_buffers(run.workdir),
        step=step,
        finished=is_finished(run.config.train, best, last or step),
        checkpoint=checkpoint,
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A trained run, made by `load` or `read_run`; or of a method that is never trained, by `untrained`.

    Attributes:
      workdir: its folder; None: it has none, as a method that is never trained needs none.
      config: its resolved recipe.
      class_embeddings: `Embeddings` of its K labels.
      graph: the method's `nnx.GraphDef`; None of one that scores all images at once.
      parameters: nested dict of the trained arrays.
      frozen: dict of the arrays that the method reads and training leaves as they are.
      step: of the checkpoint; 0 without one.
      finished: whether the run has come to its end.
      checkpoint: which one this is of `choices.CHECKPOINTS`.
      calibration: a `Calibration`, or None.
      own_labels: whether the labels are those of training.
      backbone: a `Backbone`, or None.
    """

    workdir: Path | None
    config: ConfigDict
    class_embeddings: Embeddings
    graph: nnx.GraphDef | None
    parameters: dict
    frozen: dict
    step: int = 0
    finished: bool = True
    checkpoint: str = "latest"
    calibration: Calibration | None = None
    own_labels: bool = True
    backbone: Backbone | None = None

    def __repr__(self) -> str:
        backbone = self.trained_on or "a backbone that is not recorded"
        step = f"step {self.step} of {self.config.train.steps}" if self.method.trains else "nothing trained"
        return (
            f"Run({self.method.title}, {'' if self.workdir is None else f'{self.workdir}, '}{step}, "
            f"{len(self.label_names)} labels, on {backbone}{', calibrated' if self.calibration else ''})"
        )

    @property
    def name(self) -> str:
        """What errors call it: its folder, or its method where it has none."""
        return self.method.title if self.workdir is None else str(self.workdir)

    @functools.cached_property
    def method(self) -> methods.Method:
        """The `methods.Method` of its recipe."""
        return methods.find(self.config.method)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of its K labels."""
        return tuple(self.class_embeddings.names or ())

    @property
    def gives_probabilities(self) -> bool:
        """Whether it does: it is trained or calibrated. Else it gives scores, of which larger ones win."""
        return self.method.trains or self.calibration is not None

    @property
    def thresholds(self) -> Float[np.ndarray, " K"]:
        """The probability from which each label is predicted: `mlclip calibrate`'s, or 0.5.

        Raises:
          InputError: it gives scores, which are no probabilities.
        """
        self._check_probabilities()
        return (
            np.full(len(self.label_names), 0.5) if self.calibration is None else self.calibration.thresholds
        )

    @functools.cached_property
    def label_texts(self) -> LabelTexts:
        """Its labels, as methods see them that score all images at once."""
        return label_texts(self.class_embeddings, self.loaded_backbone)

    @property
    def trained_on(self) -> Origin | None:
        """The backbone that it was trained on, or None where that is not recorded."""
        return self.class_embeddings.origin.encoder

    @property
    def digest(self) -> str:
        """SHA-256 of its parameters and labels, which a calibration belongs to."""
        content = hashlib.sha256("\n".join(self.label_names).encode())
        arrays = jax.tree.leaves(self.parameters)
        if not self.method.trains:  # what stands in for parameters
            content.update(self.config.method.to_json(sort_keys=True).encode())
            arrays = [self.class_embeddings.vectors]
        known = self.method.make().known(self.label_texts) if self.method.at_once else ()
        for data in itertools.chain((np.asarray(array).tobytes() for array in arrays), known):
            content.update(data)
        return content.hexdigest()

    def score(self, images: Embeddings) -> Float32[np.ndarray, "N K"]:
        """Logits for the features of N images."""
        return self.decide(images).scores

    def decide(self, images: Embeddings) -> Decided:
        """Logits for the features of N images, and their labels, by thresholds or by a prompting method."""
        if PIXELS in self.method.reads:
            raise InputError(f"{self.method.title} reads images themselves, and no embeddings of them")
        features = images.only(self.method.reads)
        if self.graph is not None:
            return self._decided(score_images(self.graph, self.parameters, self.frozen, features))
        return self._decide_at_once({name: np.asarray(feature) for name, feature in features.items()})

    def _decide_at_once(self, features):
        decided = self.method.make().decide(features, self.label_texts)
        if self.calibration is None:
            return decided
        return self._decided(decided.scores)._replace(prompts=decided.prompts)

    def _decided(self, logits):
        if not self.gives_probabilities:
            return Decided(logits)
        return Decided(logits, self.probabilities(logits) >= self.thresholds)

    def probabilities(self, logits: Float[np.ndarray, "N K"]) -> Float32[np.ndarray, "N K"]:
        """Probabilities of logits: by its calibration, if it has one; else a sigmoid.

        Raises:
          InputError: as of `thresholds`.
        """
        self._check_probabilities()
        if self.calibration is None:
            return np.asarray(jax.nn.sigmoid(logits))
        return apply(self.calibration, logits).astype(np.float32)

    def _check_probabilities(self):
        if not self.gives_probabilities:
            raise InputError(
                f"the scores of {self.name} are no probabilities: choose the highest of each image, or give "
                "the run a calibration"
            )

    def predict(self, images: Sequence, captions: Sequence[str] | None = None) -> Float32[np.ndarray, "N K"]:
        """The probability of every label in every image.

        Args:
          images: list of paths, `PIL.Image`s or uint8 arrays (h, w, 3).
          captions: one of each image, where the method reads them.

        Returns:
          Calibrated, if the run is; else the sigmoid of the logits; of a run without training the scores.

        Raises:
          InputError: an image cannot be read; it is named. Or captions are missing.
        """
        if PIXELS in self.method.reads:
            scores = self._decide_at_once({PIXELS: images}).scores
        else:
            scores = self.score(encode_images(self.loaded_backbone(), images, self.method.reads, captions))
        return self.probabilities(scores) if self.gives_probabilities else scores

    def score_source(
        self, source: Source, skipped: Skipped, *, num_workers: int = 0
    ) -> tuple[Int[np.ndarray, " N"], Decided]:
        """Labels a `Source` of any size: images are read and decoded while others are computed.

        Args:
          source: a `Source`.
          skipped: a `Skipped`, to which images that cannot be read are added.
          num_workers: see `pipeline.read_batches`.

        Returns:
          The indices of the images that could be read, and what `decide` makes of them.

        Raises:
          InputError: the method reads captions, and the source has none.
        """
        reads = self.method.reads
        if PIXELS in reads:
            kept = readable(source, skipped)
            return kept, self._decide_at_once({PIXELS: source.select(kept)})
        check_features(reads, reads, source.captions is not None)
        backbone, every = self.loaded_backbone(), range(len(source))
        batches = encode_source(backbone, source, every, skipped, features=reads, num_workers=num_workers)
        if self.method.at_once:
            kept, features = gather_batches(batches, dict, len(source))
            return kept, self.decide(Embeddings(features))
        kept, own = gather_batches(batches, lambda of: {"logits": self.score(Embeddings(of))}, len(source))
        return kept, self._decided(own["logits"])

    def loaded_backbone(self) -> Backbone:
        """The backbone that it has; or that it was trained on, loaded when it is first asked for."""
        return self.backbone or self._own_backbone

    @functools.cached_property
    def _own_backbone(self):
        return self.with_backbone().backbone

    def with_backbone(self, backbone: Backbone | str | os.PathLike | None = None) -> "Run":
        """This run with the backbone that it was trained on, or another that has the same weights.

        Args:
          backbone: a `Backbone`, or the folder or name of one; by default the one that it has or names.

        Raises:
          InputError: the run names none, it cannot be loaded, or its weights are others.
        """
        if self.backbone is not None and backbone is None:
            return self
        if not isinstance(backbone, Backbone):
            backbone = self._load_backbone(backbone)
        self._check_backbone(backbone)
        return dataclasses.replace(self, backbone=backbone)

    def _load_backbone(self, name):
        trained_on = self.trained_on
        name = name or self.config.get("backbone") or (trained_on and trained_on.name)
        if name is None:
            raise InputError(f"{self.name} does not record its backbone; name it, --backbone=FOLDER_OR_NAME")
        recorded = trained_on is not None and name == trained_on.name
        return load_backbone(
            name,
            revision=(trained_on.revision or None) if recorded else None,
            **read_encoding(self.config.get("encoding", {})),
        )

    def _check_backbone(self, backbone):
        trained_on, width = self.trained_on, self.class_embeddings.vectors.shape[1]
        if trained_on and trained_on.sha256 != backbone.origin.sha256:
            verb, by = ("was trained", "on") if self.method.trains else ("embedded its labels", "by")
            raise InputError(
                f"{self.name} {verb} {by} {trained_on}, not {by} {backbone.origin}; "
                f"name the backbone that it {verb} {by}"
            )
        if backbone.embedding_width != width:
            raise InputError(
                f"{self.name} was trained on embeddings {width} wide, and {backbone.origin.name} "
                f"makes them {backbone.embedding_width} wide; name the backbone that it was trained on"
            )

    def with_labels(self, label_names: Sequence[str]) -> "Run":
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
        if not self.method.open_vocabulary:
            raise InputError(
                f"{self.name} holds {self.method.title}, which knows no labels but those it was trained "
                f"on; {methods.with_open_vocabulary()} do"
            )
        check_label_names(label_names, "the labels to carry over to")
        template = self.class_embeddings.origin.prompt
        if not template:
            raise InputError(f"{self.name} does not record the sentence that its labels were put into")
        backbone = self.loaded_backbone()
        embeddings = embed_names(backbone, label_names, template)
        run = dataclasses.replace(
            self, class_embeddings=embeddings, calibration=None, own_labels=False, backbone=backbone
        )
        if not self.method.trains:
            made = untrained_run(self.config, embeddings)
            return dataclasses.replace(run, graph=made.graph, frozen=made.frozen)
        # No parameter belongs to a label.
        return dataclasses.replace(run, frozen=self.frozen | {"class_embeddings": embeddings.vectors})

    def count_trained_on(self, images: Embeddings) -> int:
        """How many of exactly these images it learnt from; what was rounded anew is not found."""
        path = self.workdir and self.workdir / TRAINED_ON
        return count_known(images.vectors, np.load(path)) if path and path.is_file() else 0

    def count_calibrated_on(self, images: Embeddings) -> int:
        """How many of exactly these images it was calibrated on."""
        return 0 if self.calibration is None else count_known(images.vectors, self.calibration.fitted_on)
