"""Zero-shot classification by patches, one step switched on after another, beside published figures."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mlclip_jax.backbones import load_backbone
from mlclip_jax.backbones.backbone import Backbone
from mlclip_jax.comparison import compare_steps, describe_gain
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.published_splits import PUBLISHED_SPLITS
from mlclip_jax.data.sources import Source
from mlclip_jax.embeddings.labelled import embed_once
from mlclip_jax.embeddings.store import read_embeddings
from mlclip_jax.errors import InputError
from mlclip_jax.experiments.scenes import BACKBONE
from mlclip_jax.experiments.zero_shot_published import (
    BENCHMARKS,
    COSINE,
    NATIVE,
    RIDGE,
    SCENES,
    STEPS,
    Benchmark,
)
from mlclip_jax.files import make_folder, write_rows, write_text
from mlclip_jax.metrics import PROTOCOLS
from mlclip_jax.options import nearest, read_options, split_options
from mlclip_jax.patches import PatchSettings, learn_gaussians, name_vectors, score_patches
from mlclip_jax.progress import note
from mlclip_jax.report import markdown_table
from mlclip_jax.run_folders import EMBEDDED
from mlclip_jax.scores import Scores, write_scores
from mlclip_jax.texts.templates import CLASS_TEMPLATE, describe_templates, record_templates
from mlclip_jax.texts.vocabulary import background_words
from mlclip_jax.zero_shot import cosine_scores, in_blocks, ridge_scores, standardise
from mlclip_jax.zero_shot.gaussian import Gaussians

SCENES_DATA = "scenes"
VIT_B_16 = "timm/vit_base_patch16_clip_224.openai"
NATIVE_SHORT_SIDE = 384  # pixels; most photographs of VOC and COCO are near it
# Of `PatchSettings`, what no step switches.
OWN_KEYS = ("attention", "scale", "purified", "temperature", "patch_scale", "global_scale", "batch_size")


def reproduce(
    name: str,
    data: str | os.PathLike,
    workdir: str | os.PathLike,
    num_seeds: int = 1,
    *,
    datasets: Sequence[str] = (),
    texts: Sequence[str] = (),
    changes: Sequence[str] = (),
    report: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """Measures every step on a benchmark, or on the built-in world, with intervals of what each gains.

    Leaves in `workdir` the scores of each step, `NAME.npz`, `table.md` and `figures.csv`, a row a step. The
    embeddings of whole images are kept and not made again.

    Args:
      name: a key of `BENCHMARKS`.
      data: folder that holds the benchmark as docs/datasets.md says; or "scenes", the built-in world.
      workdir: a folder.
      num_seeds: 1, as nothing is drawn.
      datasets, texts: none; the name says which data set it is, and labels are all the texts there are.
      changes: other values of the keys that `settings_of` gives, "short_side=448".
      report: called with what a command prints at the end, as `print`.

    Returns:
      The rows of `figures.csv`.

    Raises:
      InputError: there is no such benchmark, it is not there, or a value is invalid.
    """
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise InputError(f"no table {name!r}{nearest(name, BENCHMARKS)}; there are {known}")
    for flag, value in (("datasets", datasets), ("texts", texts)):
        if value:
            raise InputError(f"--{flag}={','.join(value)} is for tai_ tables; {name} has none, leave it away")
    if num_seeds != 1:
        raise InputError(
            f"--seeds={num_seeds}: {name} draws nothing, so every seed gives the same; leave it away"
        )
    benchmark = SCENES if str(data) == SCENES_DATA else BENCHMARKS[name]
    settings = settings_of(benchmark, data)
    settings |= read_options(f"reproduce {name}", changes, settings)
    by_patches = {key: patch_settings(key, settings) for key in STEPS if key not in (COSINE, RIDGE)}
    source, unlabelled = _open(benchmark, settings["images"]), _open(benchmark, settings["unlabelled"])
    if not source.label_names or not (source.labels == 1).any():
        raise InputError(f"images={settings['images']} have no labels to score; give a data set that has")
    backbone, workdir = load_backbone(settings["backbone"]), Path(workdir)
    make_folder(workdir)
    scores = {}
    for key, own in score_steps(backbone, source, unlabelled, by_patches, settings["templates"], workdir):
        origin = f"{_title(key, by_patches)}, {settings['backbone']}"
        known = Scores(own, source.label_names, source.names, source.labels, origin)
        write_scores(workdir / f"{key}.npz", known)
        scores[key] = own
    titles = {key: _title(key, by_patches) for key in scores}

    over = {key: STEPS[key].over for key in scores if STEPS[key].over}
    compared = compare_steps(scores, over, source.labels)
    rows, cells = [], []
    for key, (figure, gain) in compared.items():
        published, where = benchmark.published.get(key, ("", ""))
        own_over = titles[over[key]].removeprefix("+ ") if key in over else ""
        bounds = dict(zip(("gain", "lower", "upper"), gain or ("", "", "")))
        rows.append({"step": key, "mAP": figure, "over": over.get(key, ""), **bounds, "published": published})
        cells.append([titles[key], f"{figure:.1f}", own_over, describe_gain(gain), published, where])
    header = ["scores", "mAP", "over", "gain", "published", "published by"]
    protocol = _protocol(benchmark, backbone, source, unlabelled, settings)
    said = "\n\n".join(["  \n".join(protocol), markdown_table(header, cells)])
    sheet = workdir / "figures.csv"
    write_rows(sheet, rows)
    write_text(workdir / "table.md", said + "\n")
    if report:
        report("\n".join([said, "", str(workdir / "table.md"), str(sheet)]))
    return rows


def settings_of(benchmark: Benchmark, data: str | os.PathLike) -> dict[str, Any]:
    """What a table is made with: images, backbone, and of `PatchSettings` what no step changes.

    `attention` is the form of the step of this name, and `short_side` that of images at their own aspect
    ratio.
    """
    unlabelled, images = (spec.format(data) for spec in PUBLISHED_SPLITS[benchmark.dataset])
    defaults = dataclasses.asdict(PatchSettings())
    on_scenes = benchmark is SCENES
    return {
        "images": images,
        "unlabelled": "scenes:train,number=2000" if on_scenes else unlabelled,
        "backbone": BACKBONE if on_scenes else VIT_B_16,
        "templates": CLASS_TEMPLATE if on_scenes else "imagenet",
        "short_side": 0 if on_scenes else NATIVE_SHORT_SIDE,
        **{key: defaults[key] for key in OWN_KEYS},
        **benchmark.settings,
    }


def score_steps(
    backbone: Backbone,
    source: Source,
    unlabelled: Source,
    by_patches: Mapping[str, PatchSettings | None],
    templates: str,
    workdir: Path,
) -> Iterator[tuple[str, Float32[np.ndarray, "N K"]]]:
    """Scores by plain cosine, by ridge regression, and by each step that has settings, as they come."""
    classes = name_vectors(backbone, source.label_names, templates)
    words = name_vectors(backbone, background_words(source.label_names), templates)
    embedded = read_embeddings(embed_once(source, backbone, workdir / EMBEDDED, max_skipped=0.0))
    whole = np.asarray(embedded.vectors)
    yield COSINE, in_blocks(lambda block: cosine_scores(block, classes), whole, len(classes))
    yield RIDGE, in_blocks(lambda block: standardise(ridge_scores(block, classes)), whole, len(classes))
    taught: dict[PatchSettings, Gaussians] = {}  # for steps that differ in what comes after it
    for key, own in by_patches.items():
        if own is not None:
            note(f"scoring: {_title(key, by_patches)}")
            if own.gaussian and _learnt_by(own) not in taught:
                taught[_learnt_by(own)] = learn_gaussians(backbone, unlabelled, classes, words, own)
            known = taught[_learnt_by(own)] if own.gaussian else None
            yield key, score_patches(backbone, source, classes, words, own, gaussians=known)


def patch_settings(key: str, settings: Mapping[str, Any]) -> PatchSettings | None:
    """The settings of a step by patches, which are those of the steps before it and its own.

    None where it is at native aspect ratio only, and there is no `short_side`.
    """
    chain = [key]
    while STEPS[chain[-1]].over not in ("", COSINE):
        chain.append(STEPS[chain[-1]].over)
    changed: dict[str, Any] = functools.reduce(
        lambda known, own: known | dict(STEPS[own].settings), reversed(chain), {}
    )
    native = changed.pop(NATIVE, False)
    if native and not settings["short_side"] and key == NATIVE:
        return None
    if changed.get("attention") == PatchSettings.attention:
        changed["attention"] = settings["attention"]
    own = {name: settings[name] for name in (*OWN_KEYS, "templates")} | changed
    return PatchSettings(**own, short_side=settings["short_side"] if native else 0)


def _title(key: str, by_patches: Mapping[str, PatchSettings | None]) -> str:
    own = by_patches.get(key)
    return STEPS[key].title + ", native aspect ratio" * bool(own and own.short_side)


def _learnt_by(own: PatchSettings) -> PatchSettings:
    """The settings, but for what does not enter the Gaussian classifier."""
    return dataclasses.replace(own, global_weight=0.0, crops=0, refine=False)


def _open(benchmark: Benchmark, spec: str) -> Source:
    """Images, after a look at whether their folder is there."""
    kind, _, rest = spec.partition(":")
    folder, _ = split_options(rest)
    if kind != SCENES_DATA and kind in ("voc", "coco", "nus_wide") and not Path(folder).is_dir():
        raise InputError(
            f"{benchmark.title} is not there ({folder}): lay it out as docs/datasets.md says, or give "
            f"--data={SCENES_DATA}"
        )
    return open_images(spec)


def _protocol(benchmark, backbone, source, unlabelled, settings):
    """What the figures mean, in lines."""
    templates = describe_templates(record_templates(settings["templates"]))
    size = "x".join(map(str, backbone.image_size))
    short = settings["short_side"]
    native = f" (at native aspect ratio {short} on the shorter side)" * bool(short)
    lines = [
        f"Zero-shot classification by patches, {benchmark.title}: what each step gains.",
        f"{PROTOCOLS['ap']}, in percent; gains with 95% intervals, by 1,000 paired resamples.",
        f"{len(source):,} images of {settings['images']}, {size} pixels{native}; "
        f"class texts {templates}; backbone {backbone.origin.name}.",
        f"The Gaussian classifier learns from {len(unlabelled):,} images of {settings['unlabelled']}, "
        "without their labels.",
        f"Self-self attention {settings['attention']}; softmax of patches {settings['scale']:g}, of their "
        f"highest {settings['patch_scale']:g}, of the whole image {settings['global_scale']:g}; Gaussian "
        f"classifier {settings['purified']:g} and {settings['temperature']:g}.",
    ]
    if benchmark is SCENES:
        return [*lines, "Nothing is published of the built-in world."]
    published = (
        "Published figures are by CLIP ViT-B/16, each with the steps, prompts and protocol of its source: "
        "PIAA's prompt is 'a photo of a {}'."
    )
    return [*lines, " ".join(filter(None, [published, benchmark.remark]))]
