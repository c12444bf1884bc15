"""The built-in CLIP: small, in everybody's format, and as good as what is recorded beside it."""

import json

import numpy as np
import pytest

import mlclip_jax
from mlclip_jax.backbones.weights import BUILT_IN
from mlclip_jax.configs import pretrain_scenes
from mlclip_jax.data.scenes import LABELS, OTHER_LABELS, Scenes
from mlclip_jax.metrics import mean_average_precision
from mlclip_jax.texts.templates import CLASS_TEMPLATE, fill
from mlclip_jax.training.captioned import open_source
from mlclip_jax.zero_shot import cosine_scores, modality_gap

FOLDER = BUILT_IN["scenes-clip"]


@pytest.fixture(scope="module")
def backbone():
    return mlclip_jax.load_backbone("scenes-clip")


def figures_on(backbone, scenes):
    """mAP of plain cosine in percent, and the gap, with all labels that the scenes may have."""
    names = LABELS + OTHER_LABELS
    images = backbone.encode_images([scene.image for scene in scenes])
    texts = backbone.encode_texts([scene.caption for scene in scenes])
    classes = backbone.encode_texts([fill(CLASS_TEMPLATE, [name]) for name in names])
    labels = np.stack([scene.labels for scene in scenes])
    mean, count = mean_average_precision(cosine_scores(images, classes), labels)
    assert count == len(names)
    return {"mAP_percent": 100 * float(mean), "modality_gap": float(modality_gap(images, texts))}


def test_it_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8_000_000
    held = {file.name for file in FOLDER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= held
    assert {"README.md", "figures.json"} <= held


def test_plain_cosine_recognises_scenes_of_another_seed(backbone):
    """As measured when the test was written; another version of Pillow may draw them a rounding apart."""
    figures = figures_on(backbone, list(Scenes(77, 1_000, label_names=LABELS + OTHER_LABELS)))
    assert figures["mAP_percent"] == pytest.approx(94.75, abs=0.5)
    assert figures["modality_gap"] == pytest.approx(0.5325, abs=0.005)


def test_the_readme_says_what_was_recorded():
    recorded = json.loads((FOLDER / "figures.json").read_text())
    assert recorded["auxiliary label loss"] is True
    readme = (FOLDER / "README.md").read_text()
    assert f"**{recorded['mAP_percent']:.1f} mAP**" in readme
    assert f"| {recorded['modality_gap']:.2f} |" in readme


@pytest.mark.slow  # a quarter of a minute
def test_its_recorded_figures_are_its_figures(backbone):
    """On the very scenes that its pre-training held out."""
    recorded = json.loads((FOLDER / "figures.json").read_text())
    source = open_source(pretrain_scenes.get_config())
    held_out = [source[i] for i in range(len(source) - recorded["held_out"], len(source))]
    assert figures_on(backbone, held_out) == {
        "mAP_percent": pytest.approx(recorded["mAP_percent"], abs=0.5),
        "modality_gap": pytest.approx(recorded["modality_gap"], abs=0.005),
    }


def test_its_embeddings_stay_what_they_are(backbone):
    """Against numbers stored when it was made: what is built upon it may rely on them."""
    scenes = list(Scenes(78, 4, label_names=LABELS))
    stored = np.load(FOLDER.parents[2] / "tests/backbones/scenes_clip_golden.npz")
    # Scenes may differ by a rounding where another version of Pillow draws them.
    assert np.abs(np.stack([scene.image for scene in scenes]).astype(int) - stored["pixels"]).max() <= 8
    images = backbone.encode_images(list(stored["pixels"]))
    np.testing.assert_allclose(images, stored["images"], rtol=0, atol=1e-4)
    texts = backbone.encode_texts([scene.caption for scene in scenes])
    np.testing.assert_allclose(texts, stored["texts"], rtol=0, atol=1e-4)
