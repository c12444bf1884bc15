"""Zero-shot scores by the patches of images: the steps of `zero_shot/patches.py` on a backbone and images."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from mlclip_jax.backbones.aspect import full_pixels, native_pixels
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.backbones.batching import as_list, run_ahead
from mlclip_jax.backbones.dense import FORMS, dense_features
from mlclip_jax.backbones.processing import ImageLike
from mlclip_jax.data.images import UnreadableImage
from mlclip_jax.data.sources import Source
from mlclip_jax.distributed.sharding import make_mesh, split_rows
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest
from mlclip_jax.progress import progress_bar
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, FRACTION, NOT_NEGATIVE, POSITIVE, Range, one_of
from mlclip_jax.texts.label_sets import check_label_names
from mlclip_jax.texts.vocabulary import background_words
from mlclip_jax.zero_shot.gaussian import (
    BANK_SCALE,
    BANK_SIZE,
    Bank,
    Gaussians,
    add_patches,
    empty_bank,
    fit_gaussians,
    gaussian_probabilities,
)
from mlclip_jax.zero_shot.local import crop_scores
from mlclip_jax.zero_shot.patches import attention_affinity, merged, patch_probabilities, pooled, refined
from mlclip_jax.zero_shot.rules import cosine_scores

Images = Source | Iterable[ImageLike]
BANK_BYTES = 8 << 30  # of the patches that teach the Gaussian classifier, at most
Vectors = Float[Array | np.ndarray, "K D"]


@dataclasses.dataclass(frozen=True)
class PatchSettings:
    """Which steps are taken, and their constants. Each can be switched off by itself.

    Attributes:
      attention: of the patches, a form of `backbones.dense.FORMS`; "plain" switches it off.
      background: whether patches may show words for the background, see `texts.vocabulary.background_words`.
      refine: whether attention maps refine the scores of patches, see `zero_shot.refined`. PIAA does not:
        where the Gaussian classifier is on, what is nearly flat would be ranked by attention alone.
      gaussian: whether unlabelled images teach a classifier of patches, see `zero_shot.fit_gaussians`.
      global_weight: what the whole image counts beside its patches, see `zero_shot.merged`; 0: nothing.
      crops: n makes the whole image that of its n x n half-overlapping crops, or itself, which fits a class
        best, see `zero_shot.crop_scores`; 0 switches them off.
      short_side: pixels of the shorter side, where images keep their aspect ratio, see `backbones.aspect`; 0:
        they come to the backbone's own size as its checkpoint has it.
      templates: that names are put into, see `texts.templates.read_templates`.
      scale: what cosines of patches are multiplied by before their softmax.
      purified, temperature: of the Gaussian classifier, see `zero_shot.fit_gaussians`; `purified=0`: it is
        fitted once.
      patch_scale, global_scale: see `zero_shot.merged`. `patch_scale` is for the nearly flat probabilities of
        the Gaussian classifier, and changes nothing without it.
      batch_size: images at once, over all devices. Refinement holds the attention maps of all layers: in
        float32 56 MiB for 32 images of ViT-B/16 at 224 pixels, and 27 times as many at 512 x 512.

    Raises:
      InputError: a value is out of its range.
    """

    attention: str = "sc_clip"
    background: bool = True
    refine: bool = False
    gaussian: bool = False
    global_weight: float = 0.1
    crops: int = 0
    short_side: int = 0
    templates: str = "imagenet"
    scale: float = 100.0
    purified: float = 0.01
    temperature: float = 500.0
    patch_scale: float = 200.0
    global_scale: float = 80.0
    batch_size: int = 32

    RANGES: ClassVar[dict[str, Range]] = {
        "attention": one_of(FORMS),
        "global_weight": FRACTION,
        "crops": AT_LEAST_0,
        "short_side": AT_LEAST_0,
        "scale": NOT_NEGATIVE,
        "purified": NOT_NEGATIVE,
        "temperature": POSITIVE,
        "patch_scale": NOT_NEGATIVE,
        "global_scale": NOT_NEGATIVE,
        "batch_size": AT_LEAST_1,
    }

    def __post_init__(self) -> None:
        for name, (holds, wanted) in self.RANGES.items():
            value = getattr(self, name)
            if not holds(value):
                near = nearest(value, FORMS) if isinstance(value, str) else ""
                raise InputError(f"invalid {name}={value}{near}: must be {wanted}")
        if self.crops and not self.global_weight:
            raise InputError(
                f"crops={self.crops} are part of the scores of whole images, which global_weight=0 leaves "
                "out; give global_weight=0.1, or crops=0"
            )


def patch_scores(
    backbone: Backbone,
    images: Images,
    label_names: Sequence[str],
    settings: PatchSettings | None = None,
    *,
    unlabelled: Images | None = None,
) -> Float32[np.ndarray, "N K"]:
    """Scores of images by their patches, from the labels' names alone; nothing is trained.

    Images stream through: what is held is a batch of each aspect ratio, and for the Gaussian classifier 512
    patches of each label, which a first pass over the unlabelled images collects.

    Args:
      backbone: a CLIP with a vision transformer.
      images: a `Source`, or N paths, files' bytes, `PIL.Image`s or uint8 arrays (H, W, 3).
      label_names: K names.
      settings: which steps are taken; by default those of `PatchSettings`.
      unlabelled: images that teach the Gaussian classifier; by default those to score. Labels are not read.

    Returns:
      Scores in [0, 1], larger where a label fits better, and no probabilities.

    Raises:
      InputError: the backbone has no vision transformer, an image cannot be read, these are no names of
        labels, or the unlabelled images are too few.

    Example:
      >>> backbone = mlclip_jax.load_backbone("timm/vit_base_patch16_clip_224.openai")
      >>> scores = patch_scores(backbone, ["photo.jpg"], ["cat", "dog", "car"])  # (1, 3)
    """
    settings = settings or PatchSettings()
    check_label_names(label_names, "label_names")
    classes = name_vectors(backbone, label_names, settings.templates)
    words = background_words(label_names) if settings.background else ()
    background = name_vectors(backbone, words, settings.templates) if words else None
    return score_patches(backbone, images, classes, background, settings, unlabelled=unlabelled)


def name_vectors(backbone: Backbone, names: Sequence[str], templates: str) -> Float32[np.ndarray, "K D"]:
    """Embeddings of names in templates, see `embeddings.embed.embed_names`."""
    return np.asarray(embed_names(backbone, names, templates).vectors, np.float32)


def score_patches(
    backbone: Backbone,
    images: Images,
    classes: Vectors,
    background: Float[Array | np.ndarray, "M D"] | None,
    settings: PatchSettings,
    *,
    unlabelled: Images | None = None,
    gaussians: Gaussians | None = None,
) -> Float32[np.ndarray, "N K"]:
    """The same by embeddings of the labels and, where `settings.background`, of words for the background.

    Args:
      gaussians: of `learn_gaussians`, where they are known already.
    """
    if not isinstance(images, Source):
        images = as_list(images, "images")
    classes, background = jnp.asarray(classes), background if settings.background else None
    background = None if background is None else jnp.asarray(background)
    if not settings.gaussian:
        gaussians = None
    elif gaussians is None:
        bank = images if unlabelled is None else unlabelled
        gaussians = learn_gaussians(backbone, bank, classes, background, settings)

    highest, cosines = (np.empty((len(images), len(classes)), np.float32) for _ in range(2))
    program, known = _scoring(backbone, settings), (classes, background, gaussians)

    def score(pixels):
        return program(backbone.parameters, pixels, *known)

    inputs = ((rows, (pixels,)) for rows, pixels in batches(backbone, images, settings))
    with progress_bar(len(images), "scoring patches", "images") as bar:
        for rows, (own_highest, own_cosines) in run_ahead(score, _mesh(), inputs):
            highest[rows], cosines[rows] = own_highest[: len(rows)], own_cosines[: len(rows)]
            bar.update(len(rows))
    if settings.crops:
        cosines = cosines_of_crops(backbone, images, classes, settings.crops, settings.batch_size)
    scores = merged(
        highest,
        cosines if settings.global_weight else None,
        patch_scale=settings.patch_scale if settings.gaussian else 0.0,
        global_weight=settings.global_weight,
        global_scale=settings.global_scale,
    )
    return np.asarray(scores)


def learn_gaussians(
    backbone: Backbone,
    images: Images,
    classes: Vectors,
    background: Float[Array | np.ndarray, "M D"] | None,
    settings: PatchSettings,
) -> Gaussians:
    """The Gaussian classifier of patches that unlabelled images teach.

    Patches that resemble a word for the background most, where `settings.background`, teach no class.

    Raises:
      InputError: an image cannot be read, there are too few, or there are too many labels.
    """
    classes = jnp.asarray(classes)
    held = 4 * BANK_SIZE * classes.size
    if held > BANK_BYTES:
        raise InputError(
            f"the Gaussian classifier holds {BANK_SIZE} patches of each label, {held / 2**30:.0f} GiB of "
            f"{len(classes):,} labels; give fewer labels, or gaussian=False"
        )
    background = background if settings.background else None
    names = classes if background is None else jnp.concatenate([classes, jnp.asarray(background)])
    collect, mesh = _collecting(backbone, settings.attention), _mesh()
    bank = empty_bank(len(classes), backbone.embedding_width, BANK_SIZE)

    if not isinstance(images, Source):
        images = as_list(images, "unlabelled images")
    with progress_bar(len(images), "collecting patches", "images") as bar:
        for rows, pixels in batches(backbone, images, settings):
            there = np.arange(len(pixels)) < len(rows)
            inputs = jax.device_put((pixels, there), split_rows(mesh))
            bank = collect(bank, backbone.parameters, *inputs, names)
            bar.update(len(rows))
    return fit_gaussians(bank, classes, purified=settings.purified or None)


def cosines_of_crops(
    backbone: Backbone, images: Images, classes: Vectors, crops: int, batch_size: int = 32
) -> Float32[np.ndarray, "N K"]:
    """Cosine of each class with that of an image's crops, or the image itself, which fits it best.

    Args:
      crops: n; n x n of them are 2 / (n + 1) of the image high and wide, and overlap by half.
      batch_size: crops at once.

    Raises:
      InputError: an image cannot be read.
    """
    if not isinstance(images, Source):
        images = as_list(images, "images")
    per_image, mesh = 1 + crops * crops, _mesh()
    together = max(batch_size // per_image, 1)
    padded = together * per_image + -together * per_image % mesh.size
    read = _reader(images)

    def cut(index):
        whole = full_pixels(backbone.image_processor, read(index))
        return [backbone.image_processor.pixels(part) for part in (whole, *_crops(whole, crops))]

    named = _naming(images, cut)

    def batched():
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), together):
                rows = np.arange(start, min(start + together, len(images)))
                pixels = np.stack([part for parts in pool.map(named, rows) for part in parts])
                yield rows, np.pad(pixels, [(0, padded - len(pixels)), (0, 0), (0, 0), (0, 0)])

    cosines = np.empty((len(images), len(classes)), np.float32)
    with progress_bar(len(images), "scoring crops", "images") as bar:
        for rows, (embeddings,) in backbone.encode_pixels(batched()):
            own = embeddings[: len(rows) * per_image].reshape(len(rows), per_image, -1)
            cosines[rows] = crop_scores(own, classes)
            bar.update(len(rows))
    return cosines


def batches(
    backbone: Backbone, images: Source | list[ImageLike], settings: PatchSettings
) -> Iterator[tuple[np.ndarray, UInt8[np.ndarray, "B H W 3"]]]:
    """Pixels of images in batches of one size each, padded by zeros, with the numbers of the images.

    While images keep their aspect ratio, a batch waits until enough have come of its size; at the end those
    that are not full are padded.
    """
    read, multiple = _reader(images), _mesh().size
    size = min(settings.batch_size, 1 << (len(images) - 1).bit_length())
    size += -size % multiple

    def prepare(index):
        if settings.short_side:
            own = backbone.image_processor, read(index), settings.short_side, backbone.stride
            return native_pixels(*own)
        return backbone.image_processor.pixels(read(index))

    named = _naming(images, prepare)

    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}

    def full(shape):
        rows, pixels = zip(*waiting.pop(shape))
        stacked = np.stack(pixels)
        return np.array(rows), np.pad(stacked, [(0, size - len(rows)), (0, 0), (0, 0), (0, 0)])

    with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
        for start in range(0, len(images), size):
            rows = range(start, min(start + size, len(images)))
            for row, pixels in zip(rows, pool.map(named, rows)):
                waiting.setdefault(pixels.shape, []).append((row, pixels))
                if len(waiting[pixels.shape]) == size:
                    yield full(pixels.shape)
    for shape in list(waiting):
        yield full(shape)


def _scoring(backbone: Backbone, settings: PatchSettings) -> Callable[..., tuple[Array, Array]]:
    """The program of a batch, compiled once for what is static: its highest patches, and global cosines."""
    own = form, refine, scale, temperature = (
        settings.attention,
        settings.refine,
        settings.scale,
        settings.temperature,
    )

    def score(parameters, pixels, classes, background, gaussians):
        dense = dense_features(backbone, parameters, pixels, form, maps=refine)
        if gaussians is None:
            probabilities = patch_probabilities(dense.local, classes, background, scale)
        else:
            probabilities = gaussian_probabilities(gaussians, dense.local, temperature)
        if dense.maps is not None:
            grid = tuple(side // backbone.stride for side in pixels.shape[1:3])
            probabilities = refined(probabilities, attention_affinity(dense.maps), grid)
        return pooled(probabilities), cosine_scores(dense.embeddings, classes)

    return backbone.compiled.setdefault(("score patches", *own), jax.jit(score))


def _collecting(backbone: Backbone, form: str) -> Callable[..., Bank]:
    """The program that adds a batch to a bank; what pads it is not `there`."""

    def collect(bank, parameters, pixels, there, names):
        local = dense_features(backbone, parameters, pixels, form).local
        probabilities = patch_probabilities(local, names, scale=BANK_SCALE)
        there = jnp.repeat(there, local.shape[1])
        patches = local.reshape(-1, local.shape[-1])
        return add_patches(bank, patches, probabilities.reshape(len(patches), -1), there)

    return backbone.compiled.setdefault(("collect patches", form), jax.jit(collect, donate_argnums=0))


def _reader(images: Source | list[ImageLike]) -> Callable[[int], ImageLike]:
    """What gives an image by its number."""
    return images.read if isinstance(images, Source) else images.__getitem__


def _naming(images: Source | list[ImageLike], prepare: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same, but that an image of a source that cannot be read is named."""

    def named(index):
        try:
            return prepare(index)
        except UnreadableImage as error:
            if not isinstance(images, Source):
                raise
            raise InputError(f"cannot read image {images.names[index]}: {error}; repair it") from error

    return named


def _crops(whole: UInt8[np.ndarray, "H W 3"], crops: int) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    edges = [np.linspace(0, side, crops + 2).round().astype(int) for side in whole.shape[:2]]
    for row in range(crops):
        for column in range(crops):
            rows = slice(edges[0][row], max(edges[0][row + 2], edges[0][row] + 1))
            columns = slice(edges[1][column], max(edges[1][column + 2], edges[1][column] + 1))
            yield np.ascontiguousarray(whole[rows, columns])


def _mesh() -> jax.sharding.Mesh:
    return make_mesh(jax.local_devices())
